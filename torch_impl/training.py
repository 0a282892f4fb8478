"""One step of training, and prediction, on a whole model."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import vector_to_parameters

from spec.backend import Prediction, StepResult
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.params import parameter_schema, select_arrays
from spec.precision import SCALE_NAME, LossScale
from torch_impl import fast, recurrent
from torch_impl.arrays import from_numpy, prepare, rounded, to_numpy, widened
from torch_impl.losses import LOSSES, over_steps
from torch_impl.models import Output, sequence_model
from torch_impl.optimizers import GradientTransformation, OptimizerState, optimizer


class TrainState(NamedTuple):
    config: ModelConfig
    execution: Execution
    model: nn.Module
    optimizer: GradientTransformation
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

    def tensors(prefix: str) -> dict[str, torch.Tensor]:
        selected = select_arrays(schema, arrays, prefix)
        return {name: from_numpy(array, execution) for name, array in selected.items()}

    layers = fast if execution.fast else recurrent
    layers = recurrent.recomputing(layers) if execution.remat else layers
    with torch.device("meta"):
        module = sequence_model(model, layers)
    module.load_state_dict(tensors(""), assign=True)
    rule = optimizer(optimizer_config)
    scale = LossScale.of(arrays) if execution.dtype == "float16" else None
    step -= scale.skipped if scale else 0
    state = rule.init(flatten(module.parameters()))._replace(step=step)
    for kind in ("m", "v"):
        if any(name.startswith(f"optimizer.{kind}.") for name in arrays):
            moment = flatten(tensors(f"optimizer.{kind}.").values())
            state = state._replace(**{kind: moment})
    return TrainState(model, execution, module, rule, state, scale)


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Lay tensors end to end in one vector, detached."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def put(batch: Batch, execution: Execution) -> dict[str, Any]:
    """Put the arrays of a batch on the device."""
    names = ("inputs", "lengths", "targets", "weights", "class_weights")
    arrays = {name: getattr(batch, name) for name in names}
    on_device = {n: from_numpy(a, execution) for n, a in arrays.items() if a is not None}
    keep = {name: from_numpy(mask, execution) for name, mask in batch.keep.items()}
    return on_device | ({"keep": keep} if keep else {})


def apply(state: TrainState, arrays: Mapping[str, Any]) -> Output:
    """Run the model on the arrays of a batch, rounded at its door as `spec.precision` says."""
    execution, model = state.execution, state.model
    read = ["inputs"] + ["targets"] * (state.config.decodes and "targets" in arrays)
    arrays = {**arrays, **{name: rounded(arrays[name], execution) for name in read}}
    told = {"targets": arrays.get("targets")} if state.config.decodes else {}
    given = arrays["inputs"], arrays.get("lengths")
    told = {"keep": arrays.get("keep"), **told}
    if execution.dtype == execution.master_dtype:
        return model(*given, **told)
    params = {name: rounded(tensor, execution) for name, tensor in model.named_parameters()}
    output = functional_call(model, params, given, told)
    return Output(*(part if part is None else widened(part, execution) for part in output))


def objective(
    config: ModelConfig, predictions: torch.Tensor, arrays: Mapping[str, Any]
) -> torch.Tensor:
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
            weights = steps.to(predictions.dtype)
    return loss(predictions, arrays["targets"], weights, **options)


def loss(state: TrainState, arrays: Mapping[str, Any]) -> torch.Tensor:
    """Return the mean loss of a batch."""
    predictions = apply(state, arrays).predictions
    return objective(state.config, predictions, arrays)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
    """Take one step; the old state is used up."""
    params = list(state.model.parameters())
    value, scale = loss(state, put(batch, state.execution)), state.loss_scale
    d_value = None if scale is None else value.new_tensor(scale.scale)
    gradient, vector = flatten(torch.autograd.grad(value, params, d_value)), flatten(params)
    if scale is not None:
        gradient = gradient / scale.scale
    updates, moved = state.optimizer.update(gradient, state.optimizer_state, vector)
    result = StepResult(value.item(), moved.norm.item())
    if scale is not None:
        scale = scale.after(result.taken)
        result = result._replace(loss_scale=scale.scale)
    if scale is None or result.taken:
        vector_to_parameters(vector + updates, params)
        state = state._replace(optimizer_state=moved)
    return state._replace(loss_scale=scale), result


@torch.no_grad()
def predict(state: TrainState, batch: Batch) -> Prediction:
    """Run the model without dropout."""
    output = apply(state, put(Batch(batch.inputs, batch.lengths), state.execution))
    attention = None if output.attention is None else to_numpy(output.attention)
    return Prediction(to_numpy(output.predictions), attention)


def export_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Copy out the parameters, the optimiser's running means and the loss scale, by name."""
    params = dict(state.model.named_parameters())
    arrays = {name: to_numpy(tensor) for name, tensor in params.items()}
    for kind in ("m", "v"):
        vector = getattr(state.optimizer_state, kind)
        if vector is not None:
            parts = vector.split([tensor.numel() for tensor in params.values()])
            for (name, tensor), part in zip(params.items(), parts, strict=True):
                arrays[f"optimizer.{kind}.{name}"] = to_numpy(part.view_as(tensor))
    if state.loss_scale is not None:
        arrays[SCALE_NAME] = state.loss_scale.array
    return arrays
