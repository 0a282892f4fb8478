"""torch.nn's layers as Haiku's.

    transformed = hk.without_apply_rng(hk.transform(model))
    params = transformed.init(jax.random.key(0), inputs)
    compare(
        torch_model,
        transformed.apply,
        inputs,
        params=params,
        weights=maps.haiku.join({"mlp/~/linear_0": maps.haiku.linear("0.")}),
    )

A Haiku tree has two levels, the module's path and the parameter, so `join` is Haiku's own and is
needed for a single layer too. Set where the defaults differ: Conv1D padding="VALID", BatchNorm
eps=1e-5 (which is the default there).
"""

from collections.abc import Mapping

import jax.numpy as jnp

from parity.maps import layers
from parity.maps.layers import Cell, Map, attention, cell, layer, reorder
from parity.weights import WeightsError, named


def join(parts: Mapping[str, Map]) -> Map:
    """Put the trees of several maps into one, each under its module's path, as "mlp/~/linear_0"."""

    def convert(arrays):
        tree: dict = {}
        for name, array in named(layers.join(parts)(arrays)).items():
            module, _, parameter = name.rpartition(".")
            tree.setdefault(module.replace(".", "/"), {})[parameter] = array
        return tree

    return convert


@layer("weight", "bias?")
def linear(weight, bias):
    """torch.nn.Linear as hk.Linear."""
    return {"w": weight.T, "b": bias}


@layer("weight", "bias?")
def conv1d(weight, bias):
    """torch.nn.Conv1d [out, in / groups, k] as hk.Conv1D, which takes [B, T, in]."""
    return {"w": weight.transpose(2, 1, 0), "b": bias}


@layer("weight")
def embedding(weight):
    """torch.nn.Embedding as hk.Embed; with padding_idx torch holds back one row's gradient."""
    return {"embeddings": weight}


@layer("weight?", "bias?")
def layer_norm(weight, bias):
    """torch.nn.LayerNorm over one axis as hk.LayerNorm."""
    return {"scale": weight, "offset": bias}


@layer("weight?", "bias?")
def batch_norm(weight, bias, *, ndim: int):
    """torch.nn.BatchNorm1d's weights as hk.BatchNorm's on an input of `ndim` axes, [B, T, C] or [B, C]."""

    def broadcast(x):
        return None if x is None else x.reshape((1,) * (ndim - 1) + (-1,))

    return {"scale": broadcast(weight), "offset": broadcast(bias)}


@layer("running_mean", "running_var", "num_batches_tracked")
def batch_stats(mean, var, count, *, ndim: int):
    """torch.nn.BatchNorm1d's running statistics as hk.BatchNorm's state, for evaluation.

    In training Haiku divides an average by 1 - decay**counter, which torch does not.
    """

    def average(x):
        x = x.reshape((1,) * (ndim - 1) + (-1,))
        return {"average": x, "hidden": x, "counter": count}

    return {"~": {"mean_ema": average(mean), "var_ema": average(var)}}


@attention
def multi_head_attention(query, key, value, out):
    """torch.nn.MultiheadAttention(batch_first=True) as hk.MultiHeadAttention.

    A mask [B, heads, T, S] says which to keep; torch's key_padding_mask says which to ignore.
    """
    parts = {"query": query, "key": key, "value": value, "linear": out}
    return {name: {"w": p.weight.T, "b": p.bias} for name, p in parts.items()}


@cell
def rnn_cell(w: Cell):
    """torch.nn.RNN(nonlinearity="relu") as hk.VanillaRNN, which has both biases and only relu."""
    return {
        "linear": {"w": w.weight_ih.T, "b": w.bias_ih},
        "linear_1": {"w": w.weight_hh.T, "b": w.bias_hh},
    }


@cell
def lstm_cell(w: Cell):
    """torch.nn.LSTM as hk.LSTM; both biases become one.

    One kernel for [x; h], gates i, g, f, o; Haiku adds 1 to f, so its bias is 1 less.
    """
    weight = jnp.concatenate([w.weight_ih, w.weight_hh], axis=1)
    bias = w.bias
    if bias is not None:
        H = bias.shape[0] // 4
        bias = reorder(bias.at[H : 2 * H].add(-1), "ifgo", "igfo")
    return {"linear": {"w": reorder(weight, "ifgo", "igfo").T, "b": bias}}


def gru_cell(prefix: str = "", layer: int | None = 0, reverse: bool = False) -> Map:
    """Refuse: hk.GRU resets h before the product with W_hn, torch after it."""
    raise WeightsError("hk.GRU applies the reset gate before W_hn and cannot be torch.nn.GRU")
