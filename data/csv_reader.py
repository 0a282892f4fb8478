"""Read a CSV of numbers and targets, strictly: a cell is read exactly or the file is refused.

A faulty file is never loaded as different data. Every refusal names the file, the line, the
column, what was found and what to do. Numbers are parsed to float64 and rounded once, later, to
the dtype of the run; targets stay text.

Dimensions: N rows, C number columns.
"""

import re
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from data.config import DataConfig
from data.files import check_file, check_text
from data.header import check_header, has_header
from data.numerals import (
    BLANKS,
    FLOAT32_MAX,
    is_absent,
    is_number,
    not_a_number,
    to_number,
    to_numbers,
)
from data.records import check_delimiter, records
from spec.errors import DataError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV.

    Attributes:
      header: names of all columns, stripped; None where the file has none.
      width: how many they are.
      targets: positions of the target columns, from 0, in the order that was asked for.
      line: number of the header's line, else of the first row's.
    """

    header: list[str] | None
    width: int
    targets: list[int]
    line: int

    @property
    def numbers(self) -> list[int]:
        """Positions of the number columns, in file order."""
        chosen = set(self.targets)
        return [n for n in range(self.width) if n not in chosen]

    def names(self, positions: Iterable[int]) -> list[str]:
        """Name columns as the header does, else "column 1" .."""
        return [self.header[n] if self.header else f"column {n + 1}" for n in positions]

    def place(self, position: int) -> str:
        """Say where a cell stands in its line."""
        name = f' "{self.header[position]}"' if self.header else ""
        return f"column {position + 1}{name}"


@dataclass(frozen=True)
class Table:
    """A CSV as read.

    Attributes:
      path: the file.
      columns: their names and roles.
      numbers: float64 [N, C]; NaN where a cell is empty or absent (NA, NaN, null ..).
      filled: number cells up to the last that is not empty, int64 [N].
      targets: text of the target columns, a tuple a row; empty tuples without targets.
      lines: line that each row begins on, int64 [N], from 1.
      notes: what was found that the user should hear of.
    """

    path: str
    columns: Columns
    numbers: np.ndarray
    filled: np.ndarray
    targets: list[tuple[str, ...]]
    lines: np.ndarray
    notes: list[str]

    def place(self, row: int, position: int) -> str:
        """Say where a cell stands in the file."""
        return f"line {self.lines[row]}, {self.columns.place(position)}"

    def target_place(self, row: int, target: int) -> str:
        """Say where a target stands, file included."""
        return f"{self.path}: {self.place(row, self.columns.targets[target])}"


class Head(NamedTuple):
    """The columns of a CSV, known before its rows are read.

    Attributes:
      path: the file.
      columns: their names and roles.
      first: (line number, cells) of the first row, where there is no header; else nothing.
      rows: the same of every row to come, to be closed; no cells for a blank line.
      notes: what was found that the user should hear of.
    """

    path: str
    columns: Columns
    first: list[tuple[int, list[str]]]
    rows: Generator[tuple[int, list[str]]]
    notes: list[str]


def read_head(
    path: str, config: DataConfig, choose: Callable[[list[str] | None, int], list[int]]
) -> Head:
    """Open a CSV.

    Args:
      path: the file.
      config: delimiter, decimal point, header.
      choose: gives the positions of the target columns, from the header (or None) and the width.

    Raises:
      DataError: the file is no CSV text, or its first line neither names nor data.
    """
    check_file(path)
    notes = check_text(path)
    rows = records(path, config.separator)
    line, first = next(((line, cells) for line, cells in rows if cells), (0, [""]))
    place = f"{path}: line {line}"
    if first[0].lstrip().startswith("#"):
        raise DataError(f"{place}: starts with '#'; remove comment lines, or the '#' of a header")
    if len(first) == 1:
        check_delimiter(place, path, config.separator)
    header = None
    if has_header(place, first, config, notes):
        header = [name.strip() for name in first]
        check_header(place, header)
    columns = Columns(header, len(first), choose(header, len(first)), line)
    return Head(path, columns, [] if header else [(line, first)], rows, notes)


def read_table(head: Head, config: DataConfig) -> Table:
    """Read the rows of a CSV.

    Raises:
      DataError: a line is of another width, or a cell is not what its column holds.
    """
    with closing(head.rows):
        table = read_rows(head, config.decimal, config.every_step)
    with closing(records(head.path, config.separator)) as rows:
        check_magnitude(table, rows)
    return table


def read_rows(head: Head, decimal: str, may_miss: bool) -> Table:
    """Read the cells of all rows; `may_miss` lets targets be empty."""
    path, columns, first, rows, notes = head
    numeric, chosen = columns.numbers, columns.targets
    at_end = numeric == list(range(len(numeric)))
    numbers, filled, lines = array("d"), array("q"), array("q")
    targets: list[tuple[str, ...]] = []
    blank = 0
    for line, cells in chain(first, rows):
        if len(cells) != columns.width:
            if not cells:
                blank = blank or line
                continue
            raise wrong_width(f"{path}: line {line}", cells, columns, notes)
        if blank and columns.width == 1:
            raise DataError(
                f"{path}: line {blank}: blank, which in one column may be a missing value; "
                "fill or remove it"
            )
        own = cells[: len(numeric)] if at_end else [cells[n] for n in numeric]
        full = len(own)
        while full and not own[full - 1].strip(BLANKS):
            full -= 1
        if full < len(own):
            own = own[:full]
        try:
            values = to_numbers(own, decimal)
        except ValueError:
            values = [cell_number(cell, decimal) for cell in own]
            if None in values:
                odd = values.index(None)
                place = f"{path}: line {line}"
                raise bad_cell(place, columns, numeric[odd], own[odd], decimal) from None
        numbers.extend(values)
        numbers.extend([np.nan] * (len(numeric) - full))
        filled.append(full)
        lines.append(line)
        targets.append(tuple([cells[n] for n in chosen]))
        for n in chosen:
            if fault := target_fault(cells[n], may_miss):
                raise DataError(f"{path}: line {line}, {columns.place(n)}: {fault}")
    if not lines:
        raise DataError(f"{path}: a header and no rows of numbers; add rows")
    matrix = np.frombuffer(numbers).reshape(len(lines), len(numeric))
    counts, starts = np.frombuffer(filled, np.int64), np.frombuffer(lines, np.int64)
    return Table(path, columns, matrix, counts, targets, starts, notes)


def cell_number(text: str, decimal: str) -> float | None:
    """Parse one cell: NaN where it is empty or absent, None where it holds no number."""
    if is_number(text, decimal):
        return to_number(text, decimal)
    return np.nan if not text.strip(BLANKS) or is_absent(text) else None


def bad_cell(place: str, columns: Columns, position: int, text: str, decimal: str) -> DataError:
    """Say what a cell holds instead of a number."""
    at = f"{place}, {columns.place(position)}"
    if columns.header and text.strip() == columns.header[position]:
        return DataError(f"{at}: {text!r:.60} is the header again; remove the line")
    remedy = "correct the cell, or remove the line or the column"
    return DataError(f"{at}: {not_a_number(text, decimal, remedy)}")


def target_fault(text: str, may_miss: bool) -> str | None:
    """Say what is wrong with a target that holds control characters, or is empty but may not be."""
    if not text.strip():
        return None if may_miss else "the target is empty; complete or remove the line"
    if not text.isprintable() and CONTROL.search(text):
        return f"the target {text!r:.60} holds control characters; remove them"
    return None


def wrong_width(
    place: str, cells: Sequence[str], columns: Columns, notes: Sequence[str]
) -> DataError:
    """Say how a line's number of cells differs."""
    hint = "complete the line, or quote cells that contain the delimiter"
    if len(cells) == columns.width + 1 and not cells[-1]:
        hint = "the line ends in a delimiter: remove that"
    elif cells[-1] == "\x1a":
        hint = "remove the DOS end-of-file mark (Ctrl-Z)"
    elif columns.width == 1:
        hint = "is the first line a title? remove it"
    elif len(cells) < columns.width and any("truncated" in note for note in notes):
        hint += "; the file has no last line end: it may be truncated"
    origin = "the header" if columns.header else "the first line"
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    return DataError(f"{place}: found {count}, expected {columns.width} as in {origin}; {hint}")


def check_magnitude(table: Table, rows: Iterable[tuple[int, list[str]]]) -> None:
    """Refuse numbers beyond float32 and whole numbers beyond 64 bits; note rounded ones.

    The file is read again for their text, where there are any.
    """
    large = (table.numbers >= 2**53) | (table.numbers <= -(2**53))
    if not large.any():
        return
    row_on = {int(table.lines[row]): row for row in np.flatnonzero(large.any(axis=1))}
    rounded = 0
    for line, cells in rows:
        for column in np.flatnonzero(large[row_on[line]]) if line in row_on else ():
            position = table.columns.numbers[column]
            place = f"line {line}, {table.columns.place(position)}"
            text, size = cells[position].strip(BLANKS), abs(table.numbers[row_on[line], column])
            whole = text.lstrip("+-").isdigit()
            if size > FLOAT32_MAX or (whole and size >= 2**64):
                limit = "float32" if size > FLOAT32_MAX else "64 bits"
                raise DataError(
                    f"{table.path}: {place}: {text!r:.60} is beyond {limit}; rescale the column"
                )
            if whole and not rounded:
                first = f"{place}: {text}"
            rounded += whole
    if rounded:
        table.notes.append(f"{rounded} whole numbers beyond 2**53 are rounded, first {first}")
