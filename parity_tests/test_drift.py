"""Drift tells rounding that a run multiplies from a bug, and names the bug's step and array."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jax_impl
import torch_impl
from parity.drift import drift
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.params import init_params, parameter_schema

STEPS = 60
CONFIG = ModelConfig(model="rnn", input_size=1, output_size=1, hidden_size=6)
RULE = OptimizerConfig(optimizer="adamw", lr=1e-2, weight_decay=1e-2, clip_norm=0.5)
START = init_params(parameter_schema(CONFIG), seed=1)


def training(backend, rule=RULE, changed=None, since=1, count=None):
    """Return a run that trains with `rule`, from step `since` with `changed`."""

    def run(start, dtype):
        draw = np.random.default_rng(0)
        execution = Execution(dtype=dtype, fast=False, threads=1)
        state = backend.init_state(CONFIG, rule, execution, start, count or 0)
        for step in range(1, STEPS + 1):
            if changed and step == since:
                arrays = backend.export_arrays(state)
                state = backend.init_state(CONFIG, changed, execution, arrays, step - 1)
            inputs = draw.normal(size=(8, 6, 1))
            batch = Batch(inputs, None, np.sin(3 * inputs.sum(axis=1)))
            state, result = backend.train_step(state, batch)
            yield {"loss": np.float64(result.loss), **backend.export_arrays(state)}

    return run


def test_equal_runs_are_the_same():
    found = drift(training(torch_impl), training(jax_impl), START)
    assert found.verdict == "same", found
    assert found.relative("float64").max() < 1e-12 < found.relative("float32").max()
    assert (found.relative("float64") <= found.relative("float64", bound=True)).all()
    in_t, in_j = found.numbers["float64"]["loss"]
    assert len(in_t) == STEPS
    np.testing.assert_allclose(in_t, in_j, rtol=1e-12)


@pytest.mark.parametrize(
    ("since", "fault", "array"),
    [
        (1, {"weight_decay": 1e-4}, "^(?!optimizer)"),  # parameters part, moments not yet
        (50, {"weight_decay": 1e-4}, "^(?!optimizer)"),
        (30, {"eps": 2e-8}, "^(?!optimizer)"),
        (1, {"beta2": 0.9990001}, "^optimizer.v"),
    ],
    ids=["decay", "decay-late", "eps-late", "beta2"],
)
def test_bug_is_found_at_its_step(since, fault, array):
    faulty = training(jax_impl, changed=replace(RULE, **fault), since=since)
    found = drift(training(torch_impl), faulty, START)
    assert (found.verdict, found.step) == ("bug", since), found
    assert re.search(array, found.array)
    assert f"step {since}" in found.sentence
    assert found.array in found.sentence


def test_bug_in_one_array_is_named():
    def run(start, dtype):
        for step, arrays in enumerate(training(jax_impl)(start, dtype), 1):
            if step >= 40:
                arrays["head.bias"] = arrays["head.bias"] * (1 + 1e-9)
            yield arrays

    found = drift(training(torch_impl), run, START)
    assert (found.verdict, found.step, found.array) == ("bug", 40, "head.bias"), found
    assert "so are" not in found.sentence
    assert found.dtype == "float64"


def test_wrong_step_count_is_found_at_once():
    found = drift(training(torch_impl), training(jax_impl, count=1), START)
    assert (found.verdict, found.step) == ("bug", 1), found
    assert not found.array.startswith("optimizer.")  # the moments are not corrected yet


def logistic(order, change=None, dtype_change=None):
    """Return a run of x -> r x (1 - x) in many places: chaos, and nothing else."""

    def run(start, dtype):
        x, r = start["x"].astype(dtype), np.asarray(3.7, dtype)
        calm = start["x"].astype(dtype)
        for step in range(1, 151):
            x = r * x * (1 - x) if order else r * (x - x * x)
            calm = calm / 2 + x * 0 + 1
            if change and step >= change:
                calm = calm * np.asarray(1 + 1e-9, dtype)
            if dtype_change and dtype == "float32":
                x = x * np.asarray(1 + dtype_change, dtype)
            yield {"x": x, "calm": calm}

    return run


POINTS = {"x": np.random.default_rng(3).uniform(0.2, 0.8, 40)}


def test_chaos_is_no_bug_and_its_rate_is_measured():
    found = drift(logistic(True), logistic(False), POINTS)
    assert found.verdict == "chaos", found
    assert found.relative("float64")[0] < 1e-15
    assert found.relative("float64")[-1] > 1e-2
    # The Lyapunov exponent at 3.7 is 0.354: a factor of 1.42, of the fastest of 40 points more.
    for rate in found.growth.values():
        assert 1.3 < rate < 1.8
    assert f"{found.growth['float64']:.3f}" in found.sentence


def test_bug_in_a_chaotic_run_is_found():
    found = drift(logistic(True), logistic(False, change=20), POINTS)
    assert (found.verdict, found.step, found.array) == ("bug", 20, "calm"), found


def test_one_side_with_coarser_float32_is_found():
    """As TF32 on one side: float64 agrees, float32 does not."""
    found = drift(logistic(True), logistic(True, dtype_change=1e-4), POINTS)
    assert (found.verdict, found.step, found.array) == ("precision", 1, "x"), found
    assert found.dtype == "float32"
    assert "JAX" in found.sentence


def test_optax_is_no_bug_for_rounding_its_powers():
    """In float32 1 - 0.999**t cancels; torch computes it in Python's floats."""
    gradients = np.random.default_rng(2).normal(size=(12, 40))

    def in_torch(start, dtype):
        x = torch.tensor(start["x"], dtype=getattr(torch, dtype), requires_grad=True)
        rule = torch.optim.AdamW([x], lr=1e-2, weight_decay=1e-2)
        for gradient in gradients:
            x.grad = torch.tensor(gradient, dtype=x.dtype)
            rule.step()
            yield {"x": x.detach().numpy().copy()}

    def in_optax(start, dtype):
        rule, x = optax.adamw(1e-2, weight_decay=1e-2), jnp.asarray(start["x"], dtype)
        state = rule.init(x)
        for gradient in gradients:
            updates, state = rule.update(jnp.asarray(gradient, dtype), state, x)
            x = optax.apply_updates(x, updates)
            yield {"x": np.asarray(x)}

    found = drift(in_torch, in_optax, {"x": np.zeros(40)})
    assert found.verdict == "precision", found
    assert "JAX's float32 run" in found.sentence


def test_one_side_not_finite_is_a_bug_and_both_are_not():
    def ends(at):
        def run(start, dtype):
            for step in range(1, 6):
                yield {"x": start["x"].astype(dtype) * (np.nan if step == at else 1)}

        return run

    found = drift(ends(None), ends(3), POINTS)
    assert (found.verdict, found.step, found.array) == ("bug", 3, "x"), found
    found = drift(ends(3), ends(3), POINTS)
    assert found.verdict == "same"
    assert "step 3 both" in found.sentence
    assert len(found.sizes) == 2


def test_runs_that_do_not_fit_are_refused():
    def other(start, dtype):
        yield {"y": start["x"]}

    with pytest.raises(ValueError, match="only one run has calm, x, y"):
        drift(logistic(True), other, POINTS)
