"""Exported ONNX files in onnxruntime, against the NumPy reference and against either backend."""

import json

import numpy as np
import pytest

import export
import train
from parity_tests.cases import CASES, Case
from parity_tests.compare import assert_same, relative_error
from parity_tests.distributions import FORECASTS, forecast_units, forecasts
from parity_tests.oracles.ours import LARGEST
from parity_tests.test_checkpoint import OPTIONS, data  # noqa: F401  a fixture
from parity_tests.test_export import answers_of, questions, true_answers, units_of
from spec.config import Recurrence
from spec.errors import ConfigError

REASON = "make oracles installs it"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

NAME = "export.py, onnx (float32)"
# Options of the recurrent layers that ONNX's operators have, or that only training has.
OPTIONS_OF_LAYERS = [
    Case("lstm", ragged=True, options=Recurrence(peepholes=True, forget_bias=1.0)),
    Case("lstm", bidirectional=True, options=Recurrence(coupled_gates=True)),
    Case(
        "lstm_attention",
        layers=3,
        bidirectional=True,
        options=Recurrence(peepholes=True, coupled_gates=True, residual=True),
    ),
    Case("gru", layers=2, bidirectional=True, reset_after=False, options=Recurrence(residual=True)),
    Case("gru_attention", layers=3, self_attention=True, options=Recurrence(residual=True)),
    Case(
        "rnn",
        layers=2,
        options=Recurrence(
            residual=True, input_dropout=0.2, recurrent_dropout=0.4, truncated_bptt_steps=2
        ),
    ),
    Case(
        "lstm_seq2seq",
        steps=3,
        ragged=True,
        bidirectional=True,
        options=Recurrence(peepholes=True, coupled_gates=True),
    ),
]


# Options that they do not have: such layers are a Scan of one step.
SCANNED = [
    Case("rnn", ragged=True, bidirectional=True, options=Recurrence(zoneout=0.3)),
    Case("rnn", nonlinearity="relu", layers=2, options=Recurrence(zoneout=0.6, residual=True)),
    Case("gru", ragged=True, reset_after=False, options=Recurrence(zoneout=0.2)),
    Case("gru", layers=2, bidirectional=True, ragged=True, options=Recurrence(zoneout=0.2)),
    Case("lstm", ragged=True, bidirectional=True, layers=2, options=Recurrence(proj_size=3)),
    Case("lstm", ragged=True, options=Recurrence(zoneout=0.4, peepholes=True)),
    Case(
        "lstm", ragged=True, options=Recurrence(layer_norm=True, peepholes=True, coupled_gates=True)
    ),
    Case(
        "lstm_attention",
        layers=3,
        bidirectional=True,
        ragged=True,
        options=Recurrence(
            proj_size=2,
            layer_norm=True,
            peepholes=True,
            coupled_gates=True,
            zoneout=0.1,
            residual=True,
        ),
    ),
    Case("lstm", ragged=True, every_step=True, options=Recurrence(layer_norm=True)),
    Case(  # a decoder's cell has the encoder's form, and no zoneout
        "lstm_seq2seq",
        steps=3,
        ragged=True,
        options=Recurrence(layer_norm=True, peepholes=True, zoneout=0.3),
    ),
]
EVERY_CASE = [*CASES, *OPTIONS_OF_LAYERS, *SCANNED]
RECURRENT = [case for case in EVERY_CASE if case.config.recurrent]


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_file_matches_reference(case):
    """In float32, for which onnxruntime has recurrent operators."""
    found = answers_of("onnx", case, "float32")
    narrow = {name: array.astype(np.float32) for name, array in case.params.items()}
    expected = true_answers(case, narrow)
    errors = [relative_error(found[name], expected[name]) for name in expected]
    LARGEST[NAME] = max(LARGEST.get(NAME, 0.0), *errors)
    # Sums of 4 products in float32: rounding reaches 1e-7, a swapped gate 1e-1.
    assert_same(found, expected, 5e-7)


@pytest.mark.parametrize(
    "case", [c for c in EVERY_CASE if c.config.recurrent or c.activation != "gelu"], ids=str
)
def test_file_matches_reference_in_float64(case):
    """But for Erf, which the GELU takes, onnxruntime has every elementary operator in float64."""
    assert_same(answers_of("onnx", case, "float64"), true_answers(case, case.params))


@pytest.mark.parametrize(
    ("dtype", "case"),
    [(dtype, case) for dtype in ("float32", "float64") for case in RECURRENT],
    ids=str,
)
def test_layers_are_operators_where_there_are_such(dtype, case):
    """A Scan of elementary operators takes longer."""
    import onnx_impl

    content = onnx_impl.export(case.config, case.params, dtype, units_of(case), "onnx", "{}")
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    known = not (case.options.zoneout or case.options.proj_size or case.options.layer_norm)
    expected = {case.config.cell.upper()} if known and dtype == "float32" else {"Scan"}
    expected |= {"Scan"} if case.config.decodes else set()
    assert kinds & {"RNN", "GRU", "LSTM", "Scan", "Loop"} == expected


