"""Two layers of every library that `parity.interop` converts, each as one function of its own weights.

Over sequences of unequal length and in both directions where the library has these.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")  # read once, when keras is imported

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from parity import interop, maps
from parity_tests import linen_encoder, test_encoder
from parity_tests.cases import B, Case, H, T
from parity_tests.oracles.test_frameworks import carries, states
from parity_tests.test_recurrent import leaves_of, run_torch_nn
from spec.params import encoder_schema, recurrent_schema

KEY = jax.random.key(0)
PREFIX = "model."  # ours stand in a larger model


class Theirs(NamedTuple):
    """A library's layers as one function.

    Attributes:
      weights: the map from ours.
      like: tree of its parameters.
      run: (tree, inputs, first states (h,) or (h, c)) -> outputs, last states.
    """

    weights: maps.Map
    like: Any
    run: Callable


def options(cell, case):
    """Of a plain cell: linen's and nnx's "activation_fn", Keras's "activation"."""
    return {cell: getattr(jax.nn, case.nonlinearity)} if case.model == "rnn" else {}


def both(case, first, layer):
    """The first states of one layer's two directions."""
    return carries(tuple(part[2 * layer : 2 * layer + 2] for part in first))


def whole(finals):
    """Flax's last carries of all layers as states [layers x directions, B, H]."""
    return states([carry for layer in finals for carry in layer])


def masked(case, x):
    return jnp.where(jnp.arange(T)[:, None] < jnp.asarray(case.lengths)[:, None, None], x, 0.0)


def paths(*, start):
    return [
        (f"{start.format(n)}.forward_rnn.cell", f"{start.format(n)}.backward_rnn.cell")
        for n in range(2)
    ]


def in_linen(kind, maker, case):
    class Stack(linen.Module):
        @linen.compact
        def __call__(self, x, first):
            finals = []
            for n in range(2):
                pair = [
                    linen.RNN(
                        kind(H, **options("activation_fn", case), param_dtype=x.dtype, parent=None),
                        parent=None,
                    )
                    for _ in "fb"
                ]
                final, x = linen.Bidirectional(*pair)(
                    x,
                    initial_carry=tuple(both(case, first, n)),
                    seq_lengths=jnp.asarray(case.lengths),
                    return_carry=True,
                )
                finals.append(final)
            return masked(case, x), whole(finals)

    model = Stack()
    weights = maps.join(interop.cells(maker, paths(start="params.Bidirectional_{}"), PREFIX))
    leaves = leaves_of(case)
    first = tuple(leaves[n] for n in ("h", "c") if n in leaves)
    like = jax.eval_shape(model.init, KEY, leaves["inputs"], first)
    return Theirs(weights, like, model.apply)


def in_nnx(kind, maker, case):
    made = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    made |= options("activation_fn", case)
    made |= {"recurrent_kernel_init": nnx.initializers.zeros}  # its own takes seconds
    stack = {}
    for n, size in enumerate((case.features, 2 * H)):
        pair = [nnx.RNN(kind(size, H, **made), rngs=nnx.Rngs(0)) for _ in "fb"]
        stack[f"layer{n}"] = nnx.Bidirectional(*pair, rngs=nnx.Rngs(0))
    parts = {n: nnx.split(layer, nnx.Param, ...) for n, layer in stack.items()}

    def run(tree, x, first):
        finals = []
        for n, (name, (graph, _, rest)) in enumerate(parts.items()):
            final, x = nnx.merge(graph, tree[name], rest)(
                x,
                initial_carry=tuple(both(case, first, n)),
                seq_lengths=jnp.asarray(case.lengths),
                return_carry=True,
            )
            finals.append(final)
        return masked(case, x), whole(finals)

    weights = maps.join(interop.cells(maker, paths(start="layer{}"), PREFIX))
    return Theirs(weights, {n: params for n, (_, params, _) in parts.items()}, run)


