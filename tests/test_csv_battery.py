"""Every fault of a data file ends in one line that names the file, the place and the remedy."""

import gzip
import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from data.config import DataConfig
from data.dataset import Dataset, load_dataset
from spec.errors import DataError
from tests.conftest import finish, installed, start

HEADER = "t0,t1,t2,y\n"
ROWS = [f"{n}.5,{n * 2 % 7},{-n},{n * n % 11}.25\n" for n in range(12)]
CLEAN = HEADER + "".join(ROWS)
LABELLED = HEADER + "".join(f"{n}.5,{n * 2 % 7},{-n},{('cat', 'dog')[n % 2]}\n" for n in range(12))


def put(line: int, text: str, content: str = CLEAN) -> str:
    """Replace a line of a file; lines count from 1."""
    lines = content.splitlines(keepends=True)
    lines[line - 1] = text + "\n"
    return "".join(lines)


def each_line(ending: str, content: str = CLEAN) -> str:
    return content.replace("\n", f"{ending}\n")


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, CLEAN)
    return stream.getvalue()


POSIX = pytest.mark.skipif(os.name != "posix", reason="needs FIFOs and file modes")
GZIP = gzip.compress(CLEAN.encode())

# Row of the battery and name: (content, options, what the message holds, in this order).
FAULTS = {
    "2 UTF-16": (CLEAN.encode("utf-16"), {}, ["UTF-16", "iconv -f UTF-16"]),
    "2 UTF-16 big": (CLEAN.encode("utf-16-be"), {}, ["UTF-16", "iconv -f UTF-16BE"]),
    "2 UTF-16 without BOM": (CLEAN.encode("utf-16-le"), {}, ["UTF-16", "iconv -f UTF-16LE"]),
    "2 UTF-32": (CLEAN.encode("utf-32"), {}, ["UTF-32", "iconv"]),
    "2 Latin-1": (CLEAN.replace("y", "größe", 1).encode("latin-1"), {},
                  ["line 1, byte 12: 0xf6", "Latin-1", "iconv -f CP1252"]),
    "2 cp1252 later": (put(9, "1,2,3,it\u2019s", LABELLED).encode("cp1252"), {},
                       ["line 9, byte 9: 0x92", "iconv"]),
    "4 semicolons": (CLEAN.replace(",", ";"), {}, ["line 1: 1 column", "--delimiter ';'"]),
    "4 tabs": (CLEAN.replace(",", "\t"), {}, ["line 1: 1 column", "--delimiter tab"]),
    "4 pipes": (CLEAN.replace(",", "|"), {}, ["line 1: 1 column", "--delimiter '|'"]),
    "4 spaces": (CLEAN.replace(",", " "), {}, ["line 1: 1 column", "--delimiter ' '"]),
    "4 commas": (CLEAN, {"delimiter": ";"}, ["line 1: 1 column", "--delimiter ','"]),
    "5 decimal commas": (CLEAN.replace(",", ";").replace(".", ","), {}, ["--delimiter ';'"]),
    "5 decimal commas, no header": ("".join(ROWS).replace(",", ";").replace(".", ","), {},
                                    ["line 1", "--delimiter ';'"]),
    "5 decimal commas, delimiter said": (CLEAN.replace(",", ";").replace(".", ","),
                                         {"delimiter": ";"},
                                         ["line 2, column 1 \"t0\": '0,5'", "--decimal ,"]),
    "5 points, commas said": (CLEAN.replace(",", ";"), {"delimiter": ";", "decimal": ","},
                              ["line 2, column 1 \"t0\": '0.5'", "--decimal ,"]),
    "6 1,5": (put(3, '"1,5",2,3,4'), {}, ["line 3, column 1 \"t0\": '1,5'", "--decimal ,"]),
    "6 1,234": (put(3, '1,"1,234",3,4'), {}, ["line 3, column 2 \"t1\": '1,234'", "thousands"]),
    "6 target 1,5": (put(3, '1,2,3,"1,5"'), {}, ["line 3, column 4 \"y\"", "'1,5'"]),
    "8 quote left open": (put(3, '"1,2,3,4'), {}, ["line 3", "never closed", "close it"]),
    "8 label left open": (put(5, '1,2,3,"cat', LABELLED), {}, ["line 5", "never closed"]),
    "8 left open before another": (put(5, '1,2,3,"cat', put(8, '1,2,3,"dog"', LABELLED)), {},
                                   ["line 5", "behind a quoted cell"]),
    "8 left open in a long file": (put(3, '1,2,"3,4') + ROWS[1] * 10_000, {},
                                   ["line 3", "over 131072 characters", "quote"]),
    "8 text behind a quote": (put(3, '"1"x,2,3,4'), {}, ["line 3", "behind a quoted cell"]),
    "8 stray quote": (put(3, '1x",2,3,4'), {}, ["line 3", "a quote inside a cell", "double"]),
    "8 stray quote in a label": (put(3, '1,2,3,c"at', LABELLED), {}, ["line 3", "a quote inside"]),
    "8 space before a quote": (put(3, '1,2,3, "cat"', LABELLED), {}, ["line 3", "begin with"]),
    "9 short row": (put(3, "1,2,4"), {}, ["line 3: found 3 cells, expected 4", "complete"]),
    "9 long row": (put(3, "1,2,3,4,5"), {}, ["line 3: found 5 cells, expected 4"]),
    "9 all rows long by one": (HEADER + "".join(each_line(",7", row) for row in ROWS), {},
                               ["line 2: found 5 cells, expected 4 as in the header"]),
    "9 all rows long by two": (HEADER + "".join(each_line(",7,8", row) for row in ROWS), {},
                               ["line 2: found 6 cells, expected 4"]),
    "9 first row long": (put(2, "1,2,3,4,5"), {}, ["line 2: found 5 cells"]),
    "9 short row, no header": ("".join(ROWS[:3]) + "1,2,3\n", {},
                               ["line 4: found 3 cells, expected 4 as in the first line"]),
    "9 delimiters only": (put(3, ",,,"), {}, ["line 3, column 4 \"y\": the target is empty"]),
    "9 delimiter at the end of the rows": (HEADER + "".join(each_line(",", row) for row in ROWS), {},
                                           ["line 2: found 5 cells", "ends in a delimiter"]),
    "9 no-break space": (put(3, "\u00a0"), {}, ["line 3: found 1 cell"]),
    "9 lone CR in a cell": (put(3, "1,2\r,3,4"), {}, ["line 3: found 2 cells"]),
    "11 delimiter at the end of all": (each_line(","), {},
                                       ["line 1, column 5: no name", "every line end in a delimiter"]),
    "11 the same, no header": (each_line(",", "".join(ROWS)), {},
                               ["line 1, column 5: the target is empty"]),
    "12 duplicate names": (CLEAN.replace(HEADER, "a,b,a,b\n"), {},
                           ['line 1, columns 1, 3 "a", columns 2, 4 "b": the same name', "rename"]),
    "12 names that differ by spaces": (CLEAN.replace(HEADER, "a,b, a,y\n"), {}, ['columns 1, 3 "a"']),
    "12 blank names": (CLEAN.replace(HEADER, "t0,, ,y\n"), {}, ["line 1, columns 2, 3: no name"]),
    "12 index column": (CLEAN.replace(HEADER, ",t0,t1,y\n"), {}, ["line 1, column 1: no name"]),
    "13 counting header": (CLEAN.replace(HEADER, "0,1,2,3\n"), {},
                           ["line 1: counts 0, 1", "--header yes or no"]),
    "13 names and numbers": (CLEAN.replace(HEADER, "a,1,2,3\n"), {}, ["line 1", "'a'", "--header"]),
    "13 one row, no header": (ROWS[3], {}, ["1 row;"]),
    "14 header again": (put(6, HEADER[:-1]), {}, ["line 6, column 1 \"t0\"", "header again"]),
    "14 units": (put(2, "m,s,kg,-"), {}, ["line 2, column 1 \"t0\": 'm'"]),
    "14 preamble": ("# made by x\n" + CLEAN, {}, ["line 1", "'#'", "remove"]),
    "14 preamble without a sign": ("made by x\n" + CLEAN, {}, ["line 1", "title"]),
    "14 comment line": (put(4, "# odd"), {}, ["line 4: found 1 cell, expected 4"]),
    "14 comment in a target": (put(4, "1,2,3,4 # odd"), {}, ["line 4, column 4 \"y\"", "'4 # odd'"]),
    "14 comment in a number": (put(4, "1,2,3 # odd,4"), {}, ["line 4, column 3 \"t2\": '3 # odd'"]),
    "14 footer": (CLEAN + "Total,12\n", {}, ["line 14: found 2 cells"]),
    "15 empty": ("", {}, ["is empty, 0 bytes"]),
    "15 spaces": (" \n\t\n\r\n", {}, ["blank lines and nothing else"]),
    "15 BOM": ("\ufeff", {}, ["a byte order mark and nothing else"]),
    "15 header only": (HEADER, {}, ["a header and no rows"]),
    "15 spaces for long": (" \n" * 70_000, {}, ["blank lines and nothing else"]),
    "15 one row": (HEADER + ROWS[0], {}, ["1 row;", "add rows"]),
    "15 one column": ("y\n1\n2\n3\n", {}, ["no column beside the target", "--delimiter", "--windows"]),
    "16 empty inside": (put(3, "1,,3,4"), {},
                        ["1 missing value", 'line 3, column 2 "t1"', "--missing drop", "mean"]),
    "16 many": (put(3, "NA,null,3,4", put(7, ",nan,-,4")), {},
                ["5 missing values", 'line 3, column 1 "t0"; line 3, column 2 "t1"; line 7, column 1',
                 ", ..;"]),
    "16 NA at the end": (put(3, "1,2,NA,4"), {}, ["1 missing value", 'line 3, column 3 "t2"']),
    "16 half a step at the end": ("t0_a,t0_b,t1_a,t1_b,y\n1,2,3,4,5\n1,2,3,,5\n", {},
                                  ['line 3, column 4 "t1_b"']),
    "16 no step": (put(3, ",,,4"), {}, ["line 3: has no time step"]),
    "16 no step, spaces": (put(3, " ,\t,,4"), {"missing": "mean"}, ["line 3: has no time step"]),
    "16 drop all": (HEADER + "1,,3,4\n" * 4, {"missing": "drop"}, ["--missing drop leaves no row"]),
    "17 no target": (put(3, "1,2,3,"), {"missing": "mean"}, ['line 3, column 4 "y": the target is empty']),
    "17 blank label": (put(3, "1,2,3, ", LABELLED), {}, ['line 3, column 4 "y": the target is empty']),
    "17 target NA": (put(3, "1,2,3,NA"), {}, ["line 3, column 4 \"y\"", "'NA' is no value"]),
    "17 target nan, task said": (put(3, "1,2,3,nan"), {"task": "regression"},
                                 ["line 3, column 4 \"y\": the target 'nan' is no value"]),
    "19 inf": (put(3, "1,inf,3,4"), {}, ["line 3, column 2 \"t1\": 'inf' is infinite"]),
    "19 -Infinity": (put(3, "1,-Infinity,3,4"), {}, ["line 3, column 2 \"t1\"", "infinite"]),
    "19 1e400": (put(3, "1,1e400,3,4"), {}, ["line 3, column 2 \"t1\": '1e400' is beyond float32"]),
    "19 1e39": (put(13, "1,-1e39,3,4"), {}, ["line 13, column 2 \"t1\": '-1e39' is beyond"]),
    "19 target 1e39": (put(3, "1,2,3,1e39"), {}, ["line 3, column 4 \"y\"", "beyond float32"]),
    "19 beyond 64 bits": (put(3, "1,18446744073709551617,3,4"), {}, ["line 3, column 2", "64 bits"]),
    "23 NUL": (put(3, "1,2\0,3,4"), {}, ["line 3: holds a NUL byte"]),
    "23 NUL late": (CLEAN + ROWS[1] * 7000 + "1,2\0,3,4\n", {}, ["line 7014, column 2 \"t1\": '2\\x00'"]),
    "23 NUL in a late label": (LABELLED + "1,2,3,cat\n" * 7000 + "1,2,3,c\0\n", {},
                               ['line 7014, column 4 "y"', "control characters"]),
    "23 Ctrl-Z": (CLEAN + "\x1a", {}, ["line 14", "Ctrl-Z"]),
    "23 tab in a label": (put(3, "1,2,3,c\tt", LABELLED), {}, ["line 3", "'c\\tt'", "control"]),
    "24 date": (put(3, "2020-01-01,2,3,4"), {}, ["line 3, column 1 \"t0\": '2020-01-01'", "column"]),
    "24 text": (put(3, "1,abc,3,4"), {}, ["line 3, column 2 \"t1\": 'abc' is not a number"]),
    "24 boolean": (put(3, "1,2,True,4"), {}, ["line 3, column 3 \"t2\": 'True'"]),
    "24 late": (CLEAN + ROWS[2] * 5000 + "1,2,x,4\n", {}, ["line 5014, column 3 \"t2\": 'x'"]),
    "26 last row cut": (CLEAN[:-8], {}, ["line 13: found 3 cells", "may be truncated"]),
    "26 cut inside a character": (put(13, "1,2,3,é", LABELLED).encode()[:-2], {}, ["line 13, byte 7"]),
    "27 HTML": ("<!DOCTYPE html><html></html>", {}, ["HTML"]),
    "27 JSON": ('\n {"a": [1, 2]}', {}, ["JSON"]),
    "27 JSON list": ("[[1, 2]]", {}, ["JSON"]),
    "27 xlsx": (archive("[Content_Types].xml"), {}, [".xlsx", "save the sheet as CSV"]),
    "27 xls": (b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(99), {}, [".xls"]),
    "27 parquet": (b"PAR1\x15\x04" + bytes(99), {}, ["Parquet"]),
    "27 PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), {}, ["PNG"]),
    "27 git-lfs": ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", {}, ["git lfs pull"]),
    "27 pickle": (b"\x80\x04\x95\x05\x00\x00\x00", {}, ["pickle", "never loaded"]),
    "27 tar": (b"a.csv".ljust(257, b"\0") + b"ustar" + bytes(999), {}, ["NUL", "binary"]),
    "28 gzip": (GZIP, {}, ["gzip", "gunzip"]),
    "28 gzip cut": (GZIP[:-9], {}, ["gzip", "gunzip"]),
    "28 zip": (archive("a.csv", "b.csv"), {}, ["zip"]),
    "41 no multiple": (each_line(",1").replace(HEADER[:-1] + ",1", "a,b,c,d,y"), {"num_features": 3},
                       ["4 columns", "4 = 1 x 3 + 1"]),
    "42 one class": (HEADER + "1,2,3,cat\n1,2,4,cat\n", {}, ["every target is 'cat'", "one class"]),
    "44 no validation row": (HEADER + "".join(ROWS[:3]), {"test_fraction": 0.4},
                             ["--valid_fraction 0.15 of 2 rows is 0"]),
    "44 no test row": (HEADER + "".join(ROWS[:3]), {}, ["--test_fraction 0.15 of 3 rows is 0"]),
}  # fmt: skip


