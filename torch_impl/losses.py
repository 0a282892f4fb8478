"""Losses: a mean over the batch.

Dimensions: B batch, O regression targets, C classes.
"""

from jaxtyping import Float, Int
from torch import Tensor, log_softmax


def mean_squared_error(
    predictions: Float[Tensor, "B O"], targets: Float[Tensor, "B O"]
) -> Float[Tensor, ""]:
    """Return the mean of (prediction - target)**2 over rows and targets."""
    return ((predictions - targets) ** 2).mean()


def cross_entropy(logits: Float[Tensor, "B C"], targets: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean of -log softmax(logits)[target] over rows, in nats."""
    log_probability = log_softmax(logits, dim=-1)
    return -log_probability.take_along_dim(targets[:, None], dim=-1).mean()


LOSSES = {"regression": mean_squared_error, "classification": cross_entropy}
