"""Recurrent layers over time: layers, directions, ragged lengths.

Dimensions: B batch, T time, D input features, H hidden units, L layers x directions, F features
of an output (the directions side by side).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from spec.config import Recurrence
from spec.params import PLAIN, recurrent_schema, split_layers
from torch_impl.arrays import add_parameters
from torch_impl.carry import AS_IT_IS, Carry, carried, dropout, in_chunks, over_time, recomputed
from torch_impl.cells import GeneralLSTMCell, GRUCell, LSTMCell, LSTMState, RNNCell


def real_steps(lengths: Int[Tensor, " B"], time: int) -> Bool[Tensor, "B T"]:
    """Tell which of `time` steps lie before each sequence's end."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def unroll(
    step: Callable,
    inputs: Mapping[str, Shaped[Tensor, "B T ..."]],
    valid: Bool[Tensor, "B T"] | None,
    state: tuple[Float[Tensor, "B H"], ...],
    reverse: bool,
) -> tuple[tuple[Float[Tensor, "B T H"], ...], tuple[Float[Tensor, "B H"], ...]]:
    """Apply one cell at every time step, last step first if `reverse`: all states, the last.

    Where `valid` is False the state is held and 0 returned, so a reversed direction starts at each
    sequence's own end and a final state is that of its last real step.
    """
    times = range(inputs["x"].shape[1])
    states = list(times)
    for t in reversed(times) if reverse else times:
        advanced = step({name: part[:, t] for name, part in inputs.items()}, state)
        if valid is None:
            state = states[t] = advanced
        else:
            here = valid[:, t, None]
            state = tuple(
                torch.where(here, new, old) for new, old in zip(advanced, state, strict=True)
            )
            states[t] = tuple(torch.where(here, part, 0.0) for part in state)
    return tuple(torch.stack(part, dim=1) for part in zip(*states, strict=True)), state


class Weights:
    """What a cell's `forward` reads of its module; torch.export knows no SimpleNamespace."""

    def __init__(self, weights: Mapping[str, Tensor], **options: Any):
        for name, value in {**weights, **options}.items():
            setattr(self, name, value)


def rnn_with(weights: Mapping[str, Tensor], nonlinearity: str) -> Callable:
    """Return `RNNCell` with these weights as `carried` takes it."""
    own = Weights(weights, nonlinearity=nonlinearity)
    return lambda x, state, read: (RNNCell.forward(own, x, read),)


def gru_with(weights: Mapping[str, Tensor], reset_after: bool) -> Callable:
    """Return `GRUCell` with these weights as `carried` takes it."""
    own = Weights(weights, reset_after=reset_after)
    return lambda x, state, read: (GRUCell.forward(own, x, *state, read),)


def lstm_with(weights: Mapping[str, Tensor]) -> Callable:
    """Return `LSTMCell`, or what the weights say beside it, as `carried` takes it."""
    own, cell = Weights(weights), cell_of(weights)
    return lambda x, state, read: tuple(cell.forward(own, x, LSTMState(read, state[1])))


def unroll_rnn(weights, inputs, valid, state, reverse, carry=AS_IT_IS, nonlinearity="tanh"):
    """Unroll `RNNCell` with the weights of one layer and direction."""
    step = carried(rnn_with(weights, nonlinearity), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse)


def unroll_gru(weights, inputs, valid, state, reverse, carry=AS_IT_IS, reset_after=True):
    """Unroll `GRUCell` with the weights of one layer and direction."""
    step = carried(gru_with(weights, reset_after), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse)


def unroll_lstm(weights, inputs, valid, state, reverse, carry=AS_IT_IS):
    """Unroll `LSTMCell`, or what the weights of one layer and direction say beside it."""
    step = carried(lstm_with(weights), carry)
    return unroll(step, over_time(inputs, carry), valid, state, reverse)


def cell_of(weights: Mapping[str, Tensor]) -> type[nn.Module]:
    """Return the cell that an LSTM's weights are for."""
    plain = len(weights) == 4 and len(weights["weight_hh"]) == 4 * weights["weight_hh"].shape[1]
    return LSTMCell if plain else GeneralLSTMCell


def carry_of(
    options: Recurrence,
    keep: Mapping[str, Tensor],
    end: str,
    resets: Bool[Tensor, "B T"] | None,
    reverse: bool,
) -> Carry:
    """Pick what is about the state of one layer and direction, whose names end in `end`."""
    if reverse and resets is not None:  # a reversed direction leaves a segment at its first step
        resets = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)
    names = [f"zoneout_{part}_{end}" for part in "hc"]
    advances = tuple(keep[name] for name in names if name in keep) or None
    read = keep.get(f"recurrent_{end}")
    return Carry(resets, read, options.recurrent_dropout, advances, options.zoneout)


