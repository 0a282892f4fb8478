"""The diagnosis of single layers: BatchNorm, attention heads, dropout, cells of flax, losses, optimisers."""

import copy

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from parity import compare, diagnose
from parity_tests.test_diagnose import (
    DRAW,
    LSTM,
    MASK,
    TARGETS,
    B,
    D,
    H,
    P,
    T,
    X,
    as_given,
    lstm,
    seeded,
    train_jax,
    train_torch,
)


def norm_in_torch(x):
    """Return the output and the running statistics after one batch."""
    norm = nn.BatchNorm1d(D).to(x.dtype)
    y = norm(x.transpose(1, 2)).transpose(1, 2)
    return y, norm.running_mean, norm.running_var


def norm_in_jax(keep=0.9, unbiased=True, eps=1e-5):
    def run(x):
        mean, var, n = x.mean((0, 1)), x.var((0, 1)), x.shape[0] * x.shape[1]
        factor = n / (n - 1) if unbiased else 1
        return (x - mean) / jnp.sqrt(var + eps), (1 - keep) * mean, keep + (1 - keep) * var * factor

    return run


HEADS = seeded(nn.MultiheadAttention(6, 2, batch_first=True))
WIDE = DRAW.normal(size=(B, T, 6))
PADDED = ~MASK | (np.arange(T) == 4)
PADDED[0, 5], PADDED[1, 0] = True, False


def heads_in_torch(x, mask):
    return HEADS.to(x.dtype)(x, x, x, key_padding_mask=mask, need_weights=False)[0]


def heads_in_jax(x, mask, inverted=False):
    p = as_given(HEADS)
    parts = jnp.split(x @ p["in_proj_weight"].T + p["in_proj_bias"], 3, -1)
    q, k, v = (part.reshape(B, T, 2, 3).swapaxes(1, 2) for part in parts)
    keep = (mask if inverted else ~mask)[:, None, None]
    weights = jax.nn.softmax(jnp.where(keep, q @ k.swapaxes(-1, -2) / 3**0.5, -jnp.inf), -1)
    joined = (weights @ v).swapaxes(1, 2).reshape(B, T, 6)
    return joined @ p["out_proj.weight"].T + p["out_proj.bias"]


KEEP = DRAW.random(size=(B, T, D)) < 0.7
GRU_CELL = seeded(nn.GRUCell(D, H))
FIRST, H0, C0 = X[:, 0], DRAW.normal(size=(B, H)), DRAW.normal(size=(B, H))


def gru_cell(p, x, h, b_hn=1.0):
    i = jnp.split(x @ p["weight_ih"].T + p["bias_ih"], 3, -1)
    bias = p["bias_hh"] * jnp.concatenate([jnp.ones(2 * H), b_hn * jnp.ones(H)])
    j = jnp.split(h @ p["weight_hh"].T + bias, 3, -1)
    r, z = jax.nn.sigmoid(i[0] + j[0]), jax.nn.sigmoid(i[1] + j[1])
    return (1 - z) * jnp.tanh(i[2] + r * j[2]) + z * h


def gates_transposed(p, x):
    blocks = jnp.split(p["weight_hh_l0"], 4)
    return lstm({**p, "weight_hh_l0": jnp.concatenate([b.T for b in blocks])}, x)


def in_flax(transposed=False, letters="ifgo", p=P):
    """Return the LSTM's arrays as flax.linen.LSTMCell names them, perhaps wrongly."""
    tree = {}
    for n, gate in enumerate(letters):
        for kind in "ih":
            kernel = np.split(p[f"weight_{kind}h_l0"], 4)[n].T
            tree[f"{kind}{gate}"] = {"kernel": kernel.T if transposed and kind == "h" else kernel}
        tree[f"h{gate}"]["bias"] = np.split(p["bias_ih_l0"] + p["bias_hh_l0"], 4)[n]
    return {"params": tree}


