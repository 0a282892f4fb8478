"""Update rules, gradient clipping and learning-rate schedules, one written formula each.

Every default on which torch and optax differ stands in `spec.config.OptimizerConfig`.

Dimensions: P all parameters, end to end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from spec.config import OptimizerConfig


class OptimizerState(NamedTuple):
    """Steps taken, running means of the gradient (m) and its square (v), last gradient norm."""

    step: Int[Array, ""]
    m: Float[Array, " P"]
    v: Float[Array, " P"] | None
    norm: Float[Array, ""]


def global_norm(gradient: Float[Array, " P"]) -> Float[Array, ""]:
    """Return the root of the sum of squares over all parameters."""
    return jnp.sqrt((gradient**2).sum())


def clip_by_global_norm(
    gradient: Float[Array, " P"], norm: Float[Array, ""], max_norm: float
) -> Float[Array, " P"]:
    """Scale the gradient by min(1, max_norm / (norm + 1e-6)).

    Source: Pascanu, Mikolov & Bengio (2013); the 1e-6 is torch's, optax has none.
    """
    return gradient * jnp.minimum(max_norm / (norm + 1e-6), 1.0)


def learning_rate(config: OptimizerConfig) -> Callable[[Array], Array]:
    """Return the rate as a function of the steps taken before, from 0.

    Over the first `warmup_steps` it rises in equal parts to lr; then it stays, or falls as half
    a cosine to 0 at `total_steps`.

    Source: Loshchilov & Hutter (2017), equation 5, without restarts.
    """

    def rate(step: Array) -> Array:
        warm = config.lr * (step + 1) / max(config.warmup_steps, 1)
        if config.schedule == "constant":
            return jnp.where(step < config.warmup_steps, warm, config.lr)
        done = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
        cosine = config.lr * 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(done, 1.0)))
        return jnp.where(step < config.warmup_steps, warm, cosine)

    return rate


def one_minus_power(beta: float, step: Float[Array, ""]) -> Float[Array, ""]:
    """Return 1 - beta**step; in float32 the plain form is off by 1e-5 at 1 - 0.999."""
    return -jnp.expm1(step * (math.log(beta) if beta else -math.inf))


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
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

    def init(params: Float[Array, " P"]) -> OptimizerState:
        v = None if config.optimizer == "sgd" else jnp.zeros_like(params)
        return OptimizerState(
            jnp.zeros((), int), jnp.zeros_like(params), v, jnp.zeros_like(params[0])
        )

    def update(gradient, state, params):
        step, m, v, _ = state
        taken = step.astype(params.dtype)
        norm = global_norm(gradient)
        if config.clip_norm is not None:
            gradient = clip_by_global_norm(gradient, norm, config.clip_norm)
        if config.optimizer != "adamw":
            gradient = gradient + config.weight_decay * params
        if config.optimizer == "sgd":
            m = config.momentum * m + gradient
            direction = m
        elif config.optimizer == "rmsprop":
            v = config.beta2 * v + (1 - config.beta2) * gradient**2
            m = config.momentum * m + gradient / (jnp.sqrt(v) + config.eps)
            direction = m
        else:
            m = config.beta1 * m + (1 - config.beta1) * gradient
            v = config.beta2 * v + (1 - config.beta2) * gradient**2
            m_unbiased = m / one_minus_power(config.beta1, taken + 1)
            v_unbiased = v / one_minus_power(config.beta2, taken + 1)
            direction = m_unbiased / (jnp.sqrt(v_unbiased) + config.eps)
        if config.optimizer == "adamw":
            direction = direction + config.weight_decay * params
        return -rate(taken) * direction, OptimizerState(step + 1, m, v, norm)

    return optax.flatten(optax.GradientTransformation(init, update))
