"""What a model computes on the way to a prediction, array by array, and the gradient of each.

The forward pass once more, on `recurrent.py`, with every gate, state and weight by its name in
`spec/introspection.py`. To each a nudge of 0 is added: the gradient by a nudge is the gradient by
the array it is added to, through all that follows from it.

Dimensions: B batch, T time, D input features, H hidden units, F features of an encoder output,
G features that the head reads, O outputs; of a forecast step by step K steps, M targets of each.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn, relu, sigmoid, softmax, tanh

from spec.batch import Batch
from spec.config import ModelConfig, OptimizerConfig
from spec.introspection import (
    DECODED,
    STEPS,
    Attending,
    Attribution,
    array_shapes,
    integrate,
    layer_names,
    which_output,
)
from torch_impl.arrays import from_numpy, to_numpy
from torch_impl.carry import zone_out
from torch_impl.cells import GeneralLSTMCell, LSTMState
from torch_impl.models import State, at_end, last_layer, last_states
from torch_impl.recurrent import real_steps, run_layers, unroll, zero_lstm_state, zero_state
from torch_impl.training import TrainState, apply, export_arrays, init_state, put


def open_rnn(config, weights, x, state, nudge):
    """Advance `RNNCell` by one step and show it, nudged."""
    (h,) = state
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    from_hidden = h @ weights["weight_hh"].T + weights["bias_hh"]
    h = {"tanh": tanh, "relu": relu}[config.nonlinearity](from_input + from_hidden) + nudge.h
    return STEPS["rnn"](h)


def open_gru(config, weights, x, state, nudge):
    """Advance `GRUCell` by one step and show its gates, nudged."""
    (h,) = state
    H = h.shape[-1]
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    from_hidden = h @ weights["weight_hh"].T + weights["bias_hh"]
    i_r, i_z, i_n = torch.chunk(from_input, 3, dim=-1)
    h_r, h_z, h_n = torch.chunk(from_hidden, 3, dim=-1)
    r, z = sigmoid(i_r + h_r) + nudge.r, sigmoid(i_z + h_z) + nudge.z
    if config.reset_after:
        h_n = r * h_n
    else:
        h_n = (r * h) @ weights["weight_hh"][2 * H :].T + weights["bias_hh"][2 * H :]
    n = tanh(i_n + h_n) + nudge.n
    h = (1 - z) * n + z * h + nudge.h
    return STEPS["gru"](r, z, n, h)


def open_lstm(config, weights, x, state, nudge):
    """Advance `GeneralLSTMCell` by one step and show its gates, nudged."""
    shown = {}

    def show(name, array):
        shown[name] = array + getattr(nudge, name)
        return shown[name]

    GeneralLSTMCell.forward(SimpleNamespace(**weights), x, LSTMState(*state), show)
    return STEPS["lstm"](**shown)


CELLS = {"rnn": open_rnn, "gru": open_gru, "lstm": open_lstm}


def open_layers(
    config: ModelConfig,
    params: Mapping[str, Tensor],
    nudges: Mapping[str, Tensor],
    inputs: Float[Tensor, "B T D"],
    lengths: Int[Tensor, " B"] | None,
) -> tuple[Float[Tensor, "B T F"], State, dict[str, Tensor]]:
    """Run the recurrent layers; return outputs, last states and every array by name."""
    layers, found = iter(layer_names(config)), {}
    cell, names = CELLS[config.cell], STEPS[config.cell]._fields

    def unroll_cell(weights, inputs, valid, first, reverse, carry):
        layer = next(layers)
        nudge = {name: nudges[f"{layer}.{name}"] for name in names}

        def step(now, before):
            state, x = before[len(names) :], now["x"]
            opened = cell(config, weights, x, state, STEPS[config.cell](*map(now.get, names)))
            after = opened[-len(state) :]
            if carry.zoneout:
                both = zip(after, state, strict=True)
                after = tuple(zone_out(new, old, None, carry.zoneout) for new, old in both)
            return (*opened, *after)

        # Nudges come in beside the inputs and gates go out before the state, so that time,
        # directions and padding are `unroll`'s alone.
        unseen = (torch.zeros_like(nudge[name][:, 0]) for name in names)
        given = {"x": inputs, **nudge}
        shown, last = unroll(step, given, valid, (*unseen, *first), reverse)
        found.update((f"{layer}.{n}", array) for n, array in zip(names, shown, strict=False))
        return shown[len(names) :], last[len(names) :]

    lstm = config.cell == "lstm"
    first = zero_lstm_state(params, inputs) if lstm else (zero_state(params, inputs),)
    whole = replace(config, truncated_bptt_steps=None)
    outputs, state, _ = run_layers(unroll_cell, params, inputs, lengths, first, options=whole)
    return outputs, LSTMState(*state) if lstm else state[0], found


def open_attention(
    attention: nn.Module,
    query: Float[Tensor, "B Q"],
    keys: Float[Tensor, "B S K"],
    valid: Bool[Tensor, "B S"],
    nudge: Attending,
) -> Attending:
    """Weigh positions as the model's attention does and show the scores, 0 where not `valid`."""
    scores = attention.scores(query, keys) + nudge.scores
    masked = torch.where(valid, scores, torch.finfo(scores.dtype).min)
    weights = torch.where(valid, softmax(masked, dim=-1) + nudge.weights, 0.0)
    context = (weights[:, None] @ keys)[:, 0] + nudge.context
    return Attending(torch.where(valid, scores, 0.0), weights, context)


