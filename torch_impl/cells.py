"""Recurrent cells, one time step each.

Dimensions: B batch, D input features, H hidden units.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn, relu, sigmoid, tanh

from spec.params import cell_schema
from torch_impl.arrays import add_parameters


class LSTMState(NamedTuple):
    h: Float[Tensor, "*L B H"]
    c: Float[Tensor, "*L B H"]


class RNNCell(nn.Module):
    """Advance a plain recurrent network by one step.

        h' = nonlinearity(W_ih x + b_ih + W_hh h + b_hh)

    The nonlinearity is "tanh" or "relu".

    Source: Elman (1990), "Finding Structure in Time".
    """

    def __init__(self, input_size: int, hidden_size: int, nonlinearity: str = "tanh"):
        super().__init__()
        self.nonlinearity = nonlinearity
        add_parameters(self, cell_schema("rnn", input_size, hidden_size))

    def forward(self, x: Float[Tensor, "B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        from_input = x @ self.weight_ih.T + self.bias_ih
        from_hidden = h @ self.weight_hh.T + self.bias_hh
        return {"tanh": tanh, "relu": relu}[self.nonlinearity](from_input + from_hidden)


class LSTMCell(nn.Module):
    """Advance an LSTM by one step.

        i, f, g, o = split(W_ih x + b_ih + W_hh h + b_hh)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Every parameter stacks its gates i, f, g, o along axis 0.

    Source: Gers, Schmidhuber & Cummins (2000), without peepholes.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        add_parameters(self, cell_schema("lstm", input_size, hidden_size))

    def forward(self, x: Float[Tensor, "B D"], state: LSTMState) -> LSTMState:
        h, c = state
        from_input = x @ self.weight_ih.T + self.bias_ih
        from_hidden = h @ self.weight_hh.T + self.bias_hh
        i, f, g, o = torch.chunk(from_input + from_hidden, 4, dim=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return LSTMState(h, c)
