"""Weights to and from each library: whole layers compute the same from them, gradients included.

Weights drawn in the library's own tree are brought to ours, and drawn as ours to the library's. Then its
layers (`parity_tests/libraries.py`) and ours in both backends give the same outputs, last states and
gradients of inputs, first states and every weight. So no test rests on a way there and back, which a
wrong rule and its inverse survive.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_impl
import torch_impl
from parity import interop
from parity.weights import convert, named
from parity_tests import test_encoder
from parity_tests.cases import H
from parity_tests.compare import BOUND, assert_same, in_torch
from parity_tests.libraries import LIBRARIES, PREFIX, in_linen_parts, in_torch_encoder, made
from parity_tests.test_recurrent import cotangents_of, leaves_of, run_jax, run_torch
from parity_tests.test_recurrent import named as outputs_of
from spec.params import recurrent_schema

KERAS_FLOAT32 = 2e-6  # parity_tests/oracles/README.md


@cache
def compiled(function: Callable) -> Callable:
    @jax.jit
    def both_ways(leaves, cotangents):
        outputs, pullback = jax.vjp(function, leaves)
        return outputs, pullback(cotangents)[0]

    return both_ways


def in_jax(function, leaves, cotangents, dtype="float64"):
    """As `parity_tests.compare.in_jax`, compiled once for both ways."""
    cast = [{n: a.astype(dtype) for n, a in arrays.items()} for arrays in (leaves, cotangents)]
    outputs, gradients = compiled(function)(*cast)
    results = {name: np.asarray(array) for name, array in outputs.items()}
    return results | {f"d {name}": np.asarray(array) for name, array in gradients.items()}


@cache
def ours_in_jax(case):
    return partial(run_jax, case, jax_impl.recurrent)


@cache
def theirs_by_names(library):
    """Their function of leaves by name, as `in_jax` and `in_torch` take it."""
    theirs, case = made(library), LIBRARIES[library][1]
    names, structure = list(named(theirs.like)), jax.tree.structure(theirs.like)

    def run(leaves):
        tree = jax.tree.unflatten(structure, [leaves[n] for n in names])
        first = tuple(leaves[n] for n in "hc" if n in leaves)
        return outputs_of(case, *in_order(case, theirs.run(tree, leaves["inputs"], first)))

    return run


def in_order(case, found):
    outputs, last = found
    return outputs, last if case.model == "lstm" else last[0]


def readings_of(case):
    """Input and first states; what stands past an end is any number, as not all take a NaN there."""
    arrays = {n: a for n, a in leaves_of(case).items() if n in ("inputs", "h", "c")}
    return arrays | {"inputs": np.nan_to_num(arrays["inputs"], nan=3.0)}


def schema_of(case):
    own = recurrent_schema(case.model, case.features, H, 2, case.bidirectional)
    return {PREFIX + name: spec for name, spec in own.items()}


def run_theirs(library, tree):
    case = LIBRARIES[library][1]
    leaves = {n: np.asarray(a) for n, a in named(tree).items()} | readings_of(case)
    in_torchs = library.startswith("torch") or os.environ["KERAS_BACKEND"] == "torch"
    run = in_torch if in_torchs else in_jax
    return run(theirs_by_names(library), leaves, cotangents_of(case), dtype_of(library))


def mapped(weights, params, like, gradients):
    """Gradients of the library's weights, by name, as those of ours: of a sum, each of the two has it."""
    wide = {n: jnp.asarray(a, "float64") for n, a in params.items()}
    _, pullback = jax.vjp(lambda arrays: convert(weights, arrays, like), wide)
    ordered = [jnp.asarray(gradients[n], "float64") for n in named(like)]
    [ours] = pullback(jax.tree.unflatten(jax.tree.structure(like), ordered))
    return {n: np.asarray(gradient) for n, gradient in ours.items()}


def assert_same_layers(library, params, tree):
    """Run theirs on `tree` and ours on `params`: outputs, last states, gradients of all that went in."""
    theirs, case = made(library), LIBRARIES[library][1]
    expected = run_theirs(library, tree)
    gradients = {n: expected.pop(f"d {n}") for n in named(theirs.like)}
    own = mapped(theirs.weights, params, theirs.like, gradients)
    expected |= {f"d {n.removeprefix(PREFIX)}": gradient for n, gradient in own.items()}
    leaves = {n.removeprefix(PREFIX): a for n, a in params.items()} | readings_of(case)
    in_t = in_torch(partial(run_torch, case, torch_impl.recurrent), leaves, cotangents_of(case))
    for found in (in_t, in_jax(ours_in_jax(case), leaves, cotangents_of(case))):
        if library == "nnx GRUCell":  # what nnx has no parameter for has a gradient in ours only
            for name in [n for n in found if "bias_hh" in n]:
                assert found[name][2 * H :].all()
                found[name] = np.where(np.arange(3 * H) < 2 * H, found[name], 0.0)
        assert_same(found, expected, KERAS_FLOAT32 if library.startswith("keras") else BOUND)


