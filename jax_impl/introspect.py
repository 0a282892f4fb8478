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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn import relu, sigmoid, softmax, tanh
from jaxtyping import Bool, Float, Int

from jax_impl.arrays import from_numpy, to_numpy
from jax_impl.attention import additive_scores, multi_head_attention, multiplicative_scores
from jax_impl.carry import zone_out
from jax_impl.cells import LSTMState, general_lstm_cell
from jax_impl.encoder import embedding, encoder_layer, layer_norm
from jax_impl.models import State, at_end, last_layer, last_states
from jax_impl.recurrent import real_steps, run_layers, unroll, zero_lstm_state, zero_state
from jax_impl.training import TrainState, apply, export_arrays, init_state, put
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


def open_rnn(config, weights, x, state, nudge):
    """Advance `rnn_cell` by one step and show it, nudged."""
    (h,) = state
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    from_hidden = h @ weights["weight_hh"].T + weights["bias_hh"]
    h = {"tanh": tanh, "relu": relu}[config.nonlinearity](from_input + from_hidden) + nudge.h
    return STEPS["rnn"](h)


def open_gru(config, weights, x, state, nudge):
    """Advance `gru_cell` by one step and show its gates, nudged."""
    (h,) = state
    H = h.shape[-1]
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    from_hidden = h @ weights["weight_hh"].T + weights["bias_hh"]
    i_r, i_z, i_n = jnp.split(from_input, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(from_hidden, 3, axis=-1)
    r, z = sigmoid(i_r + h_r) + nudge.r, sigmoid(i_z + h_z) + nudge.z
    if config.reset_after:
        h_n = r * h_n
    else:
        h_n = (r * h) @ weights["weight_hh"][2 * H :].T + weights["bias_hh"][2 * H :]
    n = tanh(i_n + h_n) + nudge.n
    h = (1 - z) * n + z * h + nudge.h
    return STEPS["gru"](r, z, n, h)


def open_lstm(config, weights, x, state, nudge):
    """Advance `general_lstm_cell` by one step and show its gates, nudged."""
    shown = {}

    def show(name, array):
        shown[name] = array + getattr(nudge, name)
        return shown[name]

    general_lstm_cell(weights, x, LSTMState(*state), show)
    return STEPS["lstm"](**shown)


CELLS = {"rnn": open_rnn, "gru": open_gru, "lstm": open_lstm}


def open_layers(
    config: ModelConfig,
    params: Mapping[str, Array],
    nudges: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None,
) -> tuple[Float[Array, "B T F"], State, dict[str, Array]]:
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
        unseen = (jnp.zeros_like(nudge[name][:, 0]) for name in names)
        given = {"x": inputs, **nudge}
        shown, last = unroll(step, given, valid, (*unseen, *first), reverse, 1)
        found.update((f"{layer}.{n}", array) for n, array in zip(names, shown, strict=False))
        return shown[len(names) :], last[len(names) :]

    lstm = config.cell == "lstm"
    first = zero_lstm_state(params, inputs) if lstm else (zero_state(params, inputs),)
    whole = replace(config, truncated_bptt_steps=None)
    outputs, state, _ = run_layers(unroll_cell, params, inputs, lengths, first, options=whole)
    return outputs, LSTMState(*state) if lstm else state[0], found


def open_attention(
    config: ModelConfig,
    params: Mapping[str, Array],
    query: Float[Array, "B Q"],
    keys: Float[Array, "B S K"],
    valid: Bool[Array, "B S"],
    nudge: Attending,
) -> Attending:
    """Weigh positions as the model's attention does and show the scores, 0 where not `valid`."""
    if config.score == "additive":
        scores = additive_scores(params, query, keys) + nudge.scores
    else:
        scores = multiplicative_scores(params, query, keys, config.score) + nudge.scores
    masked = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.where(valid, softmax(masked, axis=-1) + nudge.weights, 0.0)
    context = (weights[:, None] @ keys)[:, 0] + nudge.context
    return Attending(jnp.where(valid, scores, 0.0), weights, context)


def open_decoder(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Any]],
    nudges: Mapping[str, Array],
    keys: Float[Array, "B T F"],
    valid: Bool[Array, "B T"],
    state: tuple[Float[Array, "B F"], ...],
    value: Float[Array, "B M"],
) -> dict[str, Array]:
    """Forecast step by step as `decode` does; return every array by name, [B, K, ..]."""
    head, steps = params["head"], STEPS[config.cell]
    weights, attention = params["decoder"], params.get("attention", {})

    def forecast(carried, nudge):
        state, value = carried
        shown = Attending(*(nudge[f"attention.{name}"] for name in Attending._fields))
        shown = open_attention(config, attention, state[0], keys, valid, shown)
        found = {f"attention.{name}": array for name, array in shown._asdict().items()}
        x, context = jnp.concatenate([value, shown.context], axis=-1), shown.context
        shown = steps(*(nudge[f"decoder.{name}"] for name in steps._fields))
        shown = CELLS[config.cell](config, weights, x, state, shown)
        found |= {f"decoder.{name}": array for name, array in shown._asdict().items()}
        state = shown[-len(state) :]
        features = jnp.concatenate([context, state[0]], axis=-1) + nudge["head.features"]
        value = features @ head["weight"].T + head["bias"] + nudge["predictions"]
        return (state, value), found | {"head.features": features, "predictions": value}

    by_step = {name: array.swapaxes(0, 1) for name, array in nudges.items()}
    _, found = lax.scan(forecast, (state, value), by_step)
    return {name: array.swapaxes(0, 1) for name, array in found.items()}


