"""The diagnosis and the trace of what models are built of: attention blocks, residual sums, norms, directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from parity import diagnose, trace
from parity.patches import Patched
from parity_tests.test_diagnose import DRAW, B, T, as_given, seeded

E, N, U = 8, 2, 5  # features, heads, units of a recurrent layer
X = DRAW.normal(size=(B, T, E))


def norm(p, name, x, eps=1e-5):
    moved = x - x.mean(-1, keepdims=True)
    moved /= jnp.sqrt((moved**2).mean(-1, keepdims=True) + eps)
    return moved * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def heads(x, scheme):
    """Cut [B, T, E] into heads [B, N, T, K]."""
    if scheme == "interleaved":
        return x.reshape(B, T, -1, N).transpose(0, 3, 1, 2)
    return x.reshape(B, N, T, -1) if scheme == "straight" else cut(x)


def cut(x):
    return x.reshape(B, T, N, -1).swapaxes(1, 2)


def joined(x, scheme):
    if scheme == "interleaved":
        return x.transpose(0, 2, 3, 1).reshape(B, T, E)
    return (x if scheme == "straight" else x.swapaxes(1, 2)).reshape(B, T, E)


def block(norm_first=False, size=E // N, scheme="", causal=False, skips=(1, 1), axis=-1):
    """Write out torch.nn.TransformerEncoderLayer, perhaps wrongly."""

    def attention(p, x):
        z = x @ p["self_attn.in_proj_weight"].T + p["self_attn.in_proj_bias"]
        query, key, value = (heads(part, scheme) for part in jnp.split(z, 3, -1))
        scores = query @ key.swapaxes(-1, -2) / size**0.5
        scores = jnp.where(jnp.tri(T, dtype=bool) | (not causal), scores, -jnp.inf)
        context = joined(jax.nn.softmax(scores, axis) @ value, scheme)
        return linear(p, "self_attn.out_proj", context)

    def feedforward(p, x):
        return linear(p, "linear2", jax.nn.relu(linear(p, "linear1", x)))

    def run(p, x):
        if norm_first:
            x = skips[0] * x + attention(p, norm(p, "norm1", x))
            return skips[1] * x + feedforward(p, norm(p, "norm2", x))
        x = norm(p, "norm1", skips[0] * x + attention(p, x))
        return norm(p, "norm2", skips[1] * x + feedforward(p, x))

    return run


BLOCK = seeded(nn.TransformerEncoderLayer(E, N, 12, 0.0, "relu", batch_first=True))
HEADS = seeded(nn.MultiheadAttention(E, N, batch_first=True))


def self_attention(x):
    """Weights too, which the encoder layer does not ask for."""
    own = HEADS.to(x.dtype)
    return own(x, x, x, attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1))


def attention_in_jax(divided_by):
    def run(x):
        p = as_given(HEADS)
        z = x @ p["in_proj_weight"].T + p["in_proj_bias"]
        query, key, value = map(cut, jnp.split(z, 3, -1))
        scores = query @ key.swapaxes(-1, -2) / divided_by**0.5
        weights = jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), scores, -jnp.inf), -1)
        return linear(p, "out_proj", joined(weights @ value, "")), weights.mean(1)

    return run


class Places(nn.Module):
    """Two norms, two GELUs, two residual sums, and an output that is a distribution."""

    def __init__(self):
        super().__init__()
        self.n0, self.n1 = nn.LayerNorm(E), nn.LayerNorm(E)
        self.w0, self.w1 = nn.Linear(E, E), nn.Linear(E, E)

    def forward(self, x):
        x = x + functional.gelu(self.w0(self.n0(x)))
        x = x + functional.gelu(self.w1(self.n1(x)))
        return functional.log_softmax(x, -1)


PLACES = seeded(Places())


def places(tanh=(False, False), left_out=None, skips=(1, 1), output=jax.nn.log_softmax):
    def run(p, x):
        for n in range(2):
            y = x if left_out == ("norm", n) else norm(p, f"n{n}", x)
            y = linear(p, f"w{n}", y)
            y = y if left_out == ("gelu", n) else jax.nn.gelu(y, approximate=tanh[n])
            x = skips[n] * x + y
        return output(x)

    return run


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.wide = nn.RMSNorm(E, eps=1e-5), nn.Linear(E, 6)

    def forward(self, x):
        a, gate = self.wide(self.norm(x)).chunk(2, -1)
        return a * torch.sigmoid(gate)


GATED = seeded(Gated())


def gated(swapped=False, centred=False):
    def run(p, x):
        x = x - x.mean(-1, keepdims=True) if centred else x
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["norm.weight"]
        a, gate = jnp.split(linear(p, "wide", x), 2, -1)
        return gate * jax.nn.sigmoid(a) if swapped else a * jax.nn.sigmoid(gate)

    return run


class Last(nn.Module):
    """The last states of the upper layer of a bidirectional GRU of two."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(E, U, 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        h = self.gru(x)[1]
        return torch.cat([h[-2], h[-1]], -1)


