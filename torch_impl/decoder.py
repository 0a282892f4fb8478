"""A recurrent decoder: forecasts step by step, attending to the encoder's outputs at each.

Dimensions: B batch, S source positions, F features of a state and of a source position, K steps of
the forecast, M targets of a step, G = 2 F features that are read out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spec.config import ModelConfig
from spec.params import cell_schema
from torch_impl.arrays import add_parameters
from torch_impl.cells import GeneralLSTMCell, GRUCell, RNNCell


class Decoded(NamedTuple):
    values: Float[Tensor, "B K M"]
    attention: Float[Tensor, "B K S"]


def decoder_cell(config: ModelConfig) -> nn.Module:
    """Build the cell of a decoder, which is of the encoder's kind."""
    sizes = len(config.fed_back) + config.encoded_size, config.encoded_size
    if config.cell == "lstm":
        return GeneralLSTMCell(*sizes, config)
    gru = config.cell == "gru"
    cell = GRUCell(*sizes, config.reset_after) if gru else RNNCell(*sizes, config.nonlinearity)
    add_parameters(cell, cell_schema(config.cell, *sizes, config))  # as the options begin them
    return cell


def decode(
    attend: Callable,
    advance: Callable,
    read: Callable,
    steps: int,
    state: tuple[Float[Tensor, "B F"], ...],
    value: Float[Tensor, "B M"],
    keep: Bool[Tensor, "B K G"] | None = None,
    truth: Float[Tensor, "B K M"] | None = None,
    teacher: Bool[Tensor, "B K"] | None = None,
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
    values, attention = [], []
    for k in range(steps):
        context, weights = attend(state[0])
        state = advance(torch.cat([value, context], dim=-1), state)
        features = torch.cat([context, state[0]], dim=-1)
        value = read(features, None if keep is None else keep[:, k])
        values.append(value)
        attention.append(weights)
        if teacher is not None:
            value = torch.where(teacher[:, k, None], truth[:, k], value)
    return Decoded(torch.stack(values, dim=1), torch.stack(attention, dim=1))
