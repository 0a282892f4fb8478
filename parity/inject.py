"""Known differences between the frameworks, switched on in the JAX side to see what each looks like.

Each stands in for a mistake that a port makes. It replaces functions of `jax_impl` while a `with`
block runs; torch's side stays as it is.

Dimensions: B batch, S source positions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

import jax_impl
from jax_impl import encoder, models, optimizers, recurrent, training
from jax_impl.losses import LOSSES
from spec.config import ModelConfig, UpdateRule
from spec.errors import ConfigError
from spec.options import nearest


@dataclass(frozen=True)
class Injection:
    """A difference.

    Attributes:
      sentence: what the JAX side does.
      change: function of the batch size that returns the replacements, (owner, name) -> value.
      options: what a study sets, where the user does not, for the difference to show.
      needs: what has to hold for it to show, in words; `shows` tells whether it does.
    """

    sentence: str
    change: Callable[[int], Mapping[tuple[Any, str], Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    shows: Callable[[ModelConfig, UpdateRule, bool], bool] = lambda *study: True


@contextmanager
def injected(name: str, batch_size: int) -> Iterator[None]:
    """Switch a difference on; the training step that JAX compiled before, and under it, is forgotten."""
    training._step.clear_cache()
    try:
        with ExitStack() as stack:
            for (owner, attribute), value in INJECTIONS[name].change(batch_size).items():
                stack.enter_context(patch.object(owner, attribute, value))
            yield
    finally:
        training._step.clear_cache()


def unknown(name: str) -> str:
    """Say that there is no such difference."""
    near = nearest(name, list(INJECTIONS))
    return f"--inject {name}: no such difference{near}; --inject list names all"


def listed() -> str:
    """Name all, a line each."""
    width = max(map(len, INJECTIONS)) + 2
    return "\n".join(f"{name:<{width}}{one.sentence}" for name, one in INJECTIONS.items())


def require_visible(name: str, model: ModelConfig, rule: UpdateRule, short: bool) -> None:
    """Raise ConfigError where a difference cannot show; `short` tells of a short last batch."""
    if not INJECTIONS[name].shows(model, rule, short):
        raise ConfigError(f"--inject {name}: needs {INJECTIONS[name].needs}")


def rule_with(change: Callable) -> Mapping[tuple[Any, str], Any]:
    """Replace the optimiser by one whose `update` is followed by `change`.

    `change(config, rate, before, state, params, updates)` returns (updates, state) of flat vectors.
    """
    original = optimizers.optimizer

    def optimizer(config):
        # `optimizer` flattens the tree around what it is given: get at the rule inside.
        with patch.object(optimizers.optax, "flatten", lambda rule: rule):
            rule = original(config)

        def update(gradient, before, params):
            updates, state = rule.update(gradient, before, params)
            rate = optimizers.learning_rate(config)(before.step.astype(params.dtype))
            return change(config, rate, before, state, params, updates)

        return optimizers.optax.flatten(rule._replace(update=update))

    return {(training, "optimizer"): optimizer}


def adamw_decay_default(batch_size):
    original = training.init_state

    def init_state(model, rule, *rest, **options):
        return original(model, replace(rule, weight_decay=1e-4), *rest, **options)

    return {(training, "init_state"): init_state, (jax_impl, "init_state"): init_state}


def clip_eps(batch_size):
    def clip_by_global_norm(gradient, norm, max_norm):
        return gradient * jnp.minimum(max_norm / norm, 1.0)

    return {(optimizers, "clip_by_global_norm"): clip_by_global_norm}


def padding_in_mean(batch_size):
    def over_all(loss):
        return lambda found, *given, **options: (
            loss(found, *given, **options) * (len(found) / batch_size)
        )

    return {(training, "LOSSES"): {name: over_all(loss) for name, loss in LOSSES.items()}}


def adam_eps_inside(batch_size):
    def change(config, rate, before, state, params, updates):
        taken = state.step.astype(params.dtype)
        m = state.m / optimizers.one_minus_power(config.beta1, taken)
        v = state.v / optimizers.one_minus_power(config.beta2, taken)
        direction = m / jnp.sqrt(v + config.eps)
        if config.optimizer == "adamw":
            direction = direction + config.weight_decay * params
        return -rate * direction, state

    return rule_with(change)


def two_biases_as_one(batch_size):
    original = recurrent.split_layers

    def split_layers(params):
        return [
            [cell | {"bias_hh": jax.lax.stop_gradient(cell["bias_hh"])} for cell in directions]
            for directions in original(params)
        ]

    return {(recurrent, "split_layers"): split_layers}


def l2_loss_half(batch_size):
    half = {"squared_error": lambda *given: LOSSES["squared_error"](*given) / 2}
    return {(training, "LOSSES"): LOSSES | half}


def mask_sense(batch_size):
    original = models.attention_over_steps

    def attention_over_steps(config):
        def attend(params, query, keys, valid=None):
            ignored = jnp.ones(keys.shape[:2], bool) if valid is None else valid
            return original(config)(params, query, keys, ~ignored)

        return attend

    return {(models, "attention_over_steps"): attention_over_steps}


def gru_reset_before(batch_size):
    original = recurrent.gru_cell

    def gru_cell(params, x, h, reset_after, read):
        return original(params, x, h, not reset_after, read)

    return {(recurrent, "gru_cell"): gru_cell}


def dropout_unscaled(batch_size):
    def dropout(x, keep, rate):
        return jnp.where(keep, x, 0.0)

    return {(recurrent, "dropout"): dropout, (models, "dropout"): dropout}


def momentum_dampening(batch_size):
    def change(config, rate, before, state, params, updates):
        gradient = state.m - config.momentum * before.m
        m = config.momentum * before.m + (1 - config.momentum) * gradient
        return -rate * m, state._replace(m=m)

    return rule_with(change)


def float32_inside(batch_size):
    original = models.read_out

    def read_out(config, head, features, keep):
        return original(config, head, features.astype(jnp.float32).astype(features.dtype), keep)

    return {(models, "read_out"): read_out}


def rmsprop_eps_inside(batch_size):
    def change(config, rate, before, state, params, updates):
        # The gradient as the rule saw it: what it added to m, times the root that it divided by.
        gradient = (state.m - config.momentum * before.m) * (jnp.sqrt(state.v) + config.eps)
        m = config.momentum * before.m + gradient / jnp.sqrt(state.v + config.eps)
        return -rate * m, state._replace(m=m)

    return rule_with(change)


def layer_norm_as(normalise):
    """Replace what stands before a layer norm's weight and bias: `normalise(x)`."""

    def layer_norm(params, x):
        return normalise(x) * params["weight"] + params["bias"]

    return {(encoder, "layer_norm"): layer_norm}


