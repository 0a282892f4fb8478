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


class GRUCell(nn.Module):
    """Advance a gated recurrent unit by one step.

        r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh), their two thirds
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))     reset after the product
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)     reset before it
        h' = (1 - z) * n + z * h

    Every parameter stacks its gates r, z, n along axis 0; W_in, W_hn, b_in and b_hn are their last
    thirds.

    Source: Cho et al. (2014), "Learning Phrase Representations", with the reset before; Chung et
    al. (2014) for the update; after it as in torch.nn.GRU, which cuDNN computes.
    """

    def __init__(self, input_size: int, hidden_size: int, reset_after: bool = True):
        super().__init__()
        self.reset_after = reset_after
        add_parameters(self, cell_schema("gru", input_size, hidden_size))

    def forward(self, x: Float[Tensor, "B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        H = h.shape[-1]
        from_input = x @ self.weight_ih.T + self.bias_ih
        from_hidden = h @ self.weight_hh.T + self.bias_hh
        i_r, i_z, i_n = torch.chunk(from_input, 3, dim=-1)
        h_r, h_z, h_n = torch.chunk(from_hidden, 3, dim=-1)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        if self.reset_after:
            h_n = r * h_n
        else:
            h_n = (r * h) @ self.weight_hh[2 * H :].T + self.bias_hh[2 * H :]
        n = tanh(i_n + h_n)
        return (1 - z) * n + z * h


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
