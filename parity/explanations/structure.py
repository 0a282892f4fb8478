"""Explanations by how a model is put together: what is left out, heads, padding; and in which place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from parity import patches as p
from parity.explanations.change import Change, patched

# Functions whose result has the shape of their first argument.
KEEP_SHAPE = [
    *("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh", "sigmoid"),
    *("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm"),
]
SUMS = "add __add__ __radd__ __iadd__ add_"
MOST_PLACES = 16


def of_structure() -> list[Change]:
    """List what JAX may leave out or put together differently."""
    found = [
        patched("left_out", f"{name}: JAX leaves it out", name, name, lambda f, a, k: a[0])
        for name in KEEP_SHAPE
    ]
    for kept, missing in ((1, "first"), (0, "second")):
        found.append(
            patched(
                "residual",
                f"sum of two arrays, as of a residual connection: JAX leaves out the {missing}",
                "x + f(x)",
                SUMS,
                one_part(kept),
            )
        )
    found += [
        patched(
            "norm_kind",
            "norm: JAX subtracts the mean (LayerNorm), torch does not (RMSNorm)",
            "nn.RMSNorm()",
            "rms_norm",
            p.other_norm,
        ),
        patched(
            "norm_kind",
            "norm: JAX does not subtract the mean (RMSNorm), torch does (LayerNorm)",
            "nn.LayerNorm()",
            "layer_norm",
            p.other_norm,
        ),
        patched(
            "split_order",
            "split: JAX takes the two halves the other way round, as of a gated unit",
            "a, gate = jnp.split(x, 2, -1)",
            "chunk split tensor_split",
            halves_swapped,
        ),
    ]
    for cut, join, says in (
        (interleaved, joined_interleaved, "takes every N-th feature for a head, torch neighbours"),
        (straight, joined_straight, "cuts and joins them as [B, N, T, K] without turning axes"),
        (straight, None, "cuts them as [B, N, T, K] without turning axes"),
        (None, joined_straight, "joins them from [B, N, T, K] without turning axes back"),
    ):
        found.append(
            patched(
                "heads",
                f"heads: JAX {says}",
                "x.reshape(B, T, N, K).swapaxes(1, 2)",
                "view reshape unflatten flatten",
                heads(cut, join),
            )
        )
    for left, says in (
        (lambda total: total, "all of it before the first step"),
        (lambda total: total - total // 2, "the larger half before the first step"),
        (lambda total: total // 2, "the larger half behind the last step"),
        (lambda total: 0, "all of it behind the last step"),
    ):
        found.append(
            patched(
                "convolution_padding",
                f"padding of a convolution: JAX puts {says}",
                "padding=[(left, right)]",
                "conv1d",
                padded(left),
            )
        )
    return found


def in_one_place(change: Change, calls: Mapping[str, int]) -> Iterator[Change]:
    """Make a change of torch functions in one of several calls alone, in each in turn."""
    for name in change.patch.functions:
        count = calls.get(name, 0)
        for n in range(count if 1 < count <= MOST_PLACES else 0):
            says = f"{change.says}; in call {n + 1} of {count} of {name}, not in the others"
            yield replace(change, says=says, patch=replace(change.patch, functions=(name,), call=n))


def of_modules(model: Any) -> list[Change]:
    """List what torch's modules have a switch for: a Transformer's norms before or after."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    layers = [m for m in modules if hasattr(m, "norm_first")]
    if not layers:
        return []
    before, after = "before each part", "after each sum"
    here, there = (before, after) if layers[0].norm_first else (after, before)

    @contextmanager
    def switched() -> Iterator[None]:
        for layer in layers:
            layer.norm_first = not layer.norm_first
        try:
            yield
        finally:
            for layer in layers:
                layer.norm_first = not layer.norm_first

    says = f"place of the norms: JAX normalises {there}, torch {here}"
    fix = "x + f(norm(x))" if layers[0].norm_first else "norm(x + f(x))"
    return [Change("norm_first", says, fix, "torch", "norm_first", around=switched)]


def halves_swapped(function: p.Call, args: tuple, kwargs: dict) -> Any:
    """Give two parts of one array in the other order."""
    parts = function(*args, **kwargs)
    return parts[::-1] if len(parts) == 2 else NotImplemented


def one_part(kept: int) -> p.Answer:
    """Take one of two arrays of one shape in place of their sum."""

    def answer(function, args, kwargs):
        x, y = args[:2]
        alike = isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape
        return (x, y)[kept] if alike and x.ndim > 1 else NotImplemented

    return answer


def interleaved(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


def joined_interleaved(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.transpose(-1, -2).reshape(shape)


def straight(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    B, T, N, K = shape
    return x.reshape(B, N, T, K).transpose(1, 2)


def joined_straight(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.transpose(1, 2).reshape(shape)


def heads(cut: Callable | None, join: Callable | None) -> p.Answer:
    """Cut [B, T, N K] into heads [B, T, N, K], or join these, in another way."""

    def answer(function, args, kwargs):
        x, y = args[0], function(*args, **kwargs)
        if cut and y.ndim == 4 and y.shape[:2] == x.shape[:-1]:
            return cut(x, y.shape)
        if join and x.ndim == 4 and x.shape[:2] == y.shape[:-1]:
            return join(x, y.shape)
        return NotImplemented

    return answer


def padded(left: Callable[[int], int]) -> p.Answer:
    """Put so much of a convolution's padding before the first step, the rest behind the last."""

    def answer(function, args, kwargs):
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        padding, width = given.pop("padding", 0), given["weight"].shape[-1] - 1
        (dilation,) = given.get("dilation", (1,))
        if isinstance(padding, str):
            total = dilation * width if padding == "same" else 0
        else:
            total = 2 * padding[0]
        if total == 0:
            return NotImplemented
        x = functional.pad(given.pop("input"), (left(total), total - left(total)))
        return function(x, **given)

    return answer