def flax_cell(variables, x, h, c):
    cell = flax.linen.LSTMCell(H, parent=None)
    (c, h), _ = cell.apply({"params": variables["params"]}, (c, h), x)
    return h, c


def flax_rnn(variables, x):
    rnn = flax.linen.RNN(flax.linen.LSTMCell(H, parent=None))
    return rnn.apply({"params": {"cell": variables["params"]}}, x)


def summed_in_float32(letters="ifgo"):
    """Return what a user's loop over a state_dict gives: float32 biases, added in float32."""
    narrow = {n: p.detach().numpy().astype(np.float32) for n, p in LSTM.named_parameters()}
    return in_flax(letters=letters, p=narrow)


def nnx_rnn(gates=(0, 1, 2, 3)):
    """Return nnx's RNN, with a state of random numbers of its own, and torch's blocks in an order."""
    cell = nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0))
    order = np.concatenate([np.arange(H) + n * H for n in gates])
    p = {n: x.detach().float().numpy()[order] for n, x in LSTM.named_parameters()}
    cell.dense_i.kernel[...] = jnp.asarray(p["weight_ih_l0"].T)
    cell.dense_h.kernel[...] = jnp.asarray(p["weight_hh_l0"].T)
    cell.dense_h.bias[...] = jnp.asarray(p["bias_ih_l0"] + p["bias_hh_l0"])
    return nnx.RNN(cell)


def split_nnx(module):
    """Return the module as nnx's guide does it: a function of its state, keys among that."""
    graph, state = nnx.split(module)
    return lambda p, x: nnx.merge(graph, p)(x), state


MERGED, STATE = split_nnx(nnx_rnn((0, 1, 3, 2)))


class Pooled(nn.Module):
    """An LSTM, LayerNorm, the mean under a mask of zeros and ones, GELU, a head."""

    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(D, H, batch_first=True), nn.LayerNorm(H)
        self.head = nn.Linear(H, 2)

    def forward(self, x, mask):
        x = self.norm(self.lstm(x)[0])
        x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(functional.gelu(x))


POOLED = seeded(Pooled())
REAL = MASK.astype(np.float32)


class FlaxPooled(flax.linen.Module):
    """The same in flax, but for what is asked for; it cannot take float64, as its states cannot."""

    eps: float = 1e-5
    approximate: bool = False
    masked: bool = True

    @flax.linen.compact
    def __call__(self, x, mask):
        x = flax.linen.RNN(flax.linen.OptimizedLSTMCell(H, name="cell"))(x)
        x = flax.linen.LayerNorm(epsilon=self.eps, name="norm")(x)
        mask = mask if self.masked else jnp.ones_like(mask)
        x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return flax.linen.Dense(2, name="head")(jax.nn.gelu(x, approximate=self.approximate))


def pooled_in_flax(bias_hh=1.0, forget=0.0):
    """Return POOLED's float32 arrays as a user would copy them, biases added in float32."""
    p = {n: x.detach().numpy() for n, x in POOLED.named_parameters()}
    bias = p["lstm.bias_ih_l0"] + np.float32(bias_hh) * p["lstm.bias_hh_l0"]
    bias[H : 2 * H] += np.float32(forget)
    cell = {}
    for n, gate in enumerate("ifgo"):
        rows = slice(n * H, (n + 1) * H)
        cell[f"i{gate}"] = {"kernel": p["lstm.weight_ih_l0"][rows].T}
        cell[f"h{gate}"] = {"kernel": p["lstm.weight_hh_l0"][rows].T, "bias": bias[rows]}
    norm = {"scale": p["norm.weight"], "bias": p["norm.bias"]}
    head = {"kernel": p["head.weight"].T, "bias": p["head.bias"]}
    return {"params": {"cell": cell, "norm": norm, "head": head}}


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = copy.deepcopy(LSTM)

    def forward(self, x):
        return self.layer(x)[0]


def torch_cell(x, h, c):
    cell = nn.LSTMCell(D, H).to(x.dtype)
    cell.load_state_dict({n.removesuffix("_l0"): torch.tensor(a) for n, a in P.items()})
    return cell(x, (h, c))


