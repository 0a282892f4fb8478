"""What users pass to the estimators, checked as scikit-learn does and shaped into sequences.

Dimensions: N sequences, T time, D input features, C cells of a flat row, O regression targets.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import _check_sample_weight, validate_data

from data.scaling import Scaling, mean_and_std, rows_at_once

NOTHING = "no_validation"  # scikit-learn's word for a y that is not asked for


def read(
    estimator: BaseEstimator, X: Any, y: Any = NOTHING, reset: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Check X and y, and shape X into sequences.

    Args:
      estimator: its `num_features` says how many cells of a flat row are a time step, its tags
        whether y may have several columns of numbers.
      X: [N, C], time-major; [N, T, D]; or a list, or an object array or Series, of [T_i, D] or
        flat [C_i], not all equally long.
      y: targets; left out where none are needed.
      reset: remember the columns of a flat X, instead of demanding those remembered.

    Returns:
      (float64 [N, T, D], NaN past each end; lengths [N]; y as an array, or None).

    Raises:
      ValueError, TypeError: X or y is no such thing, or holds NaN or infinity.
    """
    options: dict[str, Any] = {"dtype": np.float64, "reset": reset}
    if not (isinstance(y, str) and y == NOTHING):
        several = estimator.__sklearn_tags__().target_tags.multi_output
        options |= {"multi_output": several, "y_numeric": several}
    lengths = None
    if is_ragged(X):
        X, lengths = padded(X, estimator.num_features)
        options["ensure_all_finite"] = "allow-nan"
    if (np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)) == 3:
        # Time may differ from call to call, so no number of columns is remembered.
        options |= {"allow_nd": True, "ensure_2d": False}
        if reset:
            vars(estimator).pop("n_features_in_", None)
    checked = validate_data(estimator, X, y, **options)
    inputs, y = checked if isinstance(checked, tuple) else (checked, None)
    if inputs.ndim == 2:
        inputs = from_flat(inputs, estimator.num_features)
    if 0 in inputs.shape:
        raise ValueError(f"X has shape {inputs.shape}; expected at least one step and one feature")
    N, T, _ = inputs.shape
    return inputs, np.full(N, T) if lengths is None else lengths, y


def is_ragged(X: Any) -> bool:
    """Whether X is a list of arrays that differ in shape, or an array or Series of arrays."""
    if getattr(getattr(X, "dtype", None), "kind", "") == "O" and X.ndim == 1:
        return len(X) > 0 and all(np.ndim(row) for row in X)
    return isinstance(X, list | tuple) and len({np.shape(row) for row in X}) > 1


def padded(rows: Sequence[Any], num_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay arrays [T_i, D] or [C_i] into one [N, T, D], NaN past each end; also their lengths."""
    sequences = []
    for n, row in enumerate(rows):
        row = check_array(row, dtype=np.float64, ensure_2d=False, input_name=f"X[{n}]")
        sequences.append(row if row.ndim == 2 else from_flat(row[None], num_features)[0])
    widths = sorted({sequence.shape[1] for sequence in sequences})
    if len(widths) > 1 or widths == [0]:
        raise ValueError(f"the arrays of X have {widths} features a step; expected one number")
    lengths = np.array([len(sequence) for sequence in sequences])
    inputs = np.full((len(sequences), lengths.max(), widths[0]), np.nan)
    for n, sequence in enumerate(sequences):
        inputs[n, : len(sequence)] = sequence
    return inputs, lengths


def from_flat(rows: np.ndarray, num_features: int) -> np.ndarray:
    """Read rows [N, C] as t0_f0, t0_f1, .. t1_f0, ..: [N, C / num_features, num_features]."""
    N, C = rows.shape
    if C % num_features:
        raise ValueError(
            f"X has {C} cells a row, which make no whole steps of num_features={num_features}"
        )
    return rows.reshape(N, -1, num_features)


def read_weights(sample_weight: Any, inputs: np.ndarray, dtype: str) -> np.ndarray | None:
    """Check the weights of the sequences [N]; return them as multiples of the largest.

    Raises:
      ValueError: there are not N of them, one is below zero or not finite, all are zero, or one is
        so much smaller than the largest that it is zero in the dtype of the loss.
    """
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, inputs, dtype=np.float64)
    if (weights < 0).any() or not weights.any():
        found = "all are zero" if not weights.any() else f"one is {weights.min()}"
        raise ValueError(f"sample_weight: {found}; expected weights >= 0, some above zero")
    shares = weights / weights.max()
    if lost := weights[(weights > 0) & (shares < np.finfo(dtype).tiny)].tolist():
        raise ValueError(
            f"sample_weight: {lost[0]} beside {weights.max()} is zero in {dtype}; leave such "
            "sequences out, or choose another dtype"
        )
    return shares


def fit_scaling(
    inputs: np.ndarray, targets: np.ndarray | None, weights: np.ndarray | None
) -> Scaling:
    """Fit means and standard deviations to inputs [N, T, D] and regression targets [N, O].

    Raises:
      ValueError: values are so large that their squares overflow.
    """
    many = rows_at_once(inputs)

    def parts(array: np.ndarray) -> Iterator[np.ndarray]:
        return (array[start : start + many] for start in range(0, len(inputs), many))

    def of_steps(part: np.ndarray) -> np.ndarray:
        return np.repeat(part, inputs.shape[1])

    per_step = None if weights is None else map(of_steps, parts(weights))
    with np.errstate(over="ignore", invalid="ignore"):
        of_inputs = mean_and_std(
            (part.reshape(-1, inputs.shape[2]) for part in parts(inputs)), per_step
        )
        of_targets = np.zeros(1), np.ones(1)
        if targets is not None:
            of_targets = mean_and_std([targets], None if weights is None else iter([weights]))
    for name, (_, std) in (("X", of_inputs), ("y", of_targets)):
        if not np.isfinite(std).all():
            raise ValueError(f"{name} holds values too large to be standardised; rescale them")
    (mean, std), (target_mean, target_std) = of_inputs, of_targets
    one = np.where(std > 0, std, 1.0), np.where(target_std > 0, target_std, 1.0)
    return Scaling(mean, one[0], target_mean, one[1])
