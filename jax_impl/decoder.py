"""A recurrent decoder: forecasts step by step, attending to the encoder's outputs at each.

Dimensions: B batch, S source positions, F features of a state and of a source position, K steps of
the forecast, M targets of a step, G = 2 F features that are read out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import tree_map
from jaxtyping import Bool, Float

from jax_impl.cells import LSTMState, general_lstm_cell, gru_cell, rnn_cell
from spec.config import ModelConfig


class Decoded(NamedTuple):
    values: Float[Array, "B K M"]
    attention: Float[Array, "B K S"]


def decoder_cell(config: ModelConfig) -> Callable:
    """Build the cell of a decoder, which is of the encoder's kind."""
    if config.cell == "lstm":
        return lambda params, x, state: tuple(general_lstm_cell(params, x, LSTMState(*state)))
    if config.cell == "gru":
        return lambda params, x, state: (gru_cell(params, x, *state, config.reset_after),)
    return lambda params, x, state: (rnn_cell(params, x, *state, config.nonlinearity),)


def decode(
    attend: Callable,
    advance: Callable,
    read: Callable,
    steps: int,
    state: tuple[Float[Array, "B F"], ...],
    value: Float[Array, "B M"],
    keep: Bool[Array, "B K G"] | None = None,
    truth: Float[Array, "B K M"] | None = None,
    teacher: Bool[Array, "B K"] | None = None,
) -> Decoded:
    """Forecast step by step: each step sees the value before it, and attends from its state.

        context, weights = attend(h)
        h', .. = advance([value; context], (h, ..))
        value' = read([context; h'])

    Args:
      attend: query [B, F] -> context [B, F] and weights [B, S].
      advance: input [B, M + F] and state -> next state; a tuple, h first.
      read: features [B, G] and their dropout mask, or None -> values [B, M].
      steps: K.
      state: first state.
      value: what stands before the first step.
      keep: dropout masks of what is read out; None drops nothing.
      truth: the true values of the steps; used where `teacher` says so.
      teacher: where True, the next step sees the true value of this one, not its forecast; None
        for nowhere. The last step has no next.

    Source: Bahdanau, Cho & Bengio (2015), for the query before the state's update and the context
    beside the value; the read-out is linear, of state and context.
    """

    def forecast(carried, now):
        state, value = carried
        keep, truth, teacher = now
        context, weights = attend(state[0])
        state = advance(jnp.concatenate([value, context], axis=-1), state)
        features = jnp.concatenate([context, state[0]], axis=-1)
        forecast = value = read(features, keep)
        if teacher is not None:
            value = jnp.where(teacher[:, None], truth, forecast)
        return (state, value), Decoded(forecast, weights)

    by_step = tree_map(lambda x: x.swapaxes(0, 1), (keep, truth, teacher))
    _, found = lax.scan(forecast, (state, value), by_step, length=steps)
    return tree_map(lambda x: x.swapaxes(0, 1), found)
