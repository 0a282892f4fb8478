"""What happens to a state between two steps: chunks of time, with and without a gradient across."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from platform import machine

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from parity_tests.cases import B, Case, T
from parity_tests.compare import assert_same, in_jax, in_torch
from parity_tests.test_recurrent import (
    RESETS,
    cotangents_of,
    leaves_of,
    run_jax,
    run_torch,
    split,
)
from spec import reference
from spec.config import Recurrence

ROOT = Path(__file__).parents[1]
CUT = {"truncated_bptt_steps": 4}  # of 6: a whole chunk and a shorter one
CASES = [
    Case("rnn", layers=2, bidirectional=True, ragged=True, state=True),
    Case("gru", ragged=True, state=True, options=Recurrence(zoneout=0.3, recurrent_dropout=0.4)),
    Case("lstm", ragged=True, state=True, bidirectional=True),
    Case("lstm", state=True, options=Recurrence(layer_norm=True, peepholes=True)),
]


def with_cut(case):
    return replace(case, options=replace(case.options, **CUT))


def cut_by_hand(case, leaves):
    """Run torch's readable layers chunk after chunk, each from a state that has no past.

    A sequence's last state is that of the chunk which holds its last real step.
    """
    steps, outputs, lasts = case.options.truncated_bptt_steps, [], []
    own = replace(case, options=replace(case.options, truncated_bptt_steps=None))
    params, inputs, state = split(own, leaves)
    sizes = (case.features, 4, case.layers, case.bidirectional, case.dropout)
    kinds = {"rnn": (case.nonlinearity,), "gru": (case.reset_after,), "lstm": ()}[case.model]
    name = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}[case.model]
    module = getattr(torch_impl.recurrent, name)(*sizes, *kinds, own.options)
    for start in range(0, T, steps):
        here = slice(start, min(start + steps, T))
        lengths = None
        if case.lengths is not None:
            lengths = (torch.tensor(case.lengths) - start).clamp(0, here.stop - start)
        keep = {
            n: torch.tensor(m if n.startswith("recurrent") else m[:, here])
            for n, m in case.keep.items()
        }
        found, state = torch.func.functional_call(
            module, params, (inputs[:, here], lengths, state, keep)
        )
        outputs.append(found)
        lasts.append(state if case.model == "lstm" else (state,))
        state = jax.tree.map(torch.detach, state)
    lengths = np.full(B, T) if case.lengths is None else case.lengths
    chunk = (lengths - 1) // steps
    last = (
        torch.stack([part[n][:, b] for b, n in enumerate(chunk)], dim=1)
        for part in zip(*lasts, strict=True)
    )
    return {"outputs": torch.cat(outputs, dim=1), **dict(zip("hc", last, strict=False))}


@pytest.mark.parametrize("layers", [torch_impl, jax_impl])
def test_each_thing_that_is_carried_keeps_the_kernels_away(layers):
    """One at a time: most layers' tests have several at once."""
    assert layers.carry.Carry().plain
    for one in ({"resets": RESETS}, {"read": RESETS[:, :4]}, {"zoneout": 0.3}):
        assert not layers.carry.Carry(**one).plain


def test_zoneout_without_masks_takes_the_expected_value():
    """As in prediction, of h and of c: torch = NumPy = JAX."""
    draw = np.random.default_rng(0).normal
    new, old = draw(size=(2, 3, 4)), draw(size=(2, 3, 4))
    wanted = reference.zone_out(0.3, None, new, old)
    for layers, put in ((torch_impl, torch.tensor), (jax_impl, jnp.asarray)):
        carry = layers.carry.Carry(zoneout=0.3)
        step = layers.carry.carried(lambda x, state, read: tuple(x), carry)
        found = step({"x": put(new)}, tuple(put(old)))
        np.testing.assert_allclose(np.stack(list(map(np.asarray, found))), wanted, rtol=1e-15)


