"""Sequence labelling: a target at every step, from columns, rows or tensors, unknown ones masked."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import export as export_command
import inspect_model
from data.config import DataConfig
from data.dataset import load_dataset
from data.sequences import read_sequences
from experiment import checkpoint
from experiment.pretrained import from_pretrained
from experiment.run_directory import BEST
from spec.config import ModelConfig
from spec.errors import ConfigError, DataError
from tests.conftest import FRAMEWORKS, command, installed

N, T, W, R = 30, 7, 6, 200
SMALL = ("--hidden_size", 6, "--batch_size", 4, "--lr", 0.02, "--dtype", "float64")


def of_columns(path: Path, names: str, cells) -> Path:
    """Write sequences of 1 to 7 steps; `cells` says what a step holds, from all numbers so far."""
    draw = np.random.default_rng(3)
    lines = [",".join(f"t{t}_{name}" for t in range(T) for name in names.split(","))]
    for n in range(N):
        a, length = draw.normal(size=T).round(2), n % T + 1
        own = [cells(a[: t + 1], "" if (n + t) % 5 == 4 else None) for t in range(length)]
        lines.append(",".join([*own, *["," * names.count(",")] * (T - length)]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    """A step is "high" while the sum so far is above 0, or unknown."""

    def cells(a, gap):
        tag = "high" if a.sum() > 0 else "low"
        return f"{a[-1]},{tag if gap is None else gap}"

    return of_columns(tmp_path / "columns.csv", "a,tag", cells)


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """The number of the step, and of those above 0, or unknown."""

    def cells(a, gap):
        return f"{len(a) - 1},{a[-1]},{(a > 0).sum() if gap is None else gap}"

    return of_columns(tmp_path / "counted.csv", "n,a,above", cells)


def series(path: Path, name: str, target) -> Path:
    """Write a column of numbers and what each says together with the one before it."""
    a = np.random.default_rng(4).normal(size=R + 1).round(3)
    cells = [f"{a[r]},{target(a[r], a[r - 1])}\n" for r in range(1, R + 1)]
    path.write_text(f"a,{name}\n" + "".join(cells))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Steps are "on" where the last two numbers are above 0."""
    return series(tmp_path / "labelled.csv", "state", lambda *two: "on" if min(two) > 0 else "off")


@pytest.fixture
def metered(tmp_path: Path) -> Path:
    """Steps have the sum of the last two numbers."""
    return series(tmp_path / "metered.csv", "y", lambda *two: f"{sum(two):.3f}")


def config(file: Path, **options) -> DataConfig:
    return DataConfig(data_path=str(file), every_step=True, **options)


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path, newline="") as file:
        header, *found = csv.reader(file)
    return header, found


def real_and_known(sequences) -> np.ndarray:
    """Return which steps the fixtures give a target."""
    real = np.arange(T) < sequences.lengths[:, None]
    return real & ((np.arange(N)[:, None] + np.arange(T)) % 5 != 4)


def test_columns_are_steps_with_targets(columns):
    sequences = read_sequences(str(columns), config(columns, target="tag"))
    assert sequences.layout.features == ("a",)
    assert sequences.layout.targets == ("tag",)
    assert sequences.inputs.shape == (N, T, 1)
    assert sequences.lengths.tolist() == [n % T + 1 for n in range(N)]
    known = real_and_known(sequences)
    np.testing.assert_array_equal(sequences.known_steps, known)
    texts, place = sequences.rows()
    at = np.argwhere(known).tolist()
    assert len(texts) == len(at)
    for row, (n, t) in enumerate(at):
        expected = "high" if sequences.inputs[n, : t + 1, 0].sum() > 0 else "low"
        assert texts[row] == (expected,)
        assert place(row, 0) == f'{columns}: line {n + 2}, column {2 * t + 2} "t{t}_tag"'


def test_every_target_of_a_step_has_to_be_known(counted):
    """Two targets, of which one has gaps: a step counts where both are there."""
    sequences = read_sequences(str(counted), config(counted, target="above,n"))
    assert (sequences.layout.features, sequences.layout.targets) == (("a",), ("above", "n"))
    above = (np.nan_to_num(sequences.inputs[..., 0]) > 0).cumsum(axis=1)
    expected = [(str(above[n, t]), str(t)) for n, t in np.argwhere(real_and_known(sequences))]
    assert sequences.rows()[0] == expected


def test_the_last_column_says_which_is_the_target(counted):
    sequences = read_sequences(str(counted), config(counted))
    assert (sequences.layout.features, sequences.layout.targets) == (("n", "a"), ("above",))


