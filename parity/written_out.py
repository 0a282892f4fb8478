"""torch's functions that are made of others, written out: so that a patch reaches what is inside."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ignored: Tensor | None = None,
    added: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the context [.., T, K] of scaled dot-product attention, and its weights [.., T, S]."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if added is None else scores + added
    scores = scores if ignored is None else scores.masked_fill(ignored, -torch.inf)
    weights = torch.softmax(scores, -1)
    return weights @ value, weights


def some_step_is_left(ignored: Tensor | None) -> bool:
    """Tell whether each query attends to something; torch has its own answer where not."""
    return ignored is None or not bool(ignored.all(-1).any())


def as_ignored(mask: Tensor) -> Tensor | None:
    """Return what a mask for scores ignores: torch's modules turn True into -inf; else None."""
    if mask.dtype == torch.bool:
        return mask
    ignored = mask.isneginf()
    return ignored if bool((ignored | (mask == 0)).all()) else None


def scaled_dot_product_attention(inside: AbstractContextManager, given: dict[str, Any]) -> Any:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if given["dropout_p"] or given["enable_gqa"]:
        return NotImplemented
    mask, T, S = given["attn_mask"], query.shape[-2], key.shape[-2]
    if given["is_causal"]:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
    told = mask is not None and mask.dtype == torch.bool
    ignored, added = (~mask, None) if told else (None, mask)
    if not some_step_is_left(ignored):
        return NotImplemented
    with inside:
        return attention(query, key, value, ignored, added, given["scale"])[0]


def multi_head_attention_forward(inside: AbstractContextManager, given: dict[str, Any]) -> Any:
    query, key, value, N = (given[n] for n in ("query", "key", "value", "num_heads"))
    unusual = ("bias_k", "bias_v", "static_k", "static_v")
    drops = given["training"] and given["dropout_p"]
    masks = [m for m in (given["key_padding_mask"], given["attn_mask"]) if m is not None]
    if (
        query.ndim != 3
        or drops
        or given["add_zero_attn"]
        or any(given[name] is not None for name in unusual)
        or any(as_ignored(m) is None for m in masks)
    ):
        return NotImplemented
    ignored = None
    if given["key_padding_mask"] is not None:
        ignored = as_ignored(given["key_padding_mask"])[:, None, None]
    if given["attn_mask"] is not None:
        own = as_ignored(given["attn_mask"])
        own = own.unflatten(0, (-1, N)) if own.ndim == 3 else own
        ignored = own if ignored is None else ignored | own
    if not some_step_is_left(ignored):
        return NotImplemented
    if given["use_separate_proj_weight"]:
        weights = [given[f"{letter}_proj_weight"] for letter in "qkv"]
    else:
        weights = given["in_proj_weight"].chunk(3)
    bias = given["in_proj_bias"]
    biases = [None] * 3 if bias is None else bias.chunk(3)
    with inside:
        heads = []
        for x, w, b in zip((query, key, value), weights, biases, strict=True):
            x = functional.linear(x, w, b).transpose(0, 1)
            heads.append(x.unflatten(-1, (N, -1)).transpose(1, 2))
        context, shown = attention(*heads, ignored)
        y = context.transpose(1, 2).flatten(2).transpose(0, 1)
        y = functional.linear(y, given["out_proj_weight"], given["out_proj_bias"])
    if not given["need_weights"]:
        return y, None
    return y, shown.mean(1) if given["average_attn_weights"] else shown


DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
DEFAULTS |= {"enable_gqa": False}


def of_sdpa(args: tuple, kwargs: dict) -> dict[str, Any]:
    """Name the arguments of `scaled_dot_product_attention`, which has no signature to ask."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return DEFAULTS | dict(zip(names, args, strict=False)) | kwargs


def of_heads(args: tuple, kwargs: dict) -> dict[str, Any]:
    """Name the arguments of `multi_head_attention_forward`."""
    bound = signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


WRITTEN_OUT: dict[str, tuple[Callable, Callable]] = {
    "scaled_dot_product_attention": (scaled_dot_product_attention, of_sdpa),
    "multi_head_attention_forward": (multi_head_attention_forward, of_heads),
}


def written_out(name: str, inside: AbstractContextManager, args: tuple, kwargs: dict) -> Any:
    """Compute a function by others that are called inside a context; NotImplemented where not."""
    if name not in WRITTEN_OUT:
        return NotImplemented
    function, named = WRITTEN_OUT[name]
    return function(inside, named(args, kwargs))
