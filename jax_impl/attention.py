"""Attention over the steps of a sequence.

Dimensions: B batch, S source positions, Q query features, K features of a position, H units of
the scoring layer; of multi-head attention T queries, N heads, K features of a head, H = N x K.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jax_impl.arrays import softmax, tanh
from jax_impl.carry import dropout


class Attended(NamedTuple):
    context: Float[Array, "B K"]
    weights: Float[Array, "B S"]


class Keys(NamedTuple):
    """What attention takes of the keys, the same for every query: made once, asked many times.

    Attributes:
      keys: 0 where not `valid`.
      compared: what scores compare a query with.
      valid: which positions are real; None for all.
    """

    keys: Float[Array, "B S K"]
    compared: Float[Array, "B S H"]
    valid: Bool[Array, "B S"] | None


def real_keys(
    keys: Float[Array, "B S K"], valid: Bool[Array, "B S"] | None
) -> Float[Array, "B S K"]:
    """Put 0 where keys are not `valid`."""
    return keys if valid is None else jnp.where(valid[..., None], keys, 0.0)


def weigh(scores: Float[Array, "B S"], known: Keys) -> Attended:
    """Turn scores into weights, 0 where not `valid`, and average the keys."""
    keys, _, valid = known
    if valid is None:
        weights = softmax(scores, axis=-1)
    else:
        scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(valid, softmax(scores, axis=-1), 0.0)
    context = (weights[:, None] @ keys)[:, 0]
    return Attended(context, weights)


def additive_keys(
    params: Mapping[str, Array],
    keys: Float[Array, "B S K"],
    valid: Bool[Array, "B S"] | None = None,
) -> Keys:
    """Return what `additive_step` takes of the keys."""
    keys = real_keys(keys, valid)
    return Keys(keys, keys @ params["U_a"].T, valid)


def compare(
    params: Mapping[str, Array], query: Float[Array, "B Q"], from_keys: Float[Array, "B S H"]
) -> Float[Array, "B S"]:
    """Return the scores of `additive_step`."""
    from_query = query @ params["W_a"].T
    return tanh(from_query[:, None] + from_keys) @ params["v_a"]


def additive_scores(
    params: Mapping[str, Array], query: Float[Array, "B Q"], keys: Float[Array, "B S K"]
) -> Float[Array, "B S"]:
    """Return the scores of `additive_attention`."""
    return compare(params, query, additive_keys(params, keys).compared)


def additive_step(params: Mapping[str, Array], query: Float[Array, "B Q"], known: Keys) -> Attended:
    """Do what `additive_attention` does, with keys that were prepared for many queries."""
    return weigh(compare(params, query, known.compared), known)


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
    valid position the weights and the context are 0. A decoder, which asks once a step, prepares
    the keys once.

    Source: Bahdanau, Cho & Bengio (2015), appendix A.1.2.
    """
    return additive_step(params, query, additive_keys(params, keys, valid))


def multiplicative_keys(
    params: Mapping[str, Array],
    keys: Float[Array, "B S K"],
    valid: Bool[Array, "B S"] | None = None,
) -> Keys:
    """Return what `multiplicative_step` takes of the keys."""
    keys = real_keys(keys, valid)
    return Keys(keys, keys, valid)


def multiplicative_scores(
    params: Mapping[str, Array],
    query: Float[Array, "B Q"],
    keys: Float[Array, "B S K"],
    score: str = "general",
) -> Float[Array, "B S"]:
    """Return the scores of `multiplicative_attention`."""
    if score == "general":
        query = query @ params["W_a"].T
    scale = keys.shape[-1] ** -0.5 if score == "scaled_dot" else 1.0
    return (keys @ query[..., None])[..., 0] * scale


def multiplicative_step(
    params: Mapping[str, Array],
    query: Float[Array, "B Q"],
    known: Keys,
    score: str = "general",
) -> Attended:
    """Do what `multiplicative_attention` does, with keys that were prepared for many queries."""
    return weigh(multiplicative_scores(params, query, known.compared, score), known)


def multiplicative_attention(
    params: Mapping[str, Array],
    query: Float[Array, "B Q"],
    keys: Float[Array, "B S K"],
    valid: Bool[Array, "B S"] | None = None,
    score: str = "general",
) -> Attended:
    """Weigh the positions of a sequence by their product with a query.

        score_s = key_s . query                 "dot"
        score_s = key_s . query / sqrt(K)       "scaled_dot"
        score_s = key_s . W_a query             "general"
        weights = softmax(score), context = sum_s weights_s key_s

    Where `valid` is False a position has weight 0, and its key is ignored, NaN included; with no
    valid position the weights and the context are 0.

    Source: Luong, Pham & Manning (2015), section 3.1; Vaswani et al. (2017) for the scale.
    """
    return multiplicative_step(params, query, multiplicative_keys(params, keys, valid), score)


def dot_product_attention(
    query: Float[Array, "B N T K"],
    key: Float[Array, "B N S K"],
    value: Float[Array, "B N S K"],
    mask: Bool[Array, "#B 1 #T S"] | None = None,
    keep: Bool[Array, "B N T S"] | None = None,
    rate: float = 0.0,
) -> Float[Array, "B N T K"]:
    """Average the values, weighed by the dot products of their keys with each query.

        weights = softmax(query key^T / sqrt(K)), context = weights value

    Where `mask` is False a position has weight 0; each query must have one that is True. `keep`
    drops weights at a rate.

    Source: Vaswani et al. (2017), equation 1.
    """
    scores = query * key.shape[-1] ** -0.5 @ key.swapaxes(-1, -2)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = softmax(scores, axis=-1)
    if keep is not None:
        weights = dropout(weights, keep, rate)
    return weights @ value


def multi_head_attention(
    params: Mapping[str, Any],
    x: Float[Array, "B T H"],
    num_heads: int,
    mask: Bool[Array, "#B 1 #T T"] | None = None,
    keep: Bool[Array, "B N T T"] | None = None,
    rate: float = 0.0,
    attend: Callable = dot_product_attention,
) -> Float[Array, "B T H"]:
    """Let every step of a sequence attend to all, in several heads side by side.

        query, key, value = thirds of W_in x + b_in, each cut into N heads of K features
        y = W_out [context of head 1; ..; context of head N] + b_out

    Parameters have the names, shapes and order of torch.nn.MultiheadAttention. The keys' part of
    b_in moves all scores of a query alike, which softmax does not see: its gradient is 0. It is
    given as exactly 0, for Adam would make whole steps of its rounding.

    Args:
      x: steps [B, T, H].
      mask: which steps each may attend to, [B or 1, 1, T or 1, T]; None for all.
      keep: dropout mask of the weights [B, N, T, T]; None drops nothing.
      rate: what `keep` drops at.
      attend: `dot_product_attention`, or a kernel that does the same.

    Returns:
      y [B, T, H].

    Source: Vaswani et al. (2017), section 3.2.2.
    """
    for_query, for_key, for_value = jnp.split(params["in_proj_bias"], 3)
    bias = jnp.concatenate([for_query, lax.stop_gradient(for_key), for_value])
    projected = x @ params["in_proj_weight"].T + bias
    heads = projected.reshape(*x.shape[:2], 3, num_heads, -1)  # [B, T, 3, N, K]
    query, key, value = heads.transpose(2, 0, 3, 1, 4)
    context = attend(query, key, value, mask, keep, rate)
    context = context.swapaxes(1, 2).reshape(x.shape)  # [B, T, N x K]
    return context @ params["out_proj"]["weight"].T + params["out_proj"]["bias"]
