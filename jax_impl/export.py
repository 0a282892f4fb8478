"""The model as a program of its own, from readings to answers in the unit of the data.

Dimensions: B batch, T time, D input features, O outputs (targets or classes).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jax_impl import fast
from jax_impl.arrays import to_tree
from jax_impl.losses import mean_and_std
from jax_impl.models import MODELS
from spec.config import ModelConfig
from spec.params import position_rates
from spec.units import Units


def positions(time: int, size: int) -> Float[Array, "T H"]:
    """Return `sinusoidal_positions` of a time that is not known yet, float64 [time, size]."""
    angle = jnp.arange(time, dtype=jnp.float64)[:, None] / position_rates(size)
    odd = jnp.arange(size) % 2 == 1
    return jnp.where(odd, jnp.cos(angle), jnp.sin(angle))


def answers(
    config: ModelConfig,
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
    scaled = jnp.where(jnp.isnan(scaled), 0.0, scaled).astype(params["head"]["bias"].dtype)
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


def export(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    units: Units,
    format: str,
    record: str,
) -> bytes:
    """Write `answers` as a program whose batch and length stay open.

    Args:
      config: of the model.
      arrays: its parameters by name, in the dtype to compute in.
      units: of the readings and of the answers.
      format: one of `FORMATS`.
      record: text to travel in the file, where the format has room for it.
    """
    with jax.enable_x64(True):
        params = to_tree({name: jnp.asarray(array) for name, array in arrays.items()})

        @jax.jit
        def program(inputs, lengths):
            return answers(config, params, units, inputs, lengths)

        open = ["batch >= 1", "time >= 1"] + [f"time <= {config.longest}"] * bool(config.longest)
        B, T = jax.export.symbolic_shape("batch, time", constraints=open)
        inputs = jax.ShapeDtypeStruct((B, T, config.input_size), jnp.float64)
        lengths = jax.ShapeDtypeStruct((B,), jnp.int64)
        exported = jax.export.export(program, platforms=FORMATS[format])
        return bytes(exported(inputs=inputs, lengths=lengths).serialize())


def run(content: bytes, format: str, inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Read a program as a stranger would, who has nothing but the file, and run it."""
    with jax.enable_x64(True):
        program = jax.export.deserialize(bytearray(content))
        return np.asarray(program.call(inputs=inputs, lengths=lengths))


FORMATS = {"stablehlo": ("cpu", "cuda")}
