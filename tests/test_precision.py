"""Runs in bfloat16 and float16: the loss scale's rule, checkpoints, continuing, every command."""

import math
from importlib import import_module

import numpy as np
import pytest

from experiment import checkpoint
from experiment.estimator import SequenceRegressor
from experiment.run_directory import LAST
from spec.backend import StepResult
from spec.config import Execution
from spec.errors import CheckpointError, ConfigError
from spec.precision import GROWTH_INTERVAL, LEAST_SCALE, SCALE_NAME, LossScale
from tests.conftest import TINY

LOW = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
# Steps so wide that float16's gradients overflow now and then.
WIDE = ("--optimizer", "sgd", "--momentum", 0, "--lr", 30, "--clip_norm", "none")


@pytest.fixture
def exactness(backend):
    """How a backend multiplies float32 on a GPU, set back after the test."""
    if backend == "torch":
        import torch

        flags = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [flag.allow_tf32 for flag in flags]
        yield lambda: [flag.allow_tf32 for flag in flags] == [False, False]
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    else:
        import jax

        before = jax.config.jax_default_matmul_precision
        yield lambda: jax.config.jax_default_matmul_precision == "highest"
        jax.config.update("jax_default_matmul_precision", before)


def test_float32_on_a_gpu_is_not_tf32(backend, exactness, monkeypatch):
    """Both frameworks' own choice is TF32, torch's for recurrent layers, JAX's for all products."""
    arrays = import_module(f"{backend}_impl.arrays")
    arrays.prepare(Execution())
    with pytest.raises(ConfigError):
        arrays.prepare(Execution(device="cuda:99"))
    assert not exactness()
    monkeypatch.setattr(arrays, "device", lambda execution: "meta")  # as if there were a GPU
    arrays.prepare(Execution(device="cuda"))
    assert exactness()


def test_scale_halves_and_doubles_as_grad_scaler():
    """torch.amp.GradScaler's rule; its own first scale is 2**16."""
    scale = LossScale()
    assert scale == (2.0**15, 0, 0)
    scale = scale.after(True).after(False)
    assert scale == (2.0**14, 0, 1)
    for _ in range(GROWTH_INTERVAL - 1):
        scale = scale.after(True)
    assert scale == (2.0**14, GROWTH_INTERVAL - 1, 1)
    assert scale.after(False) == (2.0**13, 0, 2)
    assert scale.after(True) == (2.0**15, 0, 1)
    assert LossScale(2.0**127, GROWTH_INTERVAL - 1).after(True).scale == 2.0**127


def test_scale_is_what_grad_scaler_makes_of_the_same_steps():
    torch = pytest.importorskip("torch", reason="the rule is torch's")
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=GROWTH_INTERVAL)
    weight = torch.zeros(1, requires_grad=True)
    sgd, ours = torch.optim.SGD([weight], lr=0.1), LossScale()
    overflow = set(np.random.default_rng(0).choice(4100, 3)) | {40, 41}
    for step in range(4100):
        sgd.zero_grad()
        theirs.scale(weight.sum() * (math.inf if step in overflow else 1.0)).backward()
        theirs.step(sgd)
        theirs.update()
        ours = ours.after(step not in overflow)
        assert theirs.get_scale() == ours.scale, step


def test_scale_is_written_exactly_and_read_strictly():
    scale = LossScale(2.0**-5, 1999, 2**24 - 1)
    assert LossScale.of({SCALE_NAME: scale.array}) == scale
    assert LossScale.of({}) == LossScale()
    for bad in ([3.0, 0, 0], [0.0, 0, 0], [-2.0, 0, 0], [math.inf, 0, 0], [2, 0.5, 0], [2, 0, -1]):
        with pytest.raises(CheckpointError, match="loss_scale"):
            LossScale.of({SCALE_NAME: np.array(bad, "f")})
    with pytest.raises(CheckpointError, match=r"has shape \[2\]"):
        LossScale.of({SCALE_NAME: np.ones(2, "f")})