def open_decoder(
    model: nn.Module,
    nudges: Mapping[str, Tensor],
    keys: Float[Tensor, "B T F"],
    valid: Bool[Tensor, "B T"],
    state: tuple[Float[Tensor, "B F"], ...],
    value: Float[Tensor, "B M"],
) -> dict[str, Tensor]:
    """Forecast step by step as `decode` does; return every array by name, [B, K, ..]."""
    config, head, steps = model.config, model.head, STEPS[model.config.cell]
    weights = dict(model.decoder.named_parameters())

    def forecast(state, value, nudge):
        shown = Attending(*(nudge[f"attention.{name}"] for name in Attending._fields))
        shown = open_attention(model.attention, state[0], keys, valid, shown)
        found = {f"attention.{name}": array for name, array in shown._asdict().items()}
        x, context = torch.cat([value, shown.context], dim=-1), shown.context
        shown = steps(*(nudge[f"decoder.{name}"] for name in steps._fields))
        shown = CELLS[config.cell](config, weights, x, state, shown)
        found |= {f"decoder.{name}": array for name, array in shown._asdict().items()}
        state = shown[-len(state) :]
        features = torch.cat([context, state[0]], dim=-1) + nudge["head.features"]
        value = features @ head.weight.T + head.bias + nudge["predictions"]
        return state, value, found | {"head.features": features, "predictions": value}

    by_step = []
    for k in range(config.forecast_steps):
        nudge = {name: array[:, k] for name, array in nudges.items()}
        state, value, found = forecast(state, value, nudge)
        by_step.append(found)
    return {name: torch.stack([found[name] for found in by_step], dim=1) for name in nudges}


def open_dot_product(
    nudge: tuple[Float[Tensor, "B N T T"], Float[Tensor, "B N T T"]],
    query: Float[Tensor, "B N T K"],
    key: Float[Tensor, "B N T K"],
    mask: Bool[Tensor, "B 1 #T T"],
) -> tuple[Float[Tensor, "B N T T"], Float[Tensor, "B N T T"]]:
    """Return scores and weights of `dot_product_attention`, 0 where not `mask`."""
    scores = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5 + nudge[0]
    masked = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    weights = torch.where(mask, softmax(masked, dim=-1) + nudge[1], 0.0)
    return torch.where(mask, scores, 0.0), weights


def showing(
    name: str, nudges: Mapping[str, Tensor], found: dict[str, Tensor], valid: Bool[Tensor, "B T"]
) -> Callable:
    """Return `dot_product_attention` that notes scores and weights in `found`, nudged."""

    def attend(query, key, value, mask, keep, rate):
        nudge = nudges[f"{name}.scores"], nudges[f"{name}.weights"]
        shown = open_dot_product(nudge, query, key, mask)
        for part, array in zip(("scores", "weights"), shown, strict=True):
            found[f"{name}.{part}"] = torch.where(valid[:, None, :, None], array, 0.0)
        return shown[1] @ value

    return attend


