"""A data file, all the way: read, its task decided, divided, scaled.

Dimensions: N sequences, T time, n rows of a part, O regression targets, S steps with targets.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from data.batching import Part
from data.config import DataConfig
from data.files import sha256
from data.header import shown
from data.scaling import Scaling, mean_and_std
from data.sequences import Layout, Sequences, read_sequences
from data.splits import split_off
from data.targets import class_indices, classes_of, decide_task, doubtful_labels, numbers
from spec.errors import DataError


@dataclass(frozen=True)
class Meaning:
    """What a model needs to read a further file and to name its answers.

    Attributes:
      task: regression or classification.
      classes: labels in the order of the model's outputs; empty for regression.
      layout: how the columns were understood.
      scaling: fitted on the training part.
      class_weights: how much each class counts in the loss; empty for alike.
    """

    task: str
    classes: tuple[str, ...]
    layout: Layout
    scaling: Scaling
    class_weights: tuple[float, ...] = ()

    @property
    def output_size(self) -> int:
        """Classes, or targets: of a path, each step's."""
        return len(self.classes) or len(self.layout.outputs)


@dataclass(frozen=True)
class Known:
    """A part's truth in the unit of the data, for metrics and baselines.

    Attributes:
      targets: numbers [n, O] or class indices [n]; of every step [S, O] or [S].
      last: last reading of what is forecast [n, O] or [S, O]; None where that is no input.
      steps: which steps of every sequence have targets [n, T]; None where sequences have them.
    """

    targets: np.ndarray
    last: np.ndarray | None = None
    steps: np.ndarray | None = None


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
    notes = [f"{path}: {note}" for note in (described(sequences), *sequences.notes)]
    if len(sequences) < 2:
        raise DataError(f"{path}: 1 row; add rows, training and testing take several")
    if meaning is None:
        task = task_of(sequences, config, notes)
        classes = labels_of(sequences, notes) if task == "classification" else ()
    else:
        task, classes = meaning.task, meaning.classes
    truth = truth_of(sequences, classes)
    labels = truth if classes and not config.every_step else None
    rows, valid_rows, test_rows = divide(sequences, labels, config, seed)
    test, test_truth = sequences, truth
    if test_path:
        test = read_sequences(test_path, config, sequences.layout)
        test_truth, test_rows = truth_of(test, classes), with_targets(test)
        notes += [f"{test_path}: {note}" for note in (described(test), *test.notes)]
    sizes = f"{len(rows)} training, {len(valid_rows)} validation, {len(test_rows)} test"
    how = "the last ones in time" if config.in_time else f"drawn at random, seed {seed}"
    notes.append(f"rows: {sizes} ({how})")
    if unseen := sorted(set(range(len(classes))) - set(np.unique(truth[rows]))) if classes else []:
        named = shown([repr(classes[n]) for n in unseen])
        notes.append(f"warning: no training row has the label {named}")
    if unlabelled := len(sequences) - len(with_targets(sequences)):
        notes.append(f"left out: {unlabelled} sequences of which no step has a target")
    if ahead := sequences.layout.forecast_steps - 1:
        notes.append(f"left out: the {ahead} rows before a later part, whose paths reach into it")
    notes += repeated(sequences, rows, test, test_rows)
    if meaning is None:
        scaling = fit(sequences, rows, None if classes else truth, notes)
        meaning = Meaning(task, classes, sequences.layout, scaling)
    scaled = scale(sequences, truth, meaning, dtype)
    scaled_test = scaled if test is sequences else scale(test, test_truth, meaning, dtype)
    return Dataset(
        meaning,
        replace(scaled, rows=rows),
        replace(scaled, rows=valid_rows),
        replace(scaled_test, rows=test_rows),
        known_of(test, test_rows, test_truth, meaning),
        {name: sha256(p) for name, p in (("data", path), ("test", test_path)) if p},
        notes,
    )


def described(sequences: Sequences) -> str:
    """Say how much was read."""
    shortest, longest = sequences.lengths.min(), sequences.lengths.max()
    steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    target = ", ".join(sequences.layout.targets) or "none"
    return f"{len(sequences)} sequences of {steps} steps, target {target}"


def task_of(sequences: Sequences, config: DataConfig, notes: list[str]) -> str:
    """Decide the task and say why."""
    if config.task != "auto":
        return config.task
    if sequences.forecasts:
        task, reason = "regression", "windows forecast numbers"
    else:
        task, reason = decide_task(*sequences.rows(), sequences.decimal)
    other = "classification" if task == "regression" else "regression"
    notes.append(f"task: {task}, as {reason} (--task {other} overrides)")
    return task


def labels_of(sequences: Sequences, notes: list[str]) -> tuple[str, ...]:
    """List the classes of a training file."""
    path = sequences.path
    if len(sequences.layout.targets) > 1:
        raise DataError(f"{path}: --task classification takes one target; name one by --target")
    texts, _ = sequences.rows()
    classes = classes_of(texts, sequences.decimal)
    if len(classes) < 2:
        raise DataError(
            f"{path}: every target is {classes[0]!r:.60}: one class, nothing to learn; add rows of "
            "others, or say --task regression for numbers"
        )
    notes += doubtful_labels(classes, sequences.decimal)
    counts = Counter(label for (label,) in texts)
    single = [repr(label) for label in classes if counts[label] == 1]
    if single:
        what = "step" if sequences.every_step else "row"
        notes.append(f"warning: classes with a single {what}: {shown(single)}")
    return classes


