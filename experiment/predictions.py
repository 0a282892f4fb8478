"""Predictions of a checkpoint, as a CSV a row for each sequence, or for each of its steps.

Dimensions: N sequences, T time, O regression targets, C classes.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batching import Part
from data.dataset import Meaning, described, known_of, truth_of, with_targets
from data.sequences import Sequences, read_sequences
from experiment import checkpoint
from experiment.answers import answers, measure, point, suffixes
from experiment.checkpoint import Checkpoint, model_config
from experiment.config import PredictConfig
from experiment.loop import predict_part
from experiment.run_directory import checkpoint_at
from spec.backend import Prediction, load_backend
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.errors import ConfigError, OutputError
from spec.options import subset


@dataclass(frozen=True)
class Report:
    """What was predicted.

    Attributes:
      files: path and content of what is to be written.
      rows: number of predictions.
      metrics: where the file holds the truth.
      notes: what the user should hear of.
    """

    files: list[tuple[str, bytes]]
    rows: int
    metrics: dict[str, float] | None
    notes: list[str]


def predict(config: PredictConfig) -> Report:
    """Read a checkpoint and a data file, and predict.

    Raises:
      CheckpointError, DataError: either cannot be used.
      ConfigError: a file to write exists, or attention is asked of a model without.
      OutputError: the directory of a file to write is missing or read-only.
    """
    for name in ("out", "attention"):
        if (file := getattr(config, name)) is not None:
            check_new(name, file)
    stored = checkpoint.load(checkpoint_at(Path(config.checkpoint)))
    meaning, run = stored.meaning, stored.config
    if config.attention and not run.attends:
        raise ConfigError(
            f"--attention: the model {run.model} has no attention; leave it out, or train "
            "one that ends in _attention or _seq2seq, or a transformer with --pooling attention"
        )
    sequences = read_sequences(config.data_path, run, meaning.layout, need_targets=False)
    backend = load_backend(config.backend or run.backend)
    execution = Execution(
        **subset(Execution, run) | {"device": config.device, "threads": config.threads}
    )
    model = model_config(run, meaning)
    model.check_length(sequences.lengths.max())
    state = backend.init_state(model, OptimizerConfig(), execution, weights_of(stored))
    inputs = sequences.scaled(meaning.scaling, run.master_dtype)
    part = Part(inputs, sequences.lengths, None, np.arange(len(sequences)))
    prediction = predict_part(backend, state, part)
    measured = None
    if sequences.targets and len(with_targets(sequences)):
        truth = truth_of(sequences, meaning.classes)
        known = known_of(sequences, np.arange(len(truth)), truth, meaning)
        measured = measure(model, meaning, prediction.outputs[: len(truth)], known)
    files = [(config.out, to_csv(*prediction_rows(model, meaning, sequences, prediction)))]
    if config.attention:
        files.append((config.attention, to_csv(*attention_rows(sequences, prediction))))
    notes = [f"{config.data_path}: {described(sequences)}", *sequences.notes]
    rows = int(sequences.lengths.sum()) if model.every_step else len(sequences)
    return Report(files, rows, measured, notes)


def check_new(name: str, path: str) -> None:
    """Raise where a file exists already, or its directory does not, before any work is done."""
    if os.path.basename(path) in ("", ".", ".."):
        raise ConfigError(f"--{name} {path!r}: names no file")
    if os.path.lexists(path):
        raise ConfigError(f"--{name} {path}: exists; remove it or choose another name")
    if not os.access(Path(path).parent, os.W_OK | os.X_OK):
        raise OutputError(f"--{name} {path}: its directory is missing or cannot be written")


def weights_of(stored: Checkpoint) -> dict[str, np.ndarray]:
    """Leave the optimiser's arrays behind."""
    return {n: a for n, a in stored.arrays.items() if not n.startswith("optimizer.")}


def prediction_rows(
    model: ModelConfig, meaning: Meaning, sequences: Sequences, prediction: Prediction
) -> tuple[list[str], Iterable[Sequence[object]]]:
    """Return header and rows: line in the file, prediction(s), probabilities, truth if known.

    Of every step there is a row for each real one, and a column "step" that counts from 0.
    """
    known, names = sequences.targets or [], meaning.layout.outputs
    outputs, places = prediction.outputs, sequences.lines[:, None].tolist()
    if model.every_step:
        N, T = outputs.shape[:2]
        real = np.arange(T) < sequences.lengths[:, None]
        outputs = outputs[real]
        lines = np.broadcast_to(sequences.lines.reshape(N, -1), (N, T))
        places = np.stack([lines, np.broadcast_to(np.arange(T), (N, T))], axis=-1)[real].tolist()
        O = len(names)
        known = [known[n][t * O : (t + 1) * O] for n, t in np.argwhere(real)] if known else []
    found = answers(model, meaning, outputs)
    if meaning.task == "classification":
        header = ["prediction", *(f"probability_{label}" for label in meaning.classes)]
        rows = [[meaning.classes[row.argmax()], *map(repr, row.tolist())] for row in found]
    else:
        chosen = columns(model, names)
        header, order = ([*part] for part in zip(*chosen, strict=True))
        rows = [list(map(repr, row)) for row in found[:, order].tolist()]
    if known:
        header += names
        blank = ("",) * len(names)
        rows = [[*row, *(known[n] if n < len(known) else blank)] for n, row in enumerate(rows)]
    where = ["line", "step"] if model.every_step else ["line"]
    return [*where, *header], ([*at, *row] for at, row in zip(places, rows, strict=True))


def columns(model: ModelConfig, targets: Sequence[str]) -> list[tuple[str, int]]:
    """Name the columns of a regression, each with the place of its answer.

    The point prediction of a target comes first, of quantiles if there is one; of several targets a
    column says which it is of.
    """
    chosen, P, at = [], model.outputs_per_target, point(model)
    for n, target in enumerate(targets):
        name = "prediction" if len(targets) == 1 else f"prediction_{target}"
        if model.levels and at is not None:
            chosen.append((name, n * P + at))
        chosen += [(name + suffix, n * P + p) for p, suffix in enumerate(suffixes(model))]
    return chosen


def attention_rows(
    sequences: Sequences, prediction: Prediction
) -> tuple[list[str], Iterable[Sequence[object]]]:
    """Return header and rows: line in the file, the weight of each step; empty past the end.

    A decoder attends at each step of its forecast: a row each, and a column "ahead" that counts.
    """
    T, path = sequences.inputs.shape[1], prediction.attention.ndim == 3
    rows = (
        [line, *[ahead] * path, *map(repr, weights[:length].tolist()), *[""] * (T - length)]
        for line, own, length in zip(
            sequences.lines.tolist(), prediction.attention, sequences.lengths, strict=True
        )
        for ahead, weights in enumerate(own.reshape(-1, T), start=1)
    )
    return ["line", *["ahead"] * path, *(f"t{t}" for t in range(T))], rows


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
