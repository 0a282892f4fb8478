"""One step of training, and prediction, on a whole model."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from jax_impl import fast, recurrent
from jax_impl.arrays import device, from_numpy, prepare, to_names, to_numpy, to_tree
from jax_impl.losses import LOSSES, over_steps
from jax_impl.models import MODELS, Output
from jax_impl.optimizers import OptimizerState, optimizer
from spec.backend import Prediction, StepResult
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.params import parameter_schema, select_arrays


class TrainState(NamedTuple):
    config: ModelConfig
    execution: Execution
    optimizer_config: OptimizerConfig
    params: Mapping[str, Any]
    optimizer_state: OptimizerState


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
    state = state._replace(step=state.step + step)
    for kind in ("m", "v"):
        if any(name.startswith(f"optimizer.{kind}.") for name in arrays):
            state = state._replace(**{kind: ravel_pytree(tree(f"optimizer.{kind}."))[0]})
    state = jax.device_put(state, device(execution))
    return TrainState(model, execution, optimizer_config, params, state)


def put(batch: Batch, execution: Execution) -> dict[str, Any]:
    """Put the arrays of a batch on the device."""
    names = ("inputs", "lengths", "targets", "weights", "class_weights")
    arrays = {name: getattr(batch, name) for name in names}
    on_device = {n: from_numpy(a, execution) for n, a in arrays.items() if a is not None}
    keep = {name: from_numpy(mask, execution) for name, mask in batch.keep.items()}
    return on_device | ({"keep": keep} if keep else {})


def apply(config: ModelConfig, execution: Execution, params, arrays: Mapping[str, Any]) -> Output:
    """Run the model on the arrays of a batch."""
    layers = fast if execution.fast else recurrent
    layers = recurrent.recomputing(layers) if execution.remat else layers
    lengths, keep = arrays.get("lengths"), arrays.get("keep")
    model = MODELS[config.model]
    told = {"targets": arrays.get("targets")} if config.decodes else {}
    return model(config, params, arrays["inputs"], lengths, keep=keep, layers=layers, **told)


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


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(config, execution, optimizer_config, params, optimizer_state, arrays):
    value, gradient = jax.value_and_grad(loss, argnums=2)(config, execution, params, arrays)
    updates, moved = optimizer(optimizer_config).update(gradient, optimizer_state, params)
    return optax.apply_updates(params, updates), moved, value


_apply = jax.jit(apply, static_argnums=(0, 1))


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
    """Take one step; the old state is used up."""
    params, moved, value = _step(
        state.config,
        state.execution,
        state.optimizer_config,
        state.params,
        state.optimizer_state,
        put(batch, state.execution),
    )
    result = StepResult(*map(float, jax.device_get((value, moved.norm))))
    return state._replace(params=params, optimizer_state=moved), result


def predict(state: TrainState, batch: Batch) -> Prediction:
    """Run the model without dropout."""
    arrays = put(Batch(batch.inputs, batch.lengths), state.execution)
    output = _apply(state.config, state.execution, state.params, arrays)
    attention = None if output.attention is None else to_numpy(output.attention)
    return Prediction(to_numpy(output.predictions), attention)


def export_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Copy out the parameters and the optimiser's running means, by name."""
    arrays = {name: to_numpy(array) for name, array in to_names(state.params).items()}
    unravel = ravel_pytree(state.params)[1]
    for kind in ("m", "v"):
        vector: Array | None = getattr(state.optimizer_state, kind)
        if vector is not None:
            for name, part in to_names(unravel(vector)).items():
                arrays[f"optimizer.{kind}.{name}"] = to_numpy(part)
    return arrays
