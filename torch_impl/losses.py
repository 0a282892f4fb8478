"""Losses: a mean over the batch.

Dimensions: B batch, O regression targets, C classes.
"""

from jaxtyping import Float, Int
from torch import Tensor, log_softmax


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
    return mean((predictions - targets) ** 2, weights)


def cross_entropy(
    logits: Float[Tensor, "B C"],
    targets: Int[Tensor, " B"],
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of -log softmax(logits)[target] over rows, by weight if given, in nats."""
    log_probability = log_softmax(logits, dim=-1)
    return -mean(log_probability.take_along_dim(targets[:, None], dim=-1), weights)


LOSSES = {"regression": mean_squared_error, "classification": cross_entropy}