FORWARD = [with_cut(c) for c in CASES if not c.bidirectional] + [
    replace(CASES[1], options=replace(CASES[1].options, truncated_bptt_steps=n)) for n in (5, 9)
]  # a last chunk of one step; a chunk that no sequence fills


@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_truncation_is_the_loop_over_detached_chunks(case):
    """As one trains by hand: run a chunk, detach the state, run the next."""
    leaves, cotangents = leaves_of(case), cotangents_of(case)
    by_hand = in_torch(partial(cut_by_hand, case), leaves, cotangents)
    assert_same(in_torch(partial(run_torch, case, torch_impl.fast), leaves, cotangents), by_hand)
    assert_same(in_jax(partial(run_jax, case, jax_impl.fast), leaves, cotangents), by_hand)


@pytest.mark.parametrize("kind", ["recurrent", "fast"])
def test_padding_does_not_cut_what_it_carries(kind):
    """The longest of a batch may be longer than all of these: the same gradients, either direction."""
    case = replace(CASES[0], options=Recurrence(truncated_bptt_steps=2))
    leaves, cotangents = leaves_of(case), cotangents_of(case)
    further = ((0, 0), (0, 5), (0, 0))
    padded = [
        {n: np.pad(a, further) if n in ("inputs", "outputs") else a for n, a in arrays.items()}
        for arrays in (leaves, cotangents)
    ]
    for library, run, both in ((torch_impl, run_torch, in_torch), (jax_impl, run_jax, in_jax)):
        run = partial(run, case, getattr(library, kind))
        found, expected = both(run, *padded), both(run, leaves, cotangents)
        for name in ("outputs", "d inputs"):
            assert not found[name][:, T:].any()
            found[name] = found[name][:, :T]
        assert_same(found, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_truncation_changes_gradients_alone(case):
    """Forward in chunks, both directions and ragged: the same outputs; torch = JAX on gradients."""
    leaves, cotangents = leaves_of(case), cotangents_of(case)
    whole = in_torch(partial(run_torch, case, torch_impl.recurrent), leaves, cotangents)
    cut = in_torch(partial(run_torch, with_cut(case), torch_impl.recurrent), leaves, cotangents)
    for name in cotangents:
        np.testing.assert_array_equal(cut[name], whole[name])
    assert np.abs(cut["d weight_hh_l0"] - whole["d weight_hh_l0"]).max() > 1e-3
    in_j = in_jax(partial(run_jax, with_cut(case), jax_impl.recurrent), leaves, cotangents)
    assert_same(cut, in_j)


def test_chunks_of_equal_size_begin_at_either_end_and_reset():
    """Three of 2 steps: the first one of the reversed direction is a whole chunk, and not cut."""
    case = Case("rnn", bidirectional=True, ragged=True, state=True)
    cut = replace(case, options=Recurrence(truncated_bptt_steps=2))
    leaves, cotangents = leaves_of(case), cotangents_of(case)
    in_t = {
        c: in_torch(
            partial(run_torch, c, torch_impl.recurrent, resets=torch.tensor(RESETS)),
            leaves,
            cotangents,
        )
        for c in (case, cut)
    }
    for name in cotangents:
        np.testing.assert_array_equal(in_t[cut][name], in_t[case][name])
    in_j = in_jax(partial(run_jax, cut, jax_impl.recurrent, resets=RESETS), leaves, cotangents)
    assert_same(in_t[cut], in_j)


def kept_and_recomputed(case, library, kind):
    """Run layers as they are, and with chunks of 3 that are run again on the way back."""
    layers, given = getattr(library, kind), (leaves_of(case), cotangents_of(case))
    run, both = (run_torch, in_torch) if library is torch_impl else (run_jax, in_jax)
    ways = layers, library.recurrent.recomputing(layers)
    return [both(partial(run, case, way), *given) for way in ways]


@pytest.mark.parametrize("kind", ["recurrent", "fast"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_recomputed_states_change_nothing(case, kind):
    """The same values and gradients; in torch to the bit, but for what a kernel sums over time."""
    for library in (torch_impl, jax_impl):
        kept, recomputed = kept_and_recomputed(case, library, kind)
        assert_same(kept, recomputed)
        if library is torch_impl:
            for name in kept:
                if kind == "recurrent" or not name.startswith("d "):
                    np.testing.assert_array_equal(recomputed[name], kept[name])


@pytest.mark.skipif(machine() != "x86_64", reason="the flag is for x86-64")
def test_recomputed_states_change_no_bit_in_jax():
    """Without fused multiply-add: which products XLA fuses with a sum, it chooses by program."""
    check = "from parity_tests import conftest, test_carry; test_carry.see_equal_bits()"
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_max_isa=AVX", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)


def see_equal_bits():
    """In three chunks: of two, either order of a sum is the same."""
    jax_impl.carry.root = jax_impl.fast.root = lambda time: 2
    for case in CASES:
        for kind in ("recurrent", "fast"):
            kept, recomputed = kept_and_recomputed(case, jax_impl, kind)
            for name in kept:
                message = f"{case} {kind} {name}"
                np.testing.assert_array_equal(recomputed[name], kept[name], message)


def test_recomputation_needs_memory_for_the_root_of_the_steps():
    """What XLA sets aside for a gradient over 1024 steps, and what torch saves for it."""
    long, B, H, D = 1024, 4, 8, 3
    draw = np.random.default_rng(0).normal
    module = torch_impl.recurrent.LSTM(D, H)
    params = {n: jnp.asarray(p.detach().numpy()) for n, p in module.named_parameters()}
    inputs = draw(size=(B, long, D)).astype(np.float32)
    kept = {}
    for name, layers in (
        ("all", jax_impl.recurrent),
        ("root", jax_impl.recurrent.recomputing(jax_impl.recurrent)),
        ("all, fast", jax_impl.fast),
        ("root, fast", jax_impl.recurrent.recomputing(jax_impl.fast)),
    ):

        def total(params, layers=layers):
            return layers.lstm(params, inputs)[1].h.sum()

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        kept[name] = compiled.memory_analysis().temp_size_in_bytes
    assert kept["root"] < kept["all"] / 4
    assert kept["root, fast"] < kept["all, fast"] / 4
    saved = {}
    for name, layers in (
        ("all", torch_impl.recurrent),
        ("root", torch_impl.recurrent.recomputing(torch_impl.recurrent)),
    ):
        own, sizes = layers.LSTM(D, H), []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            own(torch.tensor(inputs))[1].h.sum()
        saved[name] = sum(sizes)
    assert saved["root"] < saved["all"] / 4


@pytest.mark.parametrize(
    ("time", "expected"), [(1, {1}), (4, {2}), (5, {3, 2}), (9, {3}), (10, {4, 2}), (17, {5, 2})]
)
def test_a_recomputed_chunk_has_the_root_of_the_steps(time, expected):
    """Rounded up, so that there are no more chunks than steps in one."""
    lengths = set()

    def unroll_cell(weights, inputs, valid, state, reverse, carry):
        lengths.add(inputs.shape[1])
        return (inputs,), state

    inputs, h = np.random.default_rng(1).normal(size=(2, time, 7)), np.zeros((2, 3))
    run = torch_impl.recurrent.recomputed(unroll_cell)
    (outputs,), _ = run({}, torch.tensor(inputs), None, (torch.tensor(h),), False)
    assert lengths == expected
    np.testing.assert_array_equal(outputs, inputs)
    steps = jax_impl.carry.root(time)
    whole, rest = jax_impl.carry.split_time(jnp.asarray(inputs.swapaxes(0, 1)), steps)
    assert {steps} | {len(rest)} - {0} == expected
    found = [whole, rest if len(rest) else None]
    np.testing.assert_array_equal(jax_impl.carry.join_time(found), inputs.swapaxes(0, 1))
