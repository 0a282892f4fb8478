"""Losses: a mean over the batch.

Dimensions: B batch, T time, O regression targets, P predictions, Q quantiles, C classes.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, log_softmax

from spec.units import LEAST_STD

LOG_ROOT_2PI = math.log(2 * math.pi) / 2


def check(
    predictions: Float[Tensor, "B P"], targets: Float[Tensor, "B O"], outputs: int = 1
) -> None:
    """Raise ValueError unless there are `outputs` predictions side by side for each target."""
    B, O = targets.shape
    if predictions.shape != (B, O * outputs):
        raise ValueError(
            f"predictions {list(predictions.shape)} do not fit targets {[B, O]}: expected "
            f"{[B, O * outputs]}"
        )


def mean(losses: Float[Tensor, "B O"], weights: Float[Tensor, " B"] | None) -> Float[Tensor, ""]:
    """Return the mean over rows and targets; with weights of the rows, sum(w * loss) / sum(w)."""
    if weights is None:
        return losses.mean()
    return (weights[:, None] * losses).sum() / (weights.sum() * losses.shape[1])


def mean_squared_error(
    predictions: Float[Tensor, "B O"],
    targets: Float[Tensor, "B O"],
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of (prediction - target)**2 over rows, by weight if given, and targets."""
    check(predictions, targets)
    return mean((predictions - targets) ** 2, weights)


def quantile_loss(
    predictions: Float[Tensor, "B O*Q"],
    targets: Float[Tensor, "B O"],
    weights: Float[Tensor, " B"] | None = None,
    *,
    quantiles: Sequence[float],
) -> Float[Tensor, ""]:
    """Return the mean of u * (q - [u < 0]), u = target - prediction, also called pinball loss.

    It is over rows, by weight if given, targets, and quantiles q, which stand side by side for each
    target. Nothing keeps them in order. Where u is 0 the gradient by the prediction is -q, that of
    a prediction just too low.

    Source: Koenker & Bassett (1978), "Regression Quantiles".
    """
    check(predictions, targets, len(quantiles))
    q = torch.tensor(quantiles, dtype=predictions.dtype, device=predictions.device)
    u = targets[..., None] - predictions.reshape(*targets.shape, len(quantiles))
    return mean((torch.where(u < 0, q - 1, q) * u).mean(dim=-1), weights)


def mean_and_std(
    outputs: Float[Tensor, "... O*2"],
) -> tuple[Float[Tensor, "... O"], Float[Tensor, "... O"]]:
    """Read outputs as the mean and the standard deviation of each target, side by side.

    std = softplus(output) + LEAST_STD: it grows no faster than the output, so it cannot overflow,
    and its floor bounds 1 / std. A log-variance bounds neither.
    """
    center, raw = torch.unbind(outputs.reshape(*outputs.shape[:-1], -1, 2), dim=-1)
    # Not torch's softplus, which beyond 20 is the identity: off by 2e-9 there.
    softplus = torch.logaddexp(raw, torch.zeros_like(raw))
    return center, softplus + LEAST_STD


def gaussian_nll(
    predictions: Float[Tensor, "B O*2"],
    targets: Float[Tensor, "B O"],
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of -log N(target; mean, std) over rows, by weight if given, and targets.

    In nats, with the constant log(2 pi) / 2; mean and std are those of `mean_and_std`.

    Source: Nix & Weigend (1994), "Estimating the Mean and Variance of the Target Probability
    Distribution".
    """
    check(predictions, targets, 2)
    center, std = mean_and_std(predictions)
    z = (targets - center) / std
    return mean(z**2 / 2 + torch.log(std) + LOG_ROOT_2PI, weights)


def cross_entropy(
    logits: Float[Tensor, "B C"],
    targets: Int[Tensor, " B"],
    weights: Float[Tensor, " B"] | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of -log softmax(logits)[target] over rows, by weight if given, in nats.

    Label smoothing takes (1 - label_smoothing) of the target's and label_smoothing of the mean over
    all classes. Class weights multiply each class's -log softmax, and the mean is by the weight of
    the row's class too: sum(w * loss) / sum(w), as torch.nn.CrossEntropyLoss has it.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna (2016), "Rethinking the Inception Architecture
    for Computer Vision", of label smoothing.
    """
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"logits {list(logits.shape)} do not fit targets {list(targets.shape)}")
    surprise = -log_softmax(logits, dim=-1)
    if class_weights is not None:
        surprise = class_weights * surprise
    losses = surprise.take_along_dim(targets[:, None], dim=-1)
    if label_smoothing:
        spread = surprise.mean(dim=-1, keepdim=True)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if class_weights is None:
        return mean(losses, weights)
    own = torch.ones_like(losses) if weights is None else weights[:, None]
    return (own * losses).sum() / (own * class_weights[targets[:, None]]).sum()


def over_steps(
    loss: Callable[..., Float[Tensor, ""]],
    predictions: Float[Tensor, "B T O"],
    targets: Float[Tensor, "B T O"] | Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | None = None,
    **options,
) -> Float[Tensor, ""]:
    """Return a loss over every step of every sequence, each a row to it; weight 0 masks a step."""
    weights = None if weights is None else weights.flatten()
    return loss(predictions.flatten(0, 1), targets.flatten(0, 1), weights, **options)


LOSSES = {
    "squared_error": mean_squared_error,
    "quantile": quantile_loss,
    "gaussian_nll": gaussian_nll,
    "cross_entropy": cross_entropy,
}
