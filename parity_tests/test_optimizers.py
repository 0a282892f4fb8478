"""The update rules agree with each other, with torch.optim and with optax, over 100 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jax_impl.optimizers
import torch_impl.optimizers
from parity_tests.compare import relative_error
from spec.config import OptimizerConfig

STEPS, P = 100, 7
CONFIGS = [
    OptimizerConfig(optimizer="adam", lr=1e-2, clip_norm=None),
    OptimizerConfig(optimizer="adam", lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.1),
    OptimizerConfig(optimizer="adam", lr=1e-2, beta1=0.0),
    OptimizerConfig(optimizer="adamw", lr=1e-2, weight_decay=0.1, clip_norm=2.0),
    OptimizerConfig(optimizer="rmsprop", lr=1e-2, beta2=0.99, momentum=0.0, clip_norm=None),
    OptimizerConfig(optimizer="rmsprop", lr=1e-2, beta2=0.9, eps=1e-4, weight_decay=0.1),
    OptimizerConfig(optimizer="sgd", lr=1e-2, momentum=0.0, clip_norm=None),
    OptimizerConfig(optimizer="sgd", lr=1e-2, momentum=0.9, weight_decay=0.1, clip_norm=2.0),
]


def gradients():
    """Norms from far below to far above any clip_norm, among them steps of exact zeros."""
    draw = np.random.default_rng(4)
    scale = 10.0 ** draw.uniform(-3, 2, size=(STEPS, 1))
    grads = draw.normal(size=(STEPS, P)) * scale
    grads[::17] = 0
    return draw.normal(size=P), grads


def walk_torch(config):
    params, grads = gradients()
    rule, vector, path = torch_impl.optimizers.optimizer(config), torch.tensor(params), []
    state = rule.init(vector)
    for grad in grads:
        updates, state = rule.update(torch.tensor(grad), state, vector)
        vector = vector + updates
        path.append(vector.numpy())
    return np.stack(path)


def walk_optax(transformation, params, grads):
    state = transformation.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = transformation.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    path = []
    for grad in grads:
        params, state = step(params, state, grad)
        path.append(np.asarray(params))
    return np.stack(path)


def walk_torch_optim(config):
    params, grads = gradients()
    leaf = torch.nn.Parameter(torch.tensor(params))
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    rule = {
        "adam": lambda: torch.optim.Adam([leaf], config.lr, betas, config.eps, decay),
        "adamw": lambda: torch.optim.AdamW([leaf], config.lr, betas, config.eps, decay),
        "rmsprop": lambda: torch.optim.RMSprop(
            [leaf], config.lr, config.beta2, config.eps, decay, config.momentum
        ),
        "sgd": lambda: torch.optim.SGD([leaf], config.lr, config.momentum, weight_decay=decay),
    }[config.optimizer]()
    path = []
    for grad in grads:
        leaf.grad = torch.tensor(grad)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([leaf], config.clip_norm)
        rule.step()
        path.append(leaf.detach().numpy().copy())
    return np.stack(path)


def optax_own(config):
    """The same rule from optax's own parts, every default that differs from torch's given."""
    decay = optax.add_decayed_weights(config.weight_decay)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps, eps_root=0.0)
    momentum = optax.trace(config.momentum, nesterov=False)
    rate = optax.scale_by_learning_rate(config.lr)
    squares = optax.scale_by_rms(config.beta2, config.eps, eps_in_sqrt=False)
    parts = {"adam": (decay, adam), "adamw": (adam, decay), "sgd": (decay, momentum)}
    parts["rmsprop"] = (decay, squares, momentum)
    return optax.chain(*parts[config.optimizer], rate)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.optimizer}-{c.weight_decay}")
def test_update_rule_matches(config):
    """torch = JAX = torch.optim at every step, momenta and the clip's 1e-6 included."""
    in_t = walk_torch(config)
    in_j = walk_optax(jax_impl.optimizers.optimizer(config), *map(jnp.asarray, gradients()))
    theirs = walk_torch_optim(config)
    for step in range(STEPS):
        assert relative_error(in_t[step], in_j[step]) < 1e-13, step
        assert relative_error(in_t[step], theirs[step]) < 1e-13, step


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.clip_norm is None], ids=str)
def test_optax_agrees_without_clipping(config):
    in_j = walk_optax(jax_impl.optimizers.optimizer(config), *map(jnp.asarray, gradients()))
    theirs = walk_optax(optax_own(config), *map(jnp.asarray, gradients()))
    assert relative_error(in_j, theirs) < 1e-13


def test_clipping_formula():
    """min(1, max / (norm + 1e-6)): below the limit nothing changes, above it the 1e-6 shows."""
    grad = np.array([3.0, 4.0])
    for max_norm, expected in ((10.0, grad), (1.0, grad / (5 + 1e-6))):
        in_t = torch_impl.optimizers.clip_by_global_norm(
            torch.tensor(grad), torch.tensor(5.0, dtype=torch.float64), max_norm
        )
        in_j = jax_impl.optimizers.clip_by_global_norm(jnp.asarray(grad), 5.0, max_norm)
        np.testing.assert_allclose(in_t.numpy(), expected, rtol=1e-15)
        np.testing.assert_allclose(in_j, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [("constant", 0), ("constant", 1), ("constant", 5), ("cosine", 0), ("cosine", 5)],
)
def test_schedule_is_its_formula(schedule, warmup):
    """Warm-up reaches lr at its last step; half a cosine falls to 0 at the end and stays there."""
    config = OptimizerConfig(lr=0.3, schedule=schedule, warmup_steps=warmup, total_steps=20)
    in_t, in_j = (m.optimizers.learning_rate(config) for m in (torch_impl, jax_impl))
    for step in range(25):
        if step < warmup:
            expected = 0.3 * (step + 1) / warmup
        elif schedule == "constant":
            expected = 0.3
        else:
            done = min((step - warmup) / (20 - warmup), 1)
            expected = 0.15 * (1 + np.cos(np.pi * done))
        np.testing.assert_allclose(in_t(step), expected, rtol=1e-14, atol=1e-16)
        np.testing.assert_allclose(in_j(jnp.float64(step)), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_bias_correction_is_exact_in_float32(beta):
    """1 - beta**t to float32 rounding, where the plain form is off by 1e-5."""
    for t in (1, 2, 50, 1000):
        found = jax_impl.optimizers.one_minus_power(beta, jnp.float32(t))
        np.testing.assert_allclose(found, 1 - beta**t, rtol=1e-6)
        assert found.dtype == jnp.float32


def test_float32_stays_float32():
    """With 64-bit mode on, nothing in an update turns float32 parameters into float64."""
    config = OptimizerConfig(schedule="cosine", warmup_steps=2, total_steps=9, weight_decay=0.1)
    rule = jax_impl.optimizers.optimizer(config)
    params = jnp.ones(3, jnp.float32)
    updates, state = rule.update(params, rule.init(params), params)
    assert {a.dtype for a in (updates, state.m, state.v, state.norm)} == {jnp.dtype("float32")}
