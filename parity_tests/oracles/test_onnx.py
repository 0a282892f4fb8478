"""Ours and ONNX: the standard's own test data, its reference evaluator and onnxruntime.

ONNX stacks an LSTM's gates i, o, f, c, its peepholes i, o, f and a GRU's z, r, h, puts time first,
knows no gradients and resets before the product unless `linear_before_reset` is 1.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from parity_tests.cases import Case, H
from parity_tests.compare import assert_same
from parity_tests.oracles.ours import (
    CASES,
    COUPLED,
    NARROW,
    PEEPHOLES,
    assert_agree,
    assert_as_exact,
    by_layers,
)
from parity_tests.test_recurrent import cotangents_of, leaves_of
from spec.config import Recurrence

REASON = "make oracles installs it"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)
# r, z, n and i, f, g, o to ONNX's; peepholes i, f, o to i, o, f, and back alike.
TO_ONNX = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "peepholes": (0, 2, 1)}
FROM_ONNX = TO_ONNX | {"lstm": (0, 2, 3, 1)}
LAYERS = (torch_impl.recurrent, torch_impl.fast, jax_impl.recurrent, jax_impl.fast)


def reordered(gates, order):
    """Put the blocks along axis 0 in another order."""
    blocks = np.split(gates, len(order))
    return np.concatenate([blocks[n] for n in order])


def node_cases():
    """Return the standard's cases of the recurrent operators, by name."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401  fills the list below

    operators = ("GRU", "LSTM", "RNN")
    cases = {case.name: case for case in node._NodeTestCases}
    return {n: c for n, c in cases.items() if c.model.graph.node[0].op_type in operators}


NODE_CASES = node_cases()


def test_all_node_cases_are_known():
    """A release with further ones, or with an attribute that none had, has to be looked at."""
    assert len(NODE_CASES) == 18
    nodes = [case.model.graph.node[0] for case in NODE_CASES.values()]
    assert {a.name for node in nodes for a in node.attribute} == {
        "hidden_size",
        "direction",
        "layout",
    }
    assert {name for node in nodes for name in node.input} == {
        *("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    }


def run_ours(layers, cell, params, x, lengths, state, options):
    """Return outputs [B, T, F], h and perhaps c [directions, B, H], float64."""
    x, params = x.astype(float), {n: p.astype(float) for n, p in params.items()}
    state = tuple(part.astype(float) for part in state) or None
    if layers.__name__.startswith("jax"):
        first = state[0] if state and cell != "lstm" else state
        outputs, last = getattr(layers, cell)(params, x, lengths, first, **options)
    else:
        sizes = (x.shape[-1], params["weight_hh_l0"].shape[1], 1, "bias_ih_l0_reverse" in params)
        tensors = {name: torch.tensor(array) for name, array in params.items()}
        module = getattr(layers, cell.upper())(*sizes, **options)
        lengths = None if lengths is None else torch.tensor(lengths)
        first = state and tuple(map(torch.tensor, state))
        first = first[0] if first and cell != "lstm" else first
        given = torch.tensor(x), lengths, first
        outputs, last = torch.func.functional_call(module, tensors, given)
    return [np.asarray(array) for array in (outputs, *(last if cell == "lstm" else (last,)))]


def params_of(cell, given):
    """Return an operator's weights under torch's names, in torch's order of the gates."""
    params = {}
    for direction, end in zip(range(len(given["W"])), ("", "_reverse"), strict=False):
        rows = given["W"].shape[1]
        biases = given["B"][direction] if "B" in given else np.zeros(2 * rows)
        parts = (given["W"][direction], given["R"][direction], *np.split(biases, 2))
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        params |= {
            f"{n}_l0{end}": reordered(part, FROM_ONNX[cell])
            for n, part in zip(names, parts, strict=True)
        }
        if "P" in given:
            peepholes = reordered(given["P"][direction], FROM_ONNX["peepholes"])
            params[f"weight_ch_l0{end}"] = peepholes
    return params


@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: layers.__name__)
@pytest.mark.parametrize("name", NODE_CASES)
def test_node_data(name, layers):
    """The expected values are float32; where only the reverse direction runs, ours goes backwards."""
    (inputs, expected), *_ = NODE_CASES[name].data_sets
    operator = NODE_CASES[name].model.graph.node[0]
    given = dict(zip(operator.input, inputs, strict=True))
    wanted = dict(zip(filter(None, operator.output), expected, strict=True))
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute}
    cell, reverse = operator.op_type.lower(), attributes.get("direction") == b"reverse"

    options = {
        "rnn": {},
        "gru": {"reset_after": attributes.get("linear_before_reset") == 1},
        "lstm": {"options": Recurrence(peepholes="P" in given)},
    }[cell]
    state = tuple(given[name] for name in ("initial_h", "initial_c") if name in given)
    x = given["X"] if attributes.get("layout") else given["X"].swapaxes(0, 1)
    steps = x[:, ::-1] if reverse else x
    about = given.get("sequence_lens"), state, options
    y, *states = run_ours(layers, cell, params_of(cell, given), steps, *about)
    y = (y[:, ::-1] if reverse else y).reshape(*x.shape[:2], len(given["W"]), -1)
    if attributes.get("layout"):
        states = [state.swapaxes(0, 1) for state in states]
    else:
        y = y.transpose(1, 2, 0, 3)
    found = dict(zip(("Y", "Y_h", "Y_c"), (y, *states), strict=False))
    assert_same({n: found[n] for n in wanted}, wanted, 5e-7)


