"""Attention over the steps of a sequence.

Dimensions: B batch, S source positions, Q query features, K features of a position, H units of
the scoring layer; of multi-head attention T queries, N heads, K features of a head, H = N x K.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn, softmax, tanh

from spec.params import attention_schema, multi_head_schema, multiplicative_schema
from torch_impl.arrays import add_parameters
from torch_impl.carry import dropout


class Attended(NamedTuple):
    context: Float[Tensor, "B K"]
    weights: Float[Tensor, "B S"]


class Keys(NamedTuple):
    """What attention takes of the keys, the same for every query: made once, asked many times.

    Attributes:
      keys: 0 where not `valid`.
      compared: what scores compare a query with.
      valid: which positions are real; None for all.
    """

    keys: Float[Tensor, "B S K"]
    compared: Float[Tensor, "B S H"]
    valid: Bool[Tensor, "B S"] | None


def real_keys(
    keys: Float[Tensor, "B S K"], valid: Bool[Tensor, "B S"] | None
) -> Float[Tensor, "B S K"]:
    """Put 0 where keys are not `valid`."""
    return keys if valid is None else torch.where(valid[..., None], keys, 0.0)


def weigh(scores: Float[Tensor, "B S"], known: Keys) -> Attended:
    """Turn scores into weights, 0 where not `valid`, and average the keys."""
    keys, _, valid = known
    if valid is None:
        weights = softmax(scores, dim=-1)
    else:
        scores = torch.where(valid, scores, torch.finfo(scores.dtype).min)
        weights = torch.where(valid, softmax(scores, dim=-1), 0.0)
    context = (weights[:, None] @ keys)[:, 0]
    return Attended(context, weights)


class AdditiveAttention(nn.Module):
    """Weigh the positions of a sequence by a learned comparison with a query.

        score_s = v_a . tanh(W_a query + U_a key_s)
        weights = softmax(score), context = sum_s weights_s key_s

    Where `valid` is False a position has weight 0, and its key is ignored, NaN included; with no
    valid position the weights and the context are 0. A decoder, which asks once a step, prepares
    the keys once.

    Source: Bahdanau, Cho & Bengio (2015), appendix A.1.2.
    """

    def __init__(self, query_size: int, key_size: int, hidden_size: int):
        super().__init__()
        add_parameters(self, attention_schema(query_size, key_size, hidden_size))

    def keys(self, keys: Float[Tensor, "B S K"], valid: Bool[Tensor, "B S"] | None = None) -> Keys:
        keys = real_keys(keys, valid)
        return Keys(keys, keys @ self.U_a.T, valid)

    def compare(
        self, query: Float[Tensor, "B Q"], from_keys: Float[Tensor, "B S H"]
    ) -> Float[Tensor, "B S"]:
        from_query = query @ self.W_a.T
        return tanh(from_query[:, None] + from_keys) @ self.v_a

    def scores(
        self, query: Float[Tensor, "B Q"], keys: Float[Tensor, "B S K"]
    ) -> Float[Tensor, "B S"]:
        return self.compare(query, self.keys(keys).compared)

    def step(self, query: Float[Tensor, "B Q"], known: Keys) -> Attended:
        return weigh(self.compare(query, known.compared), known)

    def forward(
        self,
        query: Float[Tensor, "B Q"],
        keys: Float[Tensor, "B S K"],
        valid: Bool[Tensor, "B S"] | None = None,
    ) -> Attended:
        return self.step(query, self.keys(keys, valid))


class MultiplicativeAttention(nn.Module):
    """Weigh the positions of a sequence by their product with a query.

        score_s = key_s . query                 "dot"
        score_s = key_s . query / sqrt(K)       "scaled_dot"
        score_s = key_s . W_a query             "general"
        weights = softmax(score), context = sum_s weights_s key_s

    Where `valid` is False a position has weight 0, and its key is ignored, NaN included; with no
    valid position the weights and the context are 0.

    Source: Luong, Pham & Manning (2015), section 3.1; Vaswani et al. (2017) for the scale.
    """

    def __init__(self, query_size: int, key_size: int, score: str = "general"):
        super().__init__()
        self.score = score
        add_parameters(self, multiplicative_schema(query_size, key_size, score))

    def keys(self, keys: Float[Tensor, "B S K"], valid: Bool[Tensor, "B S"] | None = None) -> Keys:
        keys = real_keys(keys, valid)
        return Keys(keys, keys, valid)

    def scores(
        self, query: Float[Tensor, "B Q"], keys: Float[Tensor, "B S K"]
    ) -> Float[Tensor, "B S"]:
        if self.score == "general":
            query = query @ self.W_a.T
        scale = float(keys.shape[-1]) ** -0.5 if self.score == "scaled_dot" else 1.0
        return (keys @ query[..., None])[..., 0] * scale

    def step(self, query: Float[Tensor, "B Q"], known: Keys) -> Attended:
        return weigh(self.scores(query, known.compared), known)

    def forward(
        self,
        query: Float[Tensor, "B Q"],
        keys: Float[Tensor, "B S K"],
        valid: Bool[Tensor, "B S"] | None = None,
    ) -> Attended:
        return self.step(query, self.keys(keys, valid))


def dot_product_attention(
    query: Float[Tensor, "B N T K"],
    key: Float[Tensor, "B N S K"],
    value: Float[Tensor, "B N S K"],
    mask: Bool[Tensor, "#B 1 #T S"] | None = None,
    keep: Bool[Tensor, "B N T S"] | None = None,
    rate: float = 0.0,
) -> Float[Tensor, "B N T K"]:
    """Average the values, weighed by the dot products of their keys with each query.

        weights = softmax(query key^T / sqrt(K)), context = weights value

    Where `mask` is False a position has weight 0; each query must have one that is True. `keep`
    drops weights at a rate.

    Source: Vaswani et al. (2017), equation 1.
    """
    # A number of Python's: torch.jit.trace makes a shape a tensor, and its root float32.
    scores = query * float(key.shape[-1]) ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    weights = softmax(scores, dim=-1)
    if keep is not None:
        weights = dropout(weights, keep, rate)
    return weights @ value


class MultiHeadAttention(nn.Module):
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

    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.out_proj = nn.Linear(size, size)
        schema = multi_head_schema(size)
        add_parameters(self, {name: schema[name] for name in ("in_proj_weight", "in_proj_bias")})

    def forward(
        self,
        x: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "#B 1 #T T"] | None = None,
        keep: Bool[Tensor, "B N T T"] | None = None,
        rate: float = 0.0,
        attend: Callable = dot_product_attention,
    ) -> Float[Tensor, "B T H"]:
        for_query, for_key, for_value = self.in_proj_bias.chunk(3)
        bias = torch.cat([for_query, for_key.detach(), for_value])
        projected = x @ self.in_proj_weight.T + bias
        heads = projected.unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, N, K]
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        context = attend(query, key, value, mask, keep, rate)
        context = context.transpose(1, 2).flatten(-2)  # [B, T, N x K]
        return context @ self.out_proj.weight.T + self.out_proj.bias
