"""Recurrent layers over time: layers, directions, ragged lengths.

Dimensions: B batch, T time, D input features, H hidden units, L layers x directions, F features
of an output (the directions side by side).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Shaped

from jax_impl.carry import AS_IT_IS, Carry, carried, dropout, in_chunks, over_time, recomputed
from jax_impl.cells import LSTMState, general_lstm_cell, gru_cell, lstm_cell, rnn_cell
from spec.config import Recurrence
from spec.params import PLAIN, split_layers


def real_steps(lengths: Int[Array, " B"], time: int) -> Bool[Array, "B T"]:
    """Tell which of `time` steps lie before each sequence's end."""
    return jnp.arange(time) < lengths[:, None]


def unroll(
    step: Callable,
    inputs: Mapping[str, Shaped[Array, "B T ..."]],
    valid: Bool[Array, "B T"] | None,
    state: tuple[Float[Array, "B H"], ...],
    reverse: bool,
    factor: int,
) -> tuple[tuple[Float[Array, "B T H"], ...], tuple[Float[Array, "B H"], ...]]:
    """Apply one cell at every time step, last step first if `reverse`: all states, the last.

    Where `valid` is False the state is held and 0 returned, so a reversed direction starts at each
    sequence's own end and a final state is that of its last real step.
    """

    def advance(state, now):
        parts, here = now
        advanced = step(parts, state)
        if here is None:
            return advanced, advanced
        state = tuple(jnp.where(here, new, old) for new, old in zip(advanced, state, strict=True))
        return state, tuple(jnp.where(here, part, 0.0) for part in state)

    here = None if valid is None else valid.T[..., None]
    time_first = {name: part.swapaxes(0, 1) for name, part in inputs.items()}
    # `factor` steps are compiled as one iteration of the loop.
    state, states = lax.scan(advance, state, (time_first, here), reverse=reverse, unroll=factor)
    return tuple(part.swapaxes(0, 1) for part in states), state


def rnn_with(weights: Mapping[str, Array], nonlinearity: str) -> Callable:
    """Return `rnn_cell` with these weights as `carried` takes it."""
    return lambda x, state, read: (rnn_cell(weights, x, read, nonlinearity),)


def gru_with(weights: Mapping[str, Array], reset_after: bool) -> Callable:
    """Return `gru_cell` with these weights as `carried` takes it."""
    return lambda x, state, read: (gru_cell(weights, x, *state, reset_after, read),)


def lstm_with(weights: Mapping[str, Array]) -> Callable:
    """Return `lstm_cell`, or what the weights say beside it, as `carried` takes it."""
    cell = cell_of(weights)
    return lambda x, state, read: tuple(cell(weights, x, LSTMState(read, state[1])))


def unroll_rnn(
    weights, inputs, valid, state, reverse, carry=AS_IT_IS, nonlinearity="tanh", factor=1
):
    """Unroll `rnn_cell` with the weights of one layer and direction."""
    step = carried(rnn_with(weights, nonlinearity), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse, factor)


def unroll_gru(weights, inputs, valid, state, reverse, carry=AS_IT_IS, reset_after=True, factor=1):
    """Unroll `gru_cell` with the weights of one layer and direction."""
    step = carried(gru_with(weights, reset_after), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse, factor)


def unroll_lstm(weights, inputs, valid, state, reverse, carry=AS_IT_IS, factor=1):
    """Unroll `lstm_cell`, or what the weights of one layer and direction say beside it."""
    step = carried(lstm_with(weights), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse, factor)


def cell_of(weights: Mapping[str, Array]) -> Callable:
    """Return the cell that an LSTM's weights are for."""
    plain = len(weights) == 4 and len(weights["weight_hh"]) == 4 * weights["weight_hh"].shape[1]
    return lstm_cell if plain else general_lstm_cell


