"""Our own models under the judge: both twins on one batch, array by array and step by step.

Dimensions: B batch, T time, H hidden units.
"""

from collections.abc import Callable, Mapping
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
from jax_impl.encoder import encoder_layer
from parity.judge import Report, compare
from parity.measure import ulps
from spec import reference
from spec.batch import Batch, layer_ends
from spec.config import Execution, ModelConfig
from torch_impl import encoder, fast, recurrent, training
from torch_impl.models import encode, recurrent_layers, sequence_model

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
    if targets:
        arrays |= {"targets": batch.targets, "class_weights": batch.class_weights}
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
        return found | states(getattr(model, config.cell)(*given, None, keep))

    def in_jax(params, **arrays):
        arrays = unpacked(arrays)
        found = jax_training.apply(config, run, params, arrays)._asdict()
        layers = jax_fast if run.fast else jax_recurrent
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        if not config.recurrent:
            return found | {"outputs": jax_models.encode(config, params, *given, keep, layers)}
        own = jax_models.recurrent_layers(config, layers)
        return found | states(own(params[config.cell], *given, None, keep))

    def truth(**arrays):
        arrays = unpacked(arrays)
        given, keep = (arrays["inputs"], arrays.get("lengths")), arrays.get("keep")
        found = reference.predict(config, start, *given, keep=keep, **told(config, arrays))
        found = found._asdict()
        if not config.recurrent:
            return found | {"outputs": reference.transform(config, start, *given, keep).outputs}
        encoded = reference.encode(config, reference.part(start, config.cell), *given, keep=keep)
        return found | {n: getattr(encoded, n) for n in ("outputs", *STATES[config.cell])}

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
        return {"loss": training.objective(config, output.predictions, arrays)}

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
    """Yield the name of each layer's and direction's states and both sides' values, [B, T, P]."""
    own, lengths = reference.part(start, config.cell), valid.sum(axis=1)
    layers = recurrent_layers(config, recurrent).to(torch.from_numpy(below).dtype)
    layers.load_state_dict({name: torch.from_numpy(x) for name, x in own.items()})
    with torch.no_grad():
        given = torch.from_numpy(below), torch.from_numpy(lengths)
        in_t = states(layers(*given, return_all_states=True)[::2])
    with jax.enable_x64(below.dtype == "float64"):
        layers = jax_models.recurrent_layers(config, jax_recurrent)
        in_j = states(layers(own, below, lengths, return_all_states=True)[::2])
    for number, end in enumerate(layer_ends(config)):
        layer, _, reverse = end.removeprefix("l").partition("_")
        for name in STATES[config.cell]:
            t, j = (np.asarray(found[name][number]) for found in (in_t, in_j))
            yield f"layer {int(layer) + 1}{f' {reverse}' * bool(reverse)}, {name}", t, j
