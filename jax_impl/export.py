"""The model as a program of its own, from readings to answers in the unit of the data.

Dimensions: B batch, T time, D input features, O outputs (targets or classes).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Float, Int

from jax_impl import fast
from jax_impl.arrays import from_numpy, rounded, to_tree, widened
from jax_impl.losses import mean_and_std
from jax_impl.models import MODELS
from spec.config import Execution, ModelConfig
from spec.params import position_rates
from spec.units import Units


def positions(time: int, size: int) -> Float[Array, "T H"]:
    """Return `sinusoidal_positions` of a time that is not known yet, float64 [time, size]."""
    angle = jnp.arange(time, dtype=jnp.float64)[:, None] / position_rates(size)
    odd = jnp.arange(size) % 2 == 1
    return jnp.where(odd, jnp.cos(angle), jnp.sin(angle))


def answers(
    config: ModelConfig,
    execution: Execution,
    params: Mapping[str, Any],
    units: Units,
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B O"]:
    """Scale readings, run the model, answer in the unit of the data.

    Args:
      inputs: readings [B, T, D], float64, NaN where one is missing, which is taken for its
        feature's mean; what stands past a sequence's end is ignored.
      lengths: real steps of each sequence [B], 1 <= length <= T.

    Returns:
      float64 [B, O]: predictions, or the probabilities of the classes; or of each target side by
      side its quantiles in increasing order, or mean and standard deviation. Of every step
      [B, T, O], of which what stands past an end means nothing.
    """
    scaled = (inputs - units.input_mean) / units.input_std
    scaled = rounded(widened(jnp.where(jnp.isnan(scaled), 0.0, scaled), execution), execution)
    if not config.recurrent and config.positions == "sinusoidal":
        computed = positions(inputs.shape[1], config.hidden_size).astype(scaled.dtype)
        params = {**params, "embedding": {**params["embedding"], "positions": computed}}
    output = MODELS[config.model](config, params, scaled, lengths, layers=fast)
    outputs = output.predictions.astype(jnp.float64)
    if config.criterion == "cross_entropy":
        return jax.nn.softmax(outputs, axis=-1)
    mean, std = units.target_mean, units.target_std
    if config.criterion == "quantile":
        by_target = outputs.reshape(*outputs.shape[:-1], -1, len(config.levels))
        by_target = jnp.sort(by_target, axis=-1)
        return (by_target * std[:, None] + mean[:, None]).reshape(outputs.shape)
    if config.criterion == "gaussian_nll":
        center, spread = mean_and_std(outputs)
        pairs = jnp.stack([center * std + mean, spread * std], axis=-1)
        return pairs.reshape(outputs.shape)
    return outputs * std + mean


def _as_written(program: ClosedJaxpr, *inputs: Array) -> list[Array]:
    """Run a program so that each narrow result is rounded where it says, whoever compiles it.

    Left to itself XLA may keep such a result in float32 from one operation to the next; what it is
    told against that, `training.py` does, is no part of an exported program.
    """
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= zip(program.jaxpr.invars, inputs, strict=True)

    def read(value):
        return value.val if isinstance(value, Literal) else values[value]

    def body(part):
        return jax.make_jaxpr(partial(_as_written, part))(*part.in_avals)

    for step in program.jaxpr.eqns:
        parts = {n: part for n, part in step.params.items() if isinstance(part, ClosedJaxpr)}
        bodies = {name: body(part) for name, part in parts.items()}
        options = step.primitive.get_bind_params(step.params | bodies)
        found = step.primitive.bind(*map(read, step.invars), **options)
        found = found if step.primitive.multiple_results else [found]
        for name, array in zip(step.outvars, found, strict=True):
            bits = NARROW.get(str(array.dtype))
            values[name] = lax.reduce_precision(array, *bits) if bits else array
    return [read(value) for value in program.jaxpr.outvars]


def export(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    dtype: str,
    units: Units,
    format: str,
    record: str,
) -> bytes:
    """Write `answers` as a program whose batch and length stay open.

    Args:
      config: of the model.
      arrays: its parameters by name.
      dtype: to compute in, as `spec.precision` says.
      units: of the readings and of the answers.
      format: one of `FORMATS`.
      record: text to travel in the file, where the format has room for it.
    """
    execution = Execution(dtype=dtype)
    with jax.enable_x64(True):
        named = {n: rounded(from_numpy(a, execution), execution) for n, a in arrays.items()}
        params = to_tree(named)

        @jax.jit
        def program(inputs, lengths):
            return answers(config, execution, params, units, inputs, lengths)

        open = ["batch >= 1", "time >= 1"] + [f"time <= {config.longest}"] * bool(config.longest)
        B, T = jax.export.symbolic_shape("batch, time", constraints=open)
        inputs = jax.ShapeDtypeStruct((B, T, config.input_size), jnp.float64)
        lengths = jax.ShapeDtypeStruct((B,), jnp.int64)
        if dtype in NARROW:
            plain = program.trace(inputs, lengths).jaxpr
            program = jax.jit(lambda inputs, lengths: _as_written(plain, inputs, lengths)[0])
        exported = jax.export.export(program, platforms=FORMATS[format])
        return bytes(exported(inputs=inputs, lengths=lengths).serialize())


def run(content: bytes, format: str, inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Read a program as a stranger would, who has nothing but the file, and run it."""
    with jax.enable_x64(True):
        program = jax.export.deserialize(bytearray(content))
        return np.asarray(program.call(inputs=inputs, lengths=lengths))


FORMATS = {"stablehlo": ("cpu", "cuda")}
NARROW = {"bfloat16": (8, 7), "float16": (5, 10)}  # bits of exponent and mantissa
