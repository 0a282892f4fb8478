"""The Transformer's encoder: outputs and all gradients, in both backends and in torch.nn."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

import jax_impl
import torch_impl
from jax_impl.arrays import to_tree
from parity_tests.compare import assert_same, in_jax, in_torch
from spec import reference
from spec.params import encoder_schema, sinusoidal_positions

B, T, H, N, U = 3, 6, 10, 2, 7
LENGTHS = np.array([4, 1, 6])
THEIRS = {"gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh"), "relu": torch.relu}


class Case(NamedTuple):
    activation: str
    layers: int = 1
    norm_first: bool = False
    causal: bool = False
    ragged: bool = False


CASES = [
    Case("gelu"),
    Case("gelu_tanh", norm_first=True, causal=True),
    Case("gelu", layers=2, norm_first=True, ragged=True),
    Case("relu", layers=2, causal=True, ragged=True),
]


def leaves_of(case):
    draw = np.random.default_rng(2).normal
    schema = encoder_schema(H, U, case.layers, case.norm_first)
    leaves = {name: draw(scale=0.6, size=spec.shape) for name, spec in schema.items()}
    leaves["x"] = draw(size=(B, T, H))
    if case.ragged:
        leaves["x"][np.arange(T) >= LENGTHS[:, None]] = np.nan
    return leaves, {"outputs": draw(size=(B, T, H))}


def weights(leaves):
    return {name: leaf for name, leaf in leaves.items() if name != "x"}


def run_torch(kind, case, leaves):
    activation, layers, norm_first, causal, ragged = case
    module = kind(H, N, U, layers, activation, norm_first, causal)
    lengths = torch.tensor(LENGTHS) if ragged else None
    outputs = torch.func.functional_call(module, weights(leaves), (leaves["x"], lengths))
    return {"outputs": outputs}


def run_jax(function, case, leaves):
    lengths = jnp.asarray(LENGTHS) if case.ragged else None
    outputs = function(
        to_tree(weights(leaves)),
        leaves["x"],
        lengths,
        num_heads=N,
        activation=case.activation,
        norm_first=case.norm_first,
        causal=case.causal,
    )
    return {"outputs": outputs}


def run_torch_nn(case, leaves):
    """torch.nn.TransformerEncoder, whose masks are True where we have False."""
    layer = torch.nn.TransformerEncoderLayer(
        H, N, U, 0.0, THEIRS[case.activation], batch_first=True, norm_first=case.norm_first
    )
    norm = torch.nn.LayerNorm(H) if case.norm_first else None
    module = torch.nn.TransformerEncoder(layer, case.layers, norm, enable_nested_tensor=False)
    valid = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    masks = {"mask": torch.ones(T, T, dtype=torch.bool).triu(1)} if case.causal else {}
    if not case.ragged:
        given = leaves["x"]
        return {"outputs": torch.func.functional_call(module, weights(leaves), (given,), masks)}
    given = torch.where(valid[..., None], leaves["x"], 0.0)
    masks["src_key_padding_mask"] = ~valid
    outputs = torch.func.functional_call(module, weights(leaves), (given,), masks)
    return {"outputs": torch.where(valid[..., None], outputs, 0.0)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_encoder_matches(case):
    """torch = JAX = torch.nn.TransformerEncoder under the same names: outputs, every gradient."""
    leaves, cotangents = leaves_of(case)
    theirs = in_torch(partial(run_torch_nn, case), leaves, cotangents)
    for module in (torch_impl.encoder, torch_impl.fast):
        run = partial(run_torch, module.TransformerEncoder, case)
        assert_same(in_torch(run, leaves, cotangents), theirs)
    for module in (jax_impl.encoder, jax_impl.fast):
        run = partial(run_jax, module.transformer_encoder, case)
        assert_same(in_jax(run, leaves, cotangents), theirs)


def test_fast_attention_is_a_kernel_unless_weights_are_dropped(monkeypatch):
    """torch's kernel draws masks of its own, so that given ones go the readable way."""
    calls, kernel = [], torch_impl.fast.scaled_dot_product_attention
    heard = lambda *given: calls.append(given) or kernel(*given)  # noqa: E731
    monkeypatch.setattr(torch_impl.fast, "scaled_dot_product_attention", heard)
    draw = np.random.default_rng(0)
    query, key, value = torch.tensor(draw.normal(size=(3, B, N, T, H)))
    mask, keep = torch.tensor(draw.random(size=(2, B, N, T, T)) < 0.7)
    mask[..., 0] = True  # each step sees one at least
    for given in ((mask,), (mask, keep, 0.3), (None, keep)):
        expected = torch_impl.attention.dot_product_attention(query, key, value, *given)
        torch.testing.assert_close(torch_impl.fast.attend(query, key, value, *given), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("steps", [9, 10])
@pytest.mark.parametrize("masked", ["by query", "alike", "not"])
def test_blocks_of_queries_change_nothing(monkeypatch, masked, steps):
    """Blocks of 2, one of which is left over or none is."""
    draw = np.random.default_rng(2)
    names = ("query", "key", "value")
    leaves = {name: draw.normal(size=(B, N, steps, H)) for name in names}
    cotangents = {"context": draw.normal(size=(B, N, steps, H))}
    mask = draw.random(size=(B, 1, steps if masked == "by query" else 1, steps)) < 0.6
    mask[..., 0] = True  # each step sees one at least
    mask = None if masked == "not" else mask

    def run(attend, leaves):
        return {"context": attend(*map(leaves.get, names), mask)}

    in_blocks = partial(run, jax_impl.fast.attend)
    whole = in_jax(partial(run, jax_impl.attention.dot_product_attention), leaves, cotangents)
    assert "scan" not in str(jax.make_jaxpr(in_blocks)(leaves))
    monkeypatch.setattr(jax_impl.fast, "BLOCK", 2)
    again = partial(run, lambda *given: jax_impl.fast.attend(*given))  # JAX remembers the other
    assert f"length={steps // 2}" in str(jax.make_jaxpr(again)(leaves))
    assert_same(in_jax(again, leaves, cotangents), whole)


def test_many_queries_need_memory_for_a_block_of_weights():
    """What XLA sets aside for a gradient over 1024 steps: linear in them, not their square."""
    many = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1024, 4)), jnp.float32)
    sizes = []
    for attend in (jax_impl.attention.dot_product_attention, jax_impl.fast.attend):
        gradient = jax.jit(jax.grad(lambda q, attend=attend: attend(q, q, q).sum()))
        sizes.append(gradient.lower(many).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize("size", [1, 5, 8])
def test_positions_are_their_formula(size):
    found = sinusoidal_positions(T, size)
    for t in range(T):
        for column in range(size):
            angle = t / 10000 ** (2 * (column // 2) / size)
            expected = np.cos(angle) if column % 2 else np.sin(angle)
            assert found[t, column] == pytest.approx(expected, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("learned", [False, True])
def test_embedding_matches(learned):
    draw, D = np.random.default_rng(3).normal, 2
    leaves = {"weight": draw(size=(H, D)), "bias": draw(size=H), "inputs": draw(size=(B, T, D))}
    leaves |= {"positions": draw(size=(T + 3, H))} if learned else {}
    cotangents = {"x": draw(size=(B, T, H))}

    def torchs(leaves):
        module = torch_impl.encoder.Embedding(D, H, T + 3 if learned else None)
        params = {n: a for n, a in leaves.items() if n != "inputs"}
        return {"x": torch.func.functional_call(module, params, (leaves["inputs"],))}

    found = in_torch(torchs, leaves, cotangents)
    assert_same(
        found,
        in_jax(
            lambda leaves: {"x": jax_impl.encoder.embedding(leaves, leaves["inputs"])},
            leaves,
            cotangents,
        ),
    )
    places = leaves["positions"][:T] if learned else sinusoidal_positions(T, H)
    expected = leaves["inputs"] @ leaves["weight"].T + leaves["bias"] + places
    assert_same({"x": found["x"]}, {"x": expected})


def test_learned_positions_begin_as_the_schema_says():
    """Uniform with a standard deviation of 0.02, in the module as in what both backends draw."""
    bound, places = 0.02 * 3**0.5, torch_impl.encoder.Embedding(2, H, 400).positions
    assert 0.98 * bound < places.max() <= bound
    assert -bound <= places.min() < -0.98 * bound


def test_gelu_is_right_in_its_tail():
    """Relative to the value itself, where 1 + erf has lost all digits."""
    x = np.linspace(-9.0, 3.0, 25)
    with mpmath.workdps(40):
        truth = np.array([float(v * mpmath.ncdf(v)) for v in map(mpmath.mpf, x)])
    in_t = torch_impl.encoder.gelu(torch.tensor(x)).numpy()
    np.testing.assert_allclose(in_t, truth, rtol=1e-13)
    np.testing.assert_allclose(jax_impl.encoder.gelu(jnp.asarray(x)), truth, rtol=1e-13)
    np.testing.assert_allclose(reference.activate(x, "gelu"), truth, rtol=1e-13, atol=3e-14)


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_layer_norm_far_from_0(mean):
    """Float32 rows about a large mean: a mean of squares less a square would be off by 0.5."""
    draw = np.random.default_rng(4).normal
    x = (mean + draw(size=(B, 64))).astype(np.float32)
    params = {"weight": draw(size=64), "bias": draw(size=64)}
    truth = reference.layer_norm(params, x.astype(np.float64))
    narrow = {name: array.astype(np.float32) for name, array in params.items()}
    module = torch_impl.encoder.LayerNorm(64)
    in_t = torch.func.functional_call(
        module, {n: torch.tensor(a) for n, a in narrow.items()}, (torch.tensor(x),)
    )
    bound = {"y": 1e-6 + mean * 6e-8}  # one rounding of x
    assert_same({"y": in_t.numpy()}, {"y": truth}, bound["y"])
    in_j = jax_impl.encoder.layer_norm(narrow, jnp.asarray(x))
    assert_same({"y": np.asarray(in_j)}, {"y": truth}, bound["y"])


def test_defaults_are_post_norm_gelu_without_a_mask():
    """And masks that keep everything, at the default rate, are as none."""
    leaves, _ = leaves_of(CASES[0])
    whole = run_torch_nn(CASES[0], {name: torch.tensor(leaf) for name, leaf in leaves.items()})
    expected = {"outputs": whole["outputs"].detach().numpy()}
    sizes = {"attention": (T, H), "feedforward": (T, H), "units": (T, U), "weights": (N, T, T)}
    keep = {name: np.ones((B, *size), bool) for name, size in sizes.items()}
    params, x = weights(leaves), leaves["x"]
    kept = {name: torch.tensor(mask) for name, mask in keep.items()}
    one = {name.removeprefix("layers.0."): torch.tensor(leaf) for name, leaf in params.items()}
    given = torch.tensor(x), None, kept
    found = torch.func.functional_call(torch_impl.EncoderLayer(H, N, U), one, given)
    assert_same({"outputs": found.detach().numpy()}, expected)
    all_layers = {name: torch.tensor(leaf) for name, leaf in params.items()}
    given = torch.tensor(x), None, {f"layer0.{name}": mask for name, mask in kept.items()}
    found = torch.func.functional_call(torch_impl.TransformerEncoder(H, N, U), all_layers, given)
    assert_same({"outputs": found.detach().numpy()}, expected)
    tree = to_tree(params)
    found = jax_impl.encoder_layer(tree["layers"]["0"], x, None, keep, num_heads=N)
    assert_same({"outputs": found}, expected)
    found = jax_impl.transformer_encoder(
        tree, x, None, {f"layer0.{name}": mask for name, mask in keep.items()}, num_heads=N
    )
    assert_same({"outputs": found}, expected)
