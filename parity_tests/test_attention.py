"""Attention of every kind: context, weights and all gradients, masks included."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from jax_impl.arrays import to_tree
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference
from spec.params import attention_schema, multi_head_schema, multiplicative_schema

B, S, Q, K, H = 3, 6, 5, 4, 7
ADDITIVE = attention_schema(Q, K, H)
LENGTHS = np.array([4, 6, 1])
SCORES = ("additive", "general", "dot", "scaled_dot")


def draw(score, ragged):
    normal = np.random.default_rng(1).normal
    schema = ADDITIVE if score == "additive" else multiplicative_schema(Q, K, score)
    leaves = {name: normal(size=spec.shape) for name, spec in schema.items()}
    leaves["query"] = normal(size=(B, Q if schema else K))
    leaves["keys"] = normal(size=(B, S, K))
    if ragged:
        leaves["keys"][np.arange(S) >= LENGTHS[:, None]] = np.nan
    return leaves, {"context": normal(size=(B, K)), "weights": normal(size=(B, S))}


def valid(ragged):
    return np.arange(S) < LENGTHS[:, None] if ragged else None


def module(score):
    if score == "additive":
        return torch_impl.AdditiveAttention(Q, K, H)
    return torch_impl.MultiplicativeAttention(Q, K, score)


def run_torch(score, ragged, leaves):
    weights = {name: leaf for name, leaf in leaves.items() if name not in ("query", "keys")}
    mask = None if valid(ragged) is None else torch.tensor(valid(ragged))
    inputs = (leaves["query"], leaves["keys"], mask)
    return torch.func.functional_call(module(score), weights, inputs)._asdict()


def run_jax(score, ragged, leaves):
    given = leaves, leaves["query"], leaves["keys"], valid(ragged)
    if score == "additive":
        return jax_impl.additive_attention(*given)._asdict()
    return jax_impl.multiplicative_attention(*given, score)._asdict()


def run_numpy(score, ragged, leaves):
    contexts, weights = [], []
    for b in range(B):
        n = LENGTHS[b] if ragged else S
        context, weight = reference.attention(
            leaves, leaves["query"][b], leaves["keys"][b, :n], score
        )
        contexts.append(context)
        weights.append(np.pad(weight, (0, S - n)))
    return {"context": np.stack(contexts), "weights": np.stack(weights)}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_attention_over_steps_matches(score, ragged):
    leaves, cotangents = draw(score, ragged)
    in_t = in_torch(partial(run_torch, score, ragged), leaves, cotangents)
    in_j = in_jax(partial(run_jax, score, ragged), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(partial(run_numpy, score, ragged), leaves, cotangents))


def test_nothing_to_attend_to_gives_zeros():
    """A row without a valid position has weights and context 0, not NaN."""
    leaves, _ = draw("additive", False)
    mask = np.arange(S) < np.array([0, 2, 6])[:, None]
    t = torch_impl.AdditiveAttention(Q, K, H).double()
    t.load_state_dict({name: torch.tensor(leaves[name]) for name in ADDITIVE})
    with torch.no_grad():
        in_t = t(torch.tensor(leaves["query"]), torch.tensor(leaves["keys"]), torch.tensor(mask))
    in_j = jax_impl.additive_attention(leaves, leaves["query"], leaves["keys"], jnp.asarray(mask))
    for found in (in_t, in_j):
        assert not np.asarray(found.context[0]).any()
        np.testing.assert_allclose(np.asarray(found.weights).sum(axis=1), [0, 1, 1], rtol=1e-14)
    assert_same({"w": in_t.weights.numpy()}, {"w": in_j.weights})


@pytest.mark.parametrize("size", [1e4, 0.0])
def test_extreme_scores_stay_finite_and_equal(size):
    leaves, cotangents = draw("additive", True)
    leaves = {n: np.where(np.isnan(a), a, np.sign(a) * size) for n, a in leaves.items()}
    in_t = in_torch(partial(run_torch, "additive", True), leaves, cotangents)
    in_j = in_jax(partial(run_jax, "additive", True), leaves, cotangents)
    assert all(np.isfinite(array).all() for array in in_t.values())
    assert_same(in_t, in_j)


N, WIDE = 3, 12
SELF = multi_head_schema(WIDE)


def self_leaves():
    normal = np.random.default_rng(5).normal
    leaves = {name: normal(size=spec.shape, scale=0.5) for name, spec in SELF.items()}
    return leaves | {"x": normal(size=(B, S, WIDE))}, {"y": normal(size=(B, S, WIDE))}


def masks(causal, ragged):
    """Which steps each may attend to, [B or 1, 1, S or 1, S]."""
    mask = np.tri(S, dtype=bool)[None, None] if causal else np.ones((1, 1, S, S), bool)
    return mask & valid(ragged)[:, None, None] if ragged else mask


def self_attention_in_torch(attend, mask, keep, leaves):
    layer = torch_impl.MultiHeadAttention(WIDE, N)
    keep = None if keep is None else torch.tensor(keep)
    weights = {name: leaves[name] for name in SELF}
    given = (leaves["x"], torch.tensor(mask), keep, 0.4, attend)
    return {"y": torch.func.functional_call(layer, weights, given)}


def self_attention_in_jax(mask, keep, leaves):
    params = to_tree({name: leaves[name] for name in SELF})
    return {"y": jax_impl.multi_head_attention(params, leaves["x"], N, mask, keep, 0.4)}


def self_attention_in_numpy(causal, ragged, keep, leaves):
    y = np.zeros((B, S, WIDE), np.result_type(*leaves.values()))
    for b in range(B):
        n = LENGTHS[b] if ragged else S
        scale = keep[b, :, :n, :n] / 0.6 if keep is not None else np.ones((N, n, n))
        y[b, :n] = reference.multi_head_attention(
            leaves, leaves["x"][b, :n], N, causal, lambda head, t, scale=scale: scale[head, t]
        )
    return {"y": y}


def self_attention_in_torch_nn(mask, leaves):
    layer = torch.nn.MultiheadAttention(WIDE, N, batch_first=True)
    ignored = torch.tensor(~np.broadcast_to(mask, (B, N, S, S))).reshape(B * N, S, S)
    weights = {name: leaves[name] for name in SELF}
    given = (leaves["x"],) * 3
    options = {"attn_mask": ignored, "need_weights": False}
    return {"y": torch.func.functional_call(layer, weights, given, options)[0]}


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(("causal", "ragged"), [(False, False), (True, False), (True, True)])
def test_multi_head_attention_matches(causal, ragged, dropped):
    """torch, its kernel, JAX, NumPy and torch.nn; padded queries are no one's business."""
    leaves, cotangents = self_leaves()
    if ragged:
        cotangents["y"][~valid(True)] = 0
    mask = masks(causal, ragged)
    keep = np.random.default_rng(6).random((B, N, S, S)) > 0.4 if dropped else None
    plain = in_torch(
        partial(self_attention_in_torch, torch_impl.attention.dot_product_attention, mask, keep),
        leaves,
        cotangents,
    )
    others = {
        "kernel": in_torch(
            partial(self_attention_in_torch, torch_impl.fast.attend, mask, keep), leaves, cotangents
        ),
        "JAX": in_jax(partial(self_attention_in_jax, mask, keep), leaves, cotangents),
        "NumPy": in_numpy(
            partial(self_attention_in_numpy, causal, ragged, keep), leaves, cotangents
        ),
    }
    if not dropped:
        others["torch.nn"] = in_torch(partial(self_attention_in_torch_nn, mask), leaves, cotangents)
    real = valid(True) if ragged else slice(None)
    for found in (plain, *others.values()):
        found["y"] = found["y"][real]
    for found in others.values():
        assert_same(found, plain)


