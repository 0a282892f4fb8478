"""Attention over the steps of a sequence.

Dimensions: B batch, S source positions, Q query features, K features of a position, H units of
the scoring layer.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.nn import softmax, tanh
from jaxtyping import Bool, Float


class Attended(NamedTuple):
    context: Float[Array, "B K"]
    weights: Float[Array, "B S"]


def additive_attention(
    params: Mapping[str, Array],
    query: Float[Array, "B Q"],
    keys: Float[Array, "B S K"],
    valid: Bool[Array, "B S"] | None = None,
) -> Attended:
    """Weigh the positions of a sequence by a learned comparison with a query.

        score_s = v_a . tanh(W_a query + U_a key_s)
        weights = softmax(score), context = sum_s weights_s key_s

    Where `valid` is False a position has weight 0, and its key is ignored, NaN included; with no
    valid position the weights and the context are 0.

    Source: Bahdanau, Cho & Bengio (2015), appendix A.1.2.
    """
    if valid is None:
        valid = jnp.ones(keys.shape[:2], dtype=bool)
    keys = jnp.where(valid[..., None], keys, 0.0)
    from_query = query @ params["W_a"].T
    from_keys = keys @ params["U_a"].T
    scores = tanh(from_query[:, None] + from_keys) @ params["v_a"]
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.where(valid, softmax(scores, axis=-1), 0.0)
    context = (weights[:, None] @ keys)[:, 0]
    return Attended(context, weights)
