"""How far two arrays are apart, and each from the truth."""

from dataclasses import dataclass

import numpy as np

SAME_BUT_WEIGHTS = "the same but for weights rounded to float32"


@dataclass(frozen=True)
class Measured:
    """One array on both sides.

    Attributes:
      name: of an output, or "d NAME" for the gradient by NAME.
      verdict: "both within rounding", "torch is off", "JAX is off", "both are off", "they compute
        different functions", "NaN or inf on one side", "shapes differ", "dtypes differ", and
        `SAME_BUT_WEIGHTS`.
      rel: ||torch - JAX|| / ||truth||.
      max_ulp, mean_ulp: steps between neighbouring floats from one to the other, element by
        element; large near 0 even where all is well.
      worst: index of the element with the largest difference.
      torch, jax, truth: that element.
      torch_rel, jax_rel: each side's distance from the truth, relative to its norm.
      tolerance: what rounding may make of torch_rel and jax_rel; see `parity.judge`.
      note: what else there is to say.
    """

    name: str
    verdict: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    rel: float = 0.0
    max_ulp: float = 0.0
    mean_ulp: float = 0.0
    worst: tuple[int, ...] = ()
    torch: float = 0.0
    jax: float = 0.0
    truth: float = 0.0
    torch_rel: float = 0.0
    jax_rel: float = 0.0
    tolerance: float = 0.0
    note: str = ""

    @property
    def even(self) -> bool:
        """Whether neither side is much further from the truth than the other."""
        near, far = sorted((self.torch_rel, self.jax_rel))
        return far <= 64 * near

    @property
    def same(self) -> bool:
        return self.verdict in ("both within rounding", SAME_BUT_WEIGHTS)


def ordered(x: np.ndarray) -> np.ndarray:
    """Number the floats of a dtype in their order, so that neighbours differ by 1."""
    kind = {2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]
    bits = np.ascontiguousarray(x).view(kind).astype(object if kind is np.int64 else np.int64)
    lowest = int(np.iinfo(kind).min)
    return np.where(bits < 0, lowest - bits, bits)


def ulps(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Count the floats from each element of x to that of y; 0 where both are not finite.

    The dtype of x decides how far neighbours are apart.
    """
    y = y.astype(x.dtype)
    both = np.isfinite(x) & np.isfinite(y)
    a, b = ordered(np.where(both, x, 0)), ordered(np.where(both, y, 0))
    return np.abs(a - b).astype(float)


def distance(x: np.ndarray, y: np.ndarray, scale: np.ndarray | None = None) -> float:
    """Return ||x - y|| / ||scale|| (of y by default) over what is finite; 0 / 0 is 0."""
    wide = np.longdouble
    x, y = np.asarray(x, wide), np.asarray(y, wide)
    kept = np.isfinite(x) & np.isfinite(y)
    gap = float(np.sqrt(np.sum((x - y)[kept] ** 2)))
    scale = np.asarray(y if scale is None else scale, wide)
    size = float(np.sqrt(np.sum(scale[np.isfinite(scale)] ** 2)))
    if gap == 0:
        return 0.0
    return gap / size if size else np.inf


def same_pattern(x: np.ndarray, y: np.ndarray) -> bool:
    """Tell whether NaN, inf and -inf stand at the same places."""
    return (
        np.array_equal(np.isnan(x), np.isnan(y))
        and np.array_equal(np.isposinf(x), np.isposinf(y))
        and np.array_equal(np.isneginf(x), np.isneginf(y))
    )
