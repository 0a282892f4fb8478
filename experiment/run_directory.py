"""The files of one run: config.yaml, metrics.jsonl, checkpoints, summary.json."""

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiment import atomic, checkpoint
from experiment.checkpoint import Checkpoint
from spec.errors import BusyError, CheckpointError, ConfigError, OutputError

LAST, PREVIOUS, BEST = "checkpoint.safetensors", "previous.safetensors", "best.safetensors"
CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
RUNS = Path("runs")  # where runs go that are told no place


def refuse_run(path: Path) -> None:
    """Raise ConfigError where a directory holds a run, or a file that a run would replace."""
    for name in (LAST, PREVIOUS, BEST, METRICS, SUMMARY, CONFIG):
        if os.path.lexists(path / name):
            raise ConfigError(
                f"--out {path}: already holds a run ({name}); continue it with --resume {path}, "
                "or choose another directory"
            )


def checkpoint_at(path: Path) -> Path:
    """Return the checkpoint that a path means: a file itself, or the best of a run directory.

    Raises:
      CheckpointError: the directory holds none.
    """
    best = path / BEST
    if os.path.isfile(best) or not os.path.isdir(path):
        return best if os.path.isfile(best) else path
    if os.path.isfile(path / LAST):
        raise CheckpointError(
            f"{path}: no epoch is complete; give {path / LAST} to use it as it is"
        )
    raise CheckpointError(f"{path}: holds no {BEST}; give the directory of a run, or a checkpoint")


class RunDirectory:
    """A directory that one process at a time writes a run into."""

    def __init__(self, path: Path, last: str = LAST) -> None:
        self.path = path
        self.last = last
        self.lock = FileLock(path / ".lock")
        try:
            self.lock.acquire(timeout=0)
            atomic.remove_parts(path)
        except Timeout:
            raise BusyError(f"{path}: another process is writing this run; let it end") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None

    @classmethod
    def create(cls, path: Path | None, name: str) -> "RunDirectory":
        """Make the directory of a new run; without a path, the next free number under runs/.

        Raises:
          ConfigError: it already holds a run.
          OutputError: it cannot be made or written.
        """
        try:
            if path is None or path.parent == RUNS:  # of no other do we make the parent
                RUNS.mkdir(exist_ok=True)
            path = free_directory(RUNS, name) if path is None else path
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"--out {path}: cannot be made: {error.strerror}") from None
        directory = cls(path)
        refuse_run(path)
        return directory

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """Open the directory of a run to continue it; `path` may name one of its checkpoints.

        Raises:
          CheckpointError: there is no run to continue.
        """
        names = (LAST, PREVIOUS, BEST)
        if os.path.isfile(path):
            if path.name not in names:
                raise CheckpointError(
                    f"{path}: is no checkpoint in a run directory; --init {path} begins a new "
                    "run from its weights"
                )
            return cls(path.parent, path.name)
        if not any(os.path.isfile(path / name) for name in names):
            raise CheckpointError(
                f"{path}: holds no {LAST} to continue from; without --resume a new run begins"
            )
        return cls(path)

    def load(self) -> Checkpoint:
        """Read the checkpoint to continue from.

        Raises:
          CheckpointError: it is damaged; the message names another one that is whole.
        """
        try:
            return checkpoint.load(self.path / self.last)
        except CheckpointError as error:
            for other in (PREVIOUS, BEST):
                try:
                    epoch = checkpoint.load(self.path / other).progress.epoch
                except CheckpointError:
                    continue
                raise CheckpointError(
                    f"{error}; that of epoch {epoch} is whole: --resume {self.path / other}"
                ) from None
            raise

    def save(self, state: Checkpoint, best: bool = False) -> None:
        """Write the last checkpoint and keep the one before.

        The best is written first: a run killed in between repeats its last epoch.

        Raises:
          OutputError: it cannot be written; the last one stays.
        """
        last, previous = self.path / LAST, self.path / PREVIOUS
        # Not a damaged one, which the run was not continued from.
        keep = self.last == LAST and last.exists()
        try:
            if keep:
                link(last, atomic.part_of(previous))
            if best:
                checkpoint.save(self.path / BEST, state)
                link(self.path / BEST, atomic.part_of(last))
                os.replace(atomic.part_of(last), last)
            else:
                checkpoint.save(last, state)
            if keep:
                os.replace(atomic.part_of(previous), previous)
        except BaseException as error:
            atomic.remove_parts(self.path)
            if isinstance(error, OSError):
                raise OutputError(f"{last}: cannot be written: {error.strerror}") from None
            raise
        self.last = LAST

    def begin_metrics(self, epoch: int) -> list[dict[str, Any]]:
        """Return the metrics of the epochs up to `epoch` and drop any line after them."""
        path = self.path / METRICS
        lines = []
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    lines += [entry] if entry["epoch"] <= epoch else []
                except (ValueError, KeyError, TypeError):
                    break  # a line cut short by a kill is the last one
        self.write(METRICS, "".join(json.dumps(entry) + "\n" for entry in lines))
        return lines

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append the metrics of one epoch."""
        path = self.path / METRICS
        try:
            with open(path, "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None

    def write(self, name: str, text: str) -> None:
        """Write a text file whole."""
        atomic.write(self.path / name, text.encode())


def free_directory(root: Path, name: str) -> Path:
    """Make and return root/name-1, or -2 .. where that exists."""
    for number in count(1):
        path = root / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no links, copy it."""
    try:
        os.link(source, target)
    except OSError:
        atomic.write(target, source.read_bytes())
