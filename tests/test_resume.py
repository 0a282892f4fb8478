"""A run that was stopped and continued is the run that never stopped."""

import json
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from experiment import checkpoint
from experiment.run_directory import BEST, LAST, METRICS, PREVIOUS
from spec.backend import load_backend
from tests.conftest import FRAMEWORKS, TINY, installed, series

# Everything that has a state: dropout in two places, shuffling, moments, a schedule, patience.
RICH = (
    *("--model", "lstm_attention", "--hidden_size", 3, "--num_layers", 2, "--bidirectional"),
    *("--dropout", 0.3, "--schedule", "cosine", "--warmup_steps", 2, "--patience", 5),
    *("--batch_size", 5, "--epochs", 3, "--optimizer", "adamw", "--weight_decay", 0.01),
)
STEPS = 9  # three batches an epoch


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(backend, step, number): send a signal during that step of the next command."""

    def install(backend: str, step: int, number: int = signal.SIGINT) -> None:
        module, taken = load_backend(backend), count(1)
        train_step = module.train_step

        def counted(state, batch):
            result = train_step(state, batch)
            if next(taken) == step:
                monkeypatch.setattr(module, "train_step", train_step)
                signal.raise_signal(number)
            return result

        monkeypatch.setattr(module, "train_step", counted)

    return install


def metrics(path: Path) -> list[dict[str, float]]:
    """Return a run's metrics without what depends on the clock."""
    entries = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    assert all(entry.pop("seconds") >= 0 for entry in entries)
    return entries


def summary(path: Path) -> dict:
    found = json.loads((path / "summary.json").read_text())
    found.pop("seconds")
    return found


