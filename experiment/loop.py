"""The training loop, the same for either backend.

Dimensions: N rows of a part, T time, O outputs.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from data.batching import Part, in_order, shuffled
from data.dataset import Dataset
from experiment.checkpoint import Checkpoint, Progress, model_config
from experiment.config import RunConfig
from experiment.run_directory import RunDirectory
from spec.backend import Backend, Prediction, StepResult
from spec.batch import Batch, keep_masks
from spec.config import ModelConfig
from spec.errors import DivergedError
from spec.losses import training_loss

EVALUATION_ROWS = 256


def take_step(
    backend: Backend, state: Any, model: ModelConfig, batch: Batch, seed: int, step: int
) -> tuple[Any, StepResult]:
    """Draw the dropout masks of a step and take it."""
    keep = keep_masks(model, seed, step, *batch.inputs.shape[:2])
    return backend.train_step(state, replace(batch, keep=keep))


def predict_part(backend: Backend, state: Any, part: Part) -> Prediction:
    """Predict every sequence of a part, in order."""
    batches = [
        backend.predict(state, part.batch(positions))
        for positions in in_order(len(part), EVALUATION_ROWS)
    ]
    attention = [batch.attention for batch in batches]
    return Prediction(
        np.concatenate([batch.outputs for batch in batches]),
        None if attention[0] is None else np.concatenate(attention),
    )


@np.errstate(over="ignore", invalid="ignore")  # seen by the result, which is then not finite
def scaled_loss(model: ModelConfig, outputs: np.ndarray, part: Part) -> float:
    """Return the loss that training minimises, in float64 and in scaled units."""
    known = part.own_targets, part.class_weights, part.own_weights
    return float(training_loss(model, outputs.astype(np.float64), *known))


def steps_per_epoch(config: RunConfig, dataset: Dataset) -> int:
    """Return the optimiser steps of one epoch."""
    return math.ceil(len(dataset.train) / config.batch_size)


class Training:
    """A run under way: the backend's state, how far it is, and where it is written."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        backend: Backend,
        state: Any,
        progress: Progress,
        directory: RunDirectory,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.backend = backend
        self.state = state
        self.progress = progress
        self.directory = directory
        self.model = model_config(config, dataset.meaning)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this moment."""
        arrays = self.backend.export_arrays(self.state)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise self.diverged(self.progress.step, f"{name} is not finite")
        meaning, sha256 = self.dataset.meaning, self.dataset.sha256
        self.directory.save(Checkpoint(arrays, self.config, meaning, self.progress, sha256), best)

    def diverged(self, step: int, what: str) -> DivergedError:
        """Describe a step after which training cannot go on."""
        path = self.directory.path
        return DivergedError(
            f"step {step}: {what}; {path} keeps the last finite checkpoint: continue from it, "
            f"--resume {path}, with a smaller --lr or --clip_norm, or begin again"
        )

    def epochs(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Train to the last epoch, or until no better one came for `patience`.

        Yields the metrics of each epoch once its checkpoint is written. Ends early, after the
        step under way and with a checkpoint, when `stop` says so.

        Raises:
          DivergedError: a loss, gradient or weight is not finite; the last checkpoint stays.
        """
        while self.progress.epoch < self.config.epochs and not self.out_of_patience():
            began = time.perf_counter() - self.progress.seconds
            norm = self.train_epoch(stop)
            if norm is None:
                seconds = round(time.perf_counter() - began, 4)
                self.progress = replace(self.progress, seconds=seconds)
                self.save()
                return
            entry, best = self.finish_epoch(norm)
            entry["seconds"] = round(time.perf_counter() - began, 4)
            self.directory.add_metrics(entry)
            self.save(best)
            yield entry
            if stop():
                return

    def out_of_patience(self) -> bool:
        """Whether the best epoch lies `patience` epochs back."""
        waited = self.progress.epoch - self.progress.best_epoch
        return self.config.patience is not None and waited >= self.config.patience

    def train_epoch(self, stop: Callable[[], bool]) -> float | None:
        """Take the steps left in the epoch; return its last gradient norm, None if stopped."""
        train, config, progress = self.dataset.train, self.config, self.progress
        norm = 0.0
        batches = shuffled(len(train), config.batch_size, config.seed, progress.epoch)
        for positions in batches[progress.batch :]:
            if stop():
                return None
            batch = train.batch(positions)
            self.state, result = take_step(
                self.backend, self.state, self.model, batch, config.seed, progress.step
            )
            if result.diverged:
                raise self.diverged(progress.step + 1, str(result))
            norm = result.gradient_norm if result.taken else norm
            count = len(positions) if batch.weights is None else int(batch.weights.sum())
            progress = self.progress = replace(
                progress,
                batch=progress.batch + 1,
                step=progress.step + 1,
                loss_sum=progress.loss_sum + result.loss * count,
                rows=progress.rows + count,
            )
        return norm

    def finish_epoch(self, norm: float) -> tuple[dict[str, Any], bool]:
        """Validate; return the epoch's metrics and whether it is the best so far."""
        progress, valid = self.progress, self.dataset.valid
        epoch = progress.epoch + 1
        train_loss = progress.loss_sum / progress.rows
        entry = {"epoch": epoch, "step": progress.step, "train_loss": train_loss}
        judged = train_loss
        if len(valid):
            outputs = predict_part(self.backend, self.state, valid).outputs
            judged = scaled_loss(self.model, outputs, valid)
            if not math.isfinite(judged):
                raise self.diverged(progress.step, f"validation loss {judged:.4g}")
            entry["valid_loss"] = judged
            if self.dataset.meaning.task == "classification":
                correct = outputs.argmax(axis=-1) == valid.own_targets
                entry["valid_accuracy"] = float(np.average(correct, weights=valid.own_weights))
        entry["gradient_norm"] = norm
        best = progress.best_loss is None or judged < progress.best_loss
        self.progress = Progress(
            epoch,
            step=progress.step,
            best_loss=judged if best else progress.best_loss,
            best_epoch=epoch if best else progress.best_epoch,
        )
        return entry, best
