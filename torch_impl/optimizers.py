"""Update rules, gradient clipping and learning-rate schedules, one written formula each.

Every default on which torch and optax differ stands in `spec.config.OptimizerConfig`.

Dimensions: P all parameters, end to end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spec.config import OptimizerConfig


class OptimizerState(NamedTuple):
    """Steps taken, running means of the gradient (m) and its square (v), last gradient norm."""

    step: int
    m: Float[Tensor, " P"]
    v: Float[Tensor, " P"] | None
    norm: Float[Tensor, ""]


class GradientTransformation(NamedTuple):
    """`init(params) -> state` and `update(gradient, state, params) -> (updates, state)`, as optax's."""

    init: Callable
    update: Callable


def global_norm(gradient: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """Return the root of the sum of squares over all parameters."""
    return torch.linalg.vector_norm(gradient)


def clip_by_global_norm(
    gradient: Float[Tensor, " P"], norm: Float[Tensor, ""], max_norm: float
) -> Float[Tensor, " P"]:
    """Scale the gradient by min(1, max_norm / (norm + 1e-6)).

    Source: Pascanu, Mikolov & Bengio (2013); the 1e-6 is torch's, optax has none.
    """
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)


def learning_rate(config: OptimizerConfig) -> Callable[[int], float]:
    """Return the rate as a function of the steps taken before, from 0.

    Over the first `warmup_steps` it rises in equal parts to lr; then it stays, or falls as half
    a cosine to 0 at `total_steps`.

    Source: Loshchilov & Hutter (2017), equation 5, without restarts.
    """

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return config.lr
        done = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return rate


def optimizer(config: OptimizerConfig) -> GradientTransformation:
    """Build an update rule; `params + updates` are the next parameters.

        gradient = clip(gradient) [+ weight_decay * params, but for adamw]
        sgd:          m = momentum * m + gradient;        direction = m
        rmsprop:      v = beta2 * v + (1 - beta2) * gradient**2
                      m = momentum * m + gradient / (sqrt(v) + eps);    direction = m
        adam, adamw:  m = beta1 * m + (1 - beta1) * gradient
                      v = beta2 * v + (1 - beta2) * gradient**2
                      direction = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)
        updates = -rate * (direction [+ weight_decay * params, for adamw])

    Source: Kingma & Ba (2015), algorithm 1; Loshchilov & Hutter (2019) for adamw; Tieleman &
    Hinton (2012), lecture 6.5, for rmsprop, eps outside the root and a momentum as torch has them.
    """
    rate = learning_rate(config)

    def init(params: Float[Tensor, " P"]) -> OptimizerState:
        v = None if config.optimizer == "sgd" else torch.zeros_like(params)
        return OptimizerState(0, torch.zeros_like(params), v, torch.zeros_like(params[0]))

    def update(gradient, state, params):
        step, m, v, _ = state
        norm = global_norm(gradient)
        if config.clip_norm is not None:
            gradient = clip_by_global_norm(gradient, norm, config.clip_norm)
        if config.optimizer != "adamw":
            gradient = gradient.add(params, alpha=config.weight_decay)
        if config.optimizer == "sgd":
            m = config.momentum * m + gradient
            direction = m
        elif config.optimizer == "rmsprop":
            v = (config.beta2 * v).addcmul_(gradient, gradient, value=1 - config.beta2)
            m = config.momentum * m + gradient / v.sqrt().add_(config.eps)
            direction = m
        else:  # in place on what is fresh: each large temporary is a trip through memory
            m = (config.beta1 * m).add_(gradient, alpha=1 - config.beta1)
            v = (config.beta2 * v).addcmul_(gradient, gradient, value=1 - config.beta2)
            m_unbiased = m / (1 - config.beta1 ** (step + 1))
            v_unbiased = v / (1 - config.beta2 ** (step + 1))
            direction = m_unbiased.div_(v_unbiased.sqrt_().add_(config.eps))
        if config.optimizer == "adamw":
            direction = direction.add(params, alpha=config.weight_decay)
        return -rate(step) * direction, OptimizerState(step + 1, m, v, norm)

    return GradientTransformation(init, update)