def outputs_only(x):
    return copy.deepcopy(LSTM).to(x.dtype)(x)[0]


LOGITS, LABELS = DRAW.normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 0])
CONVOLUTION = seeded(nn.Sequential(nn.Conv1d(D, H, 3), nn.Flatten(), nn.Linear(4 * H, 2)))
LINEAR = nn.Sequential(seeded(nn.Linear(D, H)))


def channels_last(p, x):
    kernel = p["0"]["weight"].transpose(2, 1, 0)
    sizes = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(
        x.swapaxes(1, 2), kernel, (1,), "VALID", dimension_numbers=sizes
    )
    return (y + p["0"]["bias"]).reshape(B, -1) @ p["2"]["weight"].T + p["2"]["bias"]


def in_bfloat16(p, x):
    x, w = x.astype(jnp.bfloat16), p["0"]["weight"].T.astype(jnp.bfloat16)
    return jnp.matmul(x, w, preferred_element_type=jnp.float32) + p["0"]["bias"]


def one_more(variables):
    """Add 1 to the forget gate's bias, as Keras does."""
    cell = variables["params"]
    return {"params": cell | {"hf": {**cell["hf"], "bias": cell["hf"]["bias"] + np.float32(1)}}}


PAIRS = {
    "BatchNorm momentum": (norm_in_torch, norm_in_jax(0.1), X, None, None, ["batchnorm_momentum"]),
    "BatchNorm variance": (
        norm_in_torch, norm_in_jax(unbiased=False), X, None, None, ["batchnorm_biased_running_var"]
    ),
    "BatchNorm eps": (norm_in_torch, norm_in_jax(eps=1e-3), X, None, None, ["batchnorm_eps"]),
    "padding mask": (
        heads_in_torch, lambda x, m: heads_in_jax(x, m, True), (WIDE, PADDED), None, None, ["mask_sense"]
    ),
    "dropout not scaled": (
        lambda x, k: x * k / (1 - 0.3), lambda x, k: x * k, (X, KEEP), None, None, ["dropout_scaling"]
    ),
    "dropout scaled in JAX alone": (
        lambda x, k: x * k, lambda x, k: x * k / 0.7, (X, KEEP), None, None, ["dropout_scaling"]
    ),
    "GRU without b_hn": (
        GRU_CELL, lambda p, x, h: gru_cell(p, x, h, 0.0), (FIRST, H0), as_given(GRU_CELL), None, ["missing_bias"]
    ),
    "gates transposed": (LSTM, gates_transposed, X, P, None, ["transposed_weight"]),
    "kernels transposed": (torch_cell, flax_cell, (FIRST, H0, C0), in_flax(True), None, ["transposed_weight"]),
    "gates named wrongly, biases added in float32": (
        Outputs(), flax_rnn, X, summed_in_float32("figo"), None, ["gate_order"]
    ),
    "forget bias, biases added in float32": (
        Outputs(), lambda x: flax_rnn(one_more(summed_in_float32()), x), X, None, None, ["forget_bias"]
    ),
    "forget bias and eps": (
        POOLED, FlaxPooled(eps=1e-6).apply, (X, REAL), pooled_in_flax(forget=1.0), None,
        ["forget_bias", "layernorm_eps"],
    ),
    "one bias and GELU": (
        POOLED, FlaxPooled(approximate=True).apply, (X, REAL), pooled_in_flax(bias_hh=0.0), None,
        ["gelu_form", "missing_bias"],
    ),
    "a mask of ones and zeros ignored": (
        POOLED, FlaxPooled(masked=False).apply, (X, REAL), pooled_in_flax(), None, ["padding_in_mean"]
    ),
    "a mask of ones and zeros turned around": (
        POOLED, lambda p, x, m: FlaxPooled().apply(p, x, 1 - m), (X, REAL), pooled_in_flax(), None, ["mask_sense"]
    ),
    "an nnx module's gates": (Outputs(), nnx_rnn((0, 1, 3, 2)), X, None, None, ["gate_order"]),
    "an nnx state's gates": (Outputs(), MERGED, X, STATE, None, ["gate_order"]),
    "kernels transposed, float32 states": (outputs_only, flax_rnn, X, in_flax(True), None, ["transposed_weight"]),
    "carry order": (
        torch_cell, lambda v, x, h, c: flax_cell(v, x, c, h), (FIRST, H0, C0), in_flax(), None, ["carry_order"]
    ),
    "gates named wrongly": (torch_cell, flax_cell, (FIRST, H0, C0), in_flax(letters="figo"), None, ["gate_order"]),
    "cross-entropy summed": (
        lambda x, y: functional.cross_entropy(x, y),
        lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).sum(), (LOGITS, LABELS), None, None,
        ["loss_reduction"],
    ),
    "flattened channels last": (CONVOLUTION, channels_last, X.swapaxes(1, 2), None, "equal", ["flatten_order"]),
    "standard deviation": (
        lambda x: x / x.std(1, keepdim=True), lambda x: x / x.std(1, keepdims=True), X, None, None,
        ["variance_divisor"],
    ),
    "bfloat16 product": (LINEAR, in_bfloat16, X, None, "equal", ["matmul_precision"]),
    "Nesterov": (
        train_torch(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9)),
        train_jax(optax.sgd(0.1, momentum=0.9, nesterov=True)), (X, TARGETS), None, None, ["optimizer_nesterov"],
    ),
    "slope": (
        lambda x: functional.leaky_relu(x), lambda x: jax.nn.leaky_relu(x, 0.2), X, None, None, ["leaky_relu_slope"]
    ),
    "activation": (lambda x: functional.silu(x), jax.nn.relu, X, None, None, ["activation"]),
    "all axes": (
        LSTM, lambda p, x: jax.tree.map(lambda y: y.swapaxes(0, 1) if len(y) > 1 else y, lstm(p, x)), X, P, None,
        ["axes_swapped"],
    ),
}  # fmt: skip

