"""Progress of a run: a bar on a terminal, about ten lines elsewhere."""

import sys
from typing import Any

from experiment.command import say


class Reporter:
    """Shows one epoch after another."""

    def __init__(self, done: int, total: int) -> None:
        self.total = total
        self.every = max(1, total // 10)
        self.bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit="epoch", leave=False)

    def show(self, entry: dict[str, Any]) -> None:
        """Report an epoch."""
        losses = f"train {entry['train_loss']:.4g}"
        if "valid_loss" in entry:
            losses += f", valid {entry['valid_loss']:.4g}"
        if "valid_accuracy" in entry:
            losses += f", accuracy {entry['valid_accuracy']:.3f}"
        if self.bar is not None:
            self.bar.set_postfix_str(losses)
            self.bar.update()
        elif entry["epoch"] % self.every == 0 or entry["epoch"] == self.total:
            say(f"epoch {entry['epoch']}/{self.total}: {losses} ({entry['seconds']:.2f} s)")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
