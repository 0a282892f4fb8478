"""What to do about readings that are missing inside a sequence.

Dimensions: N rows, C number columns.
"""

from collections.abc import Callable

import numpy as np

from spec.errors import DataError


def rows_to_keep(
    path: str, policy: str, missing: np.ndarray, place: Callable[[int, int], str]
) -> tuple[np.ndarray, list[str]]:
    """Apply `--missing` to cells [N, C] that are missing.

    Args:
      path: the file, for messages.
      policy: error, drop or mean.
      missing: True where a cell lacks a reading that its sequence should have.
      place: says where the cell of (row, column) stands.

    Returns:
      (row numbers to keep, what was done in words, if anything).

    Raises:
      DataError: something is missing and the policy is error, or drops every row.
    """
    every = np.arange(len(missing))
    faulty = missing.any(axis=1)
    if not faulty.any():
        return every, []
    count = int(missing.sum())
    values = f"{count} missing value{'s' * (count > 1)}"
    if policy == "error":
        cells = (
            (row, column)
            for row in np.flatnonzero(faulty)[:3]
            for column in np.flatnonzero(missing[row])
        )
        first = "; ".join(
            place(row, column) for (row, column), _ in zip(cells, range(3), strict=False)
        )
        raise DataError(
            f"{path}: {values} inside sequences: {first}{', ..' if count > 3 else ''}; "
            "fill them, or say --missing drop or --missing mean"
        )
    if policy == "mean":
        return every, [f"{values} replaced by the training mean of the feature (--missing mean)"]
    if faulty.all():
        raise DataError(f"{path}: --missing drop leaves no row; every row misses a value")
    dropped = int(faulty.sum())
    return every[~faulty], [f"{values}: {dropped} rows dropped (--missing drop)"]
