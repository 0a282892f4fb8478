"""Losses: a mean over the batch.

Dimensions: B batch, O regression targets, C classes.
"""

import jax.numpy as jnp
from jax import Array
from jax.nn import log_softmax
from jaxtyping import Float, Int


def mean(losses: Float[Array, "B O"], weights: Float[Array, " B"] | None) -> Float[Array, ""]:
    """Return the mean over rows and targets; with weights of the rows, sum(w * loss) / sum(w)."""
    if weights is None:
        return losses.mean()
    return (weights[:, None] * losses).sum() / (weights.sum() * losses.shape[1])


def mean_squared_error(
    predictions: Float[Array, "B O"],
    targets: Float[Array, "B O"],
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Return the mean of (prediction - target)**2 over rows, by weight if given, and targets."""
    return mean((predictions - targets) ** 2, weights)


def cross_entropy(
    logits: Float[Array, "B C"],
    targets: Int[Array, " B"],
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Return the mean of -log softmax(logits)[target] over rows, by weight if given, in nats."""
    log_probability = log_softmax(logits, axis=-1)
    return -mean(jnp.take_along_axis(log_probability, targets[:, None], axis=-1), weights)


LOSSES = {"regression": mean_squared_error, "classification": cross_entropy}