LAST = seeded(Last())


def last(layer=1, reverse=True, b_hn=True):
    def cell(p, end, h, x):
        i = jnp.split(x @ p[f"gru.weight_ih_{end}"].T + p[f"gru.bias_ih_{end}"], 3, -1)
        bias = p[f"gru.bias_hh_{end}"] * np.repeat([1, 1, b_hn], U)
        r, z, n = jnp.split(h @ p[f"gru.weight_hh_{end}"].T + bias, 3, -1)
        r, z = jax.nn.sigmoid(i[0] + r), jax.nn.sigmoid(i[1] + z)
        h = (1 - z) * jnp.tanh(i[2] + r * n) + z * h
        return h, h

    def run(p, x):
        steps, found = x.swapaxes(0, 1), []
        for n in range(2):
            sides = []
            for end, back in ((f"l{n}", False), (f"l{n}_reverse", reverse)):
                over = jax.lax.scan(
                    lambda h, x, end=end: cell(p, end, h, x),
                    jnp.zeros((len(x), U), x.dtype),
                    steps,
                    reverse=back,
                )
                sides.append(over)
            steps = jnp.concatenate([outputs for _, outputs in sides], -1)
            found.append(jnp.concatenate([h for h, _ in sides], -1))
        return found[layer]

    return run


CONVOLUTION = seeded(nn.Conv1d(E, 3, 3, padding=1))
LOGITS, LABELS = DRAW.normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 0])
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 3.0])


def convolution(p, x, before):
    y = jax.lax.conv_general_dilated(x, p["weight"], (1,), [(before, 2 - before)])
    return y + p["bias"][:, None]


def cross_entropy(logits, labels, smoothing=0.0):
    told = jax.nn.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4
    return -(told * jax.nn.log_softmax(logits)).sum(-1).mean()


