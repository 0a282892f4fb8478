"""Open a data file, or say in one line why it is none."""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from spec.errors import DataError

MAX_LINE = 2**26  # characters
MAX_COLUMNS = 10**6
SHOW_PROGRESS = 2**26  # bytes of a file, from which on reading takes seconds

SIGNATURES = {
    b"\x1f\x8b": "gzip; unpack it with gunzip",
    b"PK\x03\x04": "a zip archive or an .xlsx workbook; unpack it, or save the sheet as CSV",
    b"BZh": "bzip2; unpack it with bunzip2",
    b"\xfd7zXZ": "xz; unpack it with unxz",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it with unzstd",
    b"\xd0\xcf\x11\xe0": "an .xls workbook; save the sheet as CSV",
    b"PAR1": "a Parquet file; convert it to CSV",
    b"ARROW1": "an Arrow file; convert it to CSV",
    b"\x89PNG": "a PNG image; choose another file",
    b"\x89HDF": "an HDF5 file; convert it to CSV or .npz",
    b"\x93NUMPY": "a .npy array; store it in an .npz as inputs, with targets",
    b"SQLite": "an SQLite database; export a table as CSV",
    b"%PDF": "a PDF document; choose another file",
    b"\x80": "a Python pickle, which is never loaded; convert it to .npz",
    b"\xff\xfe\x00\x00": "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
    b"<": "HTML or XML; choose or export a CSV",
    b"{": "JSON; convert it to CSV",
    b"[": "JSON; convert it to CSV",
}
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".xlsx"}


def check_file(path: str) -> None:
    """Raise DataError unless the path is a local, regular, readable file."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise DataError(f"{path}: only local files are read; download it first")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise DataError(f"{path}: is {kind}; give the path of a data file")
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read: {reason}") from None


def check_text(path: str) -> list[str]:
    """Raise DataError where the first bytes show another format, or nothing; return notes."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(65536)
        file.seek(max(size - 1, 0))
        last = file.read()
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        raise DataError(f"{path}: is empty, 0 bytes; expected rows of numbers")
    if not body:
        what = "blank lines" if head.strip(b"\xef\xbb\xbf") else "a byte order mark"
        raise DataError(f"{path}: begins with {what} and nothing else; expected rows of numbers")
    for signature, meaning in SIGNATURES.items():
        if head.startswith(signature) or body.startswith(signature):
            raise DataError(f"{path}: is no CSV, it looks like {meaning}")
    if b"\0" in head:
        raise DataError(f"{path}: {nul_bytes(head)}")
    if Path(path).suffix.lower() in PACKED:
        ending = Path(path).suffix
        raise DataError(f"{path}: is plain text, though its name ends in {ending}; rename it")
    return [] if last in (b"\n", b"\r") else ["the last line has no end: it may be truncated"]


def nul_bytes(head: bytes) -> str:
    """Say what NUL bytes in a file mean."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if 3 * abs(even - odd) > len(head):
        order = "LE" if odd > even else "BE"
        return f"looks like UTF-16 text; convert it: iconv -f UTF-16{order} -t UTF-8"
    return f"line {line_of(head, head.index(0))}: holds a NUL byte; remove it (binary data?)"


def line_of(content: bytes, position: int) -> int:
    """Return the number, from 1, of the line that holds a byte."""
    return len((content[:position] + b".").splitlines())


def text_lines(path: str, delimiter: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends; any of LF, CRLF and CR ends a line.

    A large file shows its progress where stderr is a terminal, until the generator is closed.

    Raises:
      DataError: a line is not UTF-8, or too long to be one.
    """
    number, size = 0, os.stat(path).st_size
    quiet = size < SHOW_PROGRESS or sys.stderr is None or not sys.stderr.isatty()
    try:
        with (
            open(path, encoding="utf-8-sig", newline="") as file,
            tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=quiet, delay=1) as bar,
        ):
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) >= MAX_COLUMNS and (
                    len(line) == MAX_LINE or line.count(delimiter) >= MAX_COLUMNS
                ):
                    raise DataError(
                        f"{path}: line {number}: over {MAX_LINE} characters or {MAX_COLUMNS} "
                        "columns; is the delimiter or the line end another?"
                    )
                yield line
                if number % 4096 == 0:
                    bar.update(file.buffer.tell() - bar.n)
    except UnicodeDecodeError:
        raise undecodable(path) from None


def undecodable(path: str) -> DataError:
    """Describe the first byte that is not UTF-8."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        byte = error.start - max(before.rfind(b"\n"), before.rfind(b"\r"))
        return DataError(
            f"{path}: line {line_of(content, error.start)}, byte {byte}: "
            f"0x{content[error.start]:02x} is not UTF-8; if the file is Latin-1 or Windows-1252, "
            "convert it: iconv -f CP1252 -t UTF-8"
        )
    return DataError(f"{path}: changed while it was read; start again")


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
