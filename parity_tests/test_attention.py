"""Additive attention: context, weights and all gradients, masks included."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference
from spec.params import attention_schema

B, S, Q, K, H = 3, 6, 5, 4, 7
SCHEMA = attention_schema(Q, K, H)
LENGTHS = np.array([4, 6, 1])


def draw(ragged):
    normal = np.random.default_rng(1).normal
    leaves = {name: normal(size=spec.shape) for name, spec in SCHEMA.items()}
    leaves |= {"query": normal(size=(B, Q)), "keys": normal(size=(B, S, K))}
    if ragged:
        leaves["keys"][np.arange(S) >= LENGTHS[:, None]] = np.nan
    return leaves, {"context": normal(size=(B, K)), "weights": normal(size=(B, S))}


def valid(ragged):
    return np.arange(S) < LENGTHS[:, None] if ragged else None


def run_torch(ragged, leaves):
    weights = {name: leaves[name] for name in SCHEMA}
    mask = None if valid(ragged) is None else torch.tensor(valid(ragged))
    module = torch_impl.AdditiveAttention(Q, K, H)
    inputs = (leaves["query"], leaves["keys"], mask)
    return torch.func.functional_call(module, weights, inputs)._asdict()


def run_jax(ragged, leaves):
    attended = jax_impl.additive_attention(leaves, leaves["query"], leaves["keys"], valid(ragged))
    return attended._asdict()


def run_numpy(ragged, leaves):
    contexts, weights = [], []
    for b in range(B):
        n = LENGTHS[b] if ragged else S
        context, weight = reference.additive_attention(
            leaves, leaves["query"][b], leaves["keys"][b, :n]
        )
        contexts.append(context)
        weights.append(np.pad(weight, (0, S - n)))
    return {"context": np.stack(contexts), "weights": np.stack(weights)}


@pytest.mark.parametrize("ragged", [False, True])
def test_additive_attention_matches(ragged):
    leaves, cotangents = draw(ragged)
    in_t = in_torch(partial(run_torch, ragged), leaves, cotangents)
    in_j = in_jax(partial(run_jax, ragged), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(partial(run_numpy, ragged), leaves, cotangents))


def test_nothing_to_attend_to_gives_zeros():
    """A row without a valid position has weights and context 0, not NaN."""
    leaves, _ = draw(False)
    mask = np.arange(S) < np.array([0, 2, 6])[:, None]
    t = torch_impl.AdditiveAttention(Q, K, H).double()
    t.load_state_dict({name: torch.tensor(leaves[name]) for name in SCHEMA})
    with torch.no_grad():
        in_t = t(torch.tensor(leaves["query"]), torch.tensor(leaves["keys"]), torch.tensor(mask))
    in_j = jax_impl.additive_attention(leaves, leaves["query"], leaves["keys"], jnp.asarray(mask))
    for found in (in_t, in_j):
        assert not np.asarray(found.context[0]).any()
        np.testing.assert_allclose(np.asarray(found.weights).sum(axis=1), [0, 1, 1], rtol=1e-14)
    assert_same({"w": in_t.weights.numpy()}, {"w": in_j.weights})


@pytest.mark.parametrize("size", [1e4, 0.0])
def test_extreme_scores_stay_finite_and_equal(size):
    leaves, cotangents = draw(True)
    leaves = {n: np.where(np.isnan(a), a, np.sign(a) * size) for n, a in leaves.items()}
    in_t = in_torch(partial(run_torch, True), leaves, cotangents)
    in_j = in_jax(partial(run_jax, True), leaves, cotangents)
    assert all(np.isfinite(array).all() for array in in_t.values())
    assert_same(in_t, in_j)