PAIRS = {
    "norms before each part": (BLOCK, block(True), X, "norm_first"),
    "scores over the size of the model": (BLOCK, block(size=E), X, "attention_scale"),
    "softmax over the queries": (BLOCK, block(axis=-2), X, "softmax_axis"),
    "every N-th feature a head": (BLOCK, block(scheme="interleaved"), X, "heads"),
    "heads cut without turning": (BLOCK, block(scheme="straight"), X, "heads"),
    "only the past": (BLOCK, block(causal=True), X, "causal_mask"),
    "no sum around attention": (BLOCK, block(skips=(0, 1)), X, "residual"),
    "weights and scale": (self_attention, attention_in_jax(E), X, "attention_scale"),
    "one GELU of two": (PLACES, places(tanh=(False, True)), X, "gelu_form"),
    "a norm left out": (PLACES, places(left_out=("norm", 1)), X, "left_out"),
    "an activation left out": (PLACES, places(left_out=("gelu", 0)), X, "left_out"),
    "no residual sums": (PLACES, places(skips=(0, 0)), X, "residual"),
    "probabilities": (PLACES, places(output=jax.nn.softmax), X, "output_form"),
    "halves of a gated unit": (GATED, gated(swapped=True), X, "split_order"),
    "mean subtracted": (GATED, gated(centred=True), X, "norm_kind"),
    "states of the lower layer": (LAST, last(layer=0), X, "state_of_layer"),
    "reverse direction forward": (LAST, last(reverse=False), X, "reverse_runs_forward"),
    "no b_hn in four cells": (LAST, last(b_hn=False), X, "missing_bias"),
    "a causal convolution": (
        CONVOLUTION,
        lambda p, x: convolution(p, x, 2),
        X.swapaxes(1, 2),
        "convolution_padding",
    ),
    "labels not smoothed": (
        lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1),
        cross_entropy,
        (LOGITS, LABELS),
        "label_smoothing",
    ),
    "classes not weighted": (
        lambda x, y: functional.cross_entropy(x, y, torch.tensor(CLASS_WEIGHTS, dtype=x.dtype)),
        cross_entropy,
        (LOGITS, LABELS),
        "class_weights",
    ),
}
RIGHT = {
    "block": (BLOCK, block(), X),
    "attention with weights": (self_attention, attention_in_jax(E // N), X),
    "places": (PLACES, places(), X),
    "gated unit": (GATED, gated(), X),
    "states": (LAST, last(), X),
    "convolution": (CONVOLUTION, lambda p, x: convolution(p, x, 1), X.swapaxes(1, 2)),
}
IN_ONE_PLACE = {"one GELU of two", "a norm left out", "an activation left out"}


def diagnosed(model, function, inputs):
    params = as_given(model) if isinstance(model, nn.Module) else None
    return diagnose(model, function, inputs, params)


@pytest.mark.parametrize("name", PAIRS)
def test_names_the_cause(name):
    *pair, cause = PAIRS[name]
    found = diagnosed(*pair)
    assert found.names == [cause], str(found)
    assert ("call" in found.causes[0].says) == (
        name in IN_ONE_PLACE or name == "no sum around attention"
    )


@pytest.mark.parametrize("name", RIGHT)
def test_claims_nothing_where_both_agree(name):
    assert diagnosed(*RIGHT[name]).verdict == "the same"


def test_torchs_attention_is_what_is_written_out():
    """Under the hood of a patch, with masks of either kind, torch's own numbers come out."""
    x = torch.tensor(X)
    draw = torch.Generator().manual_seed(0)
    padded = torch.arange(T) >= torch.tensor([[T], [3], [1], [5]])
    causal = torch.ones(T, T, dtype=torch.bool).triu(1)
    each = torch.rand(B * N, T, T, generator=draw) < 0.3
    each[:, :, 0] = False
    for given in (
        {},
        {"key_padding_mask": padded},
        {"attn_mask": causal, "average_attn_weights": False},
        {"attn_mask": each, "key_padding_mask": padded, "need_weights": False},
    ):
        expected = HEADS.double()(x, x, x, **given)
        with Patched() as heard:
            found = HEADS(x, x, x, **given)
        assert "softmax" in heard.calls
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    query = torch.randn(2, N, T, 3, generator=draw, dtype=torch.float64)
    bias = torch.randn(T, T, generator=draw, dtype=torch.float64)
    for given in (
        {},
        {"attn_mask": ~causal},
        {"attn_mask": bias, "scale": 0.7},
        {"is_causal": True},
    ):
        expected = functional.scaled_dot_product_attention(query, query, query + 1, **given)
        with Patched() as heard:
            found = functional.scaled_dot_product_attention(query, query, query + 1, **given)
        assert "softmax" in heard.calls
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("pair", "first", "agreeing"),
    [
        ((PLACES, places(tanh=(True, False))), "integer_pow", ("add", "linear")),
        ((PLACES, places(tanh=(False, True))), "integer_pow", ("add", "linear")),
        ((PLACES, places(left_out=("gelu", 0))), "add", ("add", "linear")),
        ((BLOCK, block(size=E)), "div", ("dot_general", "matmul")),
        ((BLOCK, block(causal=True)), "select_n", ("div", "mul")),
        ((BLOCK, block(skips=(0, 1))), "reduce_sum", ("add", "linear")),
        ((self_attention, attention_in_jax(E)), "div", ("dot_general", "matmul")),
        ((LAST, last(b_hn=False)), "tanh", ("add", "chunk")),
    ],
)
def test_the_trace_names_the_first_operation(pair, first, agreeing):
    """In spite of what JAX traced once and calls in several places; within torch's attention."""
    params = as_given(pair[0]) if isinstance(pair[0], nn.Module) else None
    found = trace(*pair, X, params)
    assert found.first.operation == first, str(found)
    assert tuple(value.operation for value in found.agreeing) == agreeing, str(found)
    assert "inside JAX" not in str(found)


@pytest.mark.parametrize("name", RIGHT)
def test_the_trace_claims_nothing_where_both_agree(name):
    model, function, inputs = RIGHT[name]
    params = as_given(model) if isinstance(model, nn.Module) else None
    assert trace(model, function, inputs, params).same