@pytest.mark.parametrize("horizon", [None, 0, 1, 3])
@pytest.mark.parametrize("name", ["labelled", "metered"])
def test_a_series_is_cut_into_pieces(request, name, horizon):
    """No row is in two of them; each step has the target of its own row, or of a later one."""
    file, ahead = request.getfixturevalue(name), horizon or 0
    _, lines = table(file)
    sequences = read_sequences(str(file), config(file, windows=W, horizon=horizon))
    assert sequences.forecasts == (name == "metered" and ahead > 0)
    # A number that is forecast is read as well: its past is known.
    readings = [list(map(float, line[: 1 + sequences.forecasts])) for line in lines]
    assert sequences.inputs.shape == (-(-R // W), W, 1 + sequences.forecasts)
    real = np.arange(W) < sequences.lengths[:, None]
    np.testing.assert_array_equal(sequences.inputs[real], readings)
    assert np.isnan(sequences.inputs[~real]).all()
    assert sequences.lines[real].tolist() == list(range(2, R + 2))
    texts, place = sequences.rows()
    assert texts == [(line[1],) for line in lines[ahead:]]
    assert place(W, 0).startswith(f"{file}: line {W + ahead + 2}, column 2 ")
    when = f"{ahead} step" if ahead else "at the same step"
    assert when in sequences.notes[0]


def test_horizon_0_of_windows_is_their_last_row(metered):
    """Also where only the window has a target, which is then no reading."""
    plain = DataConfig(data_path=str(metered), windows=W, horizon=0)
    sequences = read_sequences(str(metered), plain)
    assert (len(sequences), sequences.layout.features) == (R - W + 1, ("a",))
    _, lines = table(metered)
    assert [text for (text,) in sequences.targets] == [line[1] for line in lines[W - 1 :]]


def test_tensors_hold_numbers_or_text(tmp_path):
    draw = np.random.default_rng(5)
    inputs, lengths = draw.normal(size=(4, T, 2)), np.array([2, T, 5, 1])
    numbers = inputs.sum(axis=2, keepdims=True)
    numbers[1, 3], numbers[0, 4] = np.nan, np.inf  # unknown, and past the end
    tags = np.where(inputs[..., 0] > 0, "up", "down")
    tags[2, 0] = ""
    for name, targets, holes in (("numbers", numbers, [(1, 3)]), ("tags", tags, [(2, 0)])):
        file = tmp_path / f"{name}.npz"
        np.savez(file, inputs=inputs, lengths=lengths, targets=targets)
        sequences = read_sequences(str(file), config(file))
        known = np.arange(T) < lengths[:, None]
        for hole in holes:
            known[hole] = False
        np.testing.assert_array_equal(sequences.known_steps, known)
        found = [text for (text,) in sequences.rows()[0]]
        assert found == [str(value) for value in targets.reshape(4, T)[known]]
        assert sequences.rows()[1](2, 0) == f"{file}: targets[1] at step 0"


def test_parts_are_scaled_and_masked(counted):
    """An unknown step weighs nothing, and the scaling knows only steps of the training part."""
    given = config(counted, target="n,above")
    dataset = load_dataset(given, "float64", 0)
    sequences = read_sequences(str(counted), given)
    rows, known = dataset.train.rows, real_and_known(sequences)
    np.testing.assert_array_equal(dataset.train.weights, known)
    steps = np.broadcast_to(np.arange(T), (N, T))[rows][known[rows]]
    scaling = dataset.meaning.scaling
    assert scaling.target_mean[0] == pytest.approx(steps.mean(), rel=1e-14)
    assert scaling.target_std[0] == pytest.approx(steps.std(), rel=1e-14)
    assert np.isfinite(dataset.train.targets).all()
    restored = scaling.restore(dataset.train.targets)[..., 0]
    np.testing.assert_allclose(restored[known], np.argwhere(known)[:, 1], atol=1e-14)
    test = dataset.test.rows
    np.testing.assert_array_equal(dataset.test_known.steps, known[test])
    assert dataset.test_known.targets[:, 0].tolist() == np.argwhere(known[test])[:, 1].tolist()


def test_a_sequence_without_targets_is_left_out(columns):
    dataset = load_dataset(config(columns, target="tag"), "float64", 0)
    known = read_sequences(str(columns), config(columns, target="tag")).known_steps.any(axis=1)
    rows = np.concatenate([dataset.train.rows, dataset.valid.rows, dataset.test.rows])
    assert 0 < (~known).sum() < N
    assert sorted(rows) == np.flatnonzero(known).tolist()
    assert f"left out: {(~known).sum()} sequences of which no step has" in "".join(dataset.notes)


@pytest.mark.parametrize(
    ("fixture", "options", "model", "baseline"),
    [
        ("columns", ("--target", "tag"), "gru", "logistic regression"),
        ("labelled", ("--windows", W), "lstm", "logistic regression"),
        ("metered", ("--windows", W), "rnn", "ridge"),
        ("metered", ("--windows", W, "--horizon", 1, "--loss", "quantile"), "lstm", "persistence"),
    ],
)
def test_a_run_beats_what_sees_one_step(
    request, train, predict, tmp_path, one_backend, fixture, options, model, baseline
):
    """Trained, tested, and predicted again: a row for every real step, with the same metrics."""
    file, run, out = request.getfixturevalue(fixture), tmp_path / "run", tmp_path / "out.csv"
    argv = ("--data_path", file, "--every_step", *options, "--model", model, *SMALL)
    finished = train(*argv, "--epochs", 25, "--backend", one_backend, "--out", run)
    assert finished.code == 0, finished.err
    summary = json.loads((run / "summary.json").read_text())
    score = "accuracy" if fixture != "metered" else "r2"
    assert summary["test"][score] > summary["baselines"][baseline][score]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["train_loss"] < 1.5

    finished = predict("--checkpoint", run, "--data_path", file, "--out", out)
    assert finished.code == 0, finished.err
    header, found = table(out)
    assert header[:3] == ["line", "step", "prediction"]
    sequences = read_sequences(str(file), checkpoint.load(run / BEST).config)
    real = np.arange(sequences.inputs.shape[1]) < sequences.lengths[:, None]
    assert [int(row[1]) for row in found] == [t for _, t in np.argwhere(real)]
    assert f"{len(found)} rows: " in finished.out
    pairs = [(row[2], row[-1]) for row in found if row[-1]]
    assert len(pairs) == len(sequences.rows()[0])
    if score == "accuracy":
        expected = np.mean([one == other for one, other in pairs])
    else:
        error = np.array([float(one) - float(other) for one, other in pairs])
        expected = 1 - (error**2).mean() / np.var([float(other) for _, other in pairs])
    assert f"{score} {expected:.6g}" in finished.out


def test_both_backends_say_the_same(train, predict, columns, tmp_path):
    for name in FRAMEWORKS:
        installed(name)
    argv = ("--data_path", columns, "--every_step", "--target", "tag", "--model", "transformer")
    argv = (*argv, "--num_heads", 2, *SMALL, "--epochs", 2)
    found = []
    for name in FRAMEWORKS:
        run, out = tmp_path / name, tmp_path / f"{name}.csv"
        assert train(*argv, "--backend", name, "--out", run).code == 0
        assert predict("--checkpoint", run, "--data_path", columns, "--out", out).code == 0
        found.append(np.array([row[3:5] for row in table(out)[1]], float))
    np.testing.assert_allclose(*found, rtol=1e-11)


def test_a_file_without_targets_is_predicted(train, predict, labelled, tmp_path, one_backend):
    argv = ("--data_path", labelled, "--every_step", "--windows", W, "--model", "rnn", *SMALL)
    run, out = tmp_path / "run", tmp_path / "out.csv"
    assert train(*argv, "--epochs", 1, "--backend", one_backend, "--out", run).code == 0
    blind, blank = tmp_path / "blind.csv", tmp_path / "blank.csv"
    _, lines = table(labelled)
    blind.write_text("a\n" + "".join(f"{a}\n" for a, _ in lines))
    blank.write_text("a,state\n" + "".join(f"{a},\n" for a, _ in lines))
    rows = []
    for file in (blind, blank, labelled):
        finished = predict("--checkpoint", run, "--data_path", file, "--out", out)
        assert finished.code == 0, finished.err
        assert ("accuracy" in finished.out) == (file == labelled)
        rows.append([row[:5] for row in table(out)[1]])
        out.unlink()
    assert rows[0] == rows[1] == rows[2]


def test_exported(train, capsys, monkeypatch, labelled, tmp_path, one_backend):
    """A program and a folder, which answer at every step; each is run before it is written."""
    argv = ("--data_path", labelled, "--every_step", "--windows", W, "--model", "gru", *SMALL)
    run = tmp_path / "run"
    assert train(*argv, "--epochs", 1, "--backend", one_backend, "--out", run).code == 0
    export = command(export_command.main, capsys, monkeypatch)
    program = {"torch": "torchscript", "jax": "stablehlo"}[one_backend]
    for name in (program, "safetensors"):
        finished = export("--checkpoint", run, "--format", name, "--out", tmp_path / name)
        assert finished.code == 0, finished.err
        assert "largest difference" in finished.out
    inputs, lengths = np.random.default_rng(6).normal(size=(3, 9, 1)), np.array([9, 2, 4])
    answers = from_pretrained(tmp_path / "safetensors", one_backend).answer(inputs, lengths)
    assert answers.shape == (3, 9, 2)
    np.testing.assert_allclose(answers.sum(axis=2), 1, rtol=1e-14)
    assert "at every step" in (tmp_path / "safetensors" / "README.md").read_text()


def test_the_last_step_is_explained(train, capsys, monkeypatch, labelled, tmp_path, one_backend):
    pytest.importorskip("matplotlib", reason="the figures need the extra report")
    argv = ("--data_path", labelled, "--every_step", "--windows", W, "--model", "gru", *SMALL)
    run, look = tmp_path / "run", tmp_path / "look"
    assert train(*argv, "--epochs", 1, "--backend", one_backend, "--out", run).code == 0
    inspect = command(inspect_model.main, capsys, monkeypatch)
    argv = ("--checkpoint", run, "--data_path", labelled, "--rows", 2, "--out", look)
    finished = inspect(*argv)
    assert finished.code == 0, finished.err
    _, lines = table(labelled)
    said = [line for line in finished.out.splitlines() if line.startswith("line ")]
    for line, row in zip(said, (W, 2 * W), strict=True):
        assert line.startswith(f"line {row + 1}, steps {W}, prediction ")
        assert f"truth {lines[row - 1][1]}, " in line


@pytest.mark.parametrize(
    ("fixture", "options", "fault"),
    [
        ("columns", ("--model", "lstm_attention"), "answers once a sequence; choose lstm"),
        ("columns", ("--model", "gru_seq2seq"), "answers once a sequence; choose gru"),
        (
            "columns",
            ("--model", "transformer", "--num_heads", 2, "--pooling", "last"),
            "--pooling last: --every_step",
        ),
        ("columns", ("--target", "kind"), 'no column is named "t0_kind"'),
        ("labelled", ("--target", "state"), 'no column is named "t0_state"'),
        ("labelled", (), 'the last column, "state", is not named t0_y'),
        ("labelled", ("--header", "no"), "goes by a header t0_a, t0_y"),
        ("metered", ("--windows", W, "--horizon", 1, "--bidirectional"), "sees the later readings"),
        (
            "metered",
            ("--windows", W, "--horizon", 2, "--model", "transformer", "--num_heads", 2),
            "--model transformer without --causal: sees the later readings of y",
        ),
        ("metered", ("--windows", W, "--forecast", "path"), "leaves no room for --every_step"),
        ("metered", ("--windows", W, "--horizon", R), f"{R} rows are too few for --horizon {R}"),
    ],
)
def test_refused(request, train, tmp_path, one_backend, fixture, options, fault):
    file = request.getfixturevalue(fixture)
    argv = ("--data_path", file, "--every_step", "--model", "lstm", *SMALL, *options)
    finished = train(*argv, "--backend", one_backend, "--out", tmp_path / "run")
    assert finished.code == 2
    assert fault in finished.error()
    assert not (tmp_path / "run").exists()


def test_files_at_fault_are_refused(tmp_path):
    def refused(text: str, match: str, **options):
        file = tmp_path / "file.csv"
        file.write_text(text)
        with pytest.raises(DataError, match=match):
            load_dataset(config(file, **options), "float64", 0)

    head = "t0_a,t0_y,t1_a,t1_y\n"
    refused("t0_a,t0_y,t1_a\n1,2,3\n", 'no column is named "t1_y"', target="y")
    refused("t0_a,t0_y,t1_a,t1_b,t1_y\n1,2,3,4,5\n", "each step from t0 on should have a")
    refused("a0,t0_y,a1,t1_y\n1,2,3,4\n", "--every_step needs columns t0_a")
    refused(head + "1,,2,\n3,,4,\n", "no step has its target")
    refused(head + "1,2.5,2,x\n3,1,4,2.5\n", 'line 2, column 4 "t1_y": the target')
    refused("y\n1.5\n2\n3\n", "or say --horizon 1 to forecast it", windows=2)
    gaps = "a,y\n" + "1,2.5\n" * 5 + "1,\n" + "1,2.5\n" * 5
    refused(gaps, "line 7, column 2", windows=2, horizon=1)  # a gap in what is read
    with pytest.raises(ConfigError, match="answers once a sequence"):
        ModelConfig(model="rnn_attention", every_step=True)
    tensors = tmp_path / "tensors.npz"
    np.savez(tensors, inputs=np.zeros((4, 3, 2)), targets=np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"expected numbers or text, \[N, T\] or \[N, T, O\]"):
        read_sequences(str(tensors), config(tensors))
