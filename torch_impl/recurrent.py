"""Recurrent layers over time: layers, directions, ragged lengths.

Dimensions: B batch, T time, D input features, H hidden units, L layers x directions, F features
of an output (the directions side by side).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spec.params import recurrent_schema, split_layers
from torch_impl.arrays import add_parameters
from torch_impl.cells import GRUCell, LSTMCell, LSTMState, RNNCell


def dropout(
    x: Float[Tensor, "..."], keep: Bool[Tensor, "..."], rate: float
) -> Float[Tensor, "..."]:
    """Zero what a mask does not keep and scale the rest by 1 / (1 - rate).

    Source: Srivastava et al. (2014), in its "inverted" form.
    """
    return torch.where(keep, x / (1 - rate), 0.0)


def real_steps(lengths: Int[Tensor, " B"], time: int) -> Bool[Tensor, "B T"]:
    """Tell which of `time` steps lie before each sequence's end."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def unroll(
    step: Callable,
    inputs: Float[Tensor, "B T D"],
    valid: Bool[Tensor, "B T"] | None,
    state: tuple[Float[Tensor, "B H"], ...],
    reverse: bool,
) -> tuple[Float[Tensor, "B T H"], tuple[Float[Tensor, "B H"], ...]]:
    """Apply one cell at every time step, last step first if `reverse`.

    Where `valid` is False the state is held and the output is 0, so a reversed direction starts
    at each sequence's own end and a final state is that of its last real step.
    """
    times = range(inputs.shape[1])
    outputs = list(times)
    for t in reversed(times) if reverse else times:
        advanced = step(inputs[:, t], state)
        if valid is None:
            state, outputs[t] = advanced, advanced[0]
        else:
            here = valid[:, t, None]
            state = tuple(
                torch.where(here, new, old) for new, old in zip(advanced, state, strict=True)
            )
            outputs[t] = torch.where(here, state[0], 0.0)
    return torch.stack(outputs, dim=1), state


def unroll_rnn(weights, inputs, valid, state, reverse, nonlinearity="tanh"):
    """Unroll `RNNCell` with the weights of one layer and direction."""
    cell = SimpleNamespace(**weights, nonlinearity=nonlinearity)
    return unroll(lambda x, s: (RNNCell.forward(cell, x, *s),), inputs, valid, state, reverse)


def unroll_gru(weights, inputs, valid, state, reverse, reset_after=True):
    """Unroll `GRUCell` with the weights of one layer and direction."""
    cell = SimpleNamespace(**weights, reset_after=reset_after)
    return unroll(lambda x, s: (GRUCell.forward(cell, x, *s),), inputs, valid, state, reverse)


def unroll_lstm(weights, inputs, valid, state, reverse):
    """Unroll `LSTMCell` with the weights of one layer and direction."""
    cell = SimpleNamespace(**weights)
    return unroll(lambda x, s: LSTMCell.forward(cell, x, s), inputs, valid, state, reverse)


def run_layers(
    unroll_cell: Callable,
    params: Mapping[str, Tensor],
    inputs: Float[Tensor, "B T D"],
    lengths: Int[Tensor, " B"] | None,
    state: tuple[Float[Tensor, "L B H"], ...],
    keep: Sequence[Bool[Tensor, "B T F"]] | None,
    rate: float,
) -> tuple[Float[Tensor, "B T F"], tuple[Float[Tensor, "L B H"], ...]]:
    """Run recurrent layers bottom up, each layer's directions side by side."""
    valid = None
    if lengths is not None:
        valid = real_steps(lengths, inputs.shape[1])
        # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
        inputs = torch.where(valid[..., None], inputs, 0.0)
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
        inputs = torch.cat(outputs, dim=-1)
    return inputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def zero_state(
    params: Mapping[str, Tensor], inputs: Float[Tensor, "B T D"]
) -> Float[Tensor, "L B H"]:
    """Return the zeros that a layer's hidden or cell state starts from."""
    recurrent = [weight for name, weight in params.items() if name.startswith("weight_hh")]
    return inputs.new_zeros(len(recurrent), inputs.shape[0], recurrent[0].shape[1])


class RNN(nn.Module):
    """Run `RNNCell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.RNN; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks [B, T, F], one between each two layers; None drops nothing.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step.
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
    ):
        super().__init__()
        self.dropout, self.nonlinearity = dropout, nonlinearity
        add_parameters(
            self, recurrent_schema("rnn", input_size, hidden_size, num_layers, bidirectional)
        )

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Sequence[Bool[Tensor, "B T F"]] | None = None,
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "L B H"]]:
        params = dict(self.named_parameters())
        h = zero_state(params, inputs) if h is None else h
        unroll_cell = partial(self.unroll, nonlinearity=self.nonlinearity)
        outputs, (h,) = run_layers(unroll_cell, params, inputs, lengths, (h,), keep, self.dropout)
        return outputs, h


class GRU(nn.Module):
    """Run `GRUCell` over time in layers and directions.

    Parameters have the names, shapes and order of torch.nn.GRU; so has the state.

    Args:
      inputs: readings [B, T, D]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      h: first state [L, B, H], L = layers x directions, forward before reverse; None for zeros.
      keep: dropout masks [B, T, F], one between each two layers; None drops nothing.

    Returns:
      outputs [B, T, F], zero past each end; last state [L, B, H], of each one's last real step.
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
    ):
        super().__init__()
        self.dropout, self.reset_after = dropout, reset_after
        add_parameters(
            self, recurrent_schema("gru", input_size, hidden_size, num_layers, bidirectional)
        )

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Sequence[Bool[Tensor, "B T F"]] | None = None,
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "L B H"]]:
        params = dict(self.named_parameters())
        h = zero_state(params, inputs) if h is None else h
        unroll_cell = partial(self.unroll, reset_after=self.reset_after)
        outputs, (h,) = run_layers(unroll_cell, params, inputs, lengths, (h,), keep, self.dropout)
        return outputs, h


class LSTM(nn.Module):
    """Run `LSTMCell` over time in layers and directions.

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

    unroll = staticmethod(unroll_lstm)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        add_parameters(
            self, recurrent_schema("lstm", input_size, hidden_size, num_layers, bidirectional)
        )

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]] | None = None,
        keep: Sequence[Bool[Tensor, "B T F"]] | None = None,
    ) -> tuple[Float[Tensor, "B T F"], LSTMState]:
        params = dict(self.named_parameters())
        state = (zero_state(params, inputs),) * 2 if state is None else state
        outputs, state = run_layers(self.unroll, params, inputs, lengths, state, keep, self.dropout)
        return outputs, LSTMState(*state)