def open_dot_product(
    nudge: tuple[Float[Array, "B N T T"], Float[Array, "B N T T"]],
    query: Float[Array, "B N T K"],
    key: Float[Array, "B N T K"],
    mask: Bool[Array, "B 1 #T T"],
) -> tuple[Float[Array, "B N T T"], Float[Array, "B N T T"]]:
    """Return scores and weights of `dot_product_attention`, 0 where not `mask`."""
    scores = query @ key.swapaxes(-1, -2) * key.shape[-1] ** -0.5 + nudge[0]
    masked = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.where(mask, softmax(masked, axis=-1) + nudge[1], 0.0)
    return jnp.where(mask, scores, 0.0), weights


def showing(
    name: str, nudges: Mapping[str, Array], found: dict[str, Array], valid: Bool[Array, "B T"]
) -> Callable:
    """Return `dot_product_attention` that notes scores and weights in `found`, nudged."""

    def attend(query, key, value, mask, keep, rate):
        nudge = nudges[f"{name}.scores"], nudges[f"{name}.weights"]
        shown = open_dot_product(nudge, query, key, mask)
        for part, array in zip(("scores", "weights"), shown, strict=True):
            found[f"{name}.{part}"] = jnp.where(valid[:, None, :, None], array, 0.0)
        return shown[1] @ value

    return attend


def open_encoder(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Any]],
    nudges: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    valid: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T H"], dict[str, Array]]:
    """Run a Transformer's layers; return what they encode and every array by name."""
    own, T = params["transformer"], inputs.shape[1]
    real, mask = valid[..., None], valid[:, None, None]
    if config.causal:
        mask = mask & jnp.tri(T, dtype=bool)
    x = jnp.where(real, embedding(params["embedding"], inputs), 0.0)
    x = x + nudges["transformer.embedded"]
    found = {"transformer.embedded": x}
    for n, name in enumerate(layer_names(config)):
        x = encoder_layer(
            own["layers"][str(n)],
            x,
            mask,
            num_heads=config.num_heads,
            activation=config.activation,
            norm_first=config.norm_first,
            attend=showing(name, nudges, found, valid),
        )
        x = x + nudges[f"{name}.residual"]
        found[f"{name}.residual"] = jnp.where(real, x, 0.0)
    x = layer_norm(own["norm"], x) if config.norm_first else x
    encoded = jnp.where(real, x + nudges["transformer.encoded"], 0.0)
    return encoded, found | {"transformer.encoded": encoded}


