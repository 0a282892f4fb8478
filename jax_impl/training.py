"""One step of training, and prediction, on a whole model."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from jax_impl import fast, recurrent
from jax_impl.arrays import (
    device,
    from_numpy,
    prepare,
    rounded,
    to_names,
    to_numpy,
    to_tree,
    widened,
)
from jax_impl.losses import LOSSES, over_steps
from jax_impl.models import MODELS, Output
from jax_impl.optimizers import OptimizerState, optimizer
from spec.backend import Prediction, StepResult
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.params import parameter_schema, select_arrays
from spec.precision import SCALE_NAME, LossScale


class TrainState(NamedTuple):
    config: ModelConfig
    execution: Execution
    optimizer_config: OptimizerConfig
    params: Mapping[str, Any]
    optimizer_state: OptimizerState
    loss_scale: LossScale | None = None  # of float16


def init_state(
    model: ModelConfig,
    optimizer_config: OptimizerConfig,
    execution: Execution,
    arrays: Mapping[str, np.ndarray],
    step: int = 0,
) -> TrainState:
    """Build a model from named arrays, and an optimiser that has taken `step` steps.

    See `spec.backend.Backend`.
    """
    prepare(execution)
    schema = parameter_schema(model)

    def tree(prefix: str) -> dict[str, Any]:
        selected = select_arrays(schema, arrays, prefix)
        return to_tree({name: from_numpy(array, execution) for name, array in selected.items()})

    params = tree("")
    state = optimizer(optimizer_config).init(params)
    scale = LossScale.of(arrays) if execution.dtype == "float16" else None
    step -= scale.skipped if scale else 0
    state = state._replace(step=state.step + step)
    for kind in ("m", "v"):
        if any(name.startswith(f"optimizer.{kind}.") for name in arrays):
            state = state._replace(**{kind: ravel_pytree(tree(f"optimizer.{kind}."))[0]})
    state = jax.device_put(state, device(execution))
    return TrainState(model, execution, optimizer_config, params, state, scale)


def put(batch: Batch, execution: Execution) -> dict[str, Any]:
    """Put the arrays of a batch on the device."""
    names = ("inputs", "lengths", "targets", "weights", "class_weights")
    arrays = {name: getattr(batch, name) for name in names}
    on_device = {n: from_numpy(a, execution) for n, a in arrays.items() if a is not None}
    keep = {name: from_numpy(mask, execution) for name, mask in batch.keep.items()}
    return on_device | ({"keep": keep} if keep else {})


def apply(config: ModelConfig, execution: Execution, params, arrays: Mapping[str, Any]) -> Output:
    """Run the model on the arrays of a batch, rounded at its door as `spec.precision` says."""
    read = ["inputs"] + ["targets"] * (config.decodes and "targets" in arrays)
    arrays = {**arrays, **{name: rounded(arrays[name], execution) for name in read}}
    params = jax.tree.map(lambda array: rounded(array, execution), params)
    layers = fast if execution.fast else recurrent
    if execution.cudnn:
        layers = recurrent.with_unroll(fast, lstm=fast.unroll_lstm_by_cudnn)
    layers = recurrent.recomputing(layers) if execution.remat else layers
    layers = recurrent.by_steps(layers, execution.unroll) if execution.unroll > 1 else layers
    lengths, keep = arrays.get("lengths"), arrays.get("keep")
    model = MODELS[config.model]
    told = {"targets": arrays.get("targets")} if config.decodes else {}
    output = model(config, params, arrays["inputs"], lengths, keep=keep, layers=layers, **told)
    return jax.tree.map(lambda part: widened(part, execution), output)


def objective(config: ModelConfig, predictions: Array, arrays: Mapping[str, Any]) -> Array:
    """Return the mean loss of predictions for the targets and weights of a batch.

    Of every step without weights it is over the real ones.
    """
    options = {}
    if config.criterion == "quantile":
        options = {"quantiles": config.levels}
    if config.criterion == "cross_entropy":
        options = {
            "label_smoothing": config.label_smoothing,
            "class_weights": arrays.get("class_weights"),
        }
    loss, weights = LOSSES[config.criterion], arrays.get("weights")
    if config.every_step:
        loss = partial(over_steps, loss)
        if weights is None and "lengths" in arrays:
            steps = recurrent.real_steps(arrays["lengths"], predictions.shape[1])
            weights = steps.astype(predictions.dtype)
    return loss(predictions, arrays["targets"], weights, **options)


def loss(config: ModelConfig, execution: Execution, params, arrays: Mapping[str, Any]) -> Array:
    """Return the mean loss of a batch."""
    predictions = apply(config, execution, params, arrays).predictions
    return objective(config, predictions, arrays)


# Else a CPU keeps what it computed of bfloat16 in float32 from one operation to the next.
_jit = partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})


@partial(_jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(config, execution, optimizer_config, params, optimizer_state, arrays, scale):
    value, pullback = jax.vjp(lambda params: loss(config, execution, params, arrays), params)
    (gradient,) = pullback(jnp.ones_like(value) if scale is None else scale)
    if scale is not None:
        gradient = jax.tree.map(lambda part: part / scale, gradient)
    updates, moved = optimizer(optimizer_config).update(gradient, optimizer_state, params)
    after = optax.apply_updates(params, updates), moved
    if scale is not None:
        taken = jnp.isfinite(value) & jnp.isfinite(moved.norm)
        before = params, optimizer_state
        after = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, before)
    return *after, value, moved.norm


_apply = _jit(apply, static_argnums=(0, 1))


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
    """Take one step; the old state is used up."""
    scale = state.loss_scale
    params, moved, *numbers = _step(
        state.config,
        state.execution,
        state.optimizer_config,
        state.params,
        state.optimizer_state,
        put(batch, state.execution),
        None if scale is None else jnp.float32(scale.scale),
    )
    result = StepResult(*map(float, jax.device_get(numbers)))
    if scale is not None:
        scale = scale.after(result.taken)
        result = result._replace(loss_scale=scale.scale)
    return state._replace(params=params, optimizer_state=moved, loss_scale=scale), result


def predict(state: TrainState, batch: Batch) -> Prediction:
    """Run the model without dropout."""
    arrays = put(Batch(batch.inputs, batch.lengths), state.execution)
    output = _apply(state.config, state.execution, state.params, arrays)
    attention = None if output.attention is None else to_numpy(output.attention)
    return Prediction(to_numpy(output.predictions), attention)


def export_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Copy out the parameters, the optimiser's running means and the loss scale, by name."""
    arrays = {name: to_numpy(array) for name, array in to_names(state.params).items()}
    unravel = ravel_pytree(state.params)[1]
    for kind in ("m", "v"):
        vector: Array | None = getattr(state.optimizer_state, kind)
        if vector is not None:
            for name, part in to_names(unravel(vector)).items():
                arrays[f"optimizer.{kind}.{name}"] = to_numpy(part)
    if state.loss_scale is not None:
        arrays[SCALE_NAME] = state.loss_scale.array
    return arrays
