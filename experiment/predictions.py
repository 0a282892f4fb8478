"""Predictions of a checkpoint, as a CSV a row for each sequence.

Dimensions: N sequences, T time, O regression targets, C classes.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data.batching import Part
from data.dataset import Known, described, truth_of
from data.sequences import Sequences, read_sequences
from experiment import atomic, checkpoint, metrics
from experiment.checkpoint import Checkpoint, model_config
from experiment.loop import measure, predict_part
from experiment.run_directory import BEST
from spec.backend import Prediction, load_backend
from spec.config import Execution, OptimizerConfig
from spec.errors import ConfigError
from spec.options import option, subset, validate


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction"""

    checkpoint: str | None = option(None, "run directory (its best checkpoint), or a checkpoint")
    data_path: str | None = option(None, "file to predict, in the form of the training data")
    backend: Literal["torch", "jax"] | None = option(None, "framework; none: the one that trained")
    out: str = option("predictions.csv", "CSV to write; it must not exist yet")
    attention: str | None = option(None, "CSV for the attention weights, a row each sequence")
    device: str = option("cpu", "cpu, or cuda / gpu with an index after a colon: cuda:1")
    threads: int | None = option(
        None, "CPU threads of the framework", "a whole number >= 1", lambda n: n >= 1
    )

    def __post_init__(self) -> None:
        validate(self)
        for name in ("checkpoint", "data_path"):
            if getattr(self, name) is None:
                raise ConfigError(f"--{name}: is required")
        for name in ("out", "attention"):
            path = getattr(self, name)
            if path is not None and Path(path).exists():
                raise ConfigError(f"--{name} {path}: exists; remove it or choose another name")


@dataclass(frozen=True)
class Report:
    """What was predicted; metrics where the file holds the truth."""

    rows: int
    metrics: dict[str, float] | None
    notes: list[str]


def predict(config: PredictConfig) -> Report:
    """Read a checkpoint and a data file, write the predictions.

    Raises:
      CheckpointError, DataError: either cannot be used.
      ConfigError: attention is asked of a model without.
      OutputError: the file cannot be written.
    """
    path = Path(config.checkpoint)
    stored = checkpoint.load(path / BEST if path.is_dir() else path)
    meaning, run = stored.meaning, stored.config
    if config.attention and run.model != "lstm_attention":
        raise ConfigError(f"--attention: the model {run.model} has no attention")
    backend = load_backend(config.backend or run.backend)
    sequences = read_sequences(config.data_path, run, meaning.layout, need_targets=False)
    execution = Execution(
        **subset(Execution, run) | {"device": config.device, "threads": config.threads}
    )
    model = model_config(run, meaning)
    state = backend.init_state(model, OptimizerConfig(), execution, weights_of(stored))
    rows = np.arange(len(sequences))
    inputs = sequences.scaled(meaning.scaling, run.dtype)
    part = Part(inputs, sequences.lengths, None, rows)
    prediction = predict_part(backend, state, part)
    measured = None
    if sequences.targets:
        truth = truth_of(sequences, meaning.classes)
        measured = measure(meaning, prediction.outputs[: len(truth)], Known(truth, None))
    atomic.write(Path(config.out), to_csv(*prediction_rows(stored, sequences, prediction)))
    if config.attention:
        atomic.write(Path(config.attention), to_csv(*attention_rows(sequences, prediction)))
    notes = [f"{config.data_path}: {described(sequences)}", *sequences.notes]
    return Report(len(sequences), measured, notes)


def weights_of(stored: Checkpoint) -> dict[str, np.ndarray]:
    """Leave the optimiser's arrays behind."""
    return {n: a for n, a in stored.arrays.items() if not n.startswith("optimizer.")}


def prediction_rows(
    stored: Checkpoint, sequences: Sequences, prediction: Prediction
) -> tuple[list[str], Iterable[Sequence[object]]]:
    """Return header and rows: line in the file, prediction(s), probabilities, truth if known."""
    meaning, known = stored.meaning, sequences.targets or []
    names = meaning.layout.targets
    if meaning.task == "classification":
        chances = metrics.softmax(prediction.outputs)
        header = ["prediction", *(f"probability_{label}" for label in meaning.classes)]
        answers = [[meaning.classes[row.argmax()], *map(repr, row.tolist())] for row in chances]
    else:
        header = ["prediction"] if len(names) == 1 else [f"prediction_{name}" for name in names]
        numbers = meaning.scaling.restore(prediction.outputs)
        answers = [list(map(repr, row)) for row in numbers.tolist()]
    if known:
        header += names
        blank = ("",) * len(names)
        answers = [
            [*answer, *(known[n] if n < len(known) else blank)] for n, answer in enumerate(answers)
        ]
    lines = sequences.lines.tolist()
    return ["line", *header], ([line, *row] for line, row in zip(lines, answers, strict=True))


def attention_rows(
    sequences: Sequences, prediction: Prediction
) -> tuple[list[str], Iterable[Sequence[object]]]:
    """Return header and rows: line in the file, the weight of each step; empty past the end."""
    T = sequences.inputs.shape[1]
    rows = (
        [line, *map(repr, weights[:length].tolist()), *[""] * (T - length)]
        for line, weights, length in zip(
            sequences.lines.tolist(), prediction.attention, sequences.lengths, strict=True
        )
    )
    return ["line", *(f"t{t}" for t in range(T))], rows


def to_csv(header: list[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Write CSV. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([harmless(cell) for cell in row])
    return text.getvalue().encode()


def harmless(cell: object) -> object:
    """Put an apostrophe before text that starts like a formula and is no number."""
    if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r"):
        try:
            float(cell)
        except ValueError:
            return "'" + cell
    return cell
