"""Explanations by the optimiser: its options, the form of its decay, the clip."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.explanations.change import Change


def of_optimisers() -> list[Change]:
    """List other defaults and formulas of torch's optimisers and of its clipping."""
    found = []

    def change(name, says, fix, around, slot):
        found.append(Change(name, says, fix, "torch", slot, around=around))

    for kind in ("Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad"):
        for key, values in {
            "eps": (1e-8, 1e-7, 1e-6, 1e-10, 1e-5, 1e-3, 0.0),
            "weight_decay": (0.0, 1e-4, 1e-2),
            "betas": ((0.9, 0.999), (0.9, 0.99), (0.9, 0.95)),
            "dampening": (0.0, 0.9),
            "nesterov": (True, False),
            "alpha": (0.9, 0.99),
            "initial_accumulator_value": (0.0, 0.1),
            "amsgrad": (True, False),
        }.items():
            for value in values:
                says = f"{kind} {key}: JAX has {value}"
                word = {"weight_decay": "decay"}.get(key, key)
                change(
                    f"optimizer_{word}",
                    says,
                    f"{key}={value}",
                    lambda kind=kind, key=key, value=value: default(kind, key, value),
                    f"{kind} {key}",
                )
    change(
        "optimizer_decoupled_decay",
        "weight decay: JAX adds it to the gradient (L2), torch's AdamW takes it off the weights",
        "optax.adamw",
        lambda: replaced("AdamW", "Adam"),
        "decay form",
    )
    change(
        "optimizer_decoupled_decay",
        "weight decay: JAX takes it off the weights (AdamW), torch adds it to the gradient",
        "optax.chain(optax.add_decayed_weights(w), optax.adam(lr))",
        lambda: replaced("Adam", "AdamW"),
        "decay form",
    )
    change(
        "clip_formula",
        "clip formula: JAX divides by the norm, torch by the norm + 1e-6",
        "max_norm / (norm + 1e-6)",
        plain_clip,
        "clip",
    )
    change("clip_formula", "clip: JAX does not clip", "optax.clip_by_global_norm", no_clip, "clip")
    return found


@contextlib.contextmanager
def default(kind: str, key: str, value: Any) -> Iterator[None]:
    """Make every optimiser of a kind with one option changed."""
    owner = getattr(torch.optim, kind)
    original = owner.__init__

    def init(self, params, *args, **kwargs):
        original(self, params, *args, **kwargs)
        for group in self.param_groups:
            if key not in group:
                raise ValueError(f"{kind} has no {key}")
            group[key] = value

    owner.__init__ = init
    try:
        yield
    finally:
        owner.__init__ = original


@contextlib.contextmanager
def replaced(kind: str, other: str) -> Iterator[None]:
    """Make another optimiser in a kind's place, with its options."""
    owner = getattr(torch.optim, kind)
    step = owner.__init__

    def init(self, params, *args, **kwargs):
        step(self, params, *args, **kwargs)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = other == "AdamW"

    owner.__init__ = init
    try:
        yield
    finally:
        owner.__init__ = step


@contextlib.contextmanager
def clipping(factor: Callable[[Any, float], Any]) -> Iterator[None]:
    """Run with another clip_grad_norm_."""
    original = torch.nn.utils.clip_grad_norm_

    def clip(parameters, max_norm, *args, **kwargs):
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        grads = [q.grad for q in parameters if q.grad is not None]
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        for g in grads:
            g.mul_(factor(norm, max_norm))
        return norm

    torch.nn.utils.clip_grad_norm_ = clip
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = original


def plain_clip() -> contextlib.AbstractContextManager:
    return clipping(lambda norm, most: torch.clamp(most / norm, max=1.0))


def no_clip() -> contextlib.AbstractContextManager:
    return clipping(lambda norm, most: 1.0)
