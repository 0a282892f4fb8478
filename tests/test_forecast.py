"""Forecasts of several steps: every step a target, by any model at once or step by step."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import inspect_model
from data.config import DataConfig
from data.dataset import load_dataset
from data.sequences import read_sequences
from experiment import checkpoint, metrics
from experiment.checkpoint import Checkpoint, Progress
from experiment.config import RunConfig
from experiment.run_directory import BEST, LAST
from spec.config import ModelConfig
from spec.errors import CheckpointError, ConfigError, DataError
from spec.params import init_params, parameter_schema
from spec.tensors import decode
from tests.conftest import FRAMEWORKS, command, installed
from tests.test_checkpoint import forge
from tests.test_predict import table

W, K, R = 4, 3, 50
PATH = ("--windows", W, "--horizon", K, "--forecast", "path", "--target", "b,a")
SMALL = ("--hidden_size", 3, "--epochs", 2, "--batch_size", 8, "--dtype", "float64")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A series of three columns; what a column holds says which row it stands in."""
    path = tmp_path / "series.csv"
    rows = "".join(f"{r % 7},{r + 0.5},{10 * r}\n" for r in range(R))
    path.write_text("a,b,c\n" + rows)
    return path


def config(file: Path, **options) -> DataConfig:
    given = {"windows": W, "horizon": K, "forecast": "path", "target": "b,a"} | options
    return DataConfig(data_path=str(file), **given)


def test_every_step_of_a_path_is_a_target(file):
    sequences = read_sequences(str(file), config(file))
    assert len(sequences) == R - W - K + 1
    assert sequences.layout.targets == ("b", "a")
    assert sequences.layout.outputs == ("b+1", "a+1", "b+2", "a+2", "b+3", "a+3")
    for n in (0, 1, len(sequences) - 1):
        numbers = [float(text) for text in sequences.targets[n]]
        steps = [n + W, n + W + 1, n + W + 2]
        assert numbers[0::2] == [r + 0.5 for r in steps]
        assert numbers[1::2] == [r % 7 for r in steps]
        for output in range(2 * K):
            place = f'line {steps[output // 2] + 2}, column {2 - output % 2} "{"ba"[output % 2]}"'
            assert sequences.target_place(n, output) == f"{file}: {place}"
    assert sequences.notes[0].endswith("target b, a, 1 to 3 steps later")

    beyond = read_sequences(str(file), config(file), sequences.layout, need_targets=False)
    assert len(beyond) == R - W + 1
    assert beyond.targets == sequences.targets
    assert beyond.layout == sequences.layout


def test_a_path_of_one_step_is_the_last(file):
    path, last = (
        read_sequences(str(file), config(file, horizon=1, forecast=forecast))
        for forecast in ("path", "last")
    )
    assert path.targets == last.targets
    assert path.layout == last.layout
    assert path.layout.outputs == ("b", "a")


def test_no_target_is_in_two_parts(file):
    """The paths of neighbouring windows overlap: those that reach into the next part go."""
    for options, parts in (({}, 3), ({"valid_fraction": 0.0}, 2)):
        dataset = load_dataset(config(file, **options), "float64", 0)
        rows = [part.rows for part in (dataset.train, dataset.valid, dataset.test) if len(part)]
        assert len(rows) == parts
        for before, after in pairwise(rows):
            assert before[-1] + W + K == after[0] + W  # last target, first target
        assert f"left out: the {K - 1} rows" in "".join(dataset.notes)
    with pytest.raises(DataError, match="no row is left to train on"):
        load_dataset(config(file, windows=40, horizon=6, valid_fraction=0.0), "float64", 0)


def test_a_column_has_one_scale(file):
    dataset = load_dataset(config(file), "float64", 0)
    scaling, rows = dataset.meaning.scaling, dataset.train.rows
    for n, column in enumerate((1, 0) * K):
        assert scaling.target_mean[n] == scaling.input_mean[column]
        assert scaling.target_std[n] == scaling.input_std[column]
    assert scaling.target_mean[0] == pytest.approx(np.mean(np.arange(rows[-1] + W)) + 0.5)
    # A target is the reading of the window that ends on it.
    inputs, _, targets = dataset.train.inputs, None, dataset.train.targets
    for k in range(K):
        np.testing.assert_array_equal(targets[5, 2 * k : 2 * k + 2], inputs[6 + k, -1, [1, 0]])
    last = dataset.test_known.last
    assert last.tolist() == [[r + W - 1 + 0.5, (r + W - 1) % 7] * K for r in dataset.test.rows]