def truth_of(sequences: Sequences, classes: tuple[str, ...]) -> np.ndarray:
    """Parse targets: class indices [N], or numbers [N, O].

    Of every step [N, T] or [N, T, O], where an unknown one is NaN or -1.

    Raises:
      DataError: a target is no number, or no known label.
    """
    texts, place = sequences.rows()
    if classes:
        found = class_indices(texts, classes, place)
    else:
        found = numbers(texts, place, sequences.decimal)
    if not sequences.every_step:
        return found
    known = sequences.known_steps
    truth = np.full((*known.shape, *found.shape[1:]), -1 if classes else np.nan, found.dtype)
    truth[known] = found
    return truth


def with_targets(sequences: Sequences) -> np.ndarray:
    """Return the rows that have a target at some step, which are all where sequences have them."""
    if not sequences.every_step:
        return np.arange(len(sequences))
    return np.flatnonzero(sequences.known_steps.any(axis=1))


def known_of(sequences: Sequences, rows: np.ndarray, truth: np.ndarray, meaning: Meaning) -> Known:
    """Return the truth of some rows, and the readings that a forecast starts from."""
    last = last_reading(sequences, rows, meaning)
    if not sequences.every_step:
        return Known(truth[rows], last)
    steps = sequences.known_steps[rows]
    return Known(truth[rows][steps], last, steps)


def divide(
    sequences: Sequences, labels: np.ndarray | None, config: DataConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of the training, validation and test parts; no test with `--test_path`.

    Before a part the rows whose paths reach into it are left out: their targets are its own.
    """
    rows, test_rows = with_targets(sequences), np.arange(0)
    ahead = sequences.layout.forecast_steps - 1
    try:
        if config.files[1] is None:
            name, fraction = "test_fraction", config.test_fraction
            rows, test_rows = split_off(rows, fraction, labels, config.in_time, name, seed)
            rows = rows[: max(0, len(rows) - ahead)]
        name, fraction = "valid_fraction", config.valid_fraction
        labels = None if labels is None else labels[rows]
        rows, valid_rows = split_off(rows, fraction, labels, config.in_time, name, seed)
        rows = rows[: max(0, len(rows) - ahead)] if len(valid_rows) else rows
    except DataError as error:
        raise DataError(f"{sequences.path}: {error}") from None
    if not len(rows):
        raise DataError(
            f"{sequences.path}: no row is left to train on, as paths of {ahead + 1} steps reach into "
            "the next part; add rows, or choose a shorter --horizon"
        )
    return rows, valid_rows, test_rows


def fit(
    sequences: Sequences, rows: np.ndarray, truth: np.ndarray | None, notes: list[str]
) -> Scaling:
    """Fit the scaling on the rows of the training part; warn of what is constant there."""
    layout = sequences.layout
    fitted = [mean_and_std(sequences.readings(rows)), (np.zeros(1), np.ones(1))]
    if layout.forecast_steps > 1:
        # A column has one scale, be it read or forecast: what comes out can go in again.
        columns = layout.target_features * layout.forecast_steps
        fitted[1] = tuple(part[columns] for part in fitted[0])
    elif truth is not None:
        fitted[1] = mean_and_std([truth[rows].reshape(-1, len(layout.outputs))])
    for kind, names, (_, std) in zip(
        ("feature", "target"), (layout.features, layout.outputs), fitted, strict=True
    ):
        constant = [name for name, spread in zip(names, std, strict=True) if spread == 0]
        if constant:
            notes.append(f"warning: constant in the training rows: {kind} {shown(constant)}")
    (mean, std), (target_mean, target_std) = fitted
    one = np.where(std > 0, std, 1.0), np.where(target_std > 0, target_std, 1.0)
    return Scaling(mean, one[0], target_mean, one[1])


def repeated(train: Sequences, rows: np.ndarray, test: Sequences, test_rows: np.ndarray) -> list:
    """Warn of test sequences that also stand in the training part."""
    if train.of_series:
        return []

    def content(part: Sequences, row: int) -> int:
        return hash(part.inputs[row, : part.lengths[row]].tobytes())

    seen = {content(train, row) for row in rows}
    count = sum(content(test, row) in seen for row in test_rows)
    return [f"warning: {count} test sequences also occur in the training rows"] if count else []


def scale(sequences: Sequences, truth: np.ndarray, meaning: Meaning, dtype: str) -> Part:
    """Return all sequences in the form the model takes.

    Raises:
      DataError: a value is too far from the training mean for `dtype`.
    """
    inputs, weights = sequences.scaled(meaning.scaling, dtype), None
    if sequences.every_step:
        steps = sequences.known_steps
        weights, truth = steps.astype(dtype), truth.copy()
        truth[~steps] = 0
    try:
        targets = truth if meaning.classes else meaning.scaling.targets(truth, dtype)
    except OverflowError as error:
        raise DataError(f"{sequences.path}: {error}") from None
    return Part(inputs, sequences.lengths, targets, np.arange(len(sequences)), weights)


def last_reading(sequences: Sequences, rows: np.ndarray, meaning: Meaning) -> np.ndarray | None:
    """Return the last reading of what is forecast, [n, O], or at every step that has a target."""
    layout = meaning.layout
    if meaning.task == "classification":
        return None
    if sequences.forecasts:
        columns = layout.target_features * layout.forecast_steps
    elif len(layout.features) == len(layout.targets) == 1 and not sequences.every_step:
        columns = [0]
    else:
        return None
    if sequences.every_step:
        last = sequences.inputs[rows][sequences.known_steps[rows]][:, columns]
    else:
        last = sequences.inputs[rows, sequences.lengths[rows] - 1][:, columns]
    return None if np.isnan(last).any() else last
