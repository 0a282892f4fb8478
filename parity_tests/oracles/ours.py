"""Ours on every case in its four implementations, and how an oracle is held against them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import jax_impl
import torch_impl
from parity_tests.cases import CASES as ALL
from parity_tests.cases import B, Case, H, T
from parity_tests.compare import assert_same, in_jax, in_torch, relative_error
from parity_tests.test_recurrent import cotangents_of, leaves_of, named, run_jax, run_torch, split
from spec.config import Recurrence
from spec.params import split_layers

# The encoders without what says nothing new here. No oracle takes a dropout mask, and none that
# stacks layers itself has residual connections.
RECURRENT = [c for c in ALL if c.config.recurrent and not c.config.attends]
ENCODERS = [c for c in RECURRENT if c.model == "rnn" or c.task == "regression"]
CASES = [replace(c, dropout=0.0) for c in ENCODERS if c.options == Recurrence()]
LSTM = [case for case in CASES if case.model == "lstm"]
NARROW = [case for case in CASES if case.layers == 2 and case.state]  # all options in float32
RESET_AFTER = [case for case in CASES if case.reset_after]
PLAIN = [case for case in CASES if not case.ragged and not case.bidirectional]
# Options that no library but ONNX has.
PEEPHOLES = [
    Case("lstm", ragged=True, state=True, options=Recurrence(peepholes=True)),
    Case("lstm", layers=2, bidirectional=True, state=True, options=Recurrence(peepholes=True)),
]
COUPLED = [
    Case("lstm", ragged=True, state=True, options=Recurrence(coupled_gates=True)),
    Case(
        "lstm",
        layers=2,
        bidirectional=True,
        ragged=True,
        state=True,
        options=Recurrence(coupled_gates=True, peepholes=True),
    ),
]
IMPLEMENTATIONS = {
    "torch loop": (in_torch, run_torch, torch_impl.recurrent),
    "torch fast": (in_torch, run_torch, torch_impl.fast),
    "JAX scan": (in_jax, run_jax, jax_impl.recurrent),
    "JAX fast": (in_jax, run_jax, jax_impl.fast),
}
LARGEST: dict[str, float] = {}  # error of each oracle so far; conftest prints it


def rounded(case: Case) -> dict[str, np.ndarray]:
    """The case's numbers, rounded to float32 so that float64 starts from the same."""
    return {n: a.astype(np.float32).astype(np.float64) for n, a in leaves_of(case).items()}


@cache
def ours(
    case: Case, dtype: str = "float64", resets: tuple[tuple[int, ...], ...] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Outputs and gradients of each implementation; of float32 on the rounded numbers.

    `resets` are the steps [B, T] that begin anew.
    """
    leaves = leaves_of(case) if dtype == "float64" else rounded(case)
    found = {}
    for name, (run, function, layers) in IMPLEMENTATIONS.items():
        put = torch.tensor if run is in_torch else jnp.asarray
        asked = {} if resets is None else {"resets": put(np.array(resets, bool))}
        forward = partial(function, case, layers, **asked)
        found[name] = run(forward, leaves, cotangents_of(case), dtype)
    return found


def assert_agree(
    oracle: str,
    case: Case,
    theirs: dict[str, np.ndarray],
    resets: tuple[tuple[int, ...], ...] | None = None,
) -> None:
    """Hold what a float64 oracle gives, with or without gradients, against all four."""
    own = ours(case, resets=resets)
    found = {f"{i} {n}": x[n] for i, x in own.items() for n in theirs}
    expected = {f"{i} {n}": theirs[n] for i in own for n in theirs}
    errors = [relative_error(found[n], expected[n]) for n in found]
    LARGEST[oracle] = max(LARGEST.get(oracle, 0.0), *errors)
    assert_same(found, expected)


def assert_as_exact(oracle: str, cases: Sequence[Case], run: Callable) -> None:
    """Hold ours in float32 against the error that a float32 oracle has itself.

    run(case, leaves, cotangents) -> outputs, perhaps gradients. Errors are root mean squares over the
    cases: in a single small array one may be 0 by luck.
    """
    squares = dict.fromkeys([oracle, *IMPLEMENTATIONS], 0.0)
    for case in cases:
        leaves, cotangents = rounded(case), cotangents_of(case)
        truth = in_torch(partial(run_torch, case, torch_impl.recurrent), leaves, cotangents)
        theirs = run(case, leaves, cotangents)
        for name, found in {oracle: theirs, **ours(case, "float32")}.items():
            errors = [relative_error(found[n], truth[n]) for n in theirs]
            assert max(errors) < 2e-6, f"{name} computes something else for {case}: {errors}"
            squares[name] += np.mean(np.square(errors)) / len(cases)
            if name == oracle:
                LARGEST[oracle] = max(LARGEST.get(oracle, 0.0), *errors)
    typical = {name: float(square**0.5) for name, square in squares.items()}
    assert max(typical.values()) <= 2 * typical[oracle], typical


def by_layers(case: Case, one_layer: Callable, xp: Any, leaves: Any) -> dict[str, Any]:
    """Run an oracle's single layers bottom up, in the array library xp.

    one_layer(case, directions, x [B, T, D], first) -> outputs [B, T, F], last; `directions` holds
    torch's parameters of each, first and last are the states [directions, B, H].
    """
    params, x, state = split(case, leaves)
    if state is None:
        zeros = xp.zeros((case.layers * case.config.directions, B, H), dtype=str(x.dtype)[-7:])
        state = (zeros,) * (2 if case.model == "lstm" else 1)
    state = state if isinstance(state, tuple) else (state,)
    lengths = np.full(B, T) if case.lengths is None else case.lengths
    valid = (np.arange(T) < lengths[:, None])[..., None]
    x, finals = xp.where(valid, x, xp.zeros_like(x)), []
    for layer, directions in enumerate(split_layers(params)):
        rows = slice(layer * len(directions), (layer + 1) * len(directions))
        x, last = one_layer(case, directions, x, tuple(part[rows] for part in state))
        x = xp.where(valid, x, xp.zeros_like(x))
        finals.append(last)
    final = tuple(xp.concatenate(parts) for parts in zip(*finals, strict=True))
    return named(case, x, final if case.model == "lstm" else final[0])
