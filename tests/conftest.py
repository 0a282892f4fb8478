"""Commands run in this process, on a CSV of a few rows and models of four units."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

# Before a framework is imported: for models of four units a second thread is a burden.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import predict as predict_command
import train as train_command
from experiment.command import SIGNALS, run

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}
# Two batches an epoch, the second one short.
TINY = ("--model", "lstm", "--hidden_size", "4", "--batch_size", "8", "--epochs", "3")


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """Return the error, which is the only line on stderr."""
        line, end = self.err[:-1], self.err[-1:]
        assert line.startswith("error: "), self.err
        assert (end, line.count("\n")) == ("\n", 0), self.err
        return line


@pytest.fixture(params=FRAMEWORKS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend whose framework is installed."""
    return installed(request.param)


def installed(name: str) -> str:
    """Return the backend's name; skip the test where its framework is not installed."""
    for module in FRAMEWORKS[name]:
        pytest.importorskip(module, reason=f"backend {name} is not installed")
    return name


@pytest.fixture
def one_backend() -> str:
    """A backend that is installed, where either will do."""
    for name, modules in FRAMEWORKS.items():
        with suppress(ModuleNotFoundError):
            for module in modules:
                import_module(module)
            return name
    return installed("torch")


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    """Put back the handlers that a command in this process replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


Command = Callable[..., Finished]


def command(main: Callable[[list[str]], int | None], capsys, monkeypatch) -> Command:
    """Make a function that runs a command as the shell does, but in this process."""

    def end_at_once(code: int) -> None:
        raise AssertionError(f"the process would have ended at once, with code {code}")

    def call(*argv: object) -> Finished:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, argv)])
        monkeypatch.setattr(os, "_exit", end_at_once)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(main)
        return Finished(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def train(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Command:
    """train(*argv) -> Finished."""
    return command(train_command.main, capsys, monkeypatch)


@pytest.fixture
def predict(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Command:
    """predict(*argv) -> Finished."""
    return command(predict_command.main, capsys, monkeypatch)


def start(*argv: object, redirect: str = "", **options) -> subprocess.Popen:
    """Start Python in a process of its own.

    Args:
      argv: what follows the interpreter.
      redirect: as in a shell, for instance ">&-".
      options: of Popen; env is added to the environment.
    """
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    usual = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}  # buffered, as at a user's
    environment = os.environ | usual | settings.pop("env", {})
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh"] if redirect else []
    command = [*shell, sys.executable, *map(str, argv)]
    return subprocess.Popen(command, env=environment, **settings)


def finish(process: subprocess.Popen) -> Finished:
    """Wait for a process."""
    out, err = process.communicate(timeout=120)
    return Finished(process.returncode, out, err)


def series(rows: int, label: Callable[[float], object]) -> str:
    """Return a CSV of sequences of five steps, with a target that their last step decides."""
    lines = ["t0,t1,t2,t3,t4,y"]
    for row in range(rows):
        steps = [round(0.1 * ((7 * row + 3 * t * t) % 19) - 0.9, 2) for t in range(5)]
        lines.append(",".join(map(str, [*steps, label(steps[-1])])))
    return "\n".join(lines) + "\n"


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A CSV to regress on, 20 rows: 14 to train on, 3 to validate, 3 to test."""
    path = tmp_path / "numbers.csv"
    path.write_text(series(20, lambda last: round(2 * last + 0.05, 2)))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A CSV to classify, 20 rows."""
    path = tmp_path / "labels.csv"
    path.write_text(series(20, lambda last: "high" if last > 0 else "low"))
    return path
