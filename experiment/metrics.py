"""Metrics of predictions, in the unit of the data.

Dimensions: N rows, O regression targets, Q quantiles, C classes.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from spec.losses import LOG_ROOT_2PI, quantile_loss

CENTRAL_90 = NormalDist().inv_cdf(0.95)  # standard deviations


def regression(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return MSE, RMSE, MAE and R² of [N, O], each a mean over targets.

    R² is 0 for a target that is constant, as it then explains nothing.
    """
    error = predictions - targets
    mse = (error**2).mean(axis=0)
    spread = ((targets - targets.mean(axis=0)) ** 2).mean(axis=0)
    r2 = np.where(spread > 0, 1 - mse / np.where(spread > 0, spread, 1.0), 0.0)
    return {
        "mse": float(mse.mean()),
        "rmse": float(np.sqrt(mse).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": float(r2.mean()),
    }


def quantiles(
    predictions: np.ndarray, targets: np.ndarray, levels: Sequence[float]
) -> dict[str, float]:
    """Return the mean pinball loss of [N, O, Q], and the share of targets in the outer interval.

    Of quantiles 0.1 .. 0.9 that is "coverage_80", which is 0.8 of a perfect model; of a single
    quantile there is none.
    """
    flat = predictions.reshape(len(predictions), -1)
    found = {"pinball": float(quantile_loss(flat, targets, quantiles=levels))}
    if len(levels) > 1:
        inside = (predictions[..., 0] <= targets) & (targets <= predictions[..., -1])
        found[f"coverage_{100 * (levels[-1] - levels[0]):.10g}"] = float(inside.mean())
    return found


def gaussian(center: np.ndarray, std: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return the mean of -log N(target; center, std), in nats, of [N, O] each.

    And "coverage_90", the share of targets in the central 90 %.
    """
    z = (targets - center) / std
    return {
        "nll": float((z**2 / 2 + np.log(std) + LOG_ROOT_2PI).mean()),
        "coverage_90": float((np.abs(z) <= CENTRAL_90).mean()),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [.., C], float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def classification(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro F1 and log loss in nats of [N, C] and class indices [N].

    Macro F1 is a mean over the classes that occur in the targets or the predictions.
    """
    predicted = probabilities.argmax(axis=1)
    f1 = []
    for label in np.union1d(targets, predicted):
        hits = np.sum((predicted == label) & (targets == label))
        f1.append(2 * hits / (np.sum(predicted == label) + np.sum(targets == label)))
    tiny = np.finfo(np.float64).eps
    chosen = np.maximum(probabilities[np.arange(len(targets)), targets], tiny)
    return {
        "accuracy": float((predicted == targets).mean()),
        "macro_f1": float(np.mean(f1)),
        "log_loss": float(-np.log(chosen).mean()),
    }
