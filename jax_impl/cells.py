"""Recurrent cells, one time step each.

Dimensions: B batch, D input features, H hidden units.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jaxtyping import Float

from jax_impl.arrays import in_float32, sigmoid, tanh


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
    read: Float[Array, "B H"] | None = None,
) -> Float[Array, "B H"]:
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
    H = h.shape[-1]
    read = h if read is None else read
    from_input = x @ params["weight_ih"].T + params["bias_ih"]
    from_hidden = read @ params["weight_hh"].T + params["bias_hh"]
    i_r, i_z, i_n = jnp.split(from_input, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(from_hidden, 3, axis=-1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    if reset_after:
        h_n = r * h_n
    else:
        h_n = (r * read) @ params["weight_hh"][2 * H :].T + params["bias_hh"][2 * H :]
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
    gates = (from_input + from_hidden).astype(c.dtype)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = (sigmoid(o) * tanh(c)).astype(x.dtype)
    return LSTMState(h, c)


@in_float32
def standardize(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Shift and scale each row to mean 0 and variance 1.

    The variance is the mean of squares about the mean, and 1e-5 is added to it, as in torch; flax
    adds 1e-6 and takes the mean of x**2 less the squared mean, which cancels.
    """
    moved = x - x.mean(axis=-1, keepdims=True)
    variance = (moved**2).mean(axis=-1, keepdims=True)
    return moved / jnp.sqrt(variance + 1e-5)


def unshown(name: str, gate: Float[Array, "B H"]) -> Float[Array, "B H"]:
    return gate


def general_lstm_cell(
    params: Mapping[str, Array],
    x: Float[Array, "B D"],
    state: LSTMState,
    show: Callable = unshown,
) -> LSTMState:
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
    h, c = state
    from_input, from_hidden = x @ params["weight_ih"].T, h @ params["weight_hh"].T
    if "gain_ih" in params:
        from_input = standardize(from_input) * params["gain_ih"]
        from_hidden = standardize(from_hidden) * params["gain_hh"]
    gates = (from_input + params["bias_ih"]) + (from_hidden + params["bias_hh"])
    i, *forget, g, o = jnp.split(gates.astype(c.dtype), gates.shape[-1] // c.shape[-1], axis=-1)
    peepholes = "weight_ch" in params
    if peepholes:
        p_i, *p_forget, p_o = jnp.split(params["weight_ch"], len(forget) + 2)
        i = i + p_i * c
        forget = [f + p_f * c for f, p_f in zip(forget, p_forget, strict=True)]
    i = show("i", sigmoid(i))
    f = show("f", sigmoid(forget[0]) if forget else 1 - i)
    c = show("c", f * c + i * show("g", tanh(g)))
    o = show("o", sigmoid(o + p_o * c if peepholes else o))
    inside = standardize(c) * params["gain_c"] + params["bias_c"] if "gain_c" in params else c
    h = (o * tanh(inside)).astype(x.dtype)
    h = show("h", h @ params["weight_hr"].T if "weight_hr" in params else h)
    return LSTMState(h, c)
