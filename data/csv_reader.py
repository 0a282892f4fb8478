"""Read a CSV of numbers and targets, strictly: a cell is read exactly or the file is refused.

A faulty file is never loaded as different data. Every refusal names the file, the line, the
column, what was found and what to do. Numbers are parsed to float64 and rounded once, later, to
the dtype of the run; targets stay text.

Dimensions: N rows, C number columns.
"""

import csv
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from data.config import DataConfig
from data.files import check_file, check_text, text_lines
from spec.errors import DataError

FLOAT32_MAX = float(np.finfo(np.float32).max)
ABSENT = {"nan", "na", "n/a", "<na>", "null", "none", "?", "-"}
INFINITE = {"inf", "infinity"}


@dataclass(frozen=True)
class Table:
    """A CSV as read.

    Attributes:
      path: the file.
      header: names of all columns, or None where the file has none.
      names: names of the number columns, in file order; "column 1" .. without a header.
      numbers: float64 [N, C]; NaN where a cell is empty or absent.
      absent: (row, number column) of cells that hold NaN, NA, null and the like.
      targets: text of the target columns, a tuple a row; empty without targets.
      target_names: as in the header, or "column 3".
      lines: line number of each row [N], from 1.
      notes: what was found that the user should hear of.
    """

    path: str
    header: list[str] | None
    names: list[str]
    numbers: np.ndarray
    absent: list[tuple[int, int]]
    targets: list[tuple[str, ...]]
    target_names: list[str]
    lines: np.ndarray
    notes: list[str] = field(default_factory=list)


def read_table(
    path: str, config: DataConfig, choose: Callable[[list[str] | None, int], list[int]]
) -> Table:
    """Read a CSV.

    Args:
      path: the file.
      config: delimiter, decimal point, header.
      choose: gives the positions of the target columns, from the header (or None) and the width.

    Raises:
      DataError: the file is not exactly a table of numbers and targets.
    """
    check_file(path)
    notes = check_text(path)
    rows = records(path, "\t" if config.delimiter == "tab" else config.delimiter)
    line, first = next(rows, (0, []))
    if first and first[0].lstrip().startswith("#"):
        raise DataError(f"{path}: line {line}: starts with '#'; remove comment lines")
    if not first:
        raise DataError(f"{path}: only blank lines; expected a header and rows of numbers")
    if len(first) == 1 and (mark := other_delimiter(first[0])):
        raise DataError(
            f"{path}: line {line}: 1 column found; it looks separated by {mark!r}: "
            f"use --delimiter {'tab' if mark == chr(9) else repr(mark)}"
        )
    header = None
    if has_header(f"{path}: line {line}", first, config, notes):
        header = [name.strip() for name in first]
        check_header(f"{path}: line {line}", header)
        line, first = next(rows, (0, []))
        if not first:
            raise DataError(f"{path}: a header and no rows of numbers")
    columns = header or [f"column {n}" for n in range(1, len(first) + 1)]
    rows = chain([(line, first)], rows)
    return read_rows(path, config, rows, columns, header, choose(header, len(columns)), notes)