def run_layers(
    unroll_cell: Callable,
    params: Mapping[str, Tensor],
    inputs: Float[Tensor, "B T D"],
    lengths: Int[Tensor, " B"] | None,
    state: tuple[Float[Tensor, "L B H"], ...],
    keep: Mapping[str, Bool[Tensor, "B ..."]] | None = None,
    rate: float = 0.0,
    options: Recurrence = PLAIN,
    resets: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T F"], tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    """Run recurrent layers bottom up, each layer's directions side by side.

    Returns:
      outputs; last states; each layer and direction's states at all steps, as far as it shows them.
    """
    valid, keep = None, keep or {}
    if lengths is not None:
        valid = real_steps(lengths, inputs.shape[1])
        # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
        inputs = torch.where(valid[..., None], inputs, 0.0)
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
        outputs = torch.cat([shown[0] for shown in states[-len(directions) :]], dim=-1)
        inputs = outputs + inputs if layer and options.residual else outputs
    return inputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True)), states


def zero_state(
    params: Mapping[str, Tensor], inputs: Float[Tensor, "B T D"], read_by: str = "weight_hh"
) -> Float[Tensor, "L B H"]:
    """Return the zeros that the state starts from which a weight reads, the hidden or a cell's."""
    weights = [weight for name, weight in params.items() if name.startswith(read_by)]
    return inputs.new_zeros(len(weights), inputs.shape[0], weights[0].shape[1])


def zero_lstm_state(
    params: Mapping[str, Tensor], inputs: Float[Tensor, "B T D"]
) -> tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]:
    """Return the zeros that h and c start from, c in float32 or more.

    A projection makes h the smaller.
    """
    projected = any(name.startswith("weight_hr") for name in params)
    of_cell = zero_state(params, inputs, "weight_hr" if projected else "weight_hh")
    return zero_state(params, inputs), of_cell.to(torch.promote_types(of_cell.dtype, torch.float32))


class RNN(nn.Module):
    """Run `RNNCell` over time in layers and directions.

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

    unroll = staticmethod(unroll_rnn)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        nonlinearity: str = "tanh",
        options: Recurrence = PLAIN,
    ):
        super().__init__()
        self.dropout, self.nonlinearity, self.options = dropout, nonlinearity, options
        sizes = input_size, hidden_size, num_layers, bidirectional
        add_parameters(self, recurrent_schema("rnn", *sizes, options))

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Mapping[str, Bool[Tensor, "B ..."]] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        params = dict(self.named_parameters())
        h = zero_state(params, inputs) if h is None else h
        unroll_cell = partial(self.unroll, nonlinearity=self.nonlinearity)
        about = keep, self.dropout, self.options, resets
        outputs, (h,), states = run_layers(unroll_cell, params, inputs, lengths, (h,), *about)
        if return_all_states:
            return outputs, h, torch.stack([shown[0] for shown in states])
        return outputs, h


class GRU(nn.Module):
    """Run `GRUCell` over time in layers and directions.

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

    unroll = staticmethod(unroll_gru)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        reset_after: bool = True,
        options: Recurrence = PLAIN,
    ):
        super().__init__()
        self.dropout, self.reset_after, self.options = dropout, reset_after, options
        sizes = input_size, hidden_size, num_layers, bidirectional
        add_parameters(self, recurrent_schema("gru", *sizes, options))

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Mapping[str, Bool[Tensor, "B ..."]] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        params = dict(self.named_parameters())
        h = zero_state(params, inputs) if h is None else h
        unroll_cell = partial(self.unroll, reset_after=self.reset_after)
        about = keep, self.dropout, self.options, resets
        outputs, (h,), states = run_layers(unroll_cell, params, inputs, lengths, (h,), *about)
        if return_all_states:
            return outputs, h, torch.stack([shown[0] for shown in states])
        return outputs, h


class LSTM(nn.Module):
    """Run `LSTMCell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.LSTM, proj_size included; so has the
    state. What torch does not have stands behind them: `GeneralLSTMCell`.

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

    unroll = staticmethod(unroll_lstm)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        options: Recurrence = PLAIN,
    ):
        super().__init__()
        self.dropout, self.options = dropout, options
        sizes = input_size, hidden_size, num_layers, bidirectional
        add_parameters(self, recurrent_schema("lstm", *sizes, options))

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]] | None = None,
        keep: Mapping[str, Bool[Tensor, "B ..."]] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        params = dict(self.named_parameters())
        state = zero_lstm_state(params, inputs) if state is None else state
        unroll_cell = unroll_lstm if return_all_states else self.unroll  # kernels hide c
        about = keep, self.dropout, self.options, resets
        outputs, state, states = run_layers(unroll_cell, params, inputs, lengths, state, *about)
        if return_all_states:
            shown = (torch.stack(parts) for parts in zip(*states, strict=True))
            return outputs, LSTMState(*state), LSTMState(*shown)
        return outputs, LSTMState(*state)


def with_unroll(layers: ModuleType, **unroll: Callable) -> SimpleNamespace:
    """Return the layers of a module with other ways to unroll some of them, by their names."""
    changed = {
        name: type(name, (globals()[name],), {"unroll": staticmethod(function)})
        for name, function in unroll.items()
    }
    return SimpleNamespace(**vars(layers) | changed)


def recomputing(layers: ModuleType) -> SimpleNamespace:
    """Return the layers of a module with `recomputed` states."""
    kinds = {"RNN": layers.unroll_rnn, "GRU": layers.unroll_gru, "LSTM": layers.unroll_lstm}
    return with_unroll(layers, **{name: recomputed(function) for name, function in kinds.items()})
