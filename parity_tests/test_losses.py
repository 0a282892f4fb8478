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
WEIGHTS = np.array([0.7, 0.0, 2.0, 0.3, 1.1])
OTHERS = {
    "mean_squared_error": torch.nn.functional.mse_loss,
    "cross_entropy": torch.nn.functional.cross_entropy,
}


def loss(function, targets, leaves, *weights):
    return {"loss": function(leaves["predictions"], targets, *weights)}


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


@pytest.mark.parametrize("name", TARGETS)
def test_weighted_loss_matches(name):
    """Both backends and NumPy; and NumPy's is that of each row alone, averaged by weight."""
    leaves, cotangents = {"predictions": PREDICTIONS[name]}, {"loss": np.array(1.7)}
    targets = TARGETS[name]

    def weighted(library, put):
        function = getattr(library, name)
        return lambda leaves: loss(function, put(targets), leaves, put(WEIGHTS))

    in_t = in_torch(weighted(torch_impl.losses, torch.tensor), leaves, cotangents)
    in_j = in_jax(weighted(jax_impl.losses, jnp.asarray), leaves, cotangents)
    in_n = in_numpy(weighted(reference, np.asarray), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_n)
    rows = [
        getattr(reference, name)(PREDICTIONS[name][b : b + 1], targets[b : b + 1]) for b in range(B)
    ]
    assert in_n["loss"] == pytest.approx(np.average(rows, weights=WEIGHTS), rel=1e-15)
    assert not in_t["d predictions"][1].any()


@pytest.mark.parametrize("name", TARGETS)
def test_whole_weights_repeat_rows(name):
    times = np.array([2, 0, 1, 3, 1])
    for library, put in ((torch_impl.losses, torch.tensor), (jax_impl.losses, jnp.asarray)):
        function = getattr(library, name)
        found = function(put(PREDICTIONS[name]), put(TARGETS[name]), put(times.astype(float)))
        repeated = [put(array[name].repeat(times, axis=0)) for array in (PREDICTIONS, TARGETS)]
        assert float(found) == pytest.approx(float(function(*repeated)), rel=1e-14)


def test_certain_and_wrong_stays_finite():
    """A logit 1e4 above the target's gives a loss of 1e4, not inf."""
    logits, target = np.array([[1e4, 0.0]]), np.array([1])
    assert torch_impl.losses.cross_entropy(torch.tensor(logits), torch.tensor(target)) == 1e4
    assert jax_impl.losses.cross_entropy(jnp.asarray(logits), jnp.asarray(target)) == 1e4
