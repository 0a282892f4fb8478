"""The losses once more, in plain NumPy: what both backends are held to, and what validation reports.

Any dtype works: longdouble for the exact answer, complex for derivatives.

Dimensions: B batch, T time, O regression targets, Q quantiles, C classes.
"""

import math
from collections.abc import Sequence

import numpy as np

from spec.config import ModelConfig
from spec.units import LEAST_STD

LOG_ROOT_2PI = math.log(2 * math.pi) / 2


def mean(losses: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the mean of [B, O], rows by weights [B] if given."""
    return np.average(losses.mean(axis=1), weights=weights)


def mean_squared_error(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of (prediction - target)**2 over [B, O], rows by weights [B] if given."""
    return mean((predictions - targets) ** 2, weights)


def quantile_loss(
    predictions: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    quantiles: Sequence[float],
) -> np.ndarray:
    """Return the mean of max(q u, (q - 1) u), u = target - prediction [B, O, Q].

    Predictions are [B, O * Q], the quantiles of a target side by side.
    """
    q = np.array(quantiles)
    u = targets[..., None] - predictions.reshape(*targets.shape, len(q))
    return mean((np.where(u.real < 0, q - 1, q) * u).mean(axis=2), weights)


def mean_and_std(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read outputs [.., O * 2] as means and standard deviations [.., O], scaled as the targets are.

    A standard deviation is softplus(output) + LEAST_STD.
    """
    pairs = outputs.reshape(*outputs.shape[:-1], -1, 2)
    raw = pairs[..., 1]
    # log(1 + exp(raw)), of which neither end overflows; complex numbers have no logaddexp.
    softplus = np.where(raw.real > 0, raw, 0) + np.log1p(np.exp(np.where(raw.real > 0, -raw, raw)))
    return pairs[..., 0], softplus + LEAST_STD


def gaussian_nll(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of -log N(target; mean, std), in nats; predictions as of `mean_and_std`."""
    center, std = mean_and_std(predictions)
    z = (targets - center) / std
    return mean(z**2 / 2 + np.log(std) + LOG_ROOT_2PI, weights)


def cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return sum_b v_b sum_c w_c t_bc (-log p_bc) / sum_b v_b w_target, p = softmax(logits).

    Logits are [B, C], targets class indices [B]; v are weights [B], w class weights [C], both 1
    unless given, and t = (1 - label_smoothing) one_hot + label_smoothing / C.
    """
    (B, C), rows = logits.shape, np.arange(len(logits))
    v = np.ones(B) if weights is None else weights
    w = np.ones(C) if class_weights is None else class_weights
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    surprise = np.log(np.exp(shifted).sum(axis=1, keepdims=True)) - shifted
    t = np.full((B, C), label_smoothing / C)
    t[rows, targets] += 1 - label_smoothing
    return (v * (w * t * surprise).sum(axis=1)).sum() / (v * w[targets]).sum()


def training_loss(
    config: ModelConfig,
    predictions: np.ndarray,
    targets: np.ndarray,
    class_weights: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return the loss that a model is trained to minimise, by weights [B] or [B, T] if given."""
    if config.every_step:
        predictions, targets = (
            part.reshape(-1, *part.shape[2:]) for part in (predictions, targets)
        )
        weights = None if weights is None else weights.reshape(-1)
    if config.criterion == "cross_entropy":
        return cross_entropy(
            predictions,
            targets,
            weights,
            label_smoothing=config.label_smoothing,
            class_weights=class_weights,
        )
    if config.criterion == "quantile":
        return quantile_loss(predictions, targets, weights, quantiles=config.levels)
    if config.criterion == "gaussian_nll":
        return gaussian_nll(predictions, targets, weights)
    return mean_squared_error(predictions, targets, weights)
