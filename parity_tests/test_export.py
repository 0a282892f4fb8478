"""Exported programs answer as the NumPy reference and as `predict.py` do, at sizes never traced.

They were traced at 3 sequences of 5 steps, or at none. Inputs are readings far from 0, with NaN past
each end and where one is missing.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import jax_impl.export
import predict
import torch_impl.export
import train
from data.scaling import Scaling
from experiment.answers import in_unit
from experiment.exports import MAKERS
from experiment.pretrained import from_pretrained
from parity_tests.cases import CASES, Case
from parity_tests.compare import BOUND, assert_same
from parity_tests.test_checkpoint import OPTIONS, data  # noqa: F401  a fixture
from spec import reference
from spec.backend import load_backend
from spec.batch import Batch
from spec.config import Execution, OptimizerConfig
from spec.errors import OutputError
from spec.params import sinusoidal_positions
from spec.precision import UNIT_ROUNDOFF
from torch_impl.carry import AS_IT_IS

SIZES = ((1, 1), (2, 9), (5, 12))
PROGRAMS = [format for format in MAKERS if format != "onnx"]  # of which parity_tests/oracles has it
# Exports and compilations take seconds: of each model the most elaborate case runs, and
# make test-long runs all.
ELABORATE = {case.model: str(case) for case in sorted(CASES, key=lambda case: len(str(case)))}
for model in ("rnn", "rnn_attention", "gru", "rnn_seq2seq", "gru_seq2seq"):  # like the others
    ELABORATE[model] = ""
# One of each kind.
NARROW = (
    "lstm-ragged",
    "gru_attention-2layers-bidirectional-ragged-state-dropout",
    "transformer-pre-norm-ragged-classes",
    "lstm_seq2seq-3steps",
)


def exportable() -> Iterator:
    """Pair each format with each case; initial states are no inputs of a program."""
    for format, case in product(PROGRAMS, CASES):
        soon = format == "torchscript" or ELABORATE[case.model] == str(case)
        marks = [] if soon else [pytest.mark.long]
        yield pytest.param(format, case, id=f"{format}-{case}", marks=marks)


def units_of(case: Case) -> Scaling:
    """Draw means and standard deviations, all different."""
    draw = np.random.default_rng(5)
    O = 1 if case.task == "classification" else case.config.output_size
    return Scaling(
        draw.normal(size=case.features) * 50,
        draw.uniform(0.5, 3, case.features),
        draw.normal(size=O) * 7,
        draw.uniform(0.5, 3, O),
    )


def questions(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw readings [B, T, D] and lengths [B] of each size; the longest sequence has T steps."""
    draw, units, asked = np.random.default_rng(6), units_of(case), []
    for B, T in SIZES:
        T = min(T, case.config.longest or T)
        lengths = draw.integers(1, T, B, endpoint=True)
        lengths[-1] = T
        scaled = draw.normal(size=(B, T, case.features))
        scaled[draw.random(scaled.shape) < 0.1] = np.nan
        scaled[np.arange(T) >= lengths[:, None]] = np.nan
        asked.append((scaled * units.input_std + units.input_mean, lengths))
    return asked


