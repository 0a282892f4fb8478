"""The files of one run: config.yaml, metrics.jsonl, checkpoints, summary.json."""

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiment import atomic, checkpoint
from experiment.checkpoint import Checkpoint
from spec.errors import BusyError, CheckpointError, ConfigError, OutputError

LAST, PREVIOUS, BEST = "checkpoint.safetensors", "previous.safetensors", "best.safetensors"


class RunDirectory:
    """A directory that one process at a time writes a run into."""

    def __init__(self, path: Path, last: str = LAST) -> None:
        self.path = path
        self.last = last
        self.lock = FileLock(path / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(f"{path}: another process is writing this run") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
        atomic.remove_parts(path)

    @classmethod
    def create(cls, path: Path | None, name: str) -> "RunDirectory":
        """Make the directory of a new run; without a path, the next free number under runs/.

        Raises:
          ConfigError: it already holds a run.
          OutputError: it cannot be made or written.
        """
        try:
            if path is None:
                root = Path("runs")
                root.mkdir(exist_ok=True)
                number = 1
                while (root / f"{name}-{number}").exists():
                    number += 1
                path = root / f"{name}-{number}"
            if any((path / file).exists() for file in ("config.yaml", LAST, "metrics.jsonl")):
                raise ConfigError(
                    f"--out {path}: already holds a run; continue it with --resume {path}, "
                    "or choose another directory"
                )
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"--out {path}: cannot be made: {error.strerror}") from None
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """Open the directory of a run to continue it; `path` may name one of its checkpoints.

        Raises:
          CheckpointError: there is no run to continue.
        """
        directory, last = (path.parent, path.name) if path.is_file() else (path, LAST)
        if not (directory / last).is_file():
            raise CheckpointError(f"{path}: holds no {LAST} to continue from")
        return cls(directory, last)

    def load(self) -> Checkpoint:
        """Read the checkpoint to continue from.

        Raises:
          CheckpointError: it is damaged; the message names the one before, where that is whole.
        """
        try:
            return checkpoint.load(self.path / self.last)
        except CheckpointError as error:
            previous = self.path / PREVIOUS
            if self.last == LAST and previous.is_file():
                raise CheckpointError(
                    f"{error}; the one before can be continued: --resume {previous}"
                ) from None
            raise

    def save(self, state: Checkpoint, best: bool = False) -> None:
        """Write the last checkpoint, keep the one before, and mark it as the best where it is."""
        last, previous = self.path / LAST, self.path / PREVIOUS
        part = self.path / f".{PREVIOUS}.{os.getpid()}{atomic.MARK}"
        if last.exists():
            link(last, part)
        checkpoint.save(last, state)
        if part.exists():
            os.replace(part, previous)
        if best:
            link(last, part)
            os.replace(part, self.path / BEST)

    def begin_metrics(self, epoch: int) -> list[dict[str, Any]]:
        """Return the metrics of the epochs up to `epoch` and drop any line after them."""
        path = self.path / "metrics.jsonl"
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    lines += [entry] if entry["epoch"] <= epoch else []
                except (ValueError, KeyError, TypeError):
                    break  # a line cut short by a kill is the last one
        atomic.write(path, "".join(json.dumps(entry) + "\n" for entry in lines).encode())
        return lines

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append the metrics of one epoch."""
        try:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{file.name}: cannot be written: {error.strerror}") from None

    def write(self, name: str, text: str) -> None:
        """Write a text file whole."""
        atomic.write(self.path / name, text.encode())


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no links, copy it."""
    try:
        os.link(source, target)
    except OSError:
        atomic.write(target, source.read_bytes())