MATCHING = {
    "BatchNorm": (norm_in_torch, norm_in_jax(), X),
    "attention heads": (heads_in_torch, heads_in_jax, (WIDE, PADDED)),
    "GRU cell": (GRU_CELL, gru_cell, (FIRST, H0), as_given(GRU_CELL)),
    "flax cell": (torch_cell, flax_cell, (FIRST, H0, C0), in_flax()),
    "flax RNN with float32 states": (outputs_only, flax_rnn, X, in_flax()),
    "an nnx module": (Outputs(), nnx_rnn(), X),
    "pooled under a mask": (POOLED, FlaxPooled().apply, (X, REAL), pooled_in_flax()),
    "biases added in float32": (Outputs(), flax_rnn, X, summed_in_float32()),
    "biases added in float32, inside": (Outputs(), lambda x: flax_rnn(summed_in_float32(), x), X),
    "biases added in float32, both inside": (
        outputs_only,
        lambda x: flax_rnn(summed_in_float32(), x),
        X,
    ),
}


# Each beside others that are as good.
LONG = {"one bias and GELU", "an nnx state's gates", "forget bias, biases added in float32"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in PAIRS]
)
def test_names_the_cause(name):
    *pair, causes = PAIRS[name]
    found = diagnose(*pair)
    assert found.verdict == "explained", str(found)
    assert sorted(found.names) == sorted(causes), str(found)


def test_an_nnx_module_inside_a_function_is_told_apart():
    """Its random state changes under a trace, by which JAX could not run."""
    module = nnx_rnn()
    with pytest.raises(TypeError, match="pass the module itself as jax_fn"):
        compare(Outputs(), lambda x: module(x), X)


@pytest.mark.parametrize("name", MATCHING)
def test_claims_nothing_where_both_agree(name):
    assert diagnose(*MATCHING[name]).verdict == "the same"
