"""Ours and the cells of Equinox and Haiku, on sequences of full length."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity import maps
from parity.weights import convert
from parity_tests.cases import Case, H
from parity_tests.compare import in_jax
from parity_tests.oracles.ours import PLAIN, assert_agree, by_layers
from parity_tests.test_recurrent import cotangents_of, leaves_of

REASON = "make oracles installs it"
RESETS = ((0, 0, 1, 0, 1, 0), (1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 1))
BEGINS_ANEW = [
    Case("lstm", layers=2, bidirectional=True, state=True),
    Case("rnn", bidirectional=True, state=True, nonlinearity="relu"),
]


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


def haiku_layer(case, directions, x, first, resets=None):
    """Haiku's own loop, in either direction; its plain cell has relu only.

    Its ResetCore sets the state to zeros before a step. A segment is its steps from one of `resets`
    to the next: the reverse direction enters it at its last step.
    """
    hk = pytest.importorskip("haiku", reason=REASON)
    kind, maker = {
        "lstm": (hk.LSTM, maps.haiku.lstm_cell),
        "rnn": (hk.VanillaRNN, maps.haiku.rnn_cell),
    }[case.model]
    found = []
    for reverse, own in enumerate(directions):
        state = tuple(part[reverse] for part in first)
        state = hk.LSTMState(*state) if case.model == "lstm" else state[0]

        def unrolled(reverse=bool(reverse), state=state):
            core, given = kind(H, name="own"), x
            if resets is not None:
                ends = np.pad(resets[:, 1:], ((0, 0), (0, 1)))
                core, given = hk.ResetCore(core), (x, ends if reverse else resets)
            return hk.dynamic_unroll(core, given, state, time_major=False, reverse=reverse)

        params = maps.haiku.join({"own": maker(layer=None)})(own)
        outputs, last = hk.without_apply_rng(hk.transform(unrolled)).apply(params)
        found.append((outputs, tuple(last) if case.model == "lstm" else (last,)))
    outputs, lasts = zip(*found, strict=True)
    return jnp.concatenate(outputs, -1), tuple(map(jnp.stack, zip(*lasts, strict=True)))


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


@pytest.mark.parametrize("case", BEGINS_ANEW, ids=str)
def test_haiku_resets(case):
    """Some steps begin anew, the first, two in a row and the last among them."""
    layer = partial(haiku_layer, resets=np.array(RESETS, bool))
    function = partial(by_layers, case, layer, jnp)
    theirs = in_jax(function, leaves_of(case), cotangents_of(case))
    assert_agree("haiku ResetCore", case, theirs, RESETS)
