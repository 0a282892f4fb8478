"""Recurrent layers over time: layers, directions, ragged lengths.

Dimensions: B batch, T time, D input features, H hidden units, L layers x directions, F features
of an output (the directions side by side).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jax_impl.cells import LSTMState, gru_cell, lstm_cell, rnn_cell
from spec.params import split_layers


def dropout(x: Float[Array, "..."], keep: Bool[Array, "..."], rate: float) -> Float[Array, "..."]:
    """Zero what a mask does not keep and scale the rest by 1 / (1 - rate).

    Source: Srivastava et al. (2014), in its "inverted" form.
    """
    return jnp.where(keep, x / (1 - rate), 0.0)


def real_steps(lengths: Int[Array, " B"], time: int) -> Bool[Array, "B T"]:
    """Tell which of `time` steps lie before each sequence's end."""
    return jnp.arange(time) < lengths[:, None]


def unroll(
    step: Callable,
    inputs: Float[Array, "B T D"],
    valid: Bool[Array, "B T"] | None,
    state: tuple[Float[Array, "B H"], ...],
    reverse: bool,
) -> tuple[Float[Array, "B T H"], tuple[Float[Array, "B H"], ...]]:
    """Apply one cell at every time step, last step first if `reverse`.

    Where `valid` is False the state is held and the output is 0, so a reversed direction starts
    at each sequence's own end and a final state is that of its last real step.
    """

    def advance(state, now):
        x, here = now
        advanced = step(x, state)
        if here is None:
            return advanced, advanced[0]
        state = tuple(jnp.where(here, new, old) for new, old in zip(advanced, state, strict=True))
        return state, jnp.where(here, state[0], 0.0)

    here = None if valid is None else valid.T[..., None]
    state, outputs = lax.scan(advance, state, (inputs.swapaxes(0, 1), here), reverse=reverse)
    return outputs.swapaxes(0, 1), state


def unroll_rnn(weights, inputs, valid, state, reverse, nonlinearity="tanh"):
    """Unroll `rnn_cell` with the weights of one layer and direction."""

    def step(x, state):
        return (rnn_cell(weights, x, *state, nonlinearity),)

    return unroll(step, inputs, valid, state, reverse)


def unroll_gru(weights, inputs, valid, state, reverse, reset_after=True):
    """Unroll `gru_cell` with the weights of one layer and direction."""

    def step(x, state):
        return (gru_cell(weights, x, *state, reset_after),)

    return unroll(step, inputs, valid, state, reverse)


def unroll_lstm(weights, inputs, valid, state, reverse):
    """Unroll `lstm_cell` with the weights of one layer and direction."""

    def step(x, state):
        return tuple(lstm_cell(weights, x, state))

    return unroll(step, inputs, valid, state, reverse)


def run_layers(
    unroll_cell: Callable,
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None,
    state: tuple[Float[Array, "L B H"], ...],
    keep: Sequence[Bool[Array, "B T F"]] | None,
    rate: float,
) -> tuple[Float[Array, "B T F"], tuple[Float[Array, "L B H"], ...]]:
    """Run recurrent layers bottom up, each layer's directions side by side."""
    valid = None
    if lengths is not None:
        valid = real_steps(lengths, inputs.shape[1])
        # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
        inputs = jnp.where(valid[..., None], inputs, 0.0)
    finals = []
    for layer, directions in enumerate(split_layers(params)):
        if layer and keep:
            inputs = dropout(inputs, keep[layer - 1], rate)
        outputs = []
        for reverse, weights in enumerate(directions):
            first = tuple(part[len(finals)] for part in state)
            output, final = unroll_cell(weights, inputs, valid, first, bool(reverse))
            outputs.append(output)
            finals.append(final)
        inputs = jnp.concatenate(outputs, axis=-1)
    return inputs, tuple(jnp.stack(parts) for parts in zip(*finals, strict=True))


def zero_state(params: Mapping[str, Array], inputs: Float[Array, "B T D"]) -> Float[Array, "L B H"]:
    """Return the zeros that a layer's hidden or cell state starts from."""
    recurrent = [weight for name, weight in params.items() if name.startswith("weight_hh")]
    return jnp.zeros((len(recurrent), inputs.shape[0], recurrent[0].shape[1]), inputs.dtype)


def rnn(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Sequence[Bool[Array, "B T F"]] | None = None,
    dropout: float = 0.0,
    nonlinearity: str = "tanh",
    unroll: Callable = unroll_rnn,
) -> tuple[Float[Array, "B T F"], Float[Array, "L B H"]]:
    """Run `rnn_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.RNN; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks [B, T, F], one between each two layers; None drops nothing.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step.
    """
    h = zero_state(params, inputs) if h is None else h
    unroll_cell = partial(unroll, nonlinearity=nonlinearity)
    outputs, (h,) = run_layers(unroll_cell, params, inputs, lengths, (h,), keep, dropout)
    return outputs, h


def gru(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Sequence[Bool[Array, "B T F"]] | None = None,
    dropout: float = 0.0,
    reset_after: bool = True,
    unroll: Callable = unroll_gru,
) -> tuple[Float[Array, "B T F"], Float[Array, "L B H"]]:
    """Run `gru_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.GRU; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks [B, T, F], one between each two layers; None drops nothing.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step.
    """
    h = zero_state(params, inputs) if h is None else h
    unroll_cell = partial(unroll, reset_after=reset_after)
    outputs, (h,) = run_layers(unroll_cell, params, inputs, lengths, (h,), keep, dropout)
    return outputs, h


def lstm(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: tuple[Float[Array, "L B H"], Float[Array, "L B H"]] | None = None,
    keep: Sequence[Bool[Array, "B T F"]] | None = None,
    dropout: float = 0.0,
    unroll: Callable = unroll_lstm,
) -> tuple[Float[Array, "B T F"], LSTMState]:
    """Run `lstm_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.LSTM; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      state: first (h, c), each [L, B, H], L = layers x directions, forward before reverse; None
        for zeros.
      keep: dropout masks [B, T, F], one between each two layers; None drops nothing.

    Returns:
      outputs [B, T, F], zero past each end; last (h, c), of each sequence's last real step.
    """
    state = (zero_state(params, inputs),) * 2 if state is None else state
    outputs, state = run_layers(unroll, params, inputs, lengths, state, keep, dropout)
    return outputs, LSTMState(*state)
