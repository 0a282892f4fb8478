"""Metrics of predictions, in the unit of the data.

Dimensions: N rows, O regression targets, C classes.
"""

import numpy as np


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


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C], float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


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