def forward(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Any]],
    nudges: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None,
) -> dict[str, Array]:
    """Run the whole model without dropout; return every array of `array_shapes` by name."""
    B, T, _ = inputs.shape
    lengths = jnp.full(B, T) if lengths is None else lengths
    valid = real_steps(lengths, T)
    inputs = jnp.where(valid[..., None], inputs, 0.0) + nudges["inputs"]
    if config.recurrent:
        outputs, state, found = open_layers(config, params[config.cell], nudges, inputs, lengths)
        if config.decodes:
            own = {n: nudge for n, nudge in nudges.items() if n.startswith(DECODED)}
            path = own["predictions"].reshape(B, config.forecast_steps, -1)
            last = at_end(inputs, lengths)[:, jnp.array(config.fed_back)]
            first, own = last_states(config, state), own | {"predictions": path}
            found |= open_decoder(config, params, own, outputs, valid, first, last)
            return {"inputs": inputs, **found, "predictions": found["predictions"].reshape(B, -1)}
        features = last_layer(config, outputs, state, lengths)
        features = at_end(outputs, lengths) if config.every_step else features
    else:
        outputs, found = open_encoder(config, params, nudges, inputs, valid)
        features = at_end(outputs, lengths)
        if config.pooling == "mean" and not config.every_step:
            features = outputs.sum(axis=1) / lengths[:, None]
    if config.self_attention:
        attend = showing("self_attention", nudges, found, valid)
        mask, heads = valid[:, None, None], config.num_heads
        outputs = multi_head_attention(
            params["self_attention"], outputs, heads, mask, attend=attend
        )
        outputs = jnp.where(valid[..., None], outputs, 0.0)
    if config.attends:
        nudge = Attending(*(nudges[f"attention.{name}"] for name in Attending._fields))
        attending = open_attention(
            config, params.get("attention", {}), features, outputs, valid, nudge
        )
        found |= {f"attention.{name}": array for name, array in attending._asdict().items()}
        both = [attending.context, features] if config.recurrent else [attending.context]
        features = jnp.concatenate(both, axis=-1)
    features = features + nudges["head.features"]
    head = params["head"]
    predictions = features @ head["weight"].T + head["bias"] + nudges["predictions"]
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
    nudges = {name: jnp.zeros(shape, inputs.dtype) for name, shape in shapes.items()}
    given = state.config, state.params, nudges, inputs, lengths
    if output is None:
        values, gradients = _forward(*given), {}
    else:
        which = from_numpy(which_output(state.config, output, B), state.execution)
        gradients, values = _forward_and_back(*given, which)
    found = {name: to_numpy(values[name]) for name in shapes}
    return found | {f"d {name}": to_numpy(gradients[name]) for name in shapes if gradients}


_forward = jax.jit(forward, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _forward_and_back(config, params, nudges, inputs, lengths, which):
    def total(nudges):
        values = forward(config, params, nudges, inputs, lengths)
        return jnp.take_along_axis(values["predictions"], which[:, None], axis=1).sum(), values

    return jax.grad(total, has_aux=True)(nudges)


def explained(state: TrainState, output: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions[b, output[b]] [B] and its derivative by inputs[b] [B, T, D].

    On the run's own layers, be they fast or readable; of every step, that of the last real one.
    """
    arrays = put(Batch(batch.inputs, batch.lengths), state.execution)
    which = from_numpy(output, state.execution)
    picked, gradient = _explained(state.config, state.execution, state.params, arrays, which)
    return to_numpy(picked), to_numpy(gradient)


@partial(jax.jit, static_argnums=(0, 1))
def _explained(config, execution, params, arrays, which):
    def total(inputs):
        predictions = apply(config, execution, params, {**arrays, "inputs": inputs}).predictions
        if config.every_step:
            B, T, _ = predictions.shape
            predictions = at_end(predictions, arrays.get("lengths", jnp.full(B, T)))
        picked = jnp.take_along_axis(predictions, which[:, None], axis=1)[:, 0]
        return picked.sum(), picked

    gradient, picked = jax.grad(total, has_aux=True)(arrays["inputs"])
    return picked, gradient


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
