"""Standardising, fitted on the training part only.

Dimensions: D input features, O regression targets, M readings.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

PART = 2**20  # numbers handled at once: temporaries of a whole file would double its memory


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations (ddof 0), float64: inputs [D], targets [O].

    Where a standard deviation is 0 it is stored as 1, so a constant becomes 0.
    """

    input_mean: np.ndarray
    input_std: np.ndarray
    target_mean: np.ndarray
    target_std: np.ndarray

    def inputs(self, readings: np.ndarray, dtype: str) -> np.ndarray:
        """Scale readings [N, .., D]; a missing one becomes 0, which is its feature's mean.

        Raises:
          OverflowError: one is too far from the mean for `dtype`.
        """
        out = np.empty(readings.shape, dtype)
        many = rows_at_once(readings)
        for start in range(0, len(readings), many):
            part = (readings[start : start + many] - self.input_mean) / self.input_std
            out[start : start + many] = rounded(np.where(np.isnan(part), 0.0, part), dtype)
        return out

    def targets(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Scale regression targets [N, O].

        Raises:
          OverflowError: one is too far from the mean for `dtype`.
        """
        return rounded((targets - self.target_mean) / self.target_std, dtype)

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Bring scaled predictions [..., O] back to the unit of the data, float64."""
        return outputs.astype(np.float64) * self.target_std + self.target_mean


def rows_at_once(readings: np.ndarray) -> int:
    """Return how many rows of [N, ...] make up a part."""
    return max(1, PART // max(1, readings[0].size))


def rounded(scaled: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the dtype of the run.

    Raises:
      OverflowError: a number is beyond it.
    """
    with np.errstate(over="ignore"):
        out = scaled.astype(dtype)
    if not np.isfinite(out).all():
        raise OverflowError(
            f"a value lies too many standard deviations from the training mean for {dtype}; "
            "correct it, or rescale its column"
        )
    return out


def mean_and_std(
    parts: Iterable[np.ndarray], weights: Iterator[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column of parts [M, D], without NaN.

    Of a constant, exactly that constant and 0; of no reading at all, 0 and 0. With `weights`,
    [M] > 0 of each part, a reading of weight 2 counts as two.

    Source: Chan, Golub & LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances".
    """
    count = mean = square = 0.0
    for part in parts:
        known = ~np.isnan(part)
        times = known * (1.0 if weights is None else next(weights)[:, None])
        more = times.sum(axis=0)
        # Differences from a reading of the column: a constant's are exactly 0.
        origin = np.nan_to_num(part[known.argmax(axis=0), np.arange(part.shape[1])])
        away = np.where(known, part - origin, 0.0)
        away_mean = (times * away).sum(axis=0) / np.where(more > 0, more, 1)
        part_square = (times * (away - away_mean) ** 2).sum(axis=0)
        total = np.where(count + more > 0, count + more, 1)
        apart = origin + away_mean - mean
        mean = mean + apart * (more / total)
        square = square + part_square + apart**2 * count * more / total
        count = count + more
    return mean, np.sqrt(square / np.where(count > 0, count, 1))
