"""Training, validation and test parts."""

import numpy as np

from spec.errors import DataError
from spec.random import permutation


def split_off(
    rows: np.ndarray,
    fraction: float,
    labels: np.ndarray | None,
    in_time: bool,
    name: str,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide row numbers into (rest, part).

    Args:
      rows: row numbers in the order of the file.
      fraction: size of the part, 0 <= fraction < 1.
      labels: class index of each row, to take every class in proportion; None for none.
      in_time: take the last rows, else draw at random.
      name: the option that asked for it, for the error message and the random stream.

    Raises:
      DataError: the fraction is above 0, but no row would be in the part or in the rest.
    """
    count = round(fraction * len(rows))
    if fraction == 0:
        return rows, rows[:0]
    if not 0 < count < len(rows):
        raise DataError(
            f"--{name} {fraction} of {len(rows)} rows is {count}; say another fraction, or add rows"
        )
    if in_time:
        return rows[:-count], rows[-count:]
    order = permutation(len(rows), seed, name)
    if labels is not None:
        # Each class spreads evenly over 0..1; the first `count` hold every class in proportion.
        spread = np.empty(len(rows))
        for label in np.unique(labels):
            members = order[labels[order] == label]
            spread[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(spread[order], kind="stable")]
    return rows[np.sort(order[count:])], rows[np.sort(order[:count])]
