"""Read sequences that are stored as arrays: .npz, or .safetensors.

Dimensions: N sequences, T time, D features, O targets.
"""

import zipfile
from dataclasses import dataclass

import numpy as np

from data.csv_reader import target_fault
from data.files import check_file
from data.header import shown
from data.numerals import FLOAT32_MAX
from spec.errors import DataError
from spec.tensors import decode

NAMES = ("inputs", "lengths", "targets")
MOST_UNPACKED, MOST_TIMES = 2**28, 200  # bytes of an array, and times its packed size


@dataclass(frozen=True)
class Tensors:
    """Arrays as read.

    Attributes:
      inputs: float64 [N, T, D]; NaN past a sequence's end and where a reading is missing.
      lengths: real steps of each sequence, int64 [N].
      targets: as text, a tuple of O a sequence, of every step T x O; None where the file has none.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    targets: list[tuple[str, ...]] | None


def read_tensors(path: str, need_targets: bool, every_step: bool) -> Tensors:
    """Read `inputs` [N, T, D] or [N, T], `targets` [N] or [N, O] and optional `lengths` [N].

    Targets of every step are [N, T] or [N, T, O]; NaN or empty text where a step has none.

    Raises:
      DataError: the file is damaged, or its arrays are not of that kind.
    """
    check_file(path)
    arrays = load_npz(path) if path.lower().endswith(".npz") else load_safetensors(path)
    for name in ("inputs", "targets") if need_targets else ("inputs",):
        if name not in arrays:
            held = shown(sorted(arrays)) or "none of inputs, lengths and targets"
            raise DataError(f"{path}: has no array {name!r}, only {held}; add it")
    inputs = arrays["inputs"]
    inputs = inputs[..., None] if inputs.ndim == 2 else inputs
    if inputs.ndim != 3 or inputs.dtype.kind not in "fiu" or 0 in inputs.shape:
        raise DataError(f"{path}: inputs are {described(inputs)}; expected numbers [N, T, D]")
    N, T, _ = inputs.shape
    rows = (N, T) if every_step else (N,)
    lengths = arrays.get("lengths", np.full(N, T))
    good = lengths.shape == (N,) and lengths.dtype.kind in "iu"
    if not good or lengths.min() < 1 or lengths.max() > T:
        raise DataError(
            f"{path}: lengths are {described(lengths)}; expected {N} whole numbers from 1 to {T}"
        )
    inputs = inputs.astype(np.float64)
    inputs[np.arange(T) >= lengths[:, None]] = np.nan
    beyond = np.argwhere(np.abs(inputs) > FLOAT32_MAX)
    if beyond.size:
        n, t, d = beyond[0]
        raise DataError(
            f"{path}: inputs[{n}, {t}, {d}] = {inputs[n, t, d]} is beyond float32; rescale it"
        )
    texts = target_texts(path, arrays["targets"], rows) if "targets" in arrays else None
    return Tensors(inputs, lengths.astype(np.int64), texts)


def load_npz(path: str) -> dict[str, np.ndarray]:
    """Load the arrays that are wanted; nothing else in the archive is unpacked.

    Raises:
      DataError: the file is no .npz, is damaged, or would have to be unpickled.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is no .npz archive, or a truncated one; write it with np.savez")
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.file_size > max(MOST_UNPACKED, MOST_TIMES * item.compress_size):
                    raise ValueError(
                        f"{item.filename} unpacks to {item.file_size} bytes, over {MOST_TIMES} "
                        "times its size; if that is meant, write it with np.savez, unpacked"
                    )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in NAMES if name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read: {reason}") from None


def load_safetensors(path: str) -> dict[str, np.ndarray]:
    """Load all arrays.

    Raises:
      DataError: the file is no .safetensors file, or damaged.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        return decode(content)[0]
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def target_texts(
    path: str, targets: np.ndarray, rows: tuple[int] | tuple[int, int]
) -> list[tuple[str, ...]]:
    """Write targets of shape [*rows] or [*rows, O] as text, exactly, a tuple a sequence.

    Raises:
      DataError: they are no numbers or text of the right shape, or text that is no label.
    """
    axes, every_step = len(rows), len(rows) > 1
    known = targets.dtype.kind in "fiubU" and 0 not in targets.shape
    if not known or targets.ndim not in (axes, axes + 1) or targets.shape[:axes] != rows:
        form = f"[N, T] or [N, T, O] with N, T = {rows[0]}, {rows[-1]}, as --every_step says"
        form = form if every_step else f"[N] or [N, O] with N = {rows[0]}"
        raise DataError(
            f"{path}: targets are {described(targets)}; expected numbers or text, {form}"
        )
    texts = [tuple(map(str, row)) for row in targets.reshape(len(targets), -1).tolist()]
    if every_step and targets.dtype.kind == "f":
        texts = [tuple("" if text == "nan" else text for text in row) for row in texts]
    if targets.dtype.kind == "U":
        for n, row in enumerate(texts):
            for text in row:
                if fault := target_fault(text, every_step):
                    raise DataError(f"{path}: targets[{n}]: {fault}")
    return texts


def described(array: np.ndarray) -> str:
    """Say of what kind an array is."""
    return f"{array.dtype} {list(array.shape)}"
