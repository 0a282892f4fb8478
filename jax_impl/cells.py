"""Recurrent cells, one time step each.

Dimensions: B batch, D input features, H hidden units.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.nn import relu, sigmoid, tanh
from jaxtyping import Float


class LSTMState(NamedTuple):
    h: Float[Array, "*L B H"]
    c: Float[Array, "*L B H"]


def rnn_cell(
    params: Mapping[str, Array],
    x: Float[Array, "B D"],
    h: Float[Array, "B H"],
    nonlinearity: str = "tanh",
) -> Float[Array, "B H"]:
    """Advance a plain recurrent network by one step.

        h' = nonlinearity(W_ih x + b_ih + W_hh h + b_hh)

    The nonlinearity is "tanh" or "relu".

    Source: Elman (1990), "Finding Structure in Time".
    """
    from_input = x @ params["weight_ih"].T + params["bias_ih"]
    from_hidden = h @ params["weight_hh"].T + params["bias_hh"]
    return {"tanh": tanh, "relu": relu}[nonlinearity](from_input + from_hidden)


def gru_cell(
    params: Mapping[str, Array],
    x: Float[Array, "B D"],
    h: Float[Array, "B H"],
    reset_after: bool = True,
) -> Float[Array, "B H"]:
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
    H = h.shape[-1]
    from_input = x @ params["weight_ih"].T + params["bias_ih"]
    from_hidden = h @ params["weight_hh"].T + params["bias_hh"]
    i_r, i_z, i_n = jnp.split(from_input, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(from_hidden, 3, axis=-1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    if reset_after:
        h_n = r * h_n
    else:
        h_n = (r * h) @ params["weight_hh"][2 * H :].T + params["bias_hh"][2 * H :]
    n = tanh(i_n + h_n)
    return (1 - z) * n + z * h


def lstm_cell(params: Mapping[str, Array], x: Float[Array, "B D"], state: LSTMState) -> LSTMState:
    """Advance an LSTM by one step.

        i, f, g, o = split(W_ih x + b_ih + W_hh h + b_hh)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Every parameter stacks its gates i, f, g, o along axis 0.

    Source: Gers, Schmidhuber & Cummins (2000), without peepholes.
    """
    h, c = state
    from_input = x @ params["weight_ih"].T + params["bias_ih"]
    from_hidden = h @ params["weight_hh"].T + params["bias_hh"]
    i, f, g, o = jnp.split(from_input + from_hidden, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return LSTMState(h, c)
