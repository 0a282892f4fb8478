"""torch.nn's layers as Equinox's.

    params, static = eqx.partition(model, eqx.is_inexact_array)
    compare(
        torch_model,
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        inputs,
        params=params,
        weights=maps.join({"layers.0": maps.equinox.linear("0.")}),
    )

`params` must be given: it makes modules of what the maps name. Equinox takes one example without a
batch axis. It has no plain recurrent cell, hence no `rnn_cell`. A State's floats are split off in
the same way; see `batch_stats`.
"""

from parity.maps.layers import Cell, attention, cell, layer


@layer("weight", "bias?")
def linear(weight, bias):
    """torch.nn.Linear as eqx.nn.Linear."""
    return {"weight": weight, "bias": bias}


@layer("weight", "bias?")
def conv1d(weight, bias):
    """torch.nn.Conv1d as eqx.nn.Conv1d, whose bias is [out, 1]."""
    return {"weight": weight, "bias": None if bias is None else bias[:, None]}


@layer("weight")
def embedding(weight):
    """torch.nn.Embedding as eqx.nn.Embedding; with padding_idx torch holds back a row's gradient."""
    return {"weight": weight}


@layer("weight?", "bias?")
def layer_norm(weight, bias):
    """torch.nn.LayerNorm as eqx.nn.LayerNorm, which has the shape of one example."""
    return {"weight": weight, "bias": bias}


@layer("weight?", "bias?")
def batch_norm(weight, bias):
    """torch.nn.BatchNorm1d's weights as eqx.nn.BatchNorm's."""
    return {"weight": weight, "bias": bias}


@layer("running_mean", "running_var")
def batch_stats(mean, var):
    """torch.nn.BatchNorm1d's running statistics as those in an eqx.nn.State, for inference.

    A State numbers what it holds: the first BatchNorm's statistics are "1", the second's "3".

        params = {"model": eqx.filter(model, eqx.is_inexact_array),
                  "state": eqx.filter(state, eqx.is_inexact_array)}
        weights = maps.join({"model": maps.equinox.batch_norm(),
                             "state.1": maps.equinox.batch_stats()})

    With mode="batch" a state that was trained divides them by 1 - momentum**steps: take a new one.
    """
    return {"0": mean, "1": var}


@attention
def multi_head_attention(query, key, value, out):
    """torch.nn.MultiheadAttention as eqx.nn.MultiheadAttention with all four use_*_bias set.

    A mask [T, S] says which to keep; torch's key_padding_mask [B, S] says which to ignore.
    """
    parts = {"query": query, "key": key, "value": value, "output": out}
    return {f"{name}_proj": projection._asdict() for name, projection in parts.items()}


@cell
def lstm_cell(w: Cell):
    """torch.nn.LSTM as eqx.nn.LSTMCell; both biases become one."""
    return {"weight_ih": w.weight_ih, "weight_hh": w.weight_hh, "bias": w.bias}


@cell
def gru_cell(w: Cell):
    """torch.nn.GRU as eqx.nn.GRUCell; the biases of r and z become one each, n keeps both.

    Both reset after the product: a GRU with reset_after=False has equal weights' names and shapes, but
    computes something else.
    """
    bias, bias_n = w.gru_biases
    return {"weight_ih": w.weight_ih, "weight_hh": w.weight_hh, "bias": bias, "bias_n": bias_n}
