"""Ours and the cells of Equinox and Haiku, on sequences of full length in one direction."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from parity import maps
from parity.weights import convert
from parity_tests.cases import H
from parity_tests.compare import in_jax
from parity_tests.oracles.ours import PLAIN, assert_agree, by_layers
from parity_tests.test_recurrent import cotangents_of, leaves_of

REASON = "make oracles installs it"


def equinox_layer(case, directions, x, first):
    """Equinox has the LSTM cell; the loop over time is ours."""
    eqx = pytest.importorskip("equinox", reason=REASON)
    cell = eqx.nn.LSTMCell(x.shape[-1], H, key=jax.random.key(0))
    arrays, static = eqx.partition(cell, eqx.is_inexact_array)
    own = convert(lambda _: maps.equinox.lstm_cell(layer=None)(directions[0]), {}, arrays)
    cell = eqx.combine(own, static)

    def advance(state, now):
        state = jax.vmap(cell)(now, state)
        return state, state[0]

    last, outputs = jax.lax.scan(advance, tuple(part[0] for part in first), x.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), tuple(part[None] for part in last)


def haiku_layer(case, directions, x, first):
    """Haiku's own loop; its plain cell has relu only."""
    hk = pytest.importorskip("haiku", reason=REASON)
    kind, maker = {
        "lstm": (hk.LSTM, maps.haiku.lstm_cell),
        "rnn": (hk.VanillaRNN, maps.haiku.rnn_cell),
    }[case.model]
    state = hk.LSTMState(*(p[0] for p in first)) if case.model == "lstm" else first[0][0]
    model = hk.without_apply_rng(
        hk.transform(lambda: hk.dynamic_unroll(kind(H, name="own"), x, state, time_major=False))
    )
    params = maps.haiku.join({"own": maker(layer=None)})(directions[0])
    outputs, last = model.apply(params)
    last = tuple(last) if case.model == "lstm" else (last,)
    return outputs, tuple(part[None] for part in last)


@pytest.mark.parametrize("case", [c for c in PLAIN if c.model == "lstm"], ids=str)
def test_equinox_lstm(case):
    function = partial(by_layers, case, equinox_layer, jnp)
    assert_agree("equinox LSTMCell", case, in_jax(function, leaves_of(case), cotangents_of(case)))


@pytest.mark.parametrize(
    "case", [c for c in PLAIN if c.model == "lstm" or c.nonlinearity == "relu"], ids=str
)
def test_haiku(case):
    function = partial(by_layers, case, haiku_layer, jnp)
    name = {"lstm": "haiku LSTM", "rnn": "haiku VanillaRNN"}[case.model]
    assert_agree(name, case, in_jax(function, leaves_of(case), cotangents_of(case)))