@pytest.mark.parametrize("model", ["lstm", "gru_seq2seq"])
def test_a_path_is_trained_and_predicted(train, predict, file, tmp_path, model):
    for name in FRAMEWORKS:
        installed(name)
    run, found = tmp_path / "run", {}
    argv = (*SMALL, *PATH, "--data_path", file, "--model", model, "--backend", "jax")
    finished = train(*argv, "--out", run)
    assert finished.code == 0, finished.err
    assert "rmse by step: " in finished.out
    summary = json.loads((run / "summary.json").read_text())
    steps = summary["test_by_step"]
    assert len(steps) == K
    for name in ("mse", "rmse", "mae", "r2"):
        mean = np.mean([step[name] for step in steps])
        assert mean == pytest.approx(summary["test"][name], rel=1e-12)
    assert set(summary["baselines"]) == {"mean", "ridge", "persistence"}
    for name in FRAMEWORKS:
        out = tmp_path / f"{name}.csv"
        argv = ("--checkpoint", run, "--data_path", file, "--backend", name, "--out", out)
        finished = predict(*argv)
        assert finished.code == 0, finished.err
        header, rows = table(out)
        outputs = ["b+1", "a+1", "b+2", "a+2", "b+3", "a+3"]
        assert header == ["line", *(f"prediction_{o}" for o in outputs), *outputs]
        assert [row[0] for row in rows] == [str(line) for line in range(W + 1, R + 2)]
        assert rows[0][7:] == ["4.5", "4", "5.5", "5", "6.5", "6"]
        assert [row[7:] for row in rows[-K:]] == [[""] * 2 * K] * K
        found[name] = np.array([row[1:7] for row in rows], float)
        truth = np.array([row[7:] for row in rows[:-K]], float)
        expected = metrics.regression(found[name][:-K], truth)
        assert f"rmse {expected['rmse']:.6g}" in finished.out
    np.testing.assert_allclose(found["torch"], found["jax"], rtol=1e-12)


@pytest.fixture
def decoder(train, file, tmp_path, one_backend) -> Path:
    """A finished seq2seq run."""
    argv = (*SMALL, *PATH, "--data_path", file, "--model", "lstm_seq2seq")
    finished = train(*argv, "--backend", one_backend, "--out", tmp_path / "run")
    assert finished.code == 0, finished.err
    return tmp_path / "run"


def test_a_decoder_attends_at_every_step(predict, decoder, file, tmp_path):
    argv = ("--checkpoint", decoder, "--data_path", file, "--out", tmp_path / "out")
    assert predict(*argv, "--attention", tmp_path / "weights").code == 0
    header, rows = table(tmp_path / "weights")
    assert header == ["line", "ahead", "t0", "t1", "t2", "t3"]
    assert len(rows) == K * (R - W + 1)
    assert [row[:2] for row in rows[:4]] == [["5", "1"], ["5", "2"], ["5", "3"], ["6", "1"]]
    weights = np.array([row[2:] for row in rows], float)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


def test_a_decoder_is_resumed_to_the_same_bits(train, decoder, file, tmp_path, one_backend):
    """Which true values a step is told is drawn from its number."""
    argv = (*SMALL, *PATH, "--data_path", file, "--model", "lstm_seq2seq", "--backend", one_backend)
    half = tmp_path / "half"
    assert train(*argv, "--epochs", 1, "--out", half).code == 0
    assert train("--resume", half, "--epochs", 2).code == 0
    straight, resumed = (checkpoint.load(run / LAST).arrays for run in (decoder, half))
    assert straight.keys() == resumed.keys()
    for name, array in straight.items():
        np.testing.assert_array_equal(array, resumed[name])