def test_key_bias_gets_exactly_no_gradient():
    """Its rounding, which torch.nn has for a gradient, would be a whole step to Adam."""
    leaves, cotangents = self_leaves()
    mask = masks(True, False)
    in_t = partial(self_attention_in_torch, torch_impl.fast.attend, mask, None)
    for found in (
        in_torch(in_t, leaves, cotangents),
        in_jax(partial(self_attention_in_jax, mask, None), leaves, cotangents),
    ):
        for_query, for_key, for_value = np.split(found["d in_proj_bias"], 3)
        assert not for_key.any()
        assert for_query.any()
        assert for_value.any()
    theirs = in_torch(partial(self_attention_in_torch_nn, mask), leaves, cotangents)
    assert abs(np.split(theirs["d in_proj_bias"], 3)[1]).max() < 1e-14


def test_weights_are_kept_unscaled_without_a_rate():
    """Masks that keep everything, at the default rate, are as none."""
    leaves, _ = self_leaves()
    normal = np.random.default_rng(7).normal
    query, key, value = (normal(size=(B, N, S, K)) for _ in range(3))
    keep = np.ones((B, N, S, S), bool)
    plain = torch_impl.attention.dot_product_attention
    tensors = [torch.tensor(array) for array in (query, key, value)]
    whole = plain(*tensors).numpy()
    assert_same({"y": plain(*tensors, keep=torch.tensor(keep)).numpy()}, {"y": whole})
    found = jax_impl.attention.dot_product_attention(query, key, value, keep=keep)
    assert_same({"y": found}, {"y": whole})
    layer = torch_impl.MultiHeadAttention(WIDE, N)
    weights = {name: torch.tensor(leaves[name]) for name in SELF}
    x = torch.tensor(leaves["x"])
    whole = torch.func.functional_call(layer, weights, (x,)).numpy()
    found = torch.func.functional_call(layer, weights, (x, None, torch.tensor(keep))).numpy()
    assert_same({"y": found}, {"y": whole})
    params = to_tree({name: leaves[name] for name in SELF})
    found = jax_impl.multi_head_attention(params, leaves["x"], N, keep=keep)
    assert_same({"y": found}, {"y": whole})