def refused(path: Path, content: bytes | str, **options) -> str:
    """Return the message that refuses a file of this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        load_dataset(DataConfig(data_path=str(path), **options), "float32", 0)
    return str(error.value)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused_in_one_helpful_line(tmp_path, name):
    content, options, fragments = FAULTS[name]
    path = tmp_path / "data.csv"
    message = refused(path, content, **options)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    at = len(str(path))
    for fragment in fragments:
        assert fragment in message[at:], message
        at = message.index(fragment, at) + len(fragment)


def test_a_cell_is_shown_shortened(tmp_path):
    assert len(refused(tmp_path / "data.csv", put(3, f"1,{'x' * 9000},3,4"))) < 300


# Rows of the battery that load: (content, options, steps of the longest, what a note says).
ACCEPTED = {
    "5 decimal commas": (CLEAN.replace(",", ";").replace(".", ","),
                         {"delimiter": ";", "decimal": ","}, 3, "by the header"),
    "13 no header": ("".join(ROWS), {}, 3, "the first line is numbers: read as data"),
    "13 counting header": (CLEAN.replace(HEADER, "0,1,2,y\n"), {}, 3, "read as a header"),
    "16 drop": (put(3, "1,,3,4", put(5, "NA,2,,4")), {"missing": "drop"}, 3,
                "2 missing values: 2 rows dropped"),
    "16 mean": (put(3, "1,,3,4", put(5, "NA,2,,4")), {"missing": "mean"}, 3,
                "2 missing values replaced by the training mean"),
    "16 shorter": (put(3, "1,2, ,4"), {}, 3, "12 sequences of 2 to 3 steps"),
    "16 all shorter": (HEADER + "1,2,,4.5\n" * 9, {}, 2, "9 sequences of 2 steps"),
    "25 spelling": (put(3, "1,2,3,Cat", put(4, "1,2,3,cat ", LABELLED)), {}, 3,
                    "labels 'Cat' and 'cat' and 'cat ' differ in spelling only"),
    "26 no last line end": (CLEAN[:-3], {}, 3, "may be truncated"),
    "42 constant target": (HEADER + "1,2,3,4\n" * 9, {"task": "regression"}, 3,
                           "constant in the training rows: target y"),
    "42 one row of a class": (put(3, "1,2,3,owl", LABELLED), {}, 3, "single row: 'owl'"),
    "43 constant feature": ("t0_a,t0_b,y\n" + "".join(f"{n},7,{n}.5\n" for n in range(9)), {}, 1,
                            "constant in the training rows: feature b"),
    "a row twice": (CLEAN + "".join(ROWS), {}, 3, "test sequences also occur in the training"),
}  # fmt: skip


def load(path: Path, content: str, **options) -> Dataset:
    path.write_text(content)
    return load_dataset(DataConfig(data_path=str(path), **options), "float32", 0)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_with_a_note(tmp_path, name):
    content, options, steps, note = ACCEPTED[name]
    data = load(tmp_path / "data.csv", content, **options)
    assert any(note in line for line in data.notes), data.notes
    rows = len(data.train) + len(data.valid) + len(data.test)
    dropped = 2 if "drop" in name else 0
    assert rows == len(content.splitlines()) - (name != "13 no header") - dropped
    for part in (data.train, data.valid, data.test):
        assert part.inputs.shape[1] == steps
        assert part.inputs.dtype == "float32"
        assert abs(part.inputs).max() < 9
        assert abs(part.targets).max() < 9


def special(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Return paths that are no data files, each with a word of its message."""
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "dangling.csv").symlink_to("nothing")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "plain.csv.gz").write_text(CLEAN)
    names = {
        "fifo.csv": "not a regular file",
        "dangling.csv": "No such file",
        "loop.csv": "symbolic link",
        "missing.csv": "No such file",
        "missing\nin two lines.csv": "No such file",
        "plain.csv.gz": "plain text, though its name ends in .gz",
        ".": "is a directory",
    }
    paths = {name: (str(tmp_path / name), word) for name, word in names.items()}
    for path, word in {
        "/dev/zero": "not a regular file",
        "http://localhost/a.csv": "only local files",
        "HTTP://localhost/a.csv": "only local files",
        "ftp://localhost/a.npz": "only local files",
        "file:///a.csv": "only local files",
        "a\0b.csv": "null",
        "x" * 5000: "too long",
        "fifo.npz": "No such file",
    }.items():
        paths[path] = (path, word)
    return paths


