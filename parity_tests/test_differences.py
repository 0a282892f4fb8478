"""Every entry of the atlas does what it says, on both sides, and so does its advice."""

import builtins
import dataclasses
import dis
import sys

import numpy as np
import pytest
import torch

from parity.differences import DIFFERENCES, GROUPS, ulp
from parity.differences.entry import as_pasted, body, close, run, versions
from parity.differences.expect import Between, Outcome, Raises, Warns, equal, meets
from parity.differences.numerics import ULP, ulp_bound
from parity.differences.render import COMMAND, DOCUMENT, IMPORTS, document, entry
from parity.inject import INJECTIONS

MEDIAN = DIFFERENCES["median_of_an_even_number"]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference_is_as_recorded(name):
    problems = DIFFERENCES[name].problems()
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference_is_short_and_sourced(name):
    item = DIFFERENCES[name]
    snippets = [item.in_torch, item.in_jax] + ([item.same] if item.same else [])
    for snippet in snippets:
        assert len(body(snippet).splitlines()) <= 10, snippet
    assert item.source
    assert item.instead.endswith(".")
    assert f'id="{name}"' in entry(item)


def globals_of(code):
    """Return the names of globals that a function reads, in the functions inside it too."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return names.union(*map(globals_of, inner))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_snippets_need_only_what_the_document_says(name):
    item = DIFFERENCES[name]
    given = dict(vars(builtins))
    exec(IMPORTS, given)
    shared = getattr(sys.modules[item.in_torch.__module__], "SHARED", ())
    given |= {function.__name__: function for function in shared}
    for snippet in filter(None, (item.in_torch, item.in_jax, item.same)):
        assert globals_of(snippet.__code__) <= set(given), snippet


def test_document_is_fresh():
    assert DOCUMENT.read_text() == document(), f"stale: run `{COMMAND}`"


def test_groups_are_filled():
    assert {item.group for item in DIFFERENCES.values()} == set(GROUPS)


def test_inject_names():
    names = [item.inject for item in DIFFERENCES.values() if item.inject]
    assert sorted(names) == sorted(INJECTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch_gives": 2.1}, ["torch changed", "expected 2.1", "seen     2.0", "jax "]),
        ({"jax_gives": Raises("TypeError")}, ["jax changed", "seen     2.5"]),
        ({"in_jax": MEDIAN.in_torch}, ["jax changed", "no longer differ"]),
        ({"same": lambda: (1.0, 1.1)}, ["not the same", "1.1"]),
        ({"same": lambda: (1.0, float("nan"))}, ["not the same", "nan"]),
    ],
)
def test_a_changed_behaviour_is_told(change, words):
    problems = "\n".join(dataclasses.replace(MEDIAN, **change).problems())
    for word in ["median_of_an_even_number", *words]:
        assert word in problems


NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "value", "met"),
    [
        (0.0, 1e-12, False),
        (1.0, 1.00005, True),
        (1.0, 1.0002, False),
        (3, 3.001, False),
        (NAN, NAN, True),
        (NAN, 0.0, False),
        (0.0, NAN, False),
        (float("inf"), 1e308, False),
        ((1.0, NAN), (1.0, NAN), True),
        ((1.0, NAN), (NAN, 1.0), False),
        ((1.0,), 1.0, False),
        (True, 1, False),
        ("int32", "int64", False),
        (1 + 2j, 1 - 2j, False),
        (Between(0.5, 0.4, 1.0), 0.9, True),
        (Between(0.5, 0.4, 1.0), 1.1, False),
        (Between(0.5, 0.4, 1.0), NAN, False),
    ],
)
def test_equal(expected, value, met):
    assert equal(expected, value) is met


def test_errors_and_warnings_are_part_of_what_is_expected():
    raised = Outcome(error=IndexError("index 5 is out of bounds"))
    assert meets(Raises("IndexError", "out of bounds"), raised)
    assert not meets(Raises("IndexError", "size 3"), raised)
    assert not meets(Raises("KeyError"), raised)
    assert not meets(Raises("IndexError"), Outcome(5))
    assert not meets(5, raised)
    assert not meets(5, Outcome(5, warnings=("careful",)))
    assert meets(Warns("care", 5), Outcome(5, warnings=("careful",)))
    assert not meets(Warns("care", 5), Outcome(5))
    assert not meets(Warns("care", 5), Outcome(6, warnings=("careful",)))


def test_between_holds_what_was_recorded():
    with pytest.raises(ValueError, match="not between"):
        Between(2.0, 0.4, 1.0)


def test_close_compares_nan_and_shape():
    assert close((1.0, NAN), (1.0 + 1e-9, NAN), 1e-8)
    assert not close((1.0, NAN), (NAN, 1.0), 1e-8)
    assert not close((1.0,), 1.0, 1e-8)
    assert not close((0.0,), (1e-30,), 1e-8)


def test_snippets_leave_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    with as_pasted():
        torch.set_default_dtype(torch.float16)
        torch.randn(3)
    np.testing.assert_array_equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert run(lambda: torch.randn(2)) == run(lambda: torch.randn(2))


def test_ulp_measure():
    x = ulp.grid("sqrt", "float32")
    rounded = np.sqrt(x.astype(float)).astype(np.float32)
    assert ulp.errors("sqrt", "float32", rounded).max() <= 0.5
    above = np.nextafter(rounded, np.float32(np.inf))
    assert (
        0.5
        <= ulp.errors("sqrt", "float32", above).min()
        <= 1.0
        < ulp.errors("sqrt", "float32", above).max()
    )


@pytest.mark.parametrize("name", ULP)
def test_elementary_function_in_ulp(name):
    columns = [(dtype, side) for dtype in ("float32", "float64") for side in ("torch", "jax")]
    for recorded, (dtype, side) in zip(ULP[name], columns, strict=True):
        seen = ulp.most(name, dtype, side)
        assert seen <= ulp_bound(recorded), (
            f"{name} {dtype} {side}: {seen=}, {recorded=}, {versions()}"
        )


def test_every_elementary_function_is_recorded():
    assert set(ULP) == set(ulp.FUNCTIONS)
