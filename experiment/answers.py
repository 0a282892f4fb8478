"""What the outputs of a model say, in the unit of the data, and how good that is.

Dimensions: N rows, O regression targets, P outputs of each target, C classes.
"""

import numpy as np

from data.dataset import Known, Meaning
from data.scaling import Scaling
from experiment import metrics
from spec.config import ModelConfig
from spec.losses import mean_and_std


def suffixes(model: ModelConfig) -> tuple[str, ...]:
    """Return what stands behind a target's name in that of each of its outputs [P]."""
    if model.criterion == "quantile":
        return tuple(f"_q{100 * level:.10g}" for level in model.levels)
    return ("", "_std") if model.criterion == "gaussian_nll" else ("",)


def output_names(model: ModelConfig, meaning: Meaning) -> tuple[str, ...]:
    """Name every output: the classes, or of target y: y; y_q10, y_q50, y_q90; y, y_std."""
    return meaning.classes or tuple(
        target + suffix for target in meaning.layout.outputs for suffix in suffixes(model)
    )


def point(model: ModelConfig) -> int | None:
    """Return which of a target's outputs is its point prediction.

    Of quantiles the median, else the middle one; None for an even number without the median.
    """
    levels = model.levels
    if not levels:
        return 0
    middle = len(levels) // 2 if len(levels) % 2 else None
    return levels.index(0.5) if 0.5 in levels else middle


def answers(model: ModelConfig, meaning: Meaning, outputs: np.ndarray) -> np.ndarray:
    """Return what the outputs of a model say, float64.

    Returns:
      probabilities [.., C]; or [.., O * P] in the unit of the data: predictions, or the quantiles in
      increasing order, or mean and standard deviation, side by side for each target. Quantiles that
      cross are sorted, which brings them no further from the true ones (Chernozhukov,
      Fernandez-Val & Galichon, 2010, "Quantile and Probability Curves Without Crossing").
    """
    return in_unit(model, meaning.scaling, outputs)


def in_unit(model: ModelConfig, scaling: Scaling, outputs: np.ndarray) -> np.ndarray:
    """Return what the outputs of a model say, as `answers`."""
    if model.criterion == "cross_entropy":
        return metrics.softmax(outputs)
    outputs, restore = outputs.astype(np.float64), scaling.restore
    if model.criterion == "quantile":
        by_target = np.sort(outputs.reshape(*outputs.shape[:-1], -1, len(model.levels)))
        return restore(by_target.swapaxes(-1, -2)).swapaxes(-1, -2).reshape(outputs.shape)
    if model.criterion == "gaussian_nll":
        center, std = mean_and_std(outputs)
        pairs = np.stack([restore(center), std * scaling.target_std], axis=-1)
        return pairs.reshape(outputs.shape)
    return restore(outputs)


@np.errstate(over="ignore", invalid="ignore")
def measure(
    model: ModelConfig, meaning: Meaning, outputs: np.ndarray, known: Known
) -> dict[str, float]:
    """Return the metrics of outputs [N, O * P], or [N, T, O * P], in the unit of the data.

    Of quantiles and of means and standard deviations they are those of the point prediction, where
    there is one, and those of the distribution.
    """
    outputs = outputs if known.steps is None else outputs[known.steps]
    found, targets = answers(model, meaning, outputs), known.targets
    if model.criterion == "cross_entropy":
        return metrics.classification(found, targets)
    by_target, at = found.reshape(*targets.shape, model.outputs_per_target), point(model)
    measured = {} if at is None else metrics.regression(by_target[..., at], targets)
    if model.criterion == "quantile":
        measured |= metrics.quantiles(by_target, targets, model.levels)
    if model.criterion == "gaussian_nll":
        measured |= metrics.gaussian(by_target[..., 0], by_target[..., 1], targets)
    return measured


def measure_steps(
    model: ModelConfig, meaning: Meaning, outputs: np.ndarray, known: Known
) -> list[dict[str, float]]:
    """Return the metrics of each step of a path; none where there is no point prediction."""
    at, steps = point(model), meaning.layout.forecast_steps
    if at is None:
        return []
    found = answers(model, meaning, outputs).reshape(*known.targets.shape, -1)[..., at]
    parts = (np.split(part, steps, axis=1) for part in (found, known.targets))
    return [metrics.regression(*pair) for pair in zip(*parts, strict=True)]
