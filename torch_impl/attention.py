"""Attention over the steps of a sequence.

Dimensions: B batch, S source positions, Q query features, K features of a position, H units of
the scoring layer.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn, softmax, tanh

from spec.params import attention_schema
from torch_impl.arrays import add_parameters


class Attended(NamedTuple):
    context: Float[Tensor, "B K"]
    weights: Float[Tensor, "B S"]


class AdditiveAttention(nn.Module):
    """Weigh the positions of a sequence by a learned comparison with a query.

        score_s = v_a . tanh(W_a query + U_a key_s)
        weights = softmax(score), context = sum_s weights_s key_s

    Where `valid` is False a position has weight 0, and its key is ignored, NaN included; with no
    valid position the weights and the context are 0.

    Source: Bahdanau, Cho & Bengio (2015), appendix A.1.2.
    """

    def __init__(self, query_size: int, key_size: int, hidden_size: int):
        super().__init__()
        add_parameters(self, attention_schema(query_size, key_size, hidden_size))

    def forward(
        self,
        query: Float[Tensor, "B Q"],
        keys: Float[Tensor, "B S K"],
        valid: Bool[Tensor, "B S"] | None = None,
    ) -> Attended:
        if valid is None:
            valid = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
        keys = torch.where(valid[..., None], keys, 0.0)
        from_query = query @ self.W_a.T
        from_keys = keys @ self.U_a.T
        scores = tanh(from_query[:, None] + from_keys) @ self.v_a
        scores = torch.where(valid, scores, torch.finfo(scores.dtype).min)
        weights = torch.where(valid, softmax(scores, dim=-1), 0.0)
        context = (weights[:, None] @ keys)[:, 0]
        return Attended(context, weights)
