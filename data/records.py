"""CSV text -> records of cells; quotes enclose a whole cell or the file is refused."""

import csv
import re
from collections.abc import Generator, Iterator
from functools import cache
from itertools import islice

from data.files import MAX_COLUMNS, text_lines
from data.header import other_delimiter, shell_word
from data.numerals import BLANKS
from spec.errors import DataError


def records(path: str, delimiter: str) -> Generator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) of every record; no cells for a blank line.

    Raises:
      DataError: quotes do not enclose whole cells.
    """
    raw: list[str] = []
    cells_below = 0  # the first line of a record

    def lines() -> Iterator[str]:
        nonlocal cells_below
        for text in text_lines(path, delimiter):
            cells_below += text.count(delimiter) if raw else -cells_below
            raw.append(text)
            if cells_below > MAX_COLUMNS:
                raise DataError(
                    f"{path}: line {line}: over {MAX_COLUMNS} columns in {len(raw)} lines; is a "
                    "quote left open? close it"
                )
            yield text

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        raw.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: line {line}: {quote_fault(str(error))}") from None
        if any('"' in text for text in raw) and not quoted(delimiter).fullmatch("".join(raw)):
            raise DataError(
                f"{path}: line {line}: a quote inside a cell that does not begin with one; "
                "quote the whole cell and double the quote inside"
            )
        yield line, cells if len(cells) > 1 or (cells and cells[0].strip(BLANKS)) else []


@cache
def quoted(delimiter: str) -> re.Pattern:
    """Return the form of a record: each cell is quoted as a whole, or has no quote at all."""
    mark = re.escape(delimiter)
    cell = rf'(?:"(?:[^"]++|"")*+"|[^"{mark}\r\n]*+)'
    return re.compile(rf"{cell}(?:{mark}{cell})*+[\r\n]*")


def quote_fault(reason: str) -> str:
    """Say in our words why the csv module gave up a record, and what to do."""
    if "expected after" in reason:
        return "text behind a quoted cell; double a quote inside a cell, or say another --delimiter"
    if "limit" in reason:
        limit = csv.field_size_limit()
        return f"a cell of over {limit} characters; is a quote left open? close it"
    return "a quote is opened and never closed; close it, or double a quote inside a cell"


def check_delimiter(place: str, path: str, delimiter: str) -> None:
    """Raise DataError where a file of one column seems to have more."""
    lines = (text for text in text_lines(path, delimiter) if text.strip())
    mark = other_delimiter(list(islice(lines, 5)))
    if mark not in (None, delimiter):
        raise DataError(
            f"{place}: 1 column found; it looks separated by {mark!r}: "
            f"use --delimiter {shell_word(mark)}"
        )
