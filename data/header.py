"""Does the first line of a CSV name the columns, and are the names any good?"""

from collections.abc import Sequence

from data.config import DataConfig
from data.numerals import is_absent, is_number
from spec.errors import DataError


def other_delimiter(lines: Sequence[str]) -> str | None:
    """Guess what separates the cells of lines that were each read as one cell."""
    return next((mark for mark in ";\t|, " if all(mark in line.strip() for line in lines)), None)


def has_header(place: str, first: Sequence[str], config: DataConfig, notes: list[str]) -> bool:
    """Decide whether the first record names the columns.

    Raises:
      DataError: it is neither clearly names nor clearly data.
    """
    if config.header != "auto":
        return config.header == "yes"
    cells = [cell.strip() for cell in first]
    numeric = [is_number(cell, config.decimal) for cell in cells]
    if not any(numeric):
        return True
    counted = [str(n) for n in range(len(cells))]
    if len(cells) > 1 and cells == counted:
        raise DataError(f"{place}: counts 0, 1, ..: names or numbers? say --header yes or no")
    if len(cells) > 2 and cells[:-1] == counted[:-1] and not numeric[-1]:
        notes.append("the first line counts 0, 1, ..: read as a header (--header no: as data)")
        return True
    odd = [cell for cell, yes in zip(cells[:-1], numeric[:-1], strict=True) if cell and not yes]
    odd = [cell for cell in odd if not is_absent(cell)]
    if not odd:
        notes.append("the first line is numbers: read as data (--header yes: as a header)")
        return False
    mark = other_delimiter(odd)
    hint = f"say --delimiter {shell_word(mark)}, " if mark else "say "
    raise DataError(
        f"{place}, column {cells.index(odd[0]) + 1}: {odd[0]!r:.60} is no number, other cells are; "
        f"{hint}--header yes or --header no"
    )


def shell_word(delimiter: str) -> str:
    """Write a delimiter as --delimiter takes it."""
    return "tab" if delimiter == "\t" else repr(delimiter)


def check_header(place: str, header: Sequence[str]) -> None:
    """Raise DataError where a name is blank, cannot be printed, or occurs twice."""
    where: dict[str, list[int]] = {}
    for position, name in enumerate(header, 1):
        where.setdefault(name, []).append(position)
        if not name.isprintable():
            raise DataError(
                f"{place}, column {position}: the name {name!r:.60} has characters "
                "that cannot be seen; rename it"
            )
    if "" in where:
        blank = where[""]
        ending = "; does every line end in a delimiter?" if blank == [len(header)] else ""
        raise DataError(f"{place}, {columns(blank)}: no name; name or remove it{ending}")
    repeated = [f'{columns(found)} "{name}"' for name, found in where.items() if len(found) > 1]
    if repeated:
        raise DataError(f"{place}, {shown(repeated)}: the same name; rename all but one")


def columns(positions: Sequence[int]) -> str:
    """Write "column 3" or "columns 3, 5"."""
    return f"column{'s' * (len(positions) > 1)} {shown(list(map(str, positions)))}"


def shown(names: Sequence[str]) -> str:
    """List names, shortened in the middle."""
    return ", ".join(names if len(names) <= 8 else [*names[:4], "..", *names[-3:]])
