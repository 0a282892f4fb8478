"""Targets: text of a column -> numbers or classes.

Dimensions: N rows, O regression targets.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data.csv_reader import ABSENT, FLOAT32_MAX, is_number
from spec.errors import DataError

MAX_WHOLE_CLASSES = 20


def decide_task(texts: Sequence[tuple[str, ...]], decimal: str) -> tuple[str, str]:
    """Tell regression from classification by the values of the training file.

    Text is a class. Whole numbers are classes where they are few: at most 20 values, each at
    least twice on average. Everything else is a number.

    Returns:
      (task, reason in words).

    Raises:
      DataError: one target column mixes numbers and text.
    """
    if len(texts[0]) > 1:
        return "regression", "several targets"
    column = [row[0].strip() for row in texts]
    numeric = [is_number(text, decimal) for text in column]
    if not any(numeric):
        return "classification", "the target is text"
    if not all(numeric):
        odd = numeric.index(False)
        raise DataError(
            f"row {odd + 1}: the target {column[odd]!r} is no number but {sum(numeric)} others "
            "are; correct it, or say --task classification to read all as labels"
        )
    values = Counter(float(text.replace(decimal, ".")) for text in column)
    if not all(value.is_integer() for value in values):
        return "regression", "the target has fractions"
    if len(values) <= MAX_WHOLE_CLASSES and len(column) >= 2 * len(values):
        return "classification", f"the target is whole numbers with {len(values)} values"
    return "regression", f"the target is whole numbers with {len(values)} values"


def numbers(
    texts: Sequence[tuple[str, ...]],
    names: Sequence[str],
    place: Callable[[int], str],
    decimal: str,
) -> np.ndarray:
    """Parse regression targets, float64 [N, O].

    Raises:
      DataError: a target is absent, not a number, or beyond float32.
    """
    values = np.empty((len(texts), len(names)))
    for n, row in enumerate(texts):
        for column, text in enumerate(row):
            at = f'{place(n)}, column "{names[column]}"'
            if not is_number(text, decimal):
                kind = "absent" if text.strip().lower() in ABSENT else "not a number"
                raise DataError(
                    f"{at}: the target {text!r} is {kind}; correct or remove the line, "
                    "or say --task classification if targets are labels"
                )
            values[n, column] = float(text.replace(decimal, "."))
            if not abs(values[n, column]) <= FLOAT32_MAX:
                raise DataError(f"{at}: the target {text!r} is beyond float32; rescale it")
    return values


def classes_of(texts: Sequence[tuple[str, ...]], decimal: str) -> tuple[str, ...]:
    """List the labels, in order of number where all are numbers, else of text."""
    labels = sorted({row[0] for row in texts})
    if all(is_number(label, decimal) for label in labels):
        labels.sort(key=lambda label: float(label.replace(decimal, ".")))
    return tuple(labels)


def similar_labels(classes: Sequence[str]) -> list[str]:
    """Find labels that differ by spaces or case only."""
    groups: dict[str, list[str]] = {}
    for label in classes:
        groups.setdefault(label.strip().casefold(), []).append(label)
    return [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]


def class_indices(
    texts: Sequence[tuple[str, ...]], classes: Sequence[str], place: Callable[[int], str]
) -> np.ndarray:
    """Turn labels into positions in `classes`, int64 [N].

    Raises:
      DataError: a label is not among the classes.
    """
    index = {label: n for n, label in enumerate(classes)}
    for n, (label,) in enumerate(texts):
        if label not in index:
            raise DataError(
                f"{place(n)}: the label {label!r} does not occur in the training data; "
                f"its classes are {', '.join(map(repr, classes[:10]))}"
            )
    return np.array([index[label] for (label,) in texts], dtype=np.int64)
