"""Recurrent cells, one time step each.

Dimensions: B batch, D input features, H hidden units.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn, relu, sigmoid, tanh

from spec.config import Recurrence
from spec.params import PLAIN, cell_schema
from torch_impl.arrays import add_parameters, in_float32


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
    thirds. The products see `read` in place of h where recurrent dropout gives one.

    Source: Cho et al. (2014), "Learning Phrase Representations", with the reset before; Chung et
    al. (2014) for the update; after it as in torch.nn.GRU, which cuDNN computes.
    """

    def __init__(self, input_size: int, hidden_size: int, reset_after: bool = True):
        super().__init__()
        self.reset_after = reset_after
        add_parameters(self, cell_schema("gru", input_size, hidden_size))

    def forward(
        self,
        x: Float[Tensor, "B D"],
        h: Float[Tensor, "B H"],
        read: Float[Tensor, "B H"] | None = None,
    ) -> Float[Tensor, "B H"]:
        H = h.shape[-1]
        read = h if read is None else read
        from_input = x @ self.weight_ih.T + self.bias_ih
        from_hidden = read @ self.weight_hh.T + self.bias_hh
        i_r, i_z, i_n = torch.chunk(from_input, 3, dim=-1)
        h_r, h_z, h_n = torch.chunk(from_hidden, 3, dim=-1)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        if self.reset_after:
            h_n = r * h_n
        else:
            h_n = (r * read) @ self.weight_hh[2 * H :].T + self.bias_hh[2 * H :]
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
        gates = (from_input + from_hidden).to(c.dtype)
        i, f, g, o = torch.chunk(gates, 4, dim=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = (sigmoid(o) * tanh(c)).to(x.dtype)
        return LSTMState(h, c)


@in_float32
def standardize(x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
    """Shift and scale each row to mean 0 and variance 1.

    The variance is the mean of squares about the mean, and 1e-5 is added to it, as in torch; flax
    adds 1e-6 and takes the mean of x**2 less the squared mean, which cancels.
    """
    moved = x - x.mean(dim=-1, keepdim=True)
    variance = (moved**2).mean(dim=-1, keepdim=True)
    return moved / torch.sqrt(variance + 1e-5)


def unshown(name: str, gate: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
    return gate


class GeneralLSTMCell(nn.Module):
    """Advance by one step an LSTM with what its parameters say beside the plain cell.

        i, f, g, o = split(N(W_ih x) + b_ih + N(W_hh h) + b_hh)
        i' = sigmoid(i + p_i * c)
        f' = sigmoid(f + p_f * c), or 1 - i' with coupled gates, which have no f
        c' = f' * c + i' * tanh(g)
        o' = sigmoid(o + p_o * c')
        h' = W_hr (o' * tanh(N(c')))

    The peepholes p are weight_ch; N normalises over all gates and multiplies by gain_ih, gain_hh,
    of c' by gain_c and adds bias_c; W_hr is the projection. What has no parameter is left out.
    Each gate and state passes through `show` by its name, i to o, c, h.

    Source: Gers, Schraudolph & Schmidhuber (2002) for peepholes; Greff et al. (2017) for coupled
    gates; Ba, Kiros & Hinton (2016) for the norms; Sak, Senior & Beaufays (2014) for the
    projection.
    """

    def __init__(self, input_size: int, hidden_size: int, options: Recurrence = PLAIN):
        super().__init__()
        add_parameters(self, cell_schema("lstm", input_size, hidden_size, options))

    def forward(
        self, x: Float[Tensor, "B D"], state: LSTMState, show: Callable = unshown
    ) -> LSTMState:
        h, c = state
        from_input, from_hidden = x @ self.weight_ih.T, h @ self.weight_hh.T
        if hasattr(self, "gain_ih"):
            from_input = standardize(from_input) * self.gain_ih
            from_hidden = standardize(from_hidden) * self.gain_hh
        gates = (from_input + self.bias_ih) + (from_hidden + self.bias_hh)
        i, *forget, g, o = torch.split(gates.to(c.dtype), c.shape[-1], dim=-1)
        peepholes = hasattr(self, "weight_ch")
        if peepholes:
            p_i, *p_forget, p_o = torch.split(self.weight_ch, c.shape[-1])
            i = i + p_i * c
            forget = [f + p_f * c for f, p_f in zip(forget, p_forget, strict=True)]
        i = show("i", sigmoid(i))
        f = show("f", sigmoid(forget[0]) if forget else 1 - i)
        c = show("c", f * c + i * show("g", tanh(g)))
        o = show("o", sigmoid(o + p_o * c if peepholes else o))
        inside = standardize(c) * self.gain_c + self.bias_c if hasattr(self, "gain_c") else c
        h = (o * tanh(inside)).to(x.dtype)
        h = show("h", h @ self.weight_hr.T if hasattr(self, "weight_hr") else h)
        return LSTMState(h, c)
