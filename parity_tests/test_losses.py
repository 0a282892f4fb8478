"""The losses agree with each other, with NumPy and with torch's own, values and gradients."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl.losses
import torch_impl.losses
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference

B, O, C = 5, 2, 3
DRAW = np.random.default_rng(2).normal
TARGETS = {"mean_squared_error": DRAW(size=(B, O)), "cross_entropy": np.array([2, 0, 1, 1, 2])}
PREDICTIONS = {"mean_squared_error": DRAW(size=(B, O)), "cross_entropy": DRAW(size=(B, C))}
OTHERS = {
    "mean_squared_error": torch.nn.functional.mse_loss,
    "cross_entropy": torch.nn.functional.cross_entropy,
}


def loss(function, targets, leaves):
    return {"loss": function(leaves["predictions"], targets)}


@pytest.mark.parametrize("name", TARGETS)
def test_loss_matches(name):
    leaves, cotangents = {"predictions": PREDICTIONS[name]}, {"loss": np.array(1.7)}
    targets = TARGETS[name]
    in_t = in_torch(
        partial(loss, getattr(torch_impl.losses, name), torch.tensor(targets)), leaves, cotangents
    )
    in_j = in_jax(
        partial(loss, getattr(jax_impl.losses, name), jnp.asarray(targets)), leaves, cotangents
    )
    in_n = in_numpy(partial(loss, getattr(reference, name), targets), leaves, cotangents)
    other = in_torch(partial(loss, OTHERS[name], torch.tensor(targets)), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_n)
    assert_same(in_t, other)


def test_certain_and_wrong_stays_finite():
    """A logit 1e4 above the target's gives a loss of 1e4, not inf."""
    logits, target = np.array([[1e4, 0.0]]), np.array([1])
    assert torch_impl.losses.cross_entropy(torch.tensor(logits), torch.tensor(target)) == 1e4
    assert jax_impl.losses.cross_entropy(jnp.asarray(logits), jnp.asarray(target)) == 1e4
