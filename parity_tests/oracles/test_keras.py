"""Ours and Keras 3, on its JAX and on its torch backend.

A process has one backend: here JAX's, unless KERAS_BACKEND says torch, as the last test's child does.
Both round to float32 whatever the dtype: Keras 3.15 makes a float32 of two float64 in `ops.matmul` on
torch, in `ops.tanh` on JAX.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity_tests.cases import Case, H
from parity_tests.compare import in_jax, in_torch
from parity_tests.oracles.ours import NARROW, assert_as_exact, by_layers
from spec.config import Recurrence

BACKEND = os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="make oracles installs it")
RUN = {"jax": in_jax, "torch": in_torch}
DROPPING = [
    Case("lstm", ragged=True, state=True, options=Recurrence(recurrent_dropout=0.4)),
    Case("lstm", bidirectional=True, state=True, options=Recurrence(recurrent_dropout=0.3)),
    Case("gru", ragged=True, state=True, options=Recurrence(recurrent_dropout=0.4)),
    Case("gru", reset_after=False, state=True, options=Recurrence(recurrent_dropout=0.4)),
    Case("rnn", bidirectional=True, state=True, options=Recurrence(recurrent_dropout=0.4)),
]


def ordered(case, gates):
    """Put the gates of one of torch's arrays in Keras's order."""
    if case.model != "gru":
        return gates
    r, z, n = gates[:H], gates[H : 2 * H], gates[2 * H :]
    return keras.ops.concatenate([z, r, n])


def keras_layer(case, directions, x, first):
    """Run one LSTM, GRU or SimpleRNN, or a Bidirectional of it: lengths, as masks, are Keras's.

    Both biases become one, but for the GRU that resets after; the gates' order is torch's, but for
    the GRU's z, r, n.
    """
    kind, options = {
        "rnn": (keras.layers.SimpleRNN, {"activation": case.nonlinearity}),
        "gru": (keras.layers.GRU, {"reset_after": case.reset_after}),
        "lstm": (keras.layers.LSTM, {}),
    }[case.model]
    dtype, rate = str(x.dtype)[-7:], case.options.recurrent_dropout
    options |= {"recurrent_dropout": rate}
    layer = kind(H, return_sequences=True, return_state=True, dtype=dtype, **options)
    if len(directions) == 2:
        layer = keras.layers.Bidirectional(layer, dtype=dtype)
    layer.build(x.shape)
    if rate:  # one mask of ours for all gates, where Keras would draw one for each
        both = [layer.forward_layer, layer.backward_layer] if len(directions) == 2 else [layer]
        for end, part in zip(("", "_reverse"), both, strict=False):
            mask = keras.ops.convert_to_tensor(case.keep[f"recurrent_l0{end}"] / (1 - rate), dtype)
            masks = {"rnn": mask, "gru": [mask] * 3, "lstm": [mask] * 4}[case.model]
            part.cell.get_recurrent_dropout_mask = lambda h, masks=masks: masks
    weights = []
    for own in directions:
        w_ih, w_hh, b_ih, b_hh = (ordered(case, array) for array in own.values())
        both = case.model == "gru" and case.reset_after
        bias = keras.ops.stack([b_ih, b_hh]) if both else b_ih + b_hh
        weights += [w_ih.T, w_hh.T, bias]
    mask = None
    if case.lengths is not None:
        mask = keras.ops.convert_to_tensor(np.arange(x.shape[1]) < case.lengths[:, None])
    others = [v.value for v in layer.non_trainable_variables]  # random streams
    states = [part[d] for d in range(len(directions)) for part in first]
    given = {"initial_state": states, "mask": mask, "training": bool(rate)}
    (outputs, *last), _ = layer.stateless_call(weights, others, x, **given)
    count = len(first)
    return outputs, tuple(keras.ops.stack(last[n::count]) for n in range(count))


@pytest.mark.parametrize("cases", [NARROW, DROPPING], ids=["plain", "recurrent_dropout"])
def test_keras(cases):
    def run(case, leaves, cotangents):
        function = partial(by_layers, case, keras_layer, keras.ops)
        return RUN[BACKEND](function, leaves, cotangents, "float32")

    assert keras.config.backend() == BACKEND
    assert_as_exact(f"keras on {BACKEND} (float32)", cases, run)


@pytest.mark.skipif(BACKEND != "jax", reason="the child itself")
def test_keras_on_torch():
    """The test above in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", __file__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-3000:] + child.stderr[-3000:]
    assert "2 passed, 1 skipped" in child.stdout
