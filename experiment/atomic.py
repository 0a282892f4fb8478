"""Write a file, or a directory of files, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from spec.errors import ConfigError, OutputError

MARK = ".seqduet-part"


def write(path: Path, content: bytes) -> None:
    """Replace a file by new content that is on the disk first; on an error the old file stays.

    Raises:
      OutputError: the disk is full, the directory read-only or absent.
    """
    try:
        replace(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def replace(path: Path, content: bytes) -> None:
    """Do what `write` does, and fail with what the system says."""
    number, part = tempfile.mkstemp(suffix=MARK, prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~umask())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    sync_directory(path.parent)


def write_all(files: Iterable[tuple[Path, bytes | Mapping[str, bytes]]]) -> None:
    """Write new files, or a directory of files by name, all of them or none.

    Raises:
      OutputError: as `write` and `write_directory`.
    """
    written: list[Path] = []
    try:
        for path, content in files:
            if isinstance(content, bytes):
                write(path, content)
            else:
                write_directory(path, content)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        raise


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory with these files, all of them or none; it is absent or empty before.

    Raises:
      OutputError: as `write`, or it holds something.
    """
    try:
        part = Path(tempfile.mkdtemp(suffix=MARK, prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, content in files.items():
                replace(part / name, content)
            part.chmod(0o777 & ~umask())
            os.replace(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def check_new_directory(path: Path) -> None:
    """Raise where --out exists, or cannot be made, before any work is done."""
    if os.path.lexists(path):
        raise ConfigError(f"--out {path}: exists; name a new directory")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OutputError(f"--out {path}: cannot be made: {above} is no writable directory")


def write_new(directory: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Make a directory and write files to it, each before the next one is asked for.

    Raises:
      OutputError: it cannot be made, or a file not be written.
    """
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be made: {error.strerror}") from None
    for name, content in files:
        write(directory / name, content)


def part_of(path: Path) -> Path:
    """Return a name beside `path` that `remove_parts` knows; only the lock's holder may use it."""
    return path.with_name(f".{path.name}{MARK}")


def umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_directory(directory: Path) -> None:
    """Put a rename on the disk."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_parts(directory: Path) -> None:
    """Delete what killed writers of this module left behind; the caller holds the lock."""
    for part in directory.glob(f".*{MARK}"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