def same_run(path: Path, expected: Path) -> None:
    """Assert that two runs ended equal to the bit."""
    for name in (LAST, BEST):
        assert (path / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics(path) == metrics(expected)
    assert summary(path) == summary(expected)


def test_stopped_anywhere_and_continued_is_the_same_to_the_bit(
    train, interrupt, backend, numbers, tmp_path
):
    argv = (*RICH, "--data_path", numbers, "--backend", backend)
    straight = tmp_path / "straight"
    assert train(*argv, "--out", straight).code == 0
    assert len(metrics(straight)) == 3
    for step in (1, 3, 5, STEPS):  # within an epoch, at its end, at the end of all
        path = tmp_path / f"stopped-{step}"
        interrupt(backend, step)
        stopped = train(*argv, "--out", path)
        assert (stopped.code, stopped.err) == (130, "")
        assert f"stopped after step {step}; continue with --resume {path}" in stopped.out
        assert checkpoint.load(path / LAST).progress.step == step
        assert not (path / "summary.json").exists()
        finished = train("--resume", path)
        assert finished.code == 0, finished.err
        assert f"step {step}" in finished.out
        same_run(path, straight)


def test_stopped_after_every_step_is_the_same_to_the_bit(
    train, interrupt, backend, labels, tmp_path
):
    argv = (*RICH, "--data_path", labels, "--backend", backend)
    assert train(*argv, "--out", tmp_path / "straight").code == 0
    path = tmp_path / "stopped"
    interrupt(backend, 1, signal.SIGTERM)
    assert train(*argv, "--out", path).code == 143
    for step in range(2, STEPS + 1):
        interrupt(backend, 1, signal.SIGHUP)
        assert train("--out", path, "--resume").code == 129
        assert checkpoint.load(path / LAST).progress.step == step
    assert train("--resume", path).code == 0
    same_run(path, tmp_path / "straight")


def test_early_stopping_counts_on_after_a_stop(train, interrupt, backend, numbers, tmp_path):
    argv = (*TINY, "--data_path", numbers, "--backend", backend)
    argv += ("--epochs", 20, "--patience", 2, "--lr", 0.5)
    straight, path = tmp_path / "straight", tmp_path / "stopped"
    finished = train(*argv, "--out", straight)
    assert finished.code == 0
    assert "stopped as 2 epochs brought no better ones" in finished.out
    epochs = len(metrics(straight))
    assert epochs < 20
    interrupt(backend, 2 * epochs - 1)  # in the epoch that decides
    assert train(*argv, "--out", path).code == 130
    assert train("--resume", path).code == 0
    same_run(path, straight)


def test_a_larger_total_continues_a_finished_run(train, backend, numbers, tmp_path):
    argv = (*TINY, "--data_path", numbers, "--backend", backend, "--dropout", 0.2)
    straight, path = tmp_path / "straight", tmp_path / "longer"
    assert train(*argv, "--out", straight).code == 0
    assert train(*argv, "--epochs", 1, "--out", path).code == 0
    assert train("--resume", path, "--epochs", 3).code == 0
    assert (path / LAST).read_bytes() == (straight / LAST).read_bytes()
    assert metrics(path) == metrics(straight)
    again = train("--resume", path)
    assert again.code == 0
    assert "every epoch is done; a larger --epochs trains on" in again.out
    assert (path / LAST).read_bytes() == (straight / LAST).read_bytes()
    shown = train("--resume", path, "--schedule", "cosine", "--epochs", 4)
    assert "the cosine now falls to 0 at epoch 4, not 3" in shown.out


@pytest.mark.parametrize("first", FRAMEWORKS)
def test_the_other_backend_continues_to_float64_rounding(
    train, interrupt, numbers, tmp_path, first
):
    second = {"torch": "jax", "jax": "torch"}[first]
    for name in (first, second):
        installed(name)
    argv = (*RICH, "--data_path", numbers, "--dtype", "float64", "--backend", first)
    straight, path = tmp_path / "straight", tmp_path / "continued"
    assert train(*argv, "--out", straight).code == 0
    interrupt(first, 4)
    assert train(*argv, "--out", path).code == 130
    finished = train("--resume", path, "--backend", second)
    assert finished.code == 0, finished.err
    note = f"continued in {second} what {first} began: equal to float64 rounding, not to the bit"
    assert note in finished.out
    assert summary(path)["backend"] == second
    for ours, theirs in zip(metrics(path), metrics(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-12)
    ours, theirs = (checkpoint.load(run / LAST).arrays for run in (path, straight))
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-10, err_msg=name)


def test_the_seconds_of_an_interrupted_epoch_count(train, interrupt, numbers, tmp_path, backend):
    path = tmp_path / "run"
    interrupt(backend, 1)
    train(*TINY, "--data_path", numbers, "--backend", backend, "--out", path)
    stopped = checkpoint.load(path / LAST)
    assert stopped.progress.seconds > 0
    checkpoint.save(path / LAST, replace(stopped, progress=replace(stopped.progress, seconds=1e3)))
    assert train("--resume", path).code == 0
    first, *others = (json.loads(line) for line in (path / METRICS).read_text().splitlines())
    assert first["seconds"] > 1e3 > max(entry["seconds"] for entry in others)
    assert json.loads((path / "summary.json").read_text())["seconds"] > 1e3
    assert checkpoint.load(path / LAST).progress.seconds == 0


@pytest.fixture
def run(train, numbers, tmp_path, one_backend) -> Path:
    """A finished run of one epoch."""
    path = tmp_path / "run"
    argv = (*TINY, "--epochs", 1, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", path).code == 0
    return path


def test_what_a_run_is_built_on_cannot_change(train, run):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    for flag, old, new in (
        ("hidden_size", 4, 5),
        ("model", "lstm", "rnn"),
        ("num_layers", 1, 2),
        ("seed", 0, 1),
        ("batch_size", 8, 9),
        ("dtype", "float32", "float64"),
        ("optimizer", "adam", "sgd"),
        ("valid_fraction", 0.15, 0.2),
        ("target", None, "t0"),
    ):
        finished = train("--resume", run, f"--{flag}", new)
        assert finished.code == 3
        assert f"{flag}: {old} -> {new}" in finished.error()
    both = train("--resume", run, "--hidden_size", 5, "--model", "rnn").error()
    assert "model: lstm -> rnn; hidden_size: 4 -> 5" in both
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    repeated = train("--resume", run, "--hidden_size", 4, "--lr", 0.1, "--epochs", 2)
    assert repeated.code == 0, repeated.err


def test_changed_data_stop_a_run_unless_allowed(train, run, numbers, tmp_path):
    moved = tmp_path / "moved.csv"
    numbers.rename(moved)
    assert f"{numbers}: cannot be read" in train("--resume", run).error()
    same = train("--resume", run, "--data_path", moved, "--epochs", 2)  # its content elsewhere
    assert same.code == 0, same.err
    scaling = checkpoint.load(run / LAST).meaning.scaling
    moved.write_text(series(30, lambda last: last))
    finished = train("--resume", run, "--epochs", 3)
    assert finished.code == 3
    assert f"{moved} is not what this run began with" in finished.error()
    assert "--allow_data_change" in finished.error()
    allowed = train("--resume", run, "--epochs", 3, "--allow-data-change")
    assert allowed.code == 0, allowed.err
    after = checkpoint.load(run / LAST)
    assert after.progress.epoch == 3
    np.testing.assert_array_equal(after.meaning.scaling.input_mean, scaling.input_mean)
    assert train("--resume", run, "--epochs", 4).code == 0  # now these are the run's data
    other = train("--resume", run, "--test_path", moved)
    assert other.code == 3
    assert f"{moved} is not what this run began with" in other.error()


def test_changed_columns_are_refused_even_when_allowed(train, run, numbers):
    numbers.write_text(numbers.read_text().replace("t0,t1,t2,t3,t4", "t0_a,t0_b,t1_a,t1_b,x"))
    assert train("--resume", run, "--allow_data_change").code == 2


def test_without_a_run_nothing_is_begun(train, tmp_path, numbers):
    empty = tmp_path / "empty"
    empty.mkdir()
    for argv in (("--resume", empty), ("--resume", "--out", empty), ("--resume", tmp_path / "no")):
        finished = train(*argv, "--data_path", numbers)
        assert finished.code == 3
        assert "holds no checkpoint.safetensors" in finished.error()
    assert list(empty.iterdir()) == []
    assert "which run?" in train("--resume").error()
    two = train("--resume", empty, "--out", tmp_path / "other")
    assert two.code == 2
    assert "continues in place" in two.error()


def test_a_damaged_last_checkpoint_continues_from_the_one_before(train, backend, numbers, tmp_path):
    straight, path = tmp_path / "straight", tmp_path / "damaged"
    argv = (*TINY, "--data_path", numbers, "--backend", backend)
    for out in (straight, path):
        assert train(*argv, "--out", out).code == 0
    whole = (path / LAST).read_bytes()
    (path / LAST).unlink()
    (path / LAST).write_bytes(whole[:100] + b"?" + whole[101:])
    finished = train("--resume", path)
    assert finished.code == 3
    assert f"{path / LAST}: is damaged" in finished.error()
    remedy = f"--resume {path / PREVIOUS}"
    assert finished.error().endswith(f"that of epoch 2 is whole: {remedy}")
    assert train(*remedy.split(), "--out", path).code == 0
    same_run(path, straight)