def carry_of(
    options: Recurrence,
    keep: Mapping[str, Array],
    end: str,
    resets: Bool[Array, "B T"] | None,
    reverse: bool,
) -> Carry:
    """Pick what is about the state of one layer and direction, whose names end in `end`."""
    if reverse and resets is not None:  # a reversed direction leaves a segment at its first step
        resets = jnp.concatenate([resets[:, 1:], jnp.zeros_like(resets[:, :1])], axis=1)
    names = [f"zoneout_{part}_{end}" for part in "hc"]
    advances = tuple(keep[name] for name in names if name in keep) or None
    read = keep.get(f"recurrent_{end}")
    return Carry(resets, read, options.recurrent_dropout, advances, options.zoneout)


def run_layers(
    unroll_cell: Callable,
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None,
    state: tuple[Float[Array, "L B H"], ...],
    keep: Mapping[str, Bool[Array, "B ..."]] | None = None,
    rate: float = 0.0,
    options: Recurrence = PLAIN,
    resets: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T F"], tuple[Array, ...], list[tuple[Array, ...]]]:
    """Run recurrent layers bottom up, each layer's directions side by side.

    Returns:
      outputs; last states; each layer and direction's states at all steps, as far as it shows them.
    """
    valid, keep = None, keep or {}
    if lengths is not None:
        valid = real_steps(lengths, inputs.shape[1])
        # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
        inputs = jnp.where(valid[..., None], inputs, 0.0)
    if "input" in keep:
        inputs = dropout(inputs, keep["input"], options.input_dropout)
    if options.truncated_bptt_steps is not None:
        unroll_cell = in_chunks(unroll_cell, options.truncated_bptt_steps, True, False)
    finals, states = [], []
    for layer, directions in enumerate(split_layers(params)):
        mask = keep.get(f"layer{layer - 1}")
        below = inputs if mask is None else dropout(inputs, mask, rate)
        for reverse, weights in enumerate(directions):
            end = f"l{layer}{'_reverse' * reverse}"
            carry = carry_of(options, keep, end, resets, bool(reverse))
            first = tuple(part[len(finals)] for part in state)
            shown, final = unroll_cell(weights, below, valid, first, bool(reverse), carry)
            states.append(shown)
            finals.append(final)
        outputs = jnp.concatenate([shown[0] for shown in states[-len(directions) :]], axis=-1)
        inputs = outputs + inputs if layer and options.residual else outputs
    return inputs, tuple(jnp.stack(parts) for parts in zip(*finals, strict=True)), states


def zero_state(
    params: Mapping[str, Array], inputs: Float[Array, "B T D"], read_by: str = "weight_hh"
) -> Float[Array, "L B H"]:
    """Return the zeros that the state starts from which a weight reads, the hidden or a cell's."""
    weights = [weight for name, weight in params.items() if name.startswith(read_by)]
    return jnp.zeros((len(weights), inputs.shape[0], weights[0].shape[1]), inputs.dtype)


def zero_lstm_state(
    params: Mapping[str, Array], inputs: Float[Array, "B T D"]
) -> tuple[Float[Array, "L B H"], Float[Array, "L B H"]]:
    """Return the zeros that h and c start from, c in float32 or more.

    A projection makes h the smaller.
    """
    projected = any(name.startswith("weight_hr") for name in params)
    of_cell = zero_state(params, inputs, "weight_hr" if projected else "weight_hh")
    return zero_state(params, inputs), of_cell.astype(jnp.promote_types(of_cell.dtype, jnp.float32))


def rnn(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Mapping[str, Bool[Array, "B ..."]] | None = None,
    dropout: float = 0.0,
    nonlinearity: str = "tanh",
    options: Recurrence = PLAIN,
    resets: Bool[Array, "B T"] | None = None,
    return_all_states: bool = False,
    unroll: Callable = unroll_rnn,
) -> tuple:
    """Run `rnn_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.RNN; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.
      resets: steps [B, T] that begin anew from a state of 0, in either direction.
      return_all_states: ask for the states at every step too.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step; all
      states [L, B, T, H] where asked for.
    """
    h = zero_state(params, inputs) if h is None else h
    unroll_cell = partial(unroll, nonlinearity=nonlinearity)
    about = keep, dropout, options, resets
    outputs, (h,), states = run_layers(unroll_cell, params, inputs, lengths, (h,), *about)
    if return_all_states:
        return outputs, h, jnp.stack([shown[0] for shown in states])
    return outputs, h


def gru(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Mapping[str, Bool[Array, "B ..."]] | None = None,
    dropout: float = 0.0,
    reset_after: bool = True,
    options: Recurrence = PLAIN,
    resets: Bool[Array, "B T"] | None = None,
    return_all_states: bool = False,
    unroll: Callable = unroll_gru,
) -> tuple:
    """Run `gru_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.GRU; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.
      resets: steps [B, T] that begin anew from a state of 0, in either direction.
      return_all_states: ask for the states at every step too.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step; all
      states [L, B, T, H] where asked for.
    """
    h = zero_state(params, inputs) if h is None else h
    unroll_cell = partial(unroll, reset_after=reset_after)
    about = keep, dropout, options, resets
    outputs, (h,), states = run_layers(unroll_cell, params, inputs, lengths, (h,), *about)
    if return_all_states:
        return outputs, h, jnp.stack([shown[0] for shown in states])
    return outputs, h


def lstm(
    params: Mapping[str, Array],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: tuple[Float[Array, "L B H"], Float[Array, "L B H"]] | None = None,
    keep: Mapping[str, Bool[Array, "B ..."]] | None = None,
    dropout: float = 0.0,
    options: Recurrence = PLAIN,
    resets: Bool[Array, "B T"] | None = None,
    return_all_states: bool = False,
    unroll: Callable = unroll_lstm,
) -> tuple:
    """Run `lstm_cell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.LSTM, proj_size included; so has the
    state. What torch does not have stands behind them: `general_lstm_cell`.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      state: first (h, c), each [L, B, H], L = layers x directions, forward before reverse; None
        for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.
      resets: steps [B, T] that begin anew from a state of 0, in either direction.
      return_all_states: ask for the states at every step too.

    Returns:
      outputs [B, T, F], zero past each end; last (h, c), of each sequence's last real step; all
      (h, c), each [L, B, T, H], where asked for.
    """
    state = zero_lstm_state(params, inputs) if state is None else state
    unroll_cell = unroll_lstm if return_all_states else unroll  # kernels hide c
    about = keep, dropout, options, resets
    outputs, state, states = run_layers(unroll_cell, params, inputs, lengths, state, *about)
    if return_all_states:
        shown = (jnp.stack(parts) for parts in zip(*states, strict=True))
        return outputs, LSTMState(*state), LSTMState(*shown)
    return outputs, LSTMState(*state)


def with_unroll(layers: ModuleType, **unroll: Callable) -> SimpleNamespace:
    """Return the layers of a module with other ways to unroll some of them, by their names."""
    changed = {name: partial(globals()[name], unroll=function) for name, function in unroll.items()}
    changed |= {f"unroll_{name}": function for name, function in unroll.items()}
    return SimpleNamespace(**vars(layers) | changed)


def each_unroll(change: Callable, layers: ModuleType | SimpleNamespace) -> SimpleNamespace:
    """Return the layers of a module with a change of how each of them is unrolled."""
    kinds = {"rnn": layers.unroll_rnn, "gru": layers.unroll_gru, "lstm": layers.unroll_lstm}
    return with_unroll(layers, **{name: change(function) for name, function in kinds.items()})


def recomputing(layers: ModuleType | SimpleNamespace) -> SimpleNamespace:
    """Return the layers of a module with `recomputed` states."""
    # Those of fast.py have a way of their own.
    return each_unroll(vars(layers).get("recomputed", recomputed), layers)


def by_steps(layers: ModuleType, factor: int) -> SimpleNamespace:
    """Return the layers of a module with `factor` steps in one iteration of their loops."""
    return each_unroll(lambda function: partial(function, factor=factor), layers)
