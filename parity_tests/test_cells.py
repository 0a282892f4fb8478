"""The cells agree on their outputs and on every gradient."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_impl import cells as jax_cells
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference
from spec.config import Recurrence
from spec.params import PLAIN, cell_schema

B, D, H = 3, 5, 6  # all different, so a transposed weight cannot fit


def draw(cell, names, options=PLAIN):
    normal, schema = np.random.default_rng(0).normal, cell_schema(cell, D, H, options)
    params = {name: normal(size=spec.shape) for name, spec in schema.items()}
    sizes = {"x": (B, D), "h": (B, options.proj_size or H), "c": (B, H)}
    # Gradients of a plain sum cannot tell h from c: pull back random cotangents.
    cotangents = {name: normal(size=sizes[name]) for name in names}
    return params | {name: normal(size=sizes[name]) for name in ("x", *names)}, cotangents


def rnn_in_torch(nonlinearity, leaves):
    from torch_impl.cells import RNNCell

    weights = {name: leaves[name] for name in cell_schema("rnn", D, H)}
    cell = RNNCell(D, H, nonlinearity)
    return {"h": torch.func.functional_call(cell, weights, (leaves["x"], leaves["h"]))}


def rnn_in_jax(nonlinearity, leaves):
    return {"h": jax_cells.rnn_cell(leaves, leaves["x"], leaves["h"], nonlinearity)}


def rnn_in_numpy(nonlinearity, leaves):
    rows = [
        reference.rnn_cell(leaves, x, h, nonlinearity)
        for x, h in zip(leaves["x"], leaves["h"], strict=True)
    ]
    return {"h": np.stack(rows)}


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_cell_matches(nonlinearity):
    leaves, cotangents = draw("rnn", ("h",))
    in_t = in_torch(partial(rnn_in_torch, nonlinearity), leaves, cotangents)
    in_j = in_jax(partial(rnn_in_jax, nonlinearity), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(partial(rnn_in_numpy, nonlinearity), leaves, cotangents))


def gru_in_torch(reset_after, leaves):
    from torch_impl.cells import GRUCell

    weights = {name: leaves[name] for name in cell_schema("gru", D, H)}
    cell = GRUCell(D, H) if reset_after else GRUCell(D, H, False)
    given = leaves["x"], leaves["h"], leaves.get("read")
    return {"h": torch.func.functional_call(cell, weights, given)}


def gru_in_jax(reset_after, leaves):
    options = {} if reset_after else {"reset_after": False}
    read = leaves.get("read")
    return {"h": jax_cells.gru_cell(leaves, leaves["x"], leaves["h"], **options, read=read)}


def gru_in_numpy(reset_after, leaves):
    rows = [
        reference.gru_cell(leaves, x, h, reset_after, read)
        for x, h, read in zip(
            leaves["x"], leaves["h"], leaves.get("read", leaves["h"]), strict=True
        )
    ]
    return {"h": np.stack(rows)}


@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropped"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_cell_matches(reset_after, dropped):
    """With `dropped` the products see another h than the one that is carried on."""
    leaves, cotangents = draw("gru", ("h",))
    if dropped:
        leaves["read"] = np.random.default_rng(1).normal(size=(B, H))
    in_t = in_torch(partial(gru_in_torch, reset_after), leaves, cotangents)
    in_j = in_jax(partial(gru_in_jax, reset_after), leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(partial(gru_in_numpy, reset_after), leaves, cotangents))


def lstm_in_torch(leaves):
    from torch_impl.cells import LSTMCell, LSTMState

    weights = {name: leaves[name] for name in cell_schema("lstm", D, H)}
    state = LSTMState(leaves["h"], leaves["c"])
    return torch.func.functional_call(LSTMCell(D, H), weights, (leaves["x"], state))._asdict()


def lstm_in_jax(leaves):
    state = jax_cells.LSTMState(leaves["h"], leaves["c"])
    return jax_cells.lstm_cell(leaves, leaves["x"], state)._asdict()


def lstm_in_numpy(leaves):
    rows = [
        reference.lstm_cell(leaves, x, h, c)
        for x, h, c in zip(leaves["x"], leaves["h"], leaves["c"], strict=True)
    ]
    return dict(zip("hc", map(np.stack, zip(*rows, strict=True)), strict=True))


def test_lstm_cell_matches():
    leaves, cotangents = draw("lstm", ("h", "c"))
    in_t = in_torch(lstm_in_torch, leaves, cotangents)
    in_j = in_jax(lstm_in_jax, leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(lstm_in_numpy, leaves, cotangents))


GENERAL = [
    Recurrence(),
    Recurrence(peepholes=True, layer_norm=True, proj_size=4),
    Recurrence(peepholes=True, coupled_gates=True),
]


def general_in_torch(options, leaves):
    from torch_impl.cells import GeneralLSTMCell, LSTMState

    weights = {name: leaves[name] for name in cell_schema("lstm", D, H, options)}
    state = LSTMState(leaves["h"], leaves["c"])
    cell = GeneralLSTMCell(D, H, options)
    return torch.func.functional_call(cell, weights, (leaves["x"], state))._asdict()


def general_in_jax(leaves):
    state = jax_cells.LSTMState(leaves["h"], leaves["c"])
    return jax_cells.general_lstm_cell(leaves, leaves["x"], state)._asdict()


@pytest.mark.parametrize(
    "options", GENERAL, ids=["plain", "peepholes-norm-projection", "coupled-peepholes"]
)
def test_general_lstm_cell_matches(options):
    """Random gains and biases: at 1 and 0 one that is left out would not show."""
    leaves, cotangents = draw("lstm", ("h", "c"), options)
    in_t = in_torch(partial(general_in_torch, options), leaves, cotangents)
    in_j = in_jax(general_in_jax, leaves, cotangents)
    assert_same(in_t, in_j)
    assert_same(in_j, in_numpy(lstm_in_numpy, leaves, cotangents))


@pytest.mark.parametrize("size", [1e4, 1e-310, 0.0])
def test_saturated_and_tiny_gates_stay_finite_and_equal(size):
    """Gates at +-1e4, denormals and zeros: no NaN, the same numbers."""
    leaves, cotangents = draw("lstm", ("h", "c"))
    leaves = {name: np.sign(array) * size for name, array in leaves.items()}
    in_t = in_torch(lstm_in_torch, leaves, cotangents)
    in_j = in_jax(lstm_in_jax, leaves, cotangents)
    assert all(np.isfinite(array).all() for array in in_t.values())
    for name in ("h", "c"):
        np.testing.assert_allclose(in_t[name], in_j[name], rtol=1e-14, atol=1e-300)
    for name in leaves:
        # XLA flushes denormals to 0.
        np.testing.assert_allclose(in_t[f"d {name}"], in_j[f"d {name}"], rtol=1e-12, atol=1e-300)


def test_wrong_nonlinearity_is_named():
    params = {name: jnp.zeros(spec.shape) for name, spec in cell_schema("rnn", D, H).items()}
    with pytest.raises(KeyError, match="sine"):
        jax_cells.rnn_cell(params, jnp.zeros((B, D)), jnp.zeros((B, H)), "sine")
