"""Losses: a mean over the batch.

Dimensions: B batch, O regression targets, C classes.
"""

import jax.numpy as jnp
from jax import Array
from jax.nn import log_softmax
from jaxtyping import Float, Int


def mean_squared_error(
    predictions: Float[Array, "B O"], targets: Float[Array, "B O"]
) -> Float[Array, ""]:
    """Return the mean of (prediction - target)**2 over rows and targets."""
    return ((predictions - targets) ** 2).mean()


def cross_entropy(logits: Float[Array, "B C"], targets: Int[Array, " B"]) -> Float[Array, ""]:
    """Return the mean of -log softmax(logits)[target] over rows, in nats."""
    log_probability = log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probability, targets[:, None], axis=-1).mean()


LOSSES = {"regression": mean_squared_error, "classification": cross_entropy}
