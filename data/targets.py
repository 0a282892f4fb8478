"""Targets: text of a column -> numbers or classes.

Dimensions: N rows, O regression targets.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data.numerals import ABSENT, FLOAT32_MAX, is_absent, is_number, not_a_number, to_number
from spec.errors import DataError

MAX_WHOLE_CLASSES = 20

Texts = Sequence[tuple[str, ...]]
Place = Callable[[int, int], str]


def decide_task(texts: Texts, place: Place, decimal: str) -> tuple[str, str]:
    """Tell regression from classification by the values of the training file.

    Text is a class. Whole numbers are classes where they are few: at most 20 values, each at
    least twice on average. Everything else is a number.

    Args:
      texts: targets of each row.
      place: says where the target of (row, column) stands.
      decimal: decimal point.

    Returns:
      (task, reason in words).

    Raises:
      DataError: the only target column mixes numbers and text.
    """
    if len(texts[0]) > 1:
        return "regression", "there are several targets"
    column = [text for (text,) in texts]
    numeric = [is_number(text, decimal) for text in column]
    if not any(numeric):
        return "classification", "the target is text"
    if not all(numeric):
        odd, others = numeric.index(False), "numbers"
        if 2 * sum(numeric) < len(numeric):
            odd, others = numeric.index(True), "text"
        fault = f"stands among {others}; correct it"
        if is_absent(column[odd]):
            fault = "is no value; complete or remove the line"
        raise DataError(
            f"{place(odd, 0)}: the target {column[odd]!r:.60} {fault}, "
            "or say --task classification to read all as labels"
        )
    values = Counter(to_number(text, decimal) for text in column)
    if not all(value.is_integer() for value in values):
        return "regression", "the target has fractions"
    few = len(values) <= MAX_WHOLE_CLASSES and len(column) >= 2 * len(values)
    reason = f"the target is whole numbers with {len(values)} values in {len(column)} rows"
    return "classification" if few else "regression", reason


def numbers(texts: Texts, place: Place, decimal: str) -> np.ndarray:
    """Parse regression targets, float64 [N, O].

    Raises:
      DataError: a target is absent, not a number, or beyond float32.
    """
    values = np.empty((len(texts), len(texts[0])))
    for n, row in enumerate(texts):
        for column, text in enumerate(row):
            if not is_number(text, decimal):
                if is_absent(text) or not text.strip():
                    fault = f"{text!r} is no value; complete or remove the line"
                else:
                    remedy = "correct it, or say --task classification to take it as a label"
                    fault = not_a_number(text, decimal, remedy)
                raise DataError(f"{place(n, column)}: the target {fault}")
            values[n, column] = to_number(text, decimal)
    beyond = np.argwhere(np.abs(values) > FLOAT32_MAX)
    if beyond.size:
        n, column = beyond[0]
        raise DataError(
            f"{place(n, column)}: the target {texts[n][column]!r:.60} is beyond float32; rescale it"
        )
    return values


def classes_of(texts: Texts, decimal: str) -> tuple[str, ...]:
    """List the labels, in order of number where all are numbers, else of text."""
    labels = sorted({text for (text,) in texts})
    if all(is_number(label, decimal) for label in labels):
        labels.sort(key=lambda label: to_number(label, decimal))
    return tuple(labels)


def doubtful_labels(classes: Sequence[str], decimal: str) -> list[str]:
    """Warn of labels that look alike, and of such as often stand for a missing value."""
    groups: dict[object, list[str]] = {}
    for label in classes:
        alike: object = unicodedata.normalize("NFKC", label).strip().casefold()
        if is_number(label, decimal):
            alike = to_number(label, decimal)
        groups.setdefault(alike, []).append(label)
    warnings = [
        f"warning: the labels {' and '.join(map(repr, group))} differ in spelling only; "
        "they are kept apart"
        for group in groups.values()
        if len(group) > 1
    ]
    absent = [label for label in classes if label.strip().lower() in ABSENT]
    if absent:
        warnings.append(f"warning: {', '.join(map(repr, absent))} is taken as a label")
    return warnings


def class_indices(texts: Texts, classes: Sequence[str], place: Place) -> np.ndarray:
    """Turn labels into positions in `classes`, int64 [N].

    Raises:
      DataError: a label is not among the classes.
    """
    index = {label: n for n, label in enumerate(classes)}
    for n, (label,) in enumerate(texts):
        if label not in index:
            raise DataError(
                f"{place(n, 0)}: the label {label!r:.60} does not occur in the training data; "
                f"its classes are {', '.join(map(repr, classes[:10]))}"
            )
    return np.array([index[label] for (label,) in texts], dtype=np.int64)