def records(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line that is not blank."""
    reader = csv.reader(text_lines(path, delimiter), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}: line {line}: {error}; close the quote that this line opens"
            ) from None
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield line, cells


def other_delimiter(line: str) -> str | None:
    """Guess what separates the cells of a line that was read as one cell."""
    if line.strip().count(" ") >= 2:
        return " "
    return next((mark for mark in ";\t|," if mark in line), None)


def is_number(text: str, decimal: str) -> bool:
    """Whether a cell is a plain decimal number."""
    point = re.escape(decimal)
    form = rf"\s*[+-]?(\d+{point}?\d*|{point}\d+)([eE][+-]?\d+)?\s*"
    return re.fullmatch(form, text, re.ASCII) is not None


def has_header(place: str, first: list[str], config: DataConfig, notes: list[str]) -> bool:
    """Decide whether the first record names the columns.

    Raises:
      DataError: it is neither clearly names nor clearly data.
    """
    if config.header != "auto":
        return config.header == "yes"
    cells = [cell.strip() for cell in first]
    if len(cells) > 1 and cells[:-1] == [str(n) for n in range(len(cells) - 1)]:
        notes.append("the first line counts 0, 1, 2: read as a header (--header no: as data)")
        return True
    numeric = [is_number(cell, config.decimal) for cell in cells]
    if not any(numeric):
        return True
    if all(yes or not cell for yes, cell in zip(numeric[:-1], cells, strict=False)):
        notes.append("the first line is numbers: read as data (--header yes: as a header)")
        return False
    raise DataError(
        f"{place}: some cells are numbers and some are not, such as "
        f"{cells[numeric.index(False)]!r}; say --header yes or --header no"
    )


def check_header(place: str, header: list[str]) -> None:
    """Raise DataError where a name is blank or occurs twice."""
    seen: dict[str, int] = {}
    for position, name in enumerate(header, 1):
        if not name:
            ending = "; does every line end in a delimiter?" if position == len(header) else ""
            raise DataError(f"{place}, column {position}: has no name; name or remove it{ending}")
        if name in seen:
            both = f"columns {seen[name]} and {position}"
            raise DataError(f'{place}: {both} are both named "{name}"; rename one')
        seen[name] = position


def shown(names: Sequence[str]) -> str:
    """List names, shortened in the middle."""
    return ", ".join(names if len(names) <= 8 else [*names[:4], "..", *names[-3:]])


def read_rows(path, config, rows, columns, header, chosen, notes) -> Table:
    """Read the cells of all rows."""
    wanted = set(chosen)
    numeric = [n for n in range(len(columns)) if n not in wanted]
    at_end = numeric == list(range(len(numeric)))
    plain = f"0123456789+-eE; \t{config.decimal}".encode()
    numbers, lines = array("d"), array("q")
    absent: list[tuple[int, int]] = []
    targets: list[tuple[str, ...]] = []
    for line, cells in rows:
        if len(cells) != len(columns):
            raise wrong_width(path, line, cells, columns, header)
        own = cells[: len(numeric)] if at_end else [cells[n] for n in numeric]
        full = len(own)
        while full and not own[full - 1]:
            full -= 1
        try:
            # float() alone would take 1_000, nan and foreign digits.
            if ";".join(own[:full]).encode("ascii").translate(None, plain):
                raise ValueError
            values = [float(cell.replace(config.decimal, ".")) for cell in own[:full]]
        except ValueError:
            values = []
            for column, cell in enumerate(own[:full]):
                text = cell.strip()
                if text.lower() in ABSENT:
                    absent.append((len(lines), column))
                elif text and not is_number(text, config.decimal):
                    place = f'{path}: line {line}, column "{columns[numeric[column]]}"'
                    raise bad_number(place, text, config.decimal) from None
                known = text and text.lower() not in ABSENT
                values.append(float(text.replace(config.decimal, ".")) if known else np.nan)
        numbers.extend(values)
        numbers.extend([np.nan] * (len(own) - full))
        lines.append(line)
        if chosen:
            targets.append(tuple(cells[n] for n in chosen))
            for n in chosen:
                check_target(f'{path}: line {line}, column "{columns[n]}"', cells[n])
    matrix = np.frombuffer(numbers).reshape(len(lines), len(numeric))
    names = [columns[n] for n in numeric]
    table = Table(
        path,
        header,
        names,
        matrix,
        absent,
        targets,
        [columns[n] for n in chosen],
        np.frombuffer(lines, np.int64),
        notes,
    )
    check_magnitude(table, config, numeric)
    return table


def check_target(place: str, text: str) -> None:
    """Raise DataError for a target that is empty or holds control characters."""
    if not text.strip():
        raise DataError(f"{place}: the target is empty; complete or remove the line")
    if not text.isprintable():
        raise DataError(f"{place}: the target {text!r} holds control characters; remove them")


def wrong_width(
    path: str, line: int, cells: list[str], columns: list[str], header: list[str] | None
) -> DataError:
    """Say how a line's number of cells differs."""
    hint = "complete the line, or quote cells that contain the delimiter"
    if len(cells) == len(columns) + 1 and not cells[-1]:
        hint = "it ends in a delimiter: remove that"
    first = "the header" if header else "the first line"
    return DataError(
        f"{path}: line {line}: found {len(cells)} cells, expected {len(columns)} as in {first}; {hint}"
    )


def bad_number(place: str, text: str, decimal: str) -> DataError:
    """Say what keeps a cell from being a number."""
    hint = "correct the cell or remove the line"
    if re.fullmatch(r"[+-]?[\d.]*,\d+", text, re.ASCII):
        hint = "if the comma is a decimal point say --decimal ,; write no thousands separators"
    elif text.lower().lstrip("+-") in INFINITE:
        hint = "an infinite value cannot be trained on"
    return DataError(f"{place}: {text!r} is not a number with decimal point {decimal!r}; {hint}")


def check_magnitude(table: Table, config: DataConfig, numeric: list[int]) -> None:
    """Raise DataError for numbers beyond float32 or whole numbers beyond 64 bits."""
    if table.numbers.size == 0:
        return
    extremes = np.fmax.reduce(table.numbers, axis=None), np.fmin.reduce(table.numbers, axis=None)
    if not max(abs(extremes[0]), abs(extremes[1])) > 2**53:
        return
    row, column = np.argwhere(np.abs(table.numbers) == max(map(abs, extremes)))[0]
    delimiter = "\t" if config.delimiter == "tab" else config.delimiter
    line = table.lines[row]
    text = next(c for n, c in records(table.path, delimiter) if n == line)[numeric[column]]
    place = f'{table.path}: line {line}, column "{table.names[column]}"'
    largest = abs(table.numbers[row, column])
    whole = text.strip().lstrip("+-").isdigit()
    if largest > FLOAT32_MAX or (whole and largest >= 2**64):
        limit = "64 bits" if largest <= FLOAT32_MAX else "float32"
        raise DataError(f"{place}: {text!r} is beyond {limit}; rescale the column")
    if whole:
        table.notes.append(f"{place}: {text} is rounded: float64 is exact to 2**53 only")
