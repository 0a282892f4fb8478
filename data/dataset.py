"""A data file, all the way: read, its task decided, divided, scaled.

Dimensions: N sequences, n rows of a part, O regression targets.
"""

from dataclasses import dataclass

import numpy as np

from data.batching import Part
from data.config import DataConfig
from data.files import sha256
from data.scaling import Scaling, mean_and_std
from data.sequences import Layout, Sequences, read_sequences
from data.splits import split_off
from data.targets import class_indices, classes_of, decide_task, numbers, similar_labels
from spec.errors import DataError


@dataclass(frozen=True)
class Meaning:
    """What a model needs to read a further file and to name its answers.

    Attributes:
      task: regression or classification.
      classes: labels in the order of the model's outputs; empty for regression.
      layout: how the columns were understood.
      scaling: fitted on the training part.
    """

    task: str
    classes: tuple[str, ...]
    layout: Layout
    scaling: Scaling

    @property
    def output_size(self) -> int:
        return len(self.classes) or len(self.layout.targets)


@dataclass(frozen=True)
class Known:
    """A part's truth in the unit of the data, for metrics and baselines.

    Attributes:
      targets: numbers [n, O] or class indices [n].
      last: last reading of what is forecast [n, O]; None where that is no input.
    """

    targets: np.ndarray
    last: np.ndarray | None


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on; `notes` is what was detected, a line each."""

    meaning: Meaning
    train: Part
    valid: Part
    test: Part
    test_known: Known
    sha256: dict[str, str]
    notes: list[str]


def load_dataset(
    config: DataConfig, dtype: str, seed: int, meaning: Meaning | None = None
) -> Dataset:
    """Read, divide and scale; a given `meaning` is kept, not decided and fitted anew.

    Raises:
      DataError: a file is at fault, or too small to be divided.
    """
    path, test_path = config.files
    sequences = read_sequences(path, config, meaning and meaning.layout)
    notes = [f"{path}: {described(sequences)}", *sequences.notes]
    if len(sequences) < 2:
        raise DataError(f"{path}: 1 row; training and testing need more")
    if meaning is None:
        task = task_of(path, sequences, config, notes)
        classes = labels_of(path, sequences, notes) if task == "classification" else ()
    else:
        task, classes = meaning.task, meaning.classes
    truth = truth_of(sequences, classes)
    labels = truth if classes else None
    rows = np.arange(len(sequences))
    how = "the last rows in time" if config.in_time else f"random rows, seed {seed}"
    if test_path:
        test = read_sequences(test_path, config, sequences.layout)
        test_truth, test_rows = truth_of(test, classes), np.arange(len(test))
        notes += [f"{test_path}: {described(test)}", *test.notes[1:]]
    else:
        rows, test_rows = split_off(
            rows, config.test_fraction, labels, config.in_time, "test_fraction", seed
        )
        test, test_truth = sequences, truth
    rows, valid_rows = split_off(
        rows,
        config.valid_fraction,
        None if labels is None else labels[rows],
        config.in_time,
        "valid_fraction",
        seed,
    )
    sizes = f"{len(rows)} training, {len(valid_rows)} validation, {len(test_rows)} test"
    notes.append(f"rows: {sizes} ({how})")
    notes += repeated(sequences, rows, test, test_rows)
    if meaning is None:
        scaling = fit(sequences, rows, None if classes else truth, notes)
        meaning = Meaning(task, classes, sequences.layout, scaling)
    scaling = meaning.scaling
    inputs = sequences.scaled(scaling, dtype)
    targets = truth if classes else scaling.targets(truth).astype(dtype)
    test_inputs, test_targets = inputs, targets
    if test is not sequences:
        test_inputs = test.scaled(scaling, dtype)
        test_targets = test_truth if classes else scaling.targets(test_truth).astype(dtype)
    return Dataset(
        meaning,
        Part(inputs, sequences.lengths, targets, rows),
        Part(inputs, sequences.lengths, targets, valid_rows),
        Part(test_inputs, test.lengths, test_targets, test_rows),
        Known(test_truth[test_rows], last_reading(test, test_rows, meaning)),
        {name: sha256(p) for name, p in (("data", path), ("test", test_path)) if p},
        notes,
    )


def described(sequences: Sequences) -> str:
    """Say how much was read."""
    shortest, longest = sequences.lengths.min(), sequences.lengths.max()
    steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    target = ", ".join(sequences.layout.targets) or "none"
    return f"{len(sequences)} sequences of {steps} steps, target {target}"


def task_of(path: str, sequences: Sequences, config: DataConfig, notes: list[str]) -> str:
    """Decide the task and say why."""
    if config.task != "auto":
        return config.task
    try:
        task, reason = decide_task(sequences.targets, sequences.decimal)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    other = "classification" if task == "regression" else "regression"
    notes.append(f"task: {task}, as {reason} (--task {other} overrides)")
    return task


def labels_of(path: str, sequences: Sequences, notes: list[str]) -> tuple[str, ...]:
    """List the classes of a training file."""
    if len(sequences.layout.targets) > 1:
        raise DataError(f"{path}: --task classification takes one target column")
    classes = classes_of(sequences.targets, sequences.decimal)
    if len(classes) < 2:
        raise DataError(f"{path}: every target is {classes[0]!r}; one class is nothing to learn")
    notes += [f"labels differ by case or spaces only: {pair}" for pair in similar_labels(classes)]
    counts = np.bincount(class_indices(sequences.targets, classes, sequences.place))
    single = [repr(label) for label, count in zip(classes, counts, strict=True) if count == 1]
    if single:
        notes.append(f"classes with a single row: {', '.join(single[:10])}")
    return classes


def truth_of(sequences: Sequences, classes: tuple[str, ...]) -> np.ndarray:
    """Parse targets: class indices [N], or numbers [N, O]."""
    if classes:
        return class_indices(sequences.targets, classes, sequences.place)
    names = sequences.layout.targets
    return numbers(sequences.targets, names, sequences.place, sequences.decimal)


def fit(
    sequences: Sequences, rows: np.ndarray, truth: np.ndarray | None, notes: list[str]
) -> Scaling:
    """Fit the scaling on the rows of the training part."""
    mean, std = mean_and_std(sequences.real_steps(rows))
    target_mean, target_std = np.zeros(1), np.ones(1)
    if truth is not None:
        target_mean, target_std = mean_and_std(truth[rows])
        if (truth[rows] == truth[rows][0]).all(axis=0).any():
            notes.append("warning: a target is constant in the training rows")
    return Scaling(mean, std, target_mean, target_std)


def repeated(train: Sequences, rows: np.ndarray, test: Sequences, test_rows: np.ndarray) -> list:
    """Warn of test sequences that also stand in the training part."""
    if train.series is not None or train.inputs.shape[1:] != test.inputs.shape[1:]:
        return []
    seen = {train.inputs[row].tobytes() for row in rows}
    count = sum(test.inputs[row].tobytes() in seen for row in test_rows)
    return [f"warning: {count} test sequences also occur in the training rows"] if count else []


def last_reading(sequences: Sequences, rows: np.ndarray, meaning: Meaning) -> np.ndarray | None:
    """Return the last reading of what is forecast, [n, O]."""
    layout = meaning.layout
    if meaning.task == "classification":
        return None
    if sequences.series is not None:
        columns = [layout.features.index(name) for name in layout.targets]
    elif len(layout.features) == len(layout.targets) == 1:
        columns = [0]
    else:
        return None
    last = sequences.inputs[rows, sequences.lengths[rows] - 1][:, columns]
    return None if np.isnan(last).any() else last
