"""Our own models under the judge: both twins on one batch, array by array and step by step.

Dimensions: B batch, T time, H hidden units.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from jax_impl import encoder as jax_encoder
from jax_impl import fast as jax_fast
from jax_impl import models as jax_models
from jax_impl import recurrent as jax_recurrent
from jax_impl import training as jax_training
from jax_impl.arrays import to_tree
from jax_impl.cells import gru_cell, lstm_cell, rnn_cell
from jax_impl.encoder import encoder_layer
from parity.judge import Report, compare
from parity.measure import ulps
from spec import reference
from spec.batch import Batch
from spec.config import Execution, ModelConfig
from spec.params import split_layers
from torch_impl import encoder, fast, recurrent, training
from torch_impl.cells import GRUCell, LSTMCell, RNNCell
from torch_impl.models import encode, masks_between_layers, sequence_model

Arrays = Mapping[str, np.ndarray]
KEEP = "keep."
STATES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}


class Watched(nn.Module):
    """A torch model as the judge calls it: named arrays in, what `read` takes of it out."""

    def __init__(self, model: nn.Module, read: Callable):
        super().__init__()
        for name, part in model.named_children():
            self.add_module(name, part)
        self.model = [model]  # in a list, else its parameters would count twice
        self.read = read

    def forward(self, **arrays):
        return self.read(self.model[0], unpacked(arrays))


def unpacked(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the dropout masks, which the judge knows one by one, under "keep"."""
    keep = {name.removeprefix(KEEP): x for name, x in arrays.items() if name.startswith(KEEP)}
    rest = {name: x for name, x in arrays.items() if not name.startswith(KEEP)}
    return rest | ({"keep": keep} if keep else {})


def packed(batch: Batch, targets: bool) -> dict[str, np.ndarray]:
    """Name the arrays of a batch for the judge."""
    arrays = {"inputs": batch.inputs, "lengths": batch.lengths}
    arrays |= {"targets": batch.targets} if targets else {}
    masks = {KEEP + name: mask for name, mask in batch.keep.items()}
    return {name: x for name, x in (arrays | masks).items() if x is not None}


