"""Ours and ONNX: the standard's own test data, its reference evaluator and onnxruntime.

ONNX stacks an LSTM's gates i, o, f, c and a GRU's z, r, h, puts time first, knows no gradients and
resets before the product unless `linear_before_reset` is 1.
"""

from functools import partial

import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from parity_tests.cases import H
from parity_tests.compare import assert_same
from parity_tests.oracles.ours import CASES, NARROW, assert_agree, assert_as_exact, by_layers
from parity_tests.test_recurrent import leaves_of

REASON = "make oracles installs it"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)
TO_ONNX = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}  # r, z, n and i, f, g, o to ONNX's
FROM_ONNX = TO_ONNX | {"lstm": (0, 2, 3, 1)}
LAYERS = (torch_impl.recurrent, torch_impl.fast, jax_impl.recurrent, jax_impl.fast)


def reordered(gates, order):
    """Put the blocks along axis 0 in another order."""
    blocks = np.split(gates, len(order))
    return np.concatenate([blocks[n] for n in order])


def node_cases():
    """Return the standard's cases of the recurrent operators: those of ours, and the others."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401  fills the list below

    ours, others = {}, {}
    for case in node._NodeTestCases:
        operator = case.model.graph.node[0]
        if operator.op_type in ("GRU", "LSTM", "RNN"):
            (others if "P" in operator.input else ours)[case.name] = case
    return ours, others


NODE_CASES, OTHERS = node_cases()


def test_all_node_cases_are_known():
    """A release with further ones has to be looked at: peepholes are not ours."""
    assert len(NODE_CASES) == 17
    assert list(OTHERS) == ["test_lstm_with_peepholes"]


def run_ours(layers, cell, params, x, options):
    """Return outputs [B, T, F] and h [directions, B, H], float64."""
    x, params = x.astype(float), {n: p.astype(float) for n, p in params.items()}
    if layers.__name__.startswith("jax"):
        outputs, last = getattr(layers, cell)(params, x, **options)
    else:
        sizes = (x.shape[-1], params["weight_hh_l0"].shape[1], 1, "bias_ih_l0_reverse" in params)
        tensors = {name: torch.tensor(array) for name, array in params.items()}
        module = getattr(layers, cell.upper())(*sizes, **options)
        outputs, last = torch.func.functional_call(module, tensors, (torch.tensor(x),))
    return [np.asarray(array) for array in (outputs, *(last if cell == "lstm" else (last,)))]


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

    options = {"gru": {"reset_after": attributes.get("linear_before_reset") == 1}}.get(cell, {})

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
    x = given["X"] if attributes.get("layout") else given["X"].swapaxes(0, 1)
    y, *states = run_ours(layers, cell, params, x[:, ::-1] if reverse else x, options)
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

    def stacked(*names):
        parts = [[own[n] for n in names] for own in directions]
        parts = [[reordered(p, TO_ONNX[case.model]) for p in own] for own in parts]
        return np.stack([np.concatenate(own) for own in parts])

    feeds = {"X": x.swapaxes(0, 1), "W": stacked("weight_ih"), "R": stacked("weight_hh")}
    feeds |= {"B": stacked("bias_ih", "bias_hh")}
    if case.lengths is not None:
        feeds["sequence_lens"] = case.lengths.astype(np.int32)
    feeds |= dict(zip(("initial_h", "initial_c"), first, strict=False))
    optional = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")[: 7 if lstm else 6]
    outputs = ("Y", "Y_h", "Y_c")[: 3 if lstm else 2]
    functions = [case.nonlinearity.capitalize()]
    operator = onnx.helper.make_node(
        *(case.model.upper(), [n if n in feeds else "" for n in optional], list(outputs)),
        hidden_size=H,
        direction="bidirectional" if len(directions) == 2 else "forward",
        **({"linear_before_reset": int(case.reset_after)} if case.model == "gru" else {}),
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


# The reference evaluator ignores sequence_lens without a word, and knows no Relu.
@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.ragged and c.nonlinearity == "tanh"], ids=str
)
def test_reference_evaluator(case):
    theirs = by_layers(case, partial(onnx_layer, by_reference), np, leaves_of(case))
    assert_agree("onnx.reference", case, theirs)


def test_onnxruntime():
    """It computes in float32 only."""

    def run(case, leaves, _):
        narrow = {name: array.astype(np.float32) for name, array in leaves.items()}
        return by_layers(case, partial(onnx_layer, by_runtime), np, narrow)

    assert_as_exact("onnxruntime (float32)", NARROW, run)