def test_a_step_of_a_path_is_explained(predict, decoder, file, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="inspect_model.py goes with the extra report")
    inspect, out = command(inspect_model.main, capsys, monkeypatch), tmp_path / "look"
    argv = ("--checkpoint", decoder, "--data_path", file, "--rows", 2)
    finished = inspect(*argv, "--explain", "a+2", "--out", out)
    assert (finished.code, finished.err) == (0, "")
    arrays = decode((out / "arrays.safetensors").read_bytes())[0]
    assert arrays["attention.weights"].shape == (2, K, W)
    assert arrays["explained"].tolist() == [3, 3]
    after = [name for name in arrays if name.startswith("d decoder.")]
    assert len(after) == 6
    for name in after:  # what is computed after the second step has no part in it
        assert (arrays[name][:, :2] != 0).any()
        assert (arrays[name][:, 2] == 0).all()
    page = (out / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles.count("Attention at each step of the forecast") == 2
    assert titles.count("Gates and states of the decoder") == 2
    assert (out / "line5-attention.png").exists()
    weights = tmp_path / "weights"
    argv = ("--checkpoint", decoder, "--data_path", file, "--out", tmp_path / "out")
    assert predict(*argv, "--attention", weights).code == 0
    rows = np.array([row[2:] for row in table(weights)[1][: 2 * K]], float)
    np.testing.assert_allclose(arrays["attention.weights"].reshape(-1, W), rows, rtol=1e-12)
    refused = inspect(*argv[:4], "--explain", "a+4", "--out", tmp_path / "no")
    assert "--explain a+4: no such target" in refused.error()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--forecast", "path"), "--forecast path: needs --windows"),
        (("--model", "lstm_seq2seq", "--windows", 4), "needs --windows W --horizon K --forecast"),
        ((*PATH, "--task", "classification"), "--forecast path: is of numbers"),
        ((*PATH, "--forecast", "all"), "expected one of last, path"),
        ((*PATH, "--model", "lstm_seq2seq", "--self_attention"), "models that end in _attention"),
    ],
)
def test_what_does_not_go_together_is_refused(train, file, options, fault):
    refused = train("--data_path", file, *options)
    assert refused.code == 2
    assert fault in refused.error()


def test_a_path_of_labels_is_refused(file):
    file.write_text("a,state\n" + "1,on\n2,off\n" * 9)
    with pytest.raises(DataError, match="the target is labels; --forecast path is of numbers"):
        read_sequences(str(file), config(file, target="state"))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"task": "classification"}, "forecasts numbers"),
        ({"feedback": "1,1"}, "feedback '1,1'"),
        ({"feedback": "0,3"}, "among 3 features"),
        ({"feedback": "0"}, "of 4 outputs in 2 steps"),
        ({"feedback": "0,x"}, "feedback '0,x'"),
        ({"forecast_steps": 3}, "of 4 outputs in 3 steps"),
    ],
)
def test_a_decoder_whose_sizes_do_not_fit_is_refused(options, fault):
    sizes = {"input_size": 3, "output_size": 4, "forecast_steps": 2, "feedback": "2,0"}
    assert ModelConfig(model="gru_seq2seq", **sizes).fed_back == [2, 0]
    with pytest.raises(ConfigError, match=fault):
        ModelConfig(model="gru_seq2seq", **sizes | options)
    with pytest.raises(ConfigError, match="forecast_steps 2: --model gru has 1"):
        ModelConfig(model="gru", **sizes)


def stored(file: Path, path: Path, **options) -> Path:
    """Write a checkpoint of a model that has not been trained."""
    given = {"windows": W, "target": "b,a", "hidden_size": 2, "data_path": str(file)} | options
    run = RunConfig(**given)
    meaning = load_dataset(run, "float32", 0).meaning
    schema = parameter_schema(checkpoint.model_config(run, meaning))
    arrays = {
        kind + name: array.astype("float32")
        for kind in ("", "optimizer.m.", "optimizer.v.")
        for name, array in init_params(schema, 0).items()
    }
    checkpoint.save(path, Checkpoint(arrays, run, meaning, Progress(), {}))
    return path


def test_a_checkpoint_from_before_there_were_paths_is_loaded(file, tmp_path):
    path = stored(file, tmp_path / BEST, model="lstm", horizon=K)
    before = checkpoint.load(path)

    def older(header, record):
        del record["layout"]["forecast_steps"]
        for name in ("forecast", "teacher_forcing"):
            del record["config"][name]

    forge(path, older)
    after = checkpoint.load(path)
    assert after.config == before.config
    assert after.meaning.layout == before.meaning.layout
    assert after.meaning.layout.outputs == ("b", "a")


@pytest.mark.parametrize("steps", [0, 2, 2.0, "3", None, True, 10**6])
def test_a_checkpoint_with_other_steps_is_refused(file, tmp_path, steps):
    options = {"model": "gru_seq2seq", "horizon": K, "forecast": "path"}
    path = stored(file, tmp_path / BEST, **options)
    assert checkpoint.load(path).meaning.layout.forecast_steps == K
    forge(path, lambda header, record: record["layout"].update(forecast_steps=steps))
    with pytest.raises(CheckpointError, match="is not usable"):
        checkpoint.load(path)