def told(config: ModelConfig, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Give the targets to a decoder, which is told some of them."""
    return {"targets": arrays["targets"]} if config.decodes else {}


def states(found: tuple[Any, Any]) -> dict[str, Any]:
    """Name what an encoder returns."""
    outputs, last = found
    last = last if isinstance(last, tuple) else (last,)
    return {"outputs": outputs} | dict(zip(("h", "c"), last, strict=False))


def judge_forward(config: ModelConfig, start: Arrays, batch: Batch, run: Execution) -> Report:
    """Compare predictions, attention weights and the encoder's outputs and last states.

    The truth is `spec.reference` in extended precision, a third text: so who is off is known.
    """

    def in_torch(model, arrays):
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        found = model(*given, keep=keep, **told(config, arrays))._asdict()
        if not config.recurrent:
            return found | {"outputs": encode(model, *given, keep)}
        masks = masks_between_layers(config, keep)
        return found | states(getattr(model, config.cell)(*given, None, masks))

    def in_jax(params, **arrays):
        arrays = unpacked(arrays)
        found = jax_training.apply(config, run, params, arrays)._asdict()
        layers = jax_fast if run.fast else jax_recurrent
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        if not config.recurrent:
            return found | {"outputs": jax_models.encode(config, params, *given, keep, layers)}
        masks = masks_between_layers(config, keep)
        own = jax_models.recurrent_layers(config, layers)
        return found | states(own(params[config.cell], *given, None, masks))

    def truth(**arrays):
        arrays = unpacked(arrays)
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        found = reference.predict(config, start, *given, keep=keep, **told(config, arrays))
        found = found._asdict()
        if not config.recurrent:
            return found | {"outputs": reference.transform(config, start, *given, keep).outputs}
        masks, own = masks_between_layers(config, keep), reference.part(start, config.cell)
        return found | reference.encode(config, own, *given, keep=masks)._asdict()

    model = Watched(torch_model(config, start, run), in_torch)
    inputs = packed(batch, targets=config.decodes)
    return compare(
        *(model, in_jax, inputs, to_tree(start), "equal", run.dtype),
        truth=truth,
        gradients=False,
        thorough=False,
    )


def judge_gradients(config: ModelConfig, start: Arrays, batch: Batch, run: Execution) -> Report:
    """Compare the training loss and its gradient by every parameter and by the inputs."""

    def in_torch(model, arrays):
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        output = model(*given, keep=keep, **told(config, arrays))
        loss = training.LOSSES[config.task]
        return {"loss": loss(output.predictions, arrays["targets"])}

    def in_jax(params, **arrays):
        return {"loss": jax_training.loss(config, run, params, unpacked(arrays))}

    model = Watched(torch_model(config, start, run), in_torch)
    inputs = packed(batch, targets=True)
    return compare(*(model, in_jax, inputs, to_tree(start), "equal", run.dtype), thorough=False)


def torch_model(config: ModelConfig, start: Arrays, run: Execution) -> nn.Module:
    """Build a model with the given weights, in float64."""
    model = sequence_model(config, fast if run.fast else recurrent).double()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in start.items()})
    return model


def ulps_by_step(
    config: ModelConfig, start: Arrays, batch: Batch, dtype: str
) -> dict[str, np.ndarray]:
    """Return how far the readable layers' states are apart at each time step, in ULP.

    One row [T] a layer, direction and state (h, c): the 90th percentile over the batch and the units,
    of the real steps; NaN where no sequence is that long. A layer reads its own backend's below.
    """
    valid = np.ones(batch.inputs.shape[:2], bool)
    if batch.lengths is not None:
        valid = np.arange(valid.shape[1]) < batch.lengths[:, None]
    below = np.where(valid[..., None], batch.inputs, 0.0).astype(dtype)
    start = {name: array.astype(dtype) for name, array in start.items()}
    every = recurrent_states if config.recurrent else transformer_outputs
    found, seen = {}, valid.any(axis=0)
    for name, t, j in every(config, start, below, valid):
        apart = np.where(valid[..., None], ulps(t, j), np.nan)
        found[name] = np.full(len(seen), np.nan)
        found[name][seen] = np.nanquantile(apart[:, seen], 0.9, axis=(0, 2))
    return found


def transformer_outputs(config, start, below, valid):
    """Yield the name of each layer and its outputs on both sides, [B, T, H]."""
    model = sequence_model(config, recurrent).to(torch.from_numpy(below).dtype)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in start.items()})
    options = {name: getattr(config, name) for name in ("num_heads", "activation", "norm_first")}
    with jax.enable_x64(below.dtype == "float64"), torch.no_grad():
        params = to_tree(start)
        in_t = model.embedding(torch.from_numpy(below))
        in_j = jax_encoder.embedding(params["embedding"], below)
        mask = encoder.attention_mask(in_t, torch.tensor(valid.sum(axis=1)), config.causal)
        yield "embedding", in_t.numpy(), np.asarray(in_j)
        for n, layer in enumerate(model.transformer.layers):
            own = params["transformer"]["layers"][str(n)]
            in_t, in_j = layer(in_t, mask), encoder_layer(own, in_j, mask.numpy(), **options)
            yield f"layer {n + 1}", in_t.numpy(), np.asarray(in_j)


def recurrent_states(config, start, below, valid):
    """Yield the name of each layer's and direction's states and both sides' values, [B, T, H]."""
    part, dtype = config.cell, below.dtype
    own, in_t, in_j = reference.part(start, part), below, below
    for layer, directions in enumerate(split_layers(own)):
        above_t, above_j = [], []
        for reverse, weights in enumerate(directions):
            cell_t, cell_j = in_torch_and_jax(config, part, weights)
            zero = np.zeros((len(valid), config.hidden_size), dtype)
            given_t = *(torch.from_numpy(x) for x in (in_t, valid, zero)), bool(reverse)
            with jax.enable_x64(dtype == "float64"):
                given_j = *(jax.numpy.asarray(x) for x in (in_j, valid, zero)), bool(reverse)
                all_j = every_state(jax_recurrent.unroll, cell_j, len(STATES[part]), *given_j)
            all_t = every_state(recurrent.unroll, cell_t, len(STATES[part]), *given_t)
            for name, t, j in zip(STATES[part], all_t, all_j, strict=True):
                yield f"layer {layer + 1}{' reverse' * reverse}, {name}", t, j
            above_t.append(all_t[0])
            above_j.append(all_j[0])
        in_t, in_j = np.concatenate(above_t, axis=-1), np.concatenate(above_j, axis=-1)


def in_torch_and_jax(config, part, weights) -> tuple[Callable, Callable]:
    """Return one time step in torch and in JAX, (x, states) -> states, with these weights."""
    ours = SimpleNamespace(**{n: torch.from_numpy(x) for n, x in weights.items()})
    if part == "lstm":
        return partial(LSTMCell.forward, ours), partial(lstm_cell, weights)
    ours.nonlinearity, ours.reset_after = config.nonlinearity, config.reset_after
    if part == "gru":
        return (
            lambda x, state: (GRUCell.forward(ours, x, *state),),
            lambda x, state: (gru_cell(weights, x, *state, config.reset_after),),
        )
    return (
        lambda x, state: (RNNCell.forward(ours, x, *state),),
        lambda x, state: (rnn_cell(weights, x, *state, config.nonlinearity),),
    )


def every_state(unroll, cell, count, *given) -> list[np.ndarray]:
    """Return each of a cell's states at every step, [B, T, H]."""
    *rest, zero, reverse = given

    def turned(order):  # `unroll` puts out the first state
        return lambda x, state: tuple(cell(x, state[::order]))[::order]

    orders = (1, -1)[:count]
    return [np.asarray(unroll(turned(o), *rest, (zero,) * count, reverse)[0]) for o in orders]