@POSIX
def test_what_is_no_file_is_refused_at_once(tmp_path):
    for path, word in special(tmp_path).values():
        began = time.perf_counter()
        with pytest.raises(DataError) as error:
            load_dataset(DataConfig(data_path=path), "float32", 0)
        assert time.perf_counter() - began < 1
        assert str(error.value).startswith(f"{path}: ")
        assert word in str(error.value)


@POSIX
def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data.csv").write_text(CLEAN)
    (tmp_path / "data.csv").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything
            os.seteuid(65534)
        with pytest.raises(DataError, match=r"^data\.csv: cannot be read: Permission denied$"):
            load_dataset(DataConfig(data_path="data.csv"), "float32", 0)
    finally:
        os.seteuid(user)


COMMANDS = [
    "4 semicolons",
    "8 quote left open",
    "9 short row",
    "16 many",
    "28 gzip",
    "44 no test row",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_ends_with_code_2_and_creates_nothing(tmp_path, monkeypatch, train, name):
    installed("torch")
    content, _, fragments = FAULTS[name]
    path = tmp_path / "data\nfile.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    ended = train("--data_path", path, "--epochs", 1)
    assert ended.code == 2
    assert fragments[0] in ended.error()
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_debug_shows_the_traceback(tmp_path):
    installed("torch")
    path = tmp_path / "data.csv"
    path.write_text(put(3, "1,2,x,4"))
    command = [
        Path(__file__).parents[1] / "train.py",
        "--data_path",
        path,
        "--out",
        tmp_path / "run",
    ]
    plain, debug = (finish(start(*command, *flag)) for flag in ((), ("--debug",)))
    assert (plain.code, plain.error()) == (2, f"error: {path}: line 3, column 3 \"t2\": "
                                           "'x' is not a number; correct the cell, or remove the "
                                           "line or the column")  # fmt: skip
    assert "Traceback" in debug.err
    assert list(tmp_path.iterdir()) == [path]