def onnx_layer(engine, case, directions, x, first):
    """Run one node: lengths and directions are ONNX's."""
    lstm = case.model == "lstm"

    def reordered_parts(own, names, order):
        parts = [own[n] for n in names]
        if case.options.coupled_gates:  # a block of ONNX's that is not to be looked at: NaN
            wide = [np.split(part, len(order) - 1) for part in parts]
            parts = [np.concatenate([p[0], p[0] * np.nan, *p[1:]]) for p in wide]
        return np.concatenate([reordered(part, order) for part in parts])

    def stacked(*names, order=TO_ONNX[case.model]):
        return np.stack([reordered_parts(own, names, order) for own in directions])

    feeds = {"X": x.swapaxes(0, 1), "W": stacked("weight_ih"), "R": stacked("weight_hh")}
    feeds |= {"B": stacked("bias_ih", "bias_hh")}
    if case.lengths is not None:
        feeds["sequence_lens"] = case.lengths.astype(np.int32)
    feeds |= dict(zip(("initial_h", "initial_c"), first, strict=False))
    if case.options.peepholes:
        feeds["P"] = stacked("weight_ch", order=TO_ONNX["peepholes"])
    optional = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    optional = optional[: (8 if "P" in feeds else 7) if lstm else 6]
    outputs = ("Y", "Y_h", "Y_c")[: 3 if lstm else 2]
    functions = [case.nonlinearity.capitalize()]
    operator = onnx.helper.make_node(
        *(case.model.upper(), [n if n in feeds else "" for n in optional], list(outputs)),
        hidden_size=H,
        direction="bidirectional" if len(directions) == 2 else "forward",
        **({"linear_before_reset": int(case.reset_after)} if case.model == "gru" else {}),
        **({"input_forget": 1} if case.options.coupled_gates else {}),
        **({"activations": functions * len(directions)} if case.model == "rnn" else {}),
    )

    def described(name, array):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnx.helper.make_tensor_value_info(name, dtype, array.shape)

    def unknown(name):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        return onnx.helper.make_tensor_value_info(name, dtype, None)

    graph = onnx.helper.make_graph(
        [operator],
        "layer",
        [described(n, a) for n, a in feeds.items()],
        list(map(unknown, outputs)),
    )
    opset = [onnx.helper.make_opsetid("", 22)]
    y, *last = engine(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), feeds)
    return y.transpose(2, 0, 1, 3).reshape(*x.shape[:2], -1), tuple(last)  # [T, directions, B, H]


def by_reference(model, feeds):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, feeds)


def by_runtime(model, feeds):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, feeds)


# The reference evaluator ignores sequence_lens and input_forget without a word, and knows no Relu.
@pytest.mark.parametrize(
    "case",
    [c for c in CASES + PEEPHOLES if not c.ragged and c.nonlinearity == "tanh"],
    ids=str,
)
def test_reference_evaluator(case):
    theirs = by_layers(case, partial(onnx_layer, by_reference), np, leaves_of(case))
    assert_agree("onnx.reference", case, theirs)


def with_forget_gate(leaves):
    """Write out the forget gate of coupled gates: 1 - sigmoid(x) is sigmoid(-x)."""
    wide = {}
    for name, array in leaves.items():
        parts = 2 if name.startswith("weight_ch") else 3 if name.startswith(("w", "b")) else 0
        if parts:
            i, *others = np.split(array, parts)
            array = np.concatenate([i, -i, *others])
        wide[name] = array
    return wide


STEP = 1e-200  # along the imaginary axis


def derivatives(case):
    """Return outputs and every gradient by the evaluator, which computes with complex numbers too.

    The derivative by one number is the imaginary part that a step of it leaves (Squire & Trapp,
    1998).
    """
    plain = replace(case, options=replace(case.options, coupled_gates=False))
    cotangents = cotangents_of(case)

    def run(leaves):
        leaves = with_forget_gate(leaves) if case.options.coupled_gates else leaves
        return by_layers(plain, partial(onnx_layer, by_reference), np, leaves)

    leaves = leaves_of(case)
    complexes = {name: array.astype(complex) for name, array in leaves.items()}
    found = run(leaves)
    for name, array in leaves.items():
        gradient = found[f"d {name}"] = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            moved = complexes[name].copy()
            moved[index] += 1j * STEP
            after = run({**complexes, name: moved})
            gradient[index] = sum((after[n].imag * d).sum() for n, d in cotangents.items()) / STEP
    return found


@pytest.mark.parametrize("coupled", [False, True], ids=["peepholes", "coupled"])
def test_gradients_of_the_reference_evaluator(coupled):
    options = Recurrence(peepholes=True, coupled_gates=coupled)
    case = Case("lstm", bidirectional=True, state=True, options=options)
    assert_agree("onnx.reference, complex steps", case, derivatives(case))


@pytest.mark.parametrize(
    "cases", [NARROW, PEEPHOLES, COUPLED], ids=["plain", "peepholes", "coupled"]
)
def test_onnxruntime(cases):
    """It computes in float32 only."""

    def run(case, leaves, _):
        narrow = {name: array.astype(np.float32) for name, array in leaves.items()}
        return by_layers(case, partial(onnx_layer, by_runtime), np, narrow)

    assert_as_exact("onnxruntime (float32)", cases, run)