def true_answers(case: Case, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answer by the reference, in float64."""
    units, answers = units_of(case), {}
    params = {name: array.astype(np.float64) for name, array in params.items()}
    for inputs, lengths in questions(case):
        scaled = np.nan_to_num((inputs - units.input_mean) / units.input_std)
        outputs = reference.predict(case.config, params, scaled, lengths).predictions
        answer = outputs * units.target_std + units.target_mean
        if case.task == "classification":
            answer = np.exp(outputs) / np.exp(outputs).sum(axis=-1, keepdims=True)
        answers[str(inputs.shape)] = answer
    return answers


def answers_of(format: str, case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Export a case, and run the file at each size."""
    maker = import_module(MAKERS[format][0])
    content = maker.export(case.config, case.params, dtype, units_of(case), format, "{}")
    return {
        str(inputs.shape): maker.run(content, format, inputs, lengths)
        for inputs, lengths in questions(case)
    }


@pytest.mark.parametrize(("format", "case"), list(exportable()))
def test_program_matches_reference(format, case):
    assert_same(answers_of(format, case, "float64"), true_answers(case, case.params), BOUND)


@pytest.mark.parametrize("format", PROGRAMS)
def test_answers_are_float64_whatever_computes(format):
    """Readings and answers keep their digits; a mean of 1e6 would leave float32 three of them."""
    case = CASES[0]
    found = answers_of(format, case, "float32")
    assert {answer.dtype for answer in found.values()} == {np.dtype("float64")}
    params = {name: array.astype(np.float32) for name, array in case.params.items()}
    assert_same(found, true_answers(case, params), 1e-6)  # rounding reaches 1e-7


def predictions(case: Case, backend: str, execution: Execution) -> dict[str, np.ndarray]:
    """Answer as `predict.py`, by a backend in the dtype of a run."""
    own, units, answers = load_backend(backend), units_of(case), {}
    state = own.init_state(case.config, OptimizerConfig(), execution, case.params)
    for inputs, lengths in questions(case):
        scaled = units.inputs(inputs, execution.master_dtype)
        outputs = own.predict(state, Batch(scaled, lengths)).outputs
        answers[str(inputs.shape)] = in_unit(case.config, units, outputs)
    return answers


def narrow() -> Iterator:
    """Pair each format with models of each kind in each narrow dtype."""
    for format, case, dtype in product(sorted(PROGRAMS), CASES, ("bfloat16", "float16")):
        if str(case) in NARROW:
            few = {"torch_export": NARROW[:1], "stablehlo": NARROW[1:2]}.get(format, NARROW)
            soon = str(case) in few and (dtype == "bfloat16" or few == NARROW)
            marks = [] if soon else [pytest.mark.long]
            yield pytest.param(format, case, dtype, id=f"{format}-{case}-{dtype}", marks=marks)


@pytest.mark.parametrize(("format", "case", "dtype"), list(narrow()))
def test_program_rounds_as_predict(format, case, dtype):
    """To the bit, though XLA, left to itself, does not round where the program says.

    torch's formats take readable loops, torch.export's of all recurrent layers and TorchScript's of
    an LSTM: `--no-fast` rounds as they do.
    """
    cells = {"torch_export": ("rnn", "gru", "lstm"), "torchscript": ("lstm",)}.get(format, ())
    fast = not (case.config.recurrent and case.config.cell in cells)
    backend = {"stablehlo": "jax"}.get(format, "torch")
    expected = predictions(case, backend, Execution(dtype=dtype, fast=fast))
    found = answers_of(format, case, dtype)
    # In float16 XLA fuses products and sums where a CPU has that instruction, and nothing stops it.
    bound = 2 * UNIT_ROUNDOFF[dtype] if (format, dtype) == ("stablehlo", "float16") else 1e-12
    assert_same(found, expected, bound)


@pytest.mark.parametrize(
    ("backend", "task"),
    [
        ("torch", "classification"),
        ("jax", "regression"),
        pytest.param("torch", "regression", marks=pytest.mark.long),
        pytest.param("jax", "classification", marks=pytest.mark.long),
    ],
)
def test_programs_and_folder_answer_as_predict(data, tmp_path, capsys, backend, task):  # noqa: F811
    """What either backend trained leaves by the other, and answers as its own predict.py."""
    lines = (line.split(",") for line in Path(data).read_text().splitlines())
    rows = [
        line if n == 0 or task == "classification" else [*line[:-1], line[0]]
        for n, line in enumerate(lines)
    ]
    file = tmp_path / "data.csv"
    file.write_text("\n".join(map(",".join, rows)) + "\n")
    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = [f"--data_path={file}", f"--backend={backend}", f"--out={run}", *OPTIONS, "--epochs=2"]
    assert train.main(argv) is None
    assert predict.main([f"--checkpoint={run}", f"--data_path={file}", f"--out={out}"]) is None
    table = np.genfromtxt(out, delimiter=",", skip_header=1, dtype=float)
    expected = table[:, 2:4] if task == "classification" else table[:, 1:2]

    cells = np.array([[cell or "nan" for cell in row[:6]] for row in rows[1:]], float)
    inputs = cells.reshape(-1, 3, 2)
    lengths = (~np.isnan(inputs[..., 0])).sum(axis=1)
    other = {"torch": "jax", "jax": "torch"}[backend]
    answers = {}
    for format in ({"torch": "stablehlo", "jax": "torchscript"}[backend], "safetensors"):
        made = tmp_path / format
        argv = [f"--checkpoint={run}", f"--backend={other}", f"--format={format}", f"--out={made}"]
        assert export.main(argv) is None
        if format == "safetensors":
            for name in ("torch", "jax"):
                answers[name] = from_pretrained(made, name).answer(inputs, lengths)
        else:
            maker = import_module(MAKERS[format][0])
            answers[format] = maker.run(made.read_bytes(), format, inputs, lengths)
    assert f"largest difference from {other} " in capsys.readouterr().out
    assert_same(answers, dict.fromkeys(answers, expected), BOUND)


def test_a_frozen_length_is_refused(data, tmp_path, monkeypatch):  # noqa: F811
    """The readable loop, traced, has the traced length for ever."""
    run = tmp_path / "run"
    argv = [f"--data_path={data}", f"--out={run}", *OPTIONS, "--epochs=1"]
    assert train.main(argv) is None
    frozen = (torch_impl.recurrent, torch_impl.export.write_torchscript)
    monkeypatch.setitem(torch_impl.export.FORMATS, "torchscript", frozen)
    argv = [f"--checkpoint={run}", "--format=torchscript", f"--out={tmp_path / 'model'}"]
    with pytest.raises(OutputError, match="nothing was written"):
        export.main(argv)
    assert not (tmp_path / "model").exists()


STRANGER = """
import io, json, sys
import numpy as np
import torch
import jax

inputs, lengths = np.random.default_rng(2).normal(size=(2, 7, {D})), np.array([7, 3])
records = [{{"seqduet.json": ""}}, {{"seqduet.json": ""}}]
script = torch.jit.load("torchscript", _extra_files=records[0])
exported = torch.export.load("torch_export", extra_files=records[1])
program = jax.export.deserialize(bytearray(open("stablehlo", "rb").read()))
assert [json.loads(record["seqduet.json"]) for record in records] == [{{"a": 1}}] * 2
answers = [
    f(inputs=torch.tensor(inputs), lengths=torch.tensor(lengths)).numpy()
    for f in (script, exported.module())
]
with jax.enable_x64(True):
    answers.append(np.asarray(program.call(inputs=inputs, lengths=lengths)))
print(json.dumps([answer.tolist() for answer in answers]))
assert not {{"torch_impl", "jax_impl", "spec", "experiment"}} & set(sys.modules)
"""


def test_a_stranger_can_run_them(tmp_path):
    """Their names are inputs and lengths; nothing of this project is imported."""
    case = CASES[-1]
    for format in PROGRAMS:
        maker = import_module(MAKERS[format][0])
        content = maker.export(
            case.config, case.params, "float64", units_of(case), format, '{"a": 1}'
        )
        (tmp_path / format).write_bytes(content)
    code = STRANGER.format(D=case.features)
    argv = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, text=True)
    script, exported, stablehlo = map(np.array, eval(result.stdout))
    assert_same(
        {"pt2": exported, "stablehlo": stablehlo}, dict.fromkeys(("pt2", "stablehlo"), script)
    )


