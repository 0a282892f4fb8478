"""Standardising, fitted on the training part only.

Dimensions: D input features, O regression targets, M readings.
"""

from dataclasses import dataclass

import numpy as np


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
        """Scale readings [..., D]; a missing one becomes 0, which is its feature's mean."""
        out = np.empty(readings.shape, dtype)
        for start in range(0, len(readings), 4096):  # float64 in between, a part at a time
            part = (readings[start : start + 4096] - self.input_mean) / self.input_std
            out[start : start + 4096] = np.nan_to_num(part, nan=0.0)
        return out

    def targets(self, targets: np.ndarray) -> np.ndarray:
        """Scale regression targets [..., O]."""
        return (targets - self.target_mean) / self.target_std

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Bring scaled predictions [..., O] back to the unit of the data, float64."""
        return outputs.astype(np.float64) * self.target_std + self.target_mean


def mean_and_std(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each column of [M, D], without NaN."""
    known = ~np.isnan(readings)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, readings, 0.0).sum(axis=0) / count
    square = (np.where(known, readings - mean, 0.0) ** 2).sum(axis=0) / count
    std = np.sqrt(square)
    # A constant column's mean may miss it by rounding: its spread is then no spread.
    constant = std <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 1.0, std)
