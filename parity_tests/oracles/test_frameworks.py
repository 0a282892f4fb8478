"""Ours and the frameworks' own layers: torch.nn packed, jax.experimental.rnn, flax linen and nnx."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.experimental.rnn import lstm_ref

from parity import maps
from parity.weights import convert
from parity_tests.cases import B, H, T
from parity_tests.compare import in_jax, in_torch
from parity_tests.oracles.ours import LSTM, RESET_AFTER, assert_agree, by_layers
from parity_tests.test_recurrent import cotangents_of, leaves_of, named, run_torch_nn, split
from spec.params import split_layers


@pytest.mark.parametrize("case", RESET_AFTER, ids=str)
def test_torch_nn(case):
    """Lengths by packing; layers and directions are torch's own."""
    theirs = in_torch(partial(run_torch_nn, case), leaves_of(case), cotangents_of(case))
    assert_agree("torch.nn", case, theirs)


def run_lstm_ref(case, leaves):
    params, x, state = split(case, leaves)
    lengths = np.full(B, T, np.int32) if case.lengths is None else np.int32(case.lengths)
    x = jnp.where(np.arange(T)[:, None] < lengths[:, None, None], x, 0.0)
    cells = [cell for layer in split_layers(params) for cell in layer]
    weights = [
        dict(enumerate(cell[name] for cell in cells))
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    h, c = state or (jnp.zeros((len(cells), B, H)),) * 2
    sizes = (case.features, H, case.layers, 0.0, case.bidirectional)
    outputs, h, c = lstm_ref(x, h, c, *weights, lengths, *sizes)
    return named(case, outputs, (h, c))


@pytest.mark.parametrize("case", LSTM, ids=str)
def test_lstm_ref(case):
    """Lengths, layers and directions are its own."""
    theirs = in_jax(partial(run_lstm_ref, case), leaves_of(case), cotangents_of(case))
    assert_agree("jax.experimental.rnn.lstm_ref", case, theirs)


def carries(first):
    """(h, c) [directions, B, H] as one flax carry a direction: h alone, or (c, h)."""
    return [parts[0] if len(parts) == 1 else parts[::-1] for parts in zip(*first, strict=True)]


def states(carries):
    """Flax's carries as (h, c) [directions, B, H]."""
    parts = [carry[::-1] if isinstance(carry, tuple) else (carry,) for carry in carries]
    return tuple(jnp.stack(part) for part in zip(*parts, strict=True))


def options_of(case):
    """What makes a plain cell the case's."""
    return {"activation_fn": getattr(jax.nn, case.nonlinearity)} if case.model == "rnn" else {}


def linen_layer(kind, maker, case, directions, x, first):
    def layer():
        return linen.RNN(kind(H, **options_of(case), parent=None), parent=None)

    cells = [{"cell": maker(layer=None)(own)} for own in directions]
    lengths = None if case.lengths is None else jnp.asarray(case.lengths)
    if len(cells) == 1:
        model, params, carry = layer(), cells[0], carries(first)[0]
    else:
        model, carry = linen.Bidirectional(layer(), layer()), tuple(carries(first))
        params = dict(zip(("forward_rnn", "backward_rnn"), cells, strict=True))
    last, outputs = model.apply(
        {"params": params}, x, initial_carry=carry, seq_lengths=lengths, return_carry=True
    )
    return outputs, states([last] if len(cells) == 1 else last)


def nnx_layer(kind, maker, case, directions, x, first):
    extra = options_of(case) | {"dtype": x.dtype, "param_dtype": x.dtype, "rngs": nnx.Rngs(0)}
    layers = [nnx.RNN(kind(x.shape[-1], H, **extra), rngs=nnx.Rngs(0)) for _ in directions]
    lengths = None if case.lengths is None else jnp.asarray(case.lengths)
    cells = [maps.join({"cell": maker(layer=None)})(own) for own in directions]
    if len(cells) == 1:
        model, tree, carry = layers[0], cells[0], carries(first)[0]
    else:
        model, carry = nnx.Bidirectional(*layers, rngs=nnx.Rngs(0)), tuple(carries(first))
        tree = dict(zip(("forward_rnn", "backward_rnn"), cells, strict=True))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = convert(lambda _: tree, {}, params)
    last, outputs = nnx.merge(graph, params, rest)(
        x, initial_carry=carry, seq_lengths=lengths, return_carry=True
    )
    return outputs, states([last] if len(cells) == 1 else last)


# nnx.GRUCell has one hidden bias too few to be torch's.
FLAX = {
    "linen SimpleCell": (linen_layer, linen.SimpleCell, maps.linen.rnn_cell),
    "linen GRUCell": (linen_layer, linen.GRUCell, maps.linen.gru_cell),
    "linen LSTMCell": (linen_layer, linen.LSTMCell, maps.linen.lstm_cell),
    "nnx SimpleCell": (nnx_layer, nnx.SimpleCell, maps.nnx.rnn_cell),
    "nnx OptimizedLSTMCell": (nnx_layer, nnx.OptimizedLSTMCell, maps.nnx.optimized_lstm_cell),
}
KINDS = {"rnn": "SimpleCell", "gru": "GRUCell", "lstm": "LSTMCell"}
PAIRS = [(c, n) for c in RESET_AFTER for n in FLAX if n.endswith(KINDS[c.model])]


@pytest.mark.parametrize(("case", "cell"), PAIRS, ids=str)
def test_flax(case, cell):
    """Lengths and directions are flax's own; its outputs past an end, which are not 0, are cut."""
    run, *cell_and_map = FLAX[cell]
    function = partial(by_layers, case, partial(run, *cell_and_map), jnp)
    assert_agree(cell, case, in_jax(function, leaves_of(case), cotangents_of(case)))
