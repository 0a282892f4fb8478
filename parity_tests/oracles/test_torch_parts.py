"""Ours and what no library has whole, put together of torch.nn's cells and layers.

One layer and one direction, from given states; the loop over time is written here.
"""

from functools import partial

import pytest
import torch
from torch import nn, sigmoid, tanh
from torch.func import functional_call
from torch.nn.functional import linear

from parity_tests.cases import Case, H, T
from parity_tests.compare import in_torch
from parity_tests.oracles.ours import assert_agree
from parity_tests.test_recurrent import cotangents_of, leaves_of, named, split
from spec.config import Recurrence


def over_time(case, leaves, step):
    """Call step(weights, x, state, t) -> state, a tuple (h) or (h, c), at every step."""
    params, inputs, state = split(case, leaves)
    own = {name.removesuffix("_l0"): tensor for name, tensor in params.items()}
    state, outputs = tuple(s[0] for s in (state if case.model == "lstm" else (state,))), []
    for t in range(T):
        state = step(own, inputs[:, t], state, t)
        outputs.append(state[0])
    last = tuple(part[None] for part in state)  # with ours' axis of layers
    return named(case, torch.stack(outputs, dim=1), last if case.model == "lstm" else last[0])


def normed_lstm(own, x, state, t):
    """An LSTM whose two products and state pass through torch.nn.LayerNorm."""

    def norm(name, given):
        weights = {"weight": own[f"gain_{name}"], "bias": own[f"bias_{name}"]}
        return functional_call(nn.LayerNorm(given.shape[-1]), weights, (given,))

    h, c = state
    gates = norm("ih", linear(x, own["weight_ih"])) + norm("hh", linear(h, own["weight_hh"]))
    i, f, g, o = gates.chunk(4, dim=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(norm("c", c)), c


def masked_cell(case, own, x, state, t):
    """torch.nn's cell, what it reads of h dropped by a mask and what it returns held by others."""
    kind = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[case.model]
    keep = {name: torch.tensor(mask) for name, mask in case.keep.items()}
    read = state[0]
    if "recurrent_l0" in keep:
        read = read * keep["recurrent_l0"] / (1 - case.options.recurrent_dropout)
    given = (read, *state[1:]) if case.model == "lstm" else read
    after = functional_call(kind(x.shape[-1], H), own, (x, given))
    after = after if case.model == "lstm" else (after,)
    masks = [keep.get(f"zoneout_{part}_l0") for part in "hc"[: len(after)]]
    return tuple(
        new if mask is None else torch.where(mask[:, t], new, old)
        for mask, new, old in zip(masks, after, state, strict=True)
    )


def test_layer_norm():
    case = Case("lstm", state=True, options=Recurrence(layer_norm=True))
    function = partial(over_time, case, step=normed_lstm)
    theirs = in_torch(function, leaves_of(case), cotangents_of(case))
    assert_agree("torch.nn.LayerNorm in an LSTM", case, theirs)


# Torch's GRU cell carries on the h that its gates see, so dropout is not for it: Keras has it.
@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", state=True, options=Recurrence(zoneout=0.3, recurrent_dropout=0.4)),
        Case("gru", state=True, options=Recurrence(zoneout=0.3)),
        Case("rnn", state=True, options=Recurrence(recurrent_dropout=0.4)),
    ],
    ids=str,
)
def test_masks_of_the_state(case):
    function = partial(over_time, case, step=partial(masked_cell, case))
    theirs = in_torch(function, leaves_of(case), cotangents_of(case))
    assert_agree("torch.nn cells, masked", case, theirs)
