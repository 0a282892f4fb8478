"""torch.nn's layers as Keras 3's, on its JAX backend.

    os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported
    function, params = maps.keras.functional(layer)
    weights = maps.join({"dense": maps.keras.linear("0.")})
    compare(torch_model, function, inputs, params=params, weights=weights)

The path to a parameter is its variable's, "lstm/lstm_cell/kernel": give the layers names, else Keras
counts them. Set where the defaults differ: LayerNormalization and BatchNormalization epsilon=1e-5,
GRU reset_after=True (its default). Gates: LSTM i, f, c, o; GRU z, r, h.

On JAX Keras 3.15 rounds to float32 in recurrent layers, LayerNormalization, BatchNormalization and
MultiHeadAttention whatever their dtype (SimpleRNN with dtype="float64" raises): compare these with
dtype="float32".
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jax_impl.arrays import to_tree
from parity.maps import linen
from parity.maps.layers import Cell, Map, cell, layer, reorder
from parity.weights import named


def functional(layer: Any) -> tuple[Callable, dict[str, Any]]:
    """Return a layer or model as a function of (params, *inputs, **options), and its parameters.

    It must be built: have been called once, or by `build`.
    """

    def path(variable):
        return variable.path.replace("/", ".")

    def function(params, *inputs, **options):
        values = named(params)
        parts = (layer.trainable_variables, layer.non_trainable_variables)
        given = [[values.get(path(v), v.value) for v in part] for part in parts]
        return layer.stateless_call(*given, *inputs, **options)[0]

    floats = [v for v in layer.variables if "float" in str(v.dtype)]  # the rest are random streams
    return function, to_tree({path(v): v.value for v in floats})


@layer("weight", "bias?")
def linear(weight, bias):
    """torch.nn.Linear as keras.layers.Dense."""
    return {"kernel": weight.T, "bias": bias}


@layer("weight", "bias?")
def conv1d(weight, bias):
    """torch.nn.Conv1d [out, in / groups, k] as keras.layers.Conv1D, which takes [B, T, in]."""
    return {"kernel": weight.transpose(2, 1, 0), "bias": bias}


@layer("weight")
def embedding(weight):
    """torch.nn.Embedding as keras.layers.Embedding."""
    return {"embeddings": weight}


@layer("weight?", "bias?")
def layer_norm(weight, bias):
    """torch.nn.LayerNorm as keras.layers.LayerNormalization."""
    return {"gamma": weight, "beta": bias}


@layer("weight?", "bias?", "running_mean", "running_var")
def batch_norm(weight, bias, mean, var):
    """torch.nn.BatchNorm1d as keras.layers.BatchNormalization, running statistics and all.

    In training Keras puts the biased variance into them, torch the unbiased.
    """
    return {"gamma": weight, "beta": bias, "moving_mean": mean, "moving_variance": var}


def multi_head_attention(prefix: str = "", *, heads: int) -> Map:
    """torch.nn.MultiheadAttention(batch_first=True) as keras.layers.MultiHeadAttention.

    It takes (query, value, key) and says in attention_mask [B, T, S] which to keep.
    """
    convert = linen.multi_head_attention(prefix, heads=heads)

    def renamed(arrays):
        parts = convert(arrays)
        return {"attention_output" if n == "out" else n: part for n, part in parts.items()}

    return renamed


@cell
def rnn_cell(w: Cell):
    """torch.nn.RNN as keras.layers.SimpleRNN's "simple_rnn_cell"; both biases become one."""
    return {"kernel": w.weight_ih.T, "recurrent_kernel": w.weight_hh.T, "bias": w.bias}


@cell
def lstm_cell(w: Cell):
    """torch.nn.LSTM as keras.layers.LSTM's "lstm_cell"; both biases become one."""
    return {"kernel": w.weight_ih.T, "recurrent_kernel": w.weight_hh.T, "bias": w.bias}


@cell
def gru_cell(w: Cell):
    """torch.nn.GRU as keras.layers.GRU's "gru_cell", which has both biases.

    It needs reset_after=True, on either side: a GRU with the reset before the product has equal
    weights' names and shapes, or in Keras a bias the less, but computes something else.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = (reorder(x, "rzn", "zrn") for x in w)
    bias = None if bias_ih is None else jnp.stack([bias_ih, bias_hh])
    return {"kernel": weight_ih.T, "recurrent_kernel": weight_hh.T, "bias": bias}