def drawn(shape, seed, dtype="float64"):
    """Weights wide enough to bend the nonlinearities, in float32 where theirs is."""
    array = np.random.default_rng([seed, *shape]).normal(scale=0.6, size=shape)
    return array.astype(dtype).astype("float64")


def dtype_of(library):
    return "float32" if library.startswith("keras") else "float64"


def their_weights(library, seed=8):
    like = made(library).like
    leaves, structure = jax.tree.flatten(like)
    random = [drawn((*x.shape,), seed + n, dtype_of(library)) for n, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, random)


def our_weights(library, seed=9):
    case, params = LIBRARIES[library][1], {}
    for n, (name, spec) in enumerate(schema_of(case).items()):
        params[name] = drawn(spec.shape, seed + n, dtype_of(library))
        if library == "nnx GRUCell" and "bias_hh" in name:
            params[name][2 * H :] = 0.0
    return params


@pytest.mark.parametrize("library", LIBRARIES)
def test_from_library(library):
    tree, case = their_weights(library), LIBRARIES[library][1]
    params = interop.from_library(made(library).weights, tree, like=schema_of(case))
    assert list(params) == list(schema_of(case))
    assert_same_layers(library, params, tree)


@pytest.mark.parametrize("library", LIBRARIES)
def test_to_library(library):
    params = our_weights(library)
    tree = interop.to_library(made(library).weights, params, like=made(library).like)
    assert jax.tree.structure(tree) == jax.tree.structure(made(library).like)
    assert_same_layers(library, params, tree)


def wrong_rule(library):
    """The map with two gates of a layer exchanged, or of a plain cell its square weight transposed."""
    right, name = made(library).weights, f"{PREFIX}weight_hh_l1"

    def change(array):
        if len(array) == H:
            return array.T
        return jnp.concatenate([array[H : 2 * H], array[:H], array[2 * H :]])

    return lambda arrays: right({**arrays, name: change(arrays[name])})


@pytest.mark.parametrize("library", LIBRARIES)
def test_wrong_rule_survives_the_round_trip_only(library):
    tree, schema = their_weights(library), schema_of(LIBRARIES[library][1])
    wrong = wrong_rule(library)
    params = interop.from_library(wrong, tree, like=schema)
    again = interop.to_library(wrong, params, like=made(library).like)
    assert_same({n: np.asarray(a) for n, a in named(again).items()}, named(tree))
    with pytest.raises(AssertionError, match="relative errors above") as caught:
        assert_same_layers(library, params, tree)
    assert "outputs" in str(caught.value)


@pytest.mark.skipif(os.environ["KERAS_BACKEND"] == "torch", reason="the child itself")
def test_keras_on_torch():
    """Keras's layers on its torch backend, in a process of its own."""
    pytest.importorskip("keras", reason="make oracles installs it")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "library and keras"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert "6 passed" in child.stdout, child.stdout[-3000:] + child.stderr[-3000:]


ENCODERS = [case for case in test_encoder.CASES if case.layers == 2]


@pytest.mark.parametrize("make", [in_torch_encoder, in_linen_parts])
@pytest.mark.parametrize("case", ENCODERS, ids=str)
def test_transformer_encoder(case, make):
    """From and to: ours and theirs have the same outputs and gradients of all that went in."""
    weights, like, run = make(case)
    drawn_leaves, cotangents = test_encoder.leaves_of(case)
    x = np.nan_to_num(drawn_leaves["x"], nan=3.0)
    params = {f"{PREFIX}{n}": a for n, a in test_encoder.weights(drawn_leaves).items()}
    random = jax.tree.map(lambda a: drawn(a.shape, 4), like)
    ours_t = partial(test_encoder.run_torch, torch_impl.encoder.TransformerEncoder, case)
    ours_j = partial(test_encoder.run_jax, jax_impl.encoder.transformer_encoder, case)

    def theirs(leaves):
        given = jax.tree.unflatten(jax.tree.structure(like), [leaves[n] for n in named(like)])
        return {"outputs": run(given, leaves["x"])}

    pairs = [(params, interop.to_library(weights, params, like=like))]
    pairs += [(interop.from_library(weights, random, like=params), random)]
    for params, tree in pairs:
        run_theirs = in_torch if make is in_torch_encoder else in_jax
        expected = run_theirs(theirs, {**named(tree), "x": x}, cotangents)
        gradients = {n: expected.pop(f"d {n}") for n in named(like)}
        own = mapped(weights, params, like, gradients)
        expected |= {f"d {n.removeprefix(PREFIX)}": gradient for n, gradient in own.items()}
        leaves = {**{n.removeprefix(PREFIX): a for n, a in params.items()}, "x": x}
        assert_same(in_torch(ours_t, leaves, cotangents), expected)
        assert_same(in_jax(ours_j, leaves, cotangents), expected)
