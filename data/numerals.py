"""Cells as text: which are numbers, which say that there is none."""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

FLOAT32_MAX = float(np.finfo(np.float32).max)
BLANKS = " \t"  # what may stand around a number, and is all that an empty cell may hold
ABSENT = {"nan", "na", "n/a", "<na>", "null", "none", "?", "-"}
INFINITE = {"inf", "infinity"}


@cache
def numeral(decimal: str) -> re.Pattern:
    """Return the form of a plain decimal number: ASCII digits, one point, an exponent."""
    point = re.escape(decimal)
    return re.compile(rf"[ \t]*[+-]?([0-9]+{point}?[0-9]*|{point}[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")


def is_number(text: str, decimal: str) -> bool:
    """Whether a cell is a plain decimal number."""
    return numeral(decimal).fullmatch(text) is not None


def is_absent(text: str) -> bool:
    """Whether a cell says that there is no value: NA, NaN, null and the like."""
    return text.strip(BLANKS).lower() in ABSENT


def to_number(text: str, decimal: str) -> float:
    """Parse a cell that `is_number`, to the nearest float64."""
    return float(text if decimal == "." else text.replace(decimal, "."))


def to_numbers(cells: Sequence[str], decimal: str) -> list[float]:
    """Parse the cells of a row at once.

    Raises:
      ValueError: one of them is not a number; to be looked at one by one.
    """
    text = ";".join(cells)
    # float() alone would take 1_000, nan and the digits of other scripts.
    if text.encode("ascii").translate(None, f"0123456789+-eE; \t{decimal}".encode()):
        raise ValueError
    return list(map(float, cells if decimal == "." else text.replace(decimal, ".").split(";")))


def not_a_number(text: str, decimal: str, remedy: str) -> str:
    """Say what keeps a cell from being a number and, unless that tells more, the remedy."""
    fault = f"{text!r:.60} is not a number"
    if re.fullmatch(r"[+-]?[0-9.]*,[0-9]+", text):
        remedy = "if the comma is the decimal point say --decimal ,; remove thousands separators"
    elif text.strip(BLANKS).lower().lstrip("+-") in INFINITE:
        fault = f"{text!r} is infinite"
    elif decimal != "." and is_number(text, "."):
        remedy = f"it has a point, but --decimal {decimal} was said"
    elif not text.isprintable():
        remedy = "remove what cannot be seen"
    return f"{fault}; {remedy}"
