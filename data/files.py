"""Open a data file, or say in one line why it is none."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator

from spec.errors import DataError

MAX_LINE = 2**26  # characters
MAX_COLUMNS = 10**6

SIGNATURES = {
    b"\x1f\x8b": "gzip; unpack it with gunzip",
    b"PK\x03\x04": "a zip archive or an .xlsx workbook; unpack it, or save the sheet as CSV",
    b"BZh": "bzip2; unpack it with bunzip2",
    b"\xfd7zXZ": "xz; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it with unzstd",
    b"PAR1": "a Parquet file; convert it to CSV",
    b"\x89PNG": "a PNG image",
    b"\x89HDF": "an HDF5 file; convert it to CSV or .npz",
    b"\x93NUMPY": "a .npy array; store it in an .npz as inputs, with targets",
    b"SQLite": "an SQLite database; export a table as CSV",
    b"%PDF": "a PDF document",
    b"\x80\x04": "a Python pickle, which is never loaded; convert it to .npz",
    b"\x80\x05": "a Python pickle, which is never loaded; convert it to .npz",
    b"\xff\xfe\x00\x00": "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
    b"<": "HTML or XML",
    b"{": "JSON; convert it to CSV",
    b"[": "JSON; convert it to CSV",
}


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
    with open(path, "rb") as file:
        head = file.read(65536)
        file.seek(max(os.stat(path).st_size - 1, 0))
        last = file.read()
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not body:
        raise DataError(f"{path}: the file is empty; expected a header and rows of numbers")
    for signature, meaning in SIGNATURES.items():
        if head.startswith(signature) or body.startswith(signature):
            raise DataError(f"{path}: is no CSV, it looks like {meaning}")
    if b"\0" in head:
        raise DataError(
            f"{path}: holds NUL bytes: binary, or UTF-16 text (iconv -f UTF-16LE -t UTF-8)"
        )
    if last in (b"\n", b"\r"):
        return []
    return ["the last line has no line end: it may be cut short"]


def text_lines(path: str, delimiter: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends; any of LF, CRLF and CR ends a line.

    Raises:
      DataError: a line is not UTF-8, or too long to be one.
    """
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE or line.count(delimiter) >= MAX_COLUMNS:
                    raise DataError(
                        f"{path}: line {number}: over {MAX_LINE} characters or {MAX_COLUMNS} "
                        "columns; is the delimiter or the line end another?"
                    )
                yield line
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
        line = len(before.splitlines()) + before.endswith((b"\n", b"\r")) or 1
        byte = error.start - max(before.rfind(b"\n"), before.rfind(b"\r"))
        return DataError(
            f"{path}: line {line}, byte {byte}: 0x{content[error.start]:02x} is not UTF-8; "
            "convert the file, for instance: iconv -f LATIN1 -t UTF-8"
        )
    return DataError(f"{path}: is not UTF-8")


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
