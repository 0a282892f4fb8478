"""Signals to a process of its own: a run ends after its step, and goes on as if it never had."""

import random
import signal
import time

import pytest

from experiment import checkpoint
from experiment.run_directory import LAST, METRICS
from tests.conftest import FRAMEWORKS, ROOT, TINY, finish, installed, start
from tests.test_resume import same_run

SIGNALS = [
    ("torch", signal.SIGINT),
    ("torch", signal.SIGTERM),
    ("torch", signal.SIGHUP),
    ("jax", signal.SIGINT),
]
# Steps slow enough to be hit, and a line on stdout that tells when the first one is under way.
SLOW = """
import importlib, sys, time
from experiment.command import run
import train
module = importlib.import_module(sys.argv.pop(1) + "_impl")
pause = float(sys.argv.pop(1))
step = module.train_step
def slow(state, batch):
    print("in a step", flush=True)
    time.sleep(pause)
    return step(state, batch)
module.train_step = slow
run(train.main)
"""


def wait_for(process, text: str) -> None:
    """Read the process's stdout up to a line."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(("name", "number"), SIGNALS)
def test_a_signal_ends_the_run_after_its_step(train, numbers, tmp_path, name, number):
    out = tmp_path / "run"
    argv = (*TINY, "--dropout", 0.2, "--data_path", numbers, "--backend", installed(name))
    process = start("-c", SLOW, name, 0.3, *argv, "--out", out)
    wait_for(process, "in a step")
    if number == signal.SIGHUP:  # a run that was suspended in between is none the worse for it
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
    process.send_signal(number)
    finished = finish(process)
    assert (finished.code, finished.err) == (128 + number, "")
    step = checkpoint.load(out / LAST).progress.step
    assert step < 6
    end = f"stopped after step {step}; continue with --resume {out}\n"
    assert finished.out.endswith(end)
    assert train("--resume", out).code == 0  # in another process than the one that began
    assert train(*argv, "--out", tmp_path / "straight").code == 0
    same_run(out, tmp_path / "straight")


def test_a_second_signal_ends_it_at_once(train, numbers, tmp_path, one_backend):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--out", out)
    process = start("-c", SLOW, one_backend, 60, *argv)
    wait_for(process, "in a step")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the step under way is finished first
    process.send_signal(signal.SIGINT)
    finished = finish(process)
    assert (finished.code, finished.err) == (130, "")
    assert checkpoint.load(out / LAST).progress.step == 0
    assert train("--resume", out).code == 0


def test_a_signal_while_the_results_are_computed_loses_nothing(
    train, numbers, tmp_path, one_backend
):
    out = tmp_path / "run"
    code = SLOW.replace(
        "run(train.main)",
        """
import experiment.conclude
experiment.conclude.baselines = lambda dataset: slow(print("baselines", flush=True), None)
run(train.main)""",
    )
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--out", out)
    process = start("-c", code, one_backend, 0.5, *argv)
    wait_for(process, "baselines")
    process.send_signal(signal.SIGINT)
    finished = finish(process)
    assert (finished.code, finished.err) == (130, "interrupted; nothing was lost\n")
    assert not (out / "summary.json").exists()
    assert train("--resume", out).code == 0
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 1.0])
def test_a_signal_while_a_command_starts_leaves_nothing(numbers, tmp_path, one_backend, delay):
    argv = ("--data_path", numbers, "--backend", one_backend, "--epochs", 10**6)
    process = start(ROOT / "train.py", *argv, "--out", tmp_path / "run")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    finished = finish(process)
    if finished.err.startswith("Fatal Python error: init_import_site"):
        assert not (tmp_path / "run").exists()
        return  # on a busy machine Python itself was still starting
    assert finished.code == 130
    begun = (tmp_path / "run").exists()  # only once there is something to continue
    assert finished.err == ("" if begun else "interrupted; nothing was lost\n")
    assert begun == (tmp_path / "run" / LAST).exists()


def test_a_killed_run_goes_on_from_its_last_epoch(train, numbers, tmp_path, one_backend):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    process = start("-c", SLOW, one_backend, 0.2, *argv, "--out", out)
    for _ in range(4):  # into the second epoch
        wait_for(process, "in a step")
    process.kill()
    process.communicate()
    assert checkpoint.load(out / LAST).progress.epoch == 1
    assert train("--resume", out).code == 0
    assert train(*argv, "--out", tmp_path / "straight").code == 0
    same_run(out, tmp_path / "straight")


@pytest.mark.long
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_kills_at_random_never_lose_a_run(train, numbers, tmp_path, name):
    out, draw = tmp_path / "run", random.Random(0)
    argv = ("--data_path", numbers, "--backend", installed(name), "--out", out)
    begin, steps = (*TINY, "--epochs", 100_000, "--dropout", 0.2), 0
    for _ in range(30):
        resume = ["--resume"] if out.exists() else begin
        process = start(ROOT / "train.py", *argv, *resume)
        wait_for(process, ": train ")
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        for file in out.glob("*.safetensors"):
            checkpoint.load(file)
        reached = checkpoint.load(out / LAST).progress
        assert reached.step > steps
        steps = reached.step
    finished = train(*argv, "--resume", "--epochs", reached.epoch + 1)
    assert finished.code == 0, finished.err
    assert len((out / METRICS).read_text().splitlines()) == reached.epoch + 1
    straight = tmp_path / "straight"
    argv = (*TINY, "--data_path", numbers, "--backend", name, "--dropout", 0.2)
    assert train(*argv, "--epochs", reached.epoch + 1, "--out", straight).code == 0
    assert (out / LAST).read_bytes() == (straight / LAST).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_signal_at_any_time_of_the_start_prints_no_traceback(numbers, tmp_path, name):
    # In its first 20 ms Python has not yet come to this program.
    for delay in (0.1 * n for n in range(1, 31)):
        out = tmp_path / f"{delay}"
        argv = ("--data_path", numbers, "--backend", installed(name), "--epochs", 10**6)
        process = start(ROOT / "train.py", *argv, "--out", out)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        finished = finish(process)
        assert finished.code == 130, delay
        assert finished.err in ("", "interrupted; nothing was lost\n"), delay
        if out.exists():
            checkpoint.load(out / LAST)