def in_equinox(kind, maker, case):
    """Equinox has cells of one example; layers and the loop over time are put together here."""
    import equinox as eqx

    model = [getattr(eqx.nn, kind)(size, H, key=KEY) for size in (case.features, H)]
    like, static = eqx.partition(model, eqx.is_inexact_array)

    def run(tree, x, first):
        finals = []
        for n, cell in enumerate(eqx.combine(tree, static)):

            def advance(state, now, cell=cell):
                state = jax.vmap(cell)(now, state)
                return state, state[0] if case.model == "lstm" else state

            carry = tuple(part[n] for part in first)
            carry = carry if case.model == "lstm" else carry[0]
            final, x = jax.lax.scan(advance, carry, x.swapaxes(0, 1))
            x = x.swapaxes(0, 1)
            finals.append(final if case.model == "lstm" else (final,))
        return x, tuple(map(jnp.stack, zip(*finals, strict=True)))

    return Theirs(maps.join(interop.cells(maker, ["0", "1"], PREFIX)), like, run)


def in_haiku(kind, maker, case):
    """Haiku stacks layers itself and has one direction; VanillaRNN has relu only."""
    import haiku as hk

    @hk.without_apply_rng
    @hk.transform
    def model(x, first):
        core = hk.DeepRNN([getattr(hk, kind)(H, name=f"layer{n}") for n in range(2)])
        layers = list(zip(*first, strict=True))
        start = tuple(hk.LSTMState(*s) if case.model == "lstm" else s[0] for s in layers)
        x, last = hk.dynamic_unroll(core, x, start, time_major=False)
        last = last if case.model == "lstm" else [(s,) for s in last]
        return x, tuple(map(jnp.stack, zip(*last, strict=True)))

    leaves = leaves_of(case)
    first = tuple(leaves[n] for n in ("h", "c") if n in leaves)
    like = jax.eval_shape(model.init, KEY, leaves["inputs"], first)
    weights = maps.haiku.join(interop.cells(maker, ["layer0", "layer1"], PREFIX))
    return Theirs(weights, like, model.apply)


def in_keras(kind, maker, case):
    import keras

    cell = {"SimpleRNN": "simple_rnn_cell", "LSTM": "lstm_cell", "GRU": "gru_cell"}[kind]
    functions, like, places = [], {}, []
    for n, size in enumerate((case.features, 2 * H)):
        own = {"name": "own", "return_sequences": True, "return_state": True}
        layer = keras.layers.Bidirectional(getattr(keras.layers, kind)(H, **own), name=f"both{n}")
        layer.build((B, T, size))
        function, params = maps.keras.functional(layer)
        functions.append(function)
        like |= params
        places.append(tuple(f"both{n}.{way}_own.{cell}" for way in ("forward", "backward")))

    def run(tree, x, first):
        mask = keras.ops.convert_to_tensor(np.arange(T) < case.lengths[:, None])
        finals, real = [], keras.ops.cast(mask, "float32")[..., None]
        for n, function in enumerate(functions):
            start = [part[2 * n + way] for way in (0, 1) for part in first]
            x, *last = function(tree, x, initial_state=start, mask=mask)
            x = x * real
            finals += [last[: len(first)], last[len(first) :]]
        return x, tuple(keras.ops.stack(parts) for parts in zip(*finals, strict=True))

    return Theirs(maps.join(interop.cells(maker, places, PREFIX)), like, run)


def in_torch_nn(case):
    """torch.nn.RNN, GRU and LSTM, over packed sequences."""
    like = recurrent_schema(case.model, case.features, H, 2, case.bidirectional)

    def run(tree, x, first):
        given = {"inputs": x, **dict(zip("hc", first, strict=False))}
        found = run_torch_nn(case, {**tree, **given})
        return found["outputs"], tuple(found[n] for n in "hc" if n in found)

    return Theirs(interop.torch_nn(PREFIX), {n: torch.empty(s.shape) for n, s in like.items()}, run)


def case_of(model, *, ragged=True, nonlinearity="tanh"):
    return Case(
        model, layers=2, state=True, bidirectional=ragged, ragged=ragged, nonlinearity=nonlinearity
    )