def open_encoder(
    model: nn.Module,
    nudges: Mapping[str, Tensor],
    inputs: Float[Tensor, "B T D"],
    valid: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H"], dict[str, Tensor]]:
    """Run a Transformer's layers; return what they encode and every array by name."""
    config, T = model.config, inputs.shape[1]
    real, mask = valid[..., None], valid[:, None, None]
    if config.causal:
        mask = mask & torch.ones(T, T, dtype=torch.bool, device=inputs.device).tril()
    x = torch.where(real, model.embedding(inputs), 0.0) + nudges["transformer.embedded"]
    found = {"transformer.embedded": x}
    for n, name in enumerate(layer_names(config)):
        attend = showing(name, nudges, found, valid)
        x = model.transformer.layers[n](x, mask, None, attend) + nudges[f"{name}.residual"]
        found[f"{name}.residual"] = torch.where(real, x, 0.0)
    x = model.transformer.norm(x) if config.norm_first else x
    encoded = torch.where(real, x + nudges["transformer.encoded"], 0.0)
    return encoded, found | {"transformer.encoded": encoded}


def forward(
    model: nn.Module,
    nudges: Mapping[str, Tensor],
    inputs: Float[Tensor, "B T D"],
    lengths: Int[Tensor, " B"] | None,
) -> dict[str, Tensor]:
    """Run the whole model without dropout; return every array of `array_shapes` by name."""
    config, (B, T, _) = model.config, inputs.shape
    lengths = torch.full((B,), T, device=inputs.device) if lengths is None else lengths
    valid = real_steps(lengths, T)
    inputs = torch.where(valid[..., None], inputs, 0.0) + nudges["inputs"]
    if config.recurrent:
        params = dict(getattr(model, config.cell).named_parameters())
        outputs, state, found = open_layers(config, params, nudges, inputs, lengths)
        if config.decodes:
            own = {n: nudge for n, nudge in nudges.items() if n.startswith(DECODED)}
            path = own["predictions"].unflatten(1, (config.forecast_steps, -1))
            last = at_end(inputs, lengths)[:, config.fed_back]
            first, own = last_states(config, state), own | {"predictions": path}
            found |= open_decoder(model, own, outputs, valid, first, last)
            return {"inputs": inputs, **found, "predictions": found["predictions"].flatten(1)}
        features = last_layer(config, outputs, state, lengths)
        features = at_end(outputs, lengths) if config.every_step else features
    else:
        outputs, found = open_encoder(model, nudges, inputs, valid)
        features = at_end(outputs, lengths)
        if config.pooling == "mean" and not config.every_step:
            features = outputs.sum(dim=1) / lengths[:, None]
    if config.self_attention:
        attend = showing("self_attention", nudges, found, valid)
        outputs = model.self_attention(outputs, valid[:, None, None], None, 0.0, attend)
        outputs = torch.where(valid[..., None], outputs, 0.0)
    if config.attends:
        nudge = Attending(*(nudges[f"attention.{name}"] for name in Attending._fields))
        attending = open_attention(model.attention, features, outputs, valid, nudge)
        found |= {f"attention.{name}": array for name, array in attending._asdict().items()}
        both = [attending.context, features] if config.recurrent else [attending.context]
        features = torch.cat(both, dim=-1)
    features = features + nudges["head.features"]
    predictions = features @ model.head.weight.T + model.head.bias + nudges["predictions"]
    return {"inputs": inputs, **found, "head.features": features, "predictions": predictions}


def introspect(
    state: TrainState, batch: Batch, output: int | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return what one forward pass computes, and on demand the gradient of each array.

    Args:
      state: of `init_state`.
      batch: sequences; what stands past an end is ignored, NaN included. Nothing is dropped.
      output: index of the output to differentiate, or one for each row [B]; None for no gradients.

    Returns:
      every array of `spec.introspection.array_shapes` by its name, 0 past each end; with `output`
      also `d <name>`: d predictions[b, output] / d array[b], each row's own. Of a model that
      predicts at every step "head.features" and "predictions" are those of the last real one.

    Raises:
      ValueError: the model has no such output.
    """
    arrays = put(Batch(batch.inputs, batch.lengths), state.execution)
    inputs, lengths = arrays["inputs"], arrays.get("lengths")
    B, T, _ = inputs.shape
    shapes = array_shapes(state.config, B, T)
    nudges = {name: inputs.new_zeros(shape).requires_grad_() for name, shape in shapes.items()}
    with torch.set_grad_enabled(output is not None):
        values = forward(state.model, nudges, inputs, lengths)
    found = {name: to_numpy(values[name]) for name in shapes}
    if output is not None:
        which = from_numpy(which_output(state.config, output, B), state.execution)
        picked = values["predictions"].gather(1, which[:, None])
        gradients = torch.autograd.grad(picked.sum(), list(nudges.values()))
        found |= {f"d {n}": to_numpy(d) for n, d in zip(shapes, gradients, strict=True)}
    return found


def explained(state: TrainState, output: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions[b, output[b]] [B] and its derivative by inputs[b] [B, T, D].

    On the run's own layers, be they fast or readable; of every step, that of the last real one.
    """
    arrays = put(Batch(batch.inputs, batch.lengths), state.execution)
    arrays["inputs"].requires_grad_()
    which = from_numpy(output, state.execution)
    predictions = apply(state, arrays).predictions
    if state.config.every_step:
        B, T, _ = predictions.shape
        predictions = at_end(predictions, arrays.get("lengths", torch.full((B,), T)))
    picked = predictions.gather(1, which[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(picked.sum(), arrays["inputs"])
    return to_numpy(picked), to_numpy(gradient)


def integrated_gradients(state: TrainState, batch: Batch, output: int | np.ndarray) -> Attribution:
    """Share out among the inputs what sets an output apart from that of the baseline, 0.

    See `spec.introspection.integrate`; `output` as for `introspect`, and as there gradients flow
    over the starts of the chunks of truncated backpropagation: else the shares would not add up.

    Raises:
      ValueError: the model has no such output.
    """
    which = which_output(state.config, output, len(batch.inputs))
    whole = replace(state.config, truncated_bptt_steps=None)
    state = init_state(whole, OptimizerConfig(), state.execution, export_arrays(state))
    return integrate(partial(explained, state, which), batch)
