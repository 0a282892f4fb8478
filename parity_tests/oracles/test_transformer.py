"""Ours and a Transformer's encoder put together from the layers of flax.linen and of Equinox.

torch.nn.TransformerEncoder, under the same names, is in `parity_tests/test_encoder.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jax_impl
from parity import maps
from parity.weights import convert
from parity_tests import linen_encoder
from parity_tests.compare import assert_same, in_jax
from parity_tests.oracles.ours import LARGEST, relative_error
from parity_tests.test_encoder import CASES, LENGTHS, H, N, T, U, leaves_of, run_jax, weights


def in_linen(case, n, leaves, x, mask):
    params = maps.join(linen_encoder.weights(f"layers.{n}.", N))(leaves)
    layer = linen_encoder.EncoderLayer(N, U, case.activation, case.norm_first)
    return layer.apply({"params": params}, x, mask)


def in_equinox(case, n, leaves, x, mask):
    """Equinox's layers take one sequence, or one step; its GELU is jax.nn's."""
    eqx = pytest.importorskip("equinox", reason="make oracles installs it")
    key, start = jax.random.key(0), f"layers.{n}."
    biases = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
    made = {
        "self_attn": (
            eqx.nn.MultiheadAttention(N, H, **biases, key=key),
            maps.equinox.multi_head_attention,
        ),
        "linear1": (eqx.nn.Linear(H, U, key=key), maps.equinox.linear),
        "linear2": (eqx.nn.Linear(U, H, key=key), maps.equinox.linear),
        "norm1": (eqx.nn.LayerNorm(H, eps=1e-5), maps.equinox.layer_norm),
        "norm2": (eqx.nn.LayerNorm(H, eps=1e-5), maps.equinox.layer_norm),
    }
    own = {}
    for name, (module, maker) in made.items():
        arrays, static = eqx.partition(module, eqx.is_inexact_array)
        given = convert(lambda _, m=maker, k=name: m(f"{start}{k}.")(leaves), {}, arrays)
        own[name] = eqx.combine(given, static)

    def attend(x):
        return jax.vmap(own["self_attn"])(x, x, x, mask[:, 0])

    def feed(x):
        units = linen_encoder.ACTIVATIONS[case.activation](jax.vmap(jax.vmap(own["linear1"]))(x))
        return jax.vmap(jax.vmap(own["linear2"]))(units)

    norm1, norm2 = (jax.vmap(jax.vmap(own[name])) for name in ("norm1", "norm2"))
    if case.norm_first:
        x = x + attend(norm1(x))
        return x + feed(norm2(x))
    x = norm1(x + attend(x))
    return norm2(x + feed(x))


def run(layer, case, leaves):
    """Layers of theirs, and the last norm, which both libraries have in `layer`'s parts."""
    x, valid = leaves["x"], jnp.arange(T) < jnp.asarray(LENGTHS)[:, None]
    mask = jnp.ones((len(x), 1, T, T), bool)
    if case.ragged:
        x, mask = jnp.where(valid[..., None], x, 0.0), mask & valid[:, None, None]
    mask = mask & jnp.tri(T, dtype=bool) if case.causal else mask
    for n in range(case.layers):
        x = layer(case, n, leaves, x, mask)
    if case.norm_first:
        x = linen_encoder.norm().apply(
            {"params": maps.linen.layer_norm("norm.")(weights(leaves))}, x
        )
    return {"outputs": jnp.where(valid[..., None], x, 0.0) if case.ragged else x}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layer", [in_linen, in_equinox], ids=["linen", "equinox"])
def test_transformer(layer, case):
    leaves, cotangents = leaves_of(case)
    theirs = in_jax(partial(run, layer, case), leaves, cotangents)
    ours = in_jax(partial(run_jax, jax_impl.encoder.transformer_encoder, case), leaves, cotangents)
    name = f"{layer.__name__[3:]}'s layers, Transformer"
    errors = [relative_error(ours[n], theirs[n]) for n in ours]
    LARGEST[name] = max(LARGEST.get(name, 0.0), *errors)
    assert_same(ours, theirs)
