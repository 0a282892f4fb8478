"""torch.nn's layers as flax.nnx's.

    graph, params = nnx.split(model)
    compare(
        torch_model,
        lambda params, x: nnx.merge(graph, params)(x),
        inputs,
        params=params,
        weights=maps.join({"layers.0": maps.nnx.linear("0.")}),
    )

`params` must be given: the maps name what nnx.State holds, and it makes a State of them. Where a
model has other state (random streams, as nnx.RNN does), split that off:
`graph, params, rest = nnx.split(model, nnx.Param, ...)` and `nnx.merge(graph, params, rest)`.
Batch statistics are params here: `nnx.split(model, (nnx.Param, nnx.BatchStat), ...)`.
The defaults to set are linen's (see `parity.maps.linen`). For dtype="float64" give SimpleCell
dtype=jnp.float64 (its default is float32), and MultiHeadAttention a dropout_rate with
deterministic=True: without dropout it calls jax.nn.dot_product_attention, whose softmax is float32.
"""

from collections.abc import Callable

import jax

from parity.maps import linen
from parity.maps.layers import Cell, Map, cell, layer
from parity.weights import WeightsError


def variables(maker: Callable[..., Map]) -> Callable[..., Map]:
    """Hold each array as nnx.State does, in a Variable's value."""

    def held(*args, **options) -> Map:
        convert = maker(*args, **options)
        return lambda arrays: jax.tree.map(lambda x: {"value": x}, convert(arrays))

    held.__name__ = held.__qualname__ = maker.__name__
    held.__doc__ = (maker.__doc__ or "").replace("linen", "nnx")
    return held


linear = variables(linen.linear)
conv1d = variables(linen.conv1d)
embedding = variables(linen.embedding)
layer_norm = variables(linen.layer_norm)
multi_head_attention = variables(linen.multi_head_attention)


@variables
@layer("weight?", "bias?", "running_mean", "running_var")
def batch_norm(weight, bias, mean, var):
    """torch.nn.BatchNorm1d as nnx.BatchNorm, running statistics and all.

    In training nnx puts the biased variance into them, torch the unbiased.
    """
    return {"scale": weight, "bias": bias, "mean": mean, "var": var}


@variables
@cell
def rnn_cell(w: Cell):
    """A layer and direction of torch.nn.RNN as nnx.SimpleCell; both biases become one."""
    return {
        "dense_i": {"kernel": w.weight_ih.T, "bias": w.bias},
        "dense_h": {"kernel": w.weight_hh.T},
    }


@variables
@cell
def optimized_lstm_cell(w: Cell):
    """torch.nn.LSTM as nnx.OptimizedLSTMCell; both biases become one."""
    return {
        "dense_i": {"kernel": w.weight_ih.T},
        "dense_h": {"kernel": w.weight_hh.T, "bias": w.bias},
    }


def lstm_cell(prefix: str = "", layer: int | None = 0, reverse: bool = False) -> Map:
    """torch.nn.LSTM as nnx.LSTMCell, which calls one kernel "if_"; both biases become one."""
    convert = variables(linen.lstm_cell)(prefix, layer, reverse)
    return lambda arrays: {n.replace("if", "if_"): part for n, part in convert(arrays).items()}


def gru_cell(prefix: str = "", layer: int | None = 0, reverse: bool = False) -> Map:
    """Refuse: nnx.GRUCell has no b_hn, which torch's reset gate scales."""
    raise WeightsError("nnx.GRUCell has no b_hn and cannot be torch.nn.GRU; linen.GRUCell can")