@pytest.mark.parametrize(
    ("result", "diverged"),
    [
        (StepResult(1.0, 2.0), False),
        (StepResult(1.0, math.inf), True),
        (StepResult(math.nan, 1.0), True),
        (StepResult(1.0, 2.0, LEAST_SCALE / 2), False),
        (StepResult(1.0, math.inf, LEAST_SCALE), False),
        (StepResult(1.0, math.nan, LEAST_SCALE), False),
        (StepResult(1.0, math.inf, LEAST_SCALE / 2), True),
        (StepResult(math.inf, math.nan, 2.0**15), True),  # no scale mends a forward pass
    ],
)
def test_a_skipped_step_is_no_divergence(result, diverged):
    assert result.diverged is diverged


@LOW
def test_a_run_continues_to_the_bit_and_keeps_float32(
    train, predict, one_backend, numbers, tmp_path, dtype
):
    """Steps that are skipped among them; predict.py reads it, --resume to another dtype not."""
    argv = (*TINY, *WIDE, "--data_path", numbers, "--backend", one_backend, "--dtype", dtype)
    straight, path = tmp_path / "straight", tmp_path / "longer"
    assert train(*argv, "--out", straight).code == 0
    assert train(*argv, "--epochs", 1, "--out", path).code == 0
    refused = train("--resume", path, "--dtype", "float32")
    assert f"dtype: {dtype} -> float32" in refused.error()
    assert train("--resume", path, "--epochs", 3).code == 0
    assert (path / LAST).read_bytes() == (straight / LAST).read_bytes()
    stored = checkpoint.load(path / LAST)
    assert {array.dtype.name for array in stored.arrays.values()} == {"float32"}
    assert (SCALE_NAME in stored.arrays) == (dtype == "float16")
    if dtype == "float16":
        scale = LossScale.of(stored.arrays)
        assert 0 < scale.skipped < stored.progress.step
        assert scale.scale == 2.0 ** (15 - scale.skipped)
    finished = predict("--checkpoint", path, "--data_path", numbers, "--out", tmp_path / "p.csv")
    assert finished.code == 0, finished.err


def test_a_checkpoint_without_its_scale_is_refused(train, one_backend, numbers, tmp_path):
    path = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--dtype", "float16")
    assert train(*argv, "--epochs", 1, "--out", path).code == 0
    stored = checkpoint.load(path / LAST)
    for spoil in (lambda a: a.pop(SCALE_NAME), lambda a: a.update({SCALE_NAME: np.ones(2, "f")})):
        arrays = dict(stored.arrays)
        spoil(arrays)
        spoiled = tmp_path / "spoiled.safetensors"
        parts = {"meaning": stored.meaning, "progress": stored.progress, "sha256": stored.sha256}
        checkpoint.save(spoiled, checkpoint.Checkpoint(arrays, config=stored.config, **parts))
        with pytest.raises(CheckpointError, match=SCALE_NAME):
            checkpoint.load(spoiled)


def test_a_run_that_diverges_says_so(train, one_backend, numbers, tmp_path):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--dtype", "float16")
    finished = train(*argv, "--lr", 1e30, "--out", tmp_path / "run")
    assert finished.code == 4
    assert "loss scale" in finished.error()


@LOW
def test_an_estimator_fits_continues_and_is_saved(one_backend, tmp_path, dtype):
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(12, 5, 2)), draw.normal(size=12)
    small = {"model": "lstm", "hidden_size": 4, "epochs": 2, "batch_size": 6, "lr": 1e-2}
    found = SequenceRegressor(**small, backend=one_backend, dtype=dtype, valid_fraction=0).fit(X, y)
    found.partial_fit(X, y).save(tmp_path / "model")
    again = SequenceRegressor.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X), found.predict(X))
    np.testing.assert_array_equal(
        again.partial_fit(X, y).predict(X), found.partial_fit(X, y).predict(X)
    )
    assert {array.dtype.name for array in found.arrays_.values()} == {"float32"}
