"""Progress of a run: a bar on a terminal, about ten lines elsewhere."""

import sys
import time
from shutil import get_terminal_size
from typing import Any

from experiment.command import say
from experiment.loop import Training, steps_per_epoch

LONGEST_SILENCE = 60.0  # seconds


class Reporter:
    """Shows how far a run is. On a terminal that is closed tqdm falls silent."""

    def __init__(self, training: Training) -> None:
        config, progress = training.config, training.progress
        self.epochs = config.epochs
        self.every = max(1, config.epochs // 10)
        self.said: float | None = None
        self.bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            steps = config.epochs * steps_per_epoch(config, training.dataset)
            columns, lines = get_terminal_size()  # 80 and 24 where a terminal says 0
            self.bar = tqdm(
                desc=f"epoch {progress.epoch}/{self.epochs}",
                total=steps,
                initial=progress.step,
                unit="step",
                ncols=columns,
                nrows=lines,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def step(self, taken: int) -> None:
        """Report the steps taken so far."""
        if self.bar is not None:
            self.bar.update(taken - self.bar.n)

    def epoch(self, entry: dict[str, Any]) -> None:
        """Report an epoch by its metrics."""
        losses = f"train {entry['train_loss']:.4g}"
        if "valid_loss" in entry:
            losses += f", valid {entry['valid_loss']:.4g}"
        if "valid_accuracy" in entry:
            losses += f", accuracy {entry['valid_accuracy']:.3f}"
        number, now = entry["epoch"], time.monotonic()
        if self.bar is not None:
            self.bar.set_description(f"epoch {number}/{self.epochs}", refresh=False)
            self.bar.set_postfix_str(losses, refresh=False)
            self.step(entry["step"])
        elif (
            self.said is None
            or number % self.every == 0
            or number == self.epochs
            or now - self.said > LONGEST_SILENCE
        ):
            self.said = now
            say(f"epoch {number}/{self.epochs}: {losses} ({entry['seconds']:.2f} s)")