RELU = case_of("rnn", nonlinearity="relu")
ONE_WAY = {model: case_of(model, ragged=False) for model in ("gru", "lstm")}
ONE_WAY["rnn"] = case_of("rnn", ragged=False, nonlinearity="relu")
BOTH = {model: case_of(model) for model in ("rnn", "gru", "lstm")}
LIBRARIES: dict[str, tuple[Callable, Case]] = {
    **{f"torch.nn {model}": (in_torch_nn, case) for model, case in BOTH.items()},
    "torch.nn rnn relu": (in_torch_nn, RELU),
    "linen SimpleCell": (partial(in_linen, linen.SimpleCell, maps.linen.rnn_cell), BOTH["rnn"]),
    "linen LSTMCell": (partial(in_linen, linen.LSTMCell, maps.linen.lstm_cell), BOTH["lstm"]),
    "linen GRUCell": (partial(in_linen, linen.GRUCell, maps.linen.gru_cell), BOTH["gru"]),
    "nnx SimpleCell": (partial(in_nnx, nnx.SimpleCell, maps.nnx.rnn_cell), BOTH["rnn"]),
    "nnx LSTMCell": (partial(in_nnx, nnx.LSTMCell, maps.nnx.lstm_cell), BOTH["lstm"]),
    "nnx OptimizedLSTMCell": (
        partial(in_nnx, nnx.OptimizedLSTMCell, maps.nnx.optimized_lstm_cell),
        BOTH["lstm"],
    ),
    "nnx GRUCell": (partial(in_nnx, nnx.GRUCell, interop.nnx_gru_cell), BOTH["gru"]),
    "equinox LSTMCell": (partial(in_equinox, "LSTMCell", maps.equinox.lstm_cell), ONE_WAY["lstm"]),
    "equinox GRUCell": (partial(in_equinox, "GRUCell", maps.equinox.gru_cell), ONE_WAY["gru"]),
    "haiku LSTM": (partial(in_haiku, "LSTM", maps.haiku.lstm_cell), ONE_WAY["lstm"]),
    "haiku VanillaRNN": (partial(in_haiku, "VanillaRNN", maps.haiku.rnn_cell), ONE_WAY["rnn"]),
    "keras SimpleRNN": (partial(in_keras, "SimpleRNN", maps.keras.rnn_cell), BOTH["rnn"]),
    "keras LSTM": (partial(in_keras, "LSTM", maps.keras.lstm_cell), BOTH["lstm"]),
    "keras GRU": (partial(in_keras, "GRU", maps.keras.gru_cell), BOTH["gru"]),
}


@cache
def made(library: str) -> Theirs:
    name = library.split()[0]
    if name in ("equinox", "haiku", "keras"):
        pytest.importorskip(name, reason="make oracles installs it")
    make, case = LIBRARIES[library]
    return make(case)


def in_linen_parts(case):
    """An encoder of flax's Dense, LayerNorm and attention; it has none of its own."""
    parts = {"norm": maps.linen.layer_norm(f"{PREFIX}norm.")}
    for n in range(case.layers):
        parts |= linen_encoder.weights(f"{PREFIX}layers.{n}.", test_encoder.N, f"layer{n}.")
    if not case.norm_first:
        del parts["norm"]
    valid = jnp.arange(T) < jnp.asarray(test_encoder.LENGTHS)[:, None]
    mask = valid[:, None, None] & (jnp.tri(T, dtype=bool) if case.causal else True)
    given = test_encoder.N, test_encoder.U, case.activation, case.norm_first
    layer, norm = linen_encoder.EncoderLayer(*given), linen_encoder.norm()

    def run(tree, x):
        for n in range(case.layers):
            x = layer.apply({"params": tree[f"layer{n}"]}, x, mask)
        x = norm.apply({"params": tree["norm"]}, x) if case.norm_first else x
        return jnp.where(valid[..., None], x, 0.0)

    x = jnp.zeros((B, T, test_encoder.H))
    like = {f"layer{n}": jax.eval_shape(layer.init, KEY, x, mask)["params"] for n in (0, 1)}
    like |= {"norm": jax.eval_shape(norm.init, KEY, x)["params"]} if case.norm_first else {}
    return Theirs(maps.join(parts), like, run)


def in_torch_encoder(case):
    """torch.nn.TransformerEncoder, with its own masks."""

    def run(tree, x):
        return test_encoder.run_torch_nn(case, {**tree, "x": x})["outputs"]

    schema = encoder_schema(test_encoder.H, test_encoder.U, case.layers, case.norm_first)
    return Theirs(interop.torch_nn(PREFIX), {n: np.zeros(s.shape) for n, s in schema.items()}, run)