@pytest.mark.parametrize("time", [1, 2, 700])
def test_places_in_time_are_those_of_the_models(time):
    """To the rounding of the angle, which is at most the time."""
    expected = sinusoidal_positions(time, 7)
    found = {
        "torch": torch_impl.export.positions(time, 7).numpy(),
        "jax": jax_impl.export.positions(time, 7),
    }
    assert_same(found, dict.fromkeys(found, expected), time * np.finfo(float).eps)


@pytest.mark.parametrize("format", PROGRAMS)
def test_no_more_steps_than_learned_positions(format):
    """Programs refuse a longer sequence as the models do, and learn of no place that is not there."""
    case = next(case for case in CASES if case.positions == "learned")
    longest = case.config.longest
    maker = import_module(MAKERS[format][0])
    content = maker.export(case.config, case.params, "float64", units_of(case), format, "{}")
    for T in (longest, longest + 1):
        inputs, lengths = np.zeros((2, T, case.features)), np.array([1, T])
        if longest == T:
            assert np.isfinite(maker.run(content, format, inputs, lengths)).all()
        else:
            with pytest.raises((RuntimeError, ValueError, AssertionError)):
                maker.run(content, format, inputs, lengths)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_for_export_are_recurrent(reverse):
    """The loops that only exports run, at one step and at several."""
    case = next(c for c in CASES if c.model == "gru" and not c.reset_after and c.ragged)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = {name: torch.tensor(case.params[f"gru.{name}_l0"]) for name in names}
    unroll = torch_impl.recurrent.unroll_gru
    for T in (1, 4):
        inputs = torch.randn(3, T, case.features, dtype=torch.float64)
        valid = torch.arange(T) < torch.tensor([T, 1, max(1, T - 1)])[:, None]
        given = (inputs, valid, (torch.randn(3, 4, dtype=torch.float64),), reverse)
        (expected,), last = unroll(weights, *given, reset_after=False)
        with torch_impl.export.quiet():
            (found,), end = torch_impl.export.unroll_scripted(
                torch_impl.recurrent.gru_with, weights, *given, AS_IT_IS, reset_after=False
            )
        torch.testing.assert_close((found, end), (expected, last), rtol=1e-13, atol=1e-14)
