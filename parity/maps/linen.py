"""torch.nn's layers as flax.linen's.

    params = model.init(jax.random.key(0), inputs)["params"]
    compare(
        torch_model,
        lambda params, x: model.apply({"params": params}, x),
        inputs,
        params=params,
        weights=maps.join({"Dense_0": maps.linen.linear("0.")}),
    )

linen.RNN holds its cell's tree as "cell" (of a cell made with parent=None; inside a compact method it
else belongs to that module), linen.Bidirectional its two as "forward_rnn" and "backward_rnn". A
carry is (c, h). Set where the defaults differ: LayerNorm and BatchNorm
epsilon=1e-5 and use_fast_variance=False, Conv padding=0; initial carries in the inputs' dtype.
"""

from parity.maps.layers import Cell, attention, blocks, cell, layer


@layer("weight", "bias?")
def linear(weight, bias):
    """torch.nn.Linear as linen.Dense."""
    return {"kernel": weight.T, "bias": bias}


@layer("weight", "bias?")
def conv1d(weight, bias):
    """torch.nn.Conv1d [out, in / groups, k] as linen.Conv, which takes [B, T, in]."""
    return {"kernel": weight.transpose(2, 1, 0), "bias": bias}


@layer("weight")
def embedding(weight):
    """torch.nn.Embedding as linen.Embed; with padding_idx torch holds back one row's gradient."""
    return {"embedding": weight}


@layer("weight?", "bias?")
def layer_norm(weight, bias):
    """torch.nn.LayerNorm over one axis as linen.LayerNorm."""
    return {"scale": weight, "bias": bias}


@layer("weight?", "bias?")
def batch_norm(weight, bias):
    """torch.nn.BatchNorm1d's weights as linen.BatchNorm's, of the collection "params"."""
    return {"scale": weight, "bias": bias}


@layer("running_mean", "running_var")
def batch_stats(mean, var):
    """torch.nn.BatchNorm1d's running statistics as linen's, of the collection "batch_stats".

    In training linen puts the biased variance into them, torch the unbiased.
    """
    return {"mean": mean, "var": var}


@attention
def multi_head_attention(query, key, value, out, *, heads: int):
    """torch.nn.MultiheadAttention(batch_first=True) as linen.MultiHeadDotProductAttention.

    A mask says which to keep; torch's key_padding_mask says which to ignore.
    """

    def into_heads(projection):  # [out, in] -> [in, heads, out / heads]
        weight, bias = projection
        return {
            "kernel": weight.T.reshape(weight.shape[1], heads, -1),
            "bias": None if bias is None else bias.reshape(heads, -1),
        }

    parts = {"query": query, "key": key, "value": value}
    tree = {name: into_heads(projection) for name, projection in parts.items()}
    kernel = out.weight.T.reshape(heads, -1, out.weight.shape[0])
    return tree | {"out": {"kernel": kernel, "bias": out.bias}}


@cell
def rnn_cell(w: Cell):
    """A layer and direction of torch.nn.RNN as linen.SimpleCell; both biases become one."""
    return {
        "i": {"kernel": w.weight_ih.T, "bias": w.bias},
        "h": {"kernel": w.weight_hh.T},
    }


@cell
def lstm_cell(w: Cell):
    """torch.nn.LSTM as linen.LSTMCell or OptimizedLSTMCell; both biases become one."""
    parts = (blocks(x, 4) for x in (w.weight_ih, w.weight_hh, w.bias))
    tree = {}
    for gate, from_input, from_hidden, bias in zip("ifgo", *parts, strict=True):
        tree[f"i{gate}"] = {"kernel": from_input.T}
        tree[f"h{gate}"] = {"kernel": from_hidden.T, "bias": bias}
    return tree


@cell
def gru_cell(w: Cell):
    """torch.nn.GRU as linen.GRUCell; the biases of r and z become one each, n keeps both.

    Both reset after the product: a GRU with reset_after=False has equal weights' names and shapes, but
    computes something else.
    """
    bias, bias_n = w.gru_biases
    parts = (blocks(x, 3) for x in (w.weight_ih, w.weight_hh, bias))
    tree = {}
    for gate, from_input, from_hidden, own in zip("rzn", *parts, strict=True):
        tree[f"i{gate}"] = {"kernel": from_input.T, "bias": own}
        tree[f"h{gate}"] = {"kernel": from_hidden.T, "bias": bias_n if gate == "n" else None}
    return tree