def layernorm_fast_variance(batch_size):
    def normalise(x):
        x = x + 1000.0
        mean = x.mean(axis=-1, keepdims=True)
        variance = (x**2).mean(axis=-1, keepdims=True) - mean**2
        return (x - mean) / jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-5)

    return layer_norm_as(normalise)


def layernorm_eps(batch_size):
    def normalise(x):
        moved = x - x.mean(axis=-1, keepdims=True)
        return moved / jnp.sqrt((moved**2).mean(axis=-1, keepdims=True) + 1e-6)

    return layer_norm_as(normalise)


def gelu_tanh(batch_size):
    forms = encoder.ACTIVATIONS | {"gelu": encoder.gelu_tanh}
    return {(encoder, "ACTIVATIONS"): forms}


INJECTIONS = {
    "adamw_decay_default": Injection(
        "AdamW takes optax's default weight decay, 1e-4; torch's is 1e-2.",
        adamw_decay_default,
        {"optimizer": "adamw", "weight_decay": 1e-2},
        "--optimizer adamw and a --weight_decay other than 1e-4",
        lambda model, rule, short: rule.optimizer == "adamw" and rule.weight_decay != 1e-4,
    ),
    "clip_eps": Injection(
        "The gradient is clipped by max_norm / norm, as optax does, without the 1e-6 that torch adds.",
        clip_eps,
        {"clip_norm": 0.05},
        "a --clip_norm",
        lambda model, rule, short: rule.clip_norm is not None,
    ),
    "padding_in_mean": Injection(
        "The short last batch is padded to the full size and the loss is a mean over the padding too.",
        padding_in_mean,
        {},
        "a --batch_size that leaves a short last batch",
        lambda model, rule, short: short,
    ),
    "adam_eps_inside": Injection(
        "Adam's eps stands inside the root, sqrt(v + eps), as optax's eps_root does.",
        adam_eps_inside,
        {"optimizer": "adam"},
        "--optimizer adam or adamw",
        lambda model, rule, short: rule.optimizer in ("adam", "adamw"),
    ),
    "two_biases_as_one": Injection(
        "Only one of torch's two biases a gate is trained, so that their sum moves half as far.",
        two_biases_as_one,
    ),
    "l2_loss_half": Injection(
        "The loss is half the squared error, as in optax.l2_loss.",
        l2_loss_half,
        {},
        "a regression with --loss squared_error",
        lambda model, rule, short: model.criterion == "squared_error",
    ),
    "mask_sense": Injection(
        "Attention takes True in its mask for a position to ignore, as torch's key_padding_mask does.",
        mask_sense,
        {"model": "lstm_attention"},
        "a model that ends in _attention, or --pooling attention",
        lambda model, rule, short: model.attends and not model.decodes,
    ),
    "gru_reset_before": Injection(
        "The GRU resets its state before the matrix product, as the paper does; torch after it.",
        gru_reset_before,
        {"model": "gru"},
        "--model gru or gru_attention",
        lambda model, rule, short: model.cell == "gru",
    ),
    "layernorm_fast_variance": Injection(
        "LayerNorm's variance is the mean of x**2 less the squared mean, as in flax, of rows 1000 from 0.",
        layernorm_fast_variance,
        {"model": "transformer"},
        "--model transformer",
        lambda model, rule, short: not model.recurrent,
    ),
    "layernorm_eps": Injection(
        "LayerNorm adds flax's 1e-6 to the variance; torch's eps is 1e-5.",
        layernorm_eps,
        {"model": "transformer"},
        "--model transformer",
        lambda model, rule, short: not model.recurrent,
    ),
    "gelu_tanh": Injection(
        "GELU is the approximation by tanh, JAX's default; torch's is exact.",
        gelu_tanh,
        {"model": "transformer"},
        "--model transformer and --activation gelu",
        lambda model, rule, short: not model.recurrent and model.activation == "gelu",
    ),
    "rmsprop_eps_inside": Injection(
        "RMSprop's eps stands inside the root, optax's default; torch's outside.",
        rmsprop_eps_inside,
        {"optimizer": "rmsprop"},
        "--optimizer rmsprop",
        lambda model, rule, short: rule.optimizer == "rmsprop",
    ),
    "dropout_unscaled": Injection(
        "Dropout does not scale what it keeps by 1 / (1 - rate).",
        dropout_unscaled,
        {"dropout": 0.2},
        "a --dropout above 0",
        lambda model, rule, short: model.dropout > 0,
    ),
    "momentum_dampening": Injection(
        "SGD's momentum weighs the new gradient by 1 - momentum, as torch's dampening can.",
        momentum_dampening,
        {"optimizer": "sgd", "lr": 0.05},
        "--optimizer sgd and a --momentum above 0",
        lambda model, rule, short: rule.optimizer == "sgd" and rule.momentum > 0,
    ),
    "float32_inside": Injection(
        "The head reads features that were cast to float32 and back in the midst of float64.",
        float32_inside,
    ),
}