@pytest.mark.parametrize("case", FORECASTS, ids=str)
def test_quantiles_and_spreads_match_reference(case):
    import onnx_impl

    narrow = {name: array.astype(np.float32) for name, array in case.params.items()}
    content = onnx_impl.export(case.config, narrow, "float32", forecast_units(case), "onnx", "{}")
    found = {str(x.shape): onnx_impl.run(content, "onnx", x, n) for x, n in questions(case)}
    assert_same(found, forecasts(case, narrow)[0], 5e-7)


def test_no_more_steps_than_learned_positions():
    import onnx_impl

    case = next(case for case in CASES if case.positions == "learned")
    content = onnx_impl.export(case.config, case.params, "float64", units_of(case), "onnx", "{}")
    T = case.config.longest + 1
    with pytest.raises(Exception, match="out of data bounds"):
        onnx_impl.run(content, "onnx", np.zeros((1, T, case.features)), np.array([T]))


def test_a_decoder_is_one_step_whatever_the_steps_of_its_forecast():
    """Weights stand in the file once."""
    import onnx_impl

    sizes = []
    for steps in (2, 200):
        case = Case("lstm_seq2seq", steps=steps)
        given = case.config, case.params, "float32", units_of(case), "onnx", "{}"
        sizes.append(len(onnx_impl.export(*given)))
    units = 2 * (200 - 2) * case.targets_of_a_step * 8  # means and standard deviations, float64
    assert sizes[1] - sizes[0] <= units + 32  # and longer numbers for shapes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_dtype_is_refused(dtype):
    import onnx_impl

    case = CASES[0]
    with pytest.raises(ConfigError) as error:
        onnx_impl.export(case.config, case.params, dtype, units_of(case), "onnx", "{}")
    assert str(error.value) == (
        f"--format onnx: onnxruntime runs no such model in {dtype}; choose torchscript, "
        "torch_export, stablehlo or safetensors, or train with --dtype float32"
    )


def test_names_open_sizes_and_labels_stand_in_the_file():
    import onnx_impl

    case = next(case for case in CASES if case.task == "classification" and case.config.attends)
    record = json.dumps({"classes": ["low", "high"]})
    content = onnx_impl.export(case.config, case.params, "float32", units_of(case), "onnx", record)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    described = [(i.name, i.type, i.shape) for i in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("inputs", "tensor(double)", ["batch", "time", case.features]),
        ("lengths", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(double)", ["batch", case.config.output_size]),
    ]
    assert session.get_modelmeta().custom_metadata_map == {"seqduet": record}


def test_a_gelu_in_float64_is_refused():
    import onnx_impl

    case = next(c for c in CASES if c.model == "transformer" and c.activation == "gelu")
    with pytest.raises(ConfigError, match="onnxruntime runs Erf in float32 only"):
        onnx_impl.export(case.config, case.params, "float64", units_of(case), "onnx", "{}")


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM", "Erf"])
def test_onnxruntime_lacks_operators_in_float64(operator):
    """If a release comes to have them, the test fails: refusal and Scan can go."""
    double = onnx.TensorProto.DOUBLE
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4, "Erf": 0}[operator]
    shapes = {"X": (2, 1, 3), "W": (1, 3 * gates, 3), "R": (1, 3 * gates, 3)}
    shapes = shapes if gates else {"X": (2, 1, 3)}
    inputs = [onnx.helper.make_tensor_value_info(n, double, s) for n, s in shapes.items()]
    attributes = {"hidden_size": 3} if gates else {}
    node = onnx.helper.make_node(operator, list(shapes), ["Y"], **attributes)
    outputs = [onnx.helper.make_tensor_value_info("Y", double, None)]
    graph = onnx.helper.make_graph([node], "double", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|does not support double"):
        onnxruntime.InferenceSession(model.SerializeToString()).run(
            None, {n: np.zeros(s) for n, s in shapes.items()}
        )


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("model", ["lstm_attention", "lstm_seq2seq"])
def test_a_checkpoint_of_either_backend(data, tmp_path, capsys, backend, model):  # noqa: F811
    run, out = tmp_path / "run", tmp_path / "model.onnx"
    file, options = data, [*OPTIONS, f"--model={model}", "--epochs=1", "--dtype=float32"]
    if model.endswith("_seq2seq"):
        file = tmp_path / "series.csv"
        rows = np.random.default_rng(3).normal(size=(40, 3)).cumsum(axis=0)
        np.savetxt(file, rows, delimiter=",", header="a,b,c", comments="", fmt="%.4f")
        options += ["--windows=4", "--horizon=3", "--forecast=path", "--target=c,a"]
    argv = [f"--data_path={file}", f"--backend={backend}", f"--out={run}"]
    assert train.main([*argv, *options]) is None
    for other in ("torch", "jax"):
        argv = [f"--checkpoint={run}", f"--backend={other}", "--format=onnx", f"--out={out}"]
        capsys.readouterr()
        assert export.main(argv) is None
        assert f"largest difference from {other} " in capsys.readouterr().out
        out.unlink()
