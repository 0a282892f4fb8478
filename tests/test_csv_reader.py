"""The CSV reader: exact numbers, literal text, every spelling of a line end, and no guessing."""

import contextlib
import csv
import io
import math
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import files, records
from data.config import DataConfig
from data.csv_reader import Table, read_head, read_table
from data.numerals import is_number, to_numbers
from spec.errors import DataError

CLEAN = "t0,t1,t2,label\n0.1,-2e-3,3,cat\n4,5.5,,dog é\n-0.0,7,1e10,cat\n"
NUMBERS = Path(__file__).parent / "data_files" / "numbers.txt"


def read(path: Path, content: bytes | str, **options) -> Table:
    """Read a file with this content; its last column is the target."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = DataConfig(**options)
    return read_table(read_head(str(path), config, lambda header, width: [width - 1]), config)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def mixed_ends(text: str) -> str:
    ends = iter(["\r", "\r\n", "\n", "\r"])
    return "".join(line + next(ends) for line in text.splitlines())


SPELLINGS = {
    "CRLF": CLEAN.replace("\n", "\r\n"),
    "CR": CLEAN.replace("\n", "\r"),
    "mixed": mixed_ends(CLEAN),
    "CR CR LF": CLEAN.replace("\n", "\r\r\n"),
    "no end": CLEAN[:-1],
    "BOM": "\ufeff" + CLEAN,
    "BOM CRLF": "\ufeff" + CLEAN.replace("\n", "\r\n"),
    "blank lines": "\n" + CLEAN.replace("\n", "\n \t\n\n"),
    "quoted": re.sub(r"([^,\n]+)", r'"\1"', CLEAN),
    "spaces": CLEAN.replace(",4", " , 4 ").replace(",3,", ", 3\t,"),
    "semicolons": CLEAN.replace(",", ";"),
    "tabs": CLEAN.replace(",", "\t"),
    "decimal commas": CLEAN.replace(",", ";").replace(".", ","),
}
OPTIONS = {
    "semicolons": {"delimiter": ";"},
    "tabs": {"delimiter": "tab"},
    "decimal commas": {"delimiter": ";", "decimal": ","},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_file_gives_the_same_bits(file, spelling):
    clean = read(file, CLEAN)
    assert clean.columns.header == ["t0", "t1", "t2", "label"]
    assert clean.targets == [("cat",), ("dog é",), ("cat",)]
    expected = [[0.1, -0.002, 3], [4, 5.5, np.nan], [-0.0, 7, 1e10]]
    assert clean.numbers.tobytes() == np.array(expected).tobytes()
    assert clean.filled.tolist() == [3, 2, 3]
    assert clean.lines.tolist() == [2, 3, 4]

    other = read(file, SPELLINGS[spelling], **OPTIONS.get(spelling, {}))
    assert other.numbers.tobytes() == clean.numbers.tobytes()
    assert (other.targets, other.filled.tolist()) == (clean.targets, clean.filled.tolist())
    warned = [note for note in other.notes if "truncated" in note]
    assert bool(warned) == (spelling == "no end")


def test_lines_are_counted_as_an_editor_does(file):
    table = read(file, '\n\nt0,y\r\n1,a\r2,"b"\n\n3,c\n \n4,d\n')
    assert table.lines.tolist() == [4, 5, 7, 9]
    with pytest.raises(DataError, match=r'line 9, column 1 "t0": .x. is not a number'):
        read(file, '\n\nt0,y\r\n1,a\r2,"b"\n\n3,c\n \nx,d\n')


ACCEPTED = [
    "-0.0",
    "1e-400",
    ".5",
    "5.",
    "+1",
    "1E+5",
    "007",
    "0",
    "-0",
    "1e38",
    "-1.5e-07",
    "1e22",
]


@pytest.mark.parametrize("text", [*ACCEPTED, " 1\t", "4.9e-324", "9007199254740991", "+.1e+01"])
def test_a_number_is_the_nearest_float64(file, text):
    (value,) = read(file, f"t0,y\n{text},a\n").numbers[0]
    assert struct.pack("<d", value) == struct.pack("<d", float(text))


ASCII = [
    "inf",
    "-Infinity",
    "+inf",
    "1e39",
    "-1e39",
    "1e400",
    "0x10",
    "1_000",
    "1.0D3",
    "50%",
    "$5",
    "1e",
    "1e+",
    ".",
    "+",
    "--",
    "+-1",
    "1.2.3",
    "1..2",
    "e5",
    "1,5",
    "1,234",
    "0b1",
    "1d",
    "1f",
    "1L",
    "True",
    "false",
    "abc",
    "2020-01-01",
    "12:30",
    "1/2",
    "NaNs",
    "nan1",
    "1;2",
    "'x'",
    "1#2",
    "t1",
    "18446744073709551616",
]
# Digits of other scripts, a true minus sign, spaces of every width, control characters.
OTHER = [
    "\u00a0",
    "\u0661",
    "\uff11",
    "\u22121",
    "1\u00a0",
    "\u00a01",
    "1\u2003",
    "1\u200b",
    "\u00bd",
    "\u00b2",
]
CONTROL = ["1\n", "1\r", "1\x00", "1\x0b", "1\x0c", "1\x1a", "1\x85"]


@pytest.mark.parametrize("text", [*ASCII, *OTHER, *CONTROL])
def test_what_is_no_plain_number_is_refused(file, text):
    with pytest.raises(DataError, match=r'data\.csv: line 3(, column 2 "t1")?: ') as error:
        read(file, f't0,t1,y\n1,2,a\n3,"{text}",b\n')
    assert "\n" not in str(error.value)


def test_decimals_are_parsed_to_the_last_bit(file):
    """877 decimal strings with their float64 bits, by others; an excerpt of parse-number-fxx."""
    bits, texts = zip(
        *(line.split(" ")[2:] for line in NUMBERS.read_text().splitlines()), strict=True
    )
    expected = np.array([int(word, 16) for word in bits], np.uint64)
    assert all(is_number(text, ".") for text in texts)
    np.testing.assert_array_equal(np.array(to_numbers(texts, ".")).view(np.uint64), expected)
    commas = [text.replace(".", ",") for text in texts]
    np.testing.assert_array_equal(np.array(to_numbers(commas, ",")).view(np.uint64), expected)

    small = [n for n, value in enumerate(expected.view(float)) if abs(value) < 2**53]
    table = read(file, "t0,y\n" + "".join(f"{texts[n]},a\n" for n in small))
    assert len(small) > 500
    np.testing.assert_array_equal(table.numbers[:, 0].view(np.uint64), expected[small])


def test_rounded_whole_numbers_are_reported(file):
    table = read(file, "t0,t1,y\n1,2,9007199254740993\n3,9007199254740993,b\n")
    assert table.targets[0] == ("9007199254740993",)
    (note,) = table.notes
    assert 'line 3, column 2 "t1": 9007199254740993' in note


def test_absent_and_empty_cells(file):
    table = read(file, "t0,t1,t2,y\n,NA,,NA\n-,?,null,None\nNaN,n/a,5, \u00a0x\n1,2,  ,y\n")
    assert np.isnan(table.numbers[:2]).all()
    assert table.filled.tolist() == [2, 3, 3, 2]
    assert [target for (target,) in table.targets] == ["NA", "None", " \u00a0x", "y"]


def test_targets_may_stand_anywhere(file):
    file.write_text("a,t0,b,t1\n7,1,x,2\n8,3,y,4\n")
    table = read_table(read_head(str(file), DataConfig(), lambda *_: [2, 0]), DataConfig())
    assert table.targets == [("x", "7"), ("y", "8")]
    np.testing.assert_array_equal(table.numbers, [[1, 2], [3, 4]])
    assert table.target_place(1, 0) == f'{file}: line 3, column 3 "b"'


HEADERS = {
    "a,b,c": True,
    "t0,t1,2020 y": True,
    "1,2,3": False,
    "1,2,cat": False,
    "1,,cat": False,
    "1,NA,cat": False,
    "0,1,2,y": True,
    "0,1": None,
    "0,1,2": None,
    "a,1,2": None,
    "1,b,c": None,
}


@pytest.mark.parametrize("first", HEADERS)
def test_header_is_detected_or_asked_for(file, first):
    width = first.count(",") + 1
    content = f"{first}\n{'5,' * (width - 1)}6\n"
    if HEADERS[first] is None:
        with pytest.raises(DataError, match=r"line 1[:,] .*--header yes or (--header )?no"):
            read(file, content)
    else:
        assert len(read(file, content).lines) == 2 - HEADERS[first]
    if "" not in first.split(","):
        assert len(read(file, content, header="yes").lines) == 1
    if set(first) <= set("0123456789,"):
        table = read(file, content, header="no")
        assert table.numbers[0].tolist() == [float(cell) for cell in first.split(",")[:-1]]
        assert (len(table.lines), table.columns.header) == (2, None)


def test_a_long_line_is_refused_before_it_is_parsed(file, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    monkeypatch.setattr(files, "MAX_COLUMNS", 100)
    assert read(file, "t0,y\n0." + "1" * 900 + ",a\n").numbers == [[1 / 9]]
    monkeypatch.setattr(records, "MAX_COLUMNS", 100)
    with pytest.raises(DataError, match="line 2: over 100 columns in 102 lines; is a quote left"):
        read(file, "t0,y\n" + '"1\n",' * 200 + "a\n")
    for line in ("1," * 100 + "1", "1" * 1000 + ",a", '"' + "1" * 1000 + '",a'):
        with pytest.raises(DataError, match="line 2: over 1000 characters or 100 columns"):
            read(file, f"t0,y\n{line}\n")


def plain_reading(text: str, delimiter: str) -> list[list[str]] | None:
    """Read CSV a character at a time; None for what RFC 4180 does not allow."""
    rows, row, cell, state = [], [], "", "start"
    for mark in [*text.replace("\r\n", "\n").replace("\r", "\n"), ""]:
        if state == "quoted":
            if mark == "":
                return None
            state, cell = ("closing", cell) if mark == '"' else (state, cell + mark)
        elif mark == '"' and state == "start":
            state = "quoted"
        elif mark == '"' and state == "closing":
            state, cell = "quoted", cell + mark
        elif mark in (delimiter, "\n", ""):
            row, cell, state = [*row, cell], "", "start"
            if mark != delimiter:
                rows, row = [*rows, row], []
        elif mark == '"' or state == "closing":
            return None
        else:
            state, cell = "plain", cell + mark
    return [row for row in rows if len(row) > 1 or row[0].strip(" \t")]


def plain_table(text: str, delimiter: str) -> tuple[list[list[float]], list[str]] | None:
    """Return numbers and targets of a CSV with a header; None for what is to be refused."""
    rows = plain_reading(text.removeprefix("\ufeff"), delimiter)
    if not rows or len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return None
    form = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
    numbers = []
    for row in rows[1:]:
        cells = [cell.strip(" \t") for cell in row[:-1]]
        absent = [
            cell.lower() in ("", "nan", "na", "n/a", "<na>", "null", "none", "?", "-")
            for cell in cells
        ]
        if not all(form.fullmatch(c) or gone for c, gone in zip(cells, absent, strict=True)):
            return None
        numbers.append(
            [math.nan if gone else float(c) for c, gone in zip(cells, absent, strict=True)]
        )
    return numbers, [row[-1] for row in rows[1:]]


PIECES = st.sampled_from(
    [
        *',;\n\r\t" 01.-e_',
        "\r\n",
        "12",
        "-3.5",
        "1e3",
        "NA",
        "cat",
        '""',
        '"a,b"',
        '"1"',
        "1e99",
        "é",
        "\x00",
    ]
)
TEXT = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.text(max_size=60),
    st.lists(st.lists(PIECES | st.floats().map(repr), min_size=3, max_size=3).map(",".join)).map(
        lambda rows: "\n".join(["a,b,y", *rows])
    ),
)


@settings(max_examples=500, deadline=None)
@given(TEXT, st.sampled_from([",", ";", "\t"]))
@example("a,y\n1,x\n", ",")
@example('a,y\n1,x"y\n', ",")
@example('a,y\n"1\n",x\n', ",")
def test_any_text_is_refused_or_read_as_an_independent_parser_does(tmp_path_factory, text, mark):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    expected = plain_table(text.encode(errors="replace").decode(), mark)
    try:
        table = read(path, text.encode(errors="replace"), delimiter=mark, header="yes")
    except DataError as error:
        table, message = None, str(error)
    if table is None:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    else:
        numbers, targets = expected
        assert [target for (target,) in table.targets] == targets
        np.testing.assert_array_equal(table.numbers, np.reshape(numbers, table.numbers.shape))


CELLS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
NUMBER = st.floats(-3e38, 3e38).map(repr) | st.integers(-(2**60), 2**60).map(str) | st.just("")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER, CELLS), min_size=1), st.sampled_from([",", ";", "|"]))
def test_any_table_is_read_back(tmp_path_factory, rows, mark):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=mark).writerows([("a", "b", "y"), *rows])
    config = DataConfig(delimiter=mark)
    table = read_table(read_head(str(path), config, lambda *_: [2]), config)
    assert [target for (target,) in table.targets] == [row[2] for row in rows]
    expected = [[float(cell or "nan") for cell in row[:2]] for row in rows]
    np.testing.assert_array_equal(table.numbers, expected)


class Bar:
    """Stands in for tqdm's bar."""

    n, closed = 0, False

    def __init__(self, **options):
        self.total, self.hidden = options["total"], options["disable"]
        bars.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.closed = True

    def update(self, count):
        self.n += count


bars: list[Bar] = []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("fault", ["", "1,2,3\n"], ids=["whole", "ragged"])
def test_a_large_file_shows_its_progress_until_it_is_refused(file, monkeypatch, fault):
    monkeypatch.setattr(files, "tqdm", Bar)
    bars.clear()
    content = "t0,y\n" + "1.25,a\n" * 20_000 + fault
    with contextlib.suppress(DataError):
        read(file, content)
    assert all(bar.hidden for bar in bars)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(files, "SHOW_PROGRESS", 1000)
    bars.clear()
    try:
        read(file, content)
    except DataError:
        assert fault
        assert bars[0].closed  # before the error is printed
    (bar,) = [bar for bar in bars if bar.n]
    assert (bar.hidden, bar.closed, bar.total) == (False, True, len(content))
    assert 0.8 * bar.total < bar.n <= bar.total
