"""Losses as a user meets them: their flags, metrics, columns, class weights, and other backends."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss
from sklearn.utils.class_weight import compute_class_weight

import export as export_command
from data.dataset import Meaning
from data.scaling import Scaling
from data.sequences import Layout
from experiment import checkpoint, metrics
from experiment.answers import answers, point
from experiment.config import RunConfig
from experiment.predictions import columns
from experiment.pretrained import CARD, from_pretrained
from experiment.run_directory import BEST, LAST
from experiment.start import balanced, read_dataset
from spec.config import ModelConfig
from spec.errors import ConfigError
from tests.conftest import FRAMEWORKS, TINY, command, installed, series
from tests.test_checkpoint import forge
from tests.test_predict import metrics_in, table

POINT = ["mse", "rmse", "mae", "r2"]
LOSSES = {
    "quantile": ("--loss", "quantile", "--quantiles", "0.05,0.5,0.9"),
    "gaussian_nll": ("--loss", "gaussian_nll"),
}
LEVELS = list(enumerate((0.05, 0.5, 0.9)))


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """A CSV to classify, 40 rows, of which six are "high"."""
    path = tmp_path / "rare.csv"
    path.write_text(series(40, lambda last: "high" if last > 0.6 else "low"))
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A CSV to regress two targets on, whose units differ a thousandfold."""
    lines = series(20, lambda last: f"{last},{3000 * last * last + 50}").splitlines()
    path = tmp_path / "two.csv"
    path.write_text("\n".join([lines[0] + ",z", *lines[1:]]) + "\n")
    return path


@pytest.mark.parametrize("loss", LOSSES)
def test_a_distribution_is_learned_measured_and_predicted(
    train, predict, numbers, tmp_path, backend, loss
):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = (*TINY, *LOSSES[loss], "--data_path", numbers, "--backend", backend)
    finished = train(*argv, "--out", run)
    assert (finished.code, finished.err) == (0, "")
    assert f"task: regression, as --loss {loss} says" in finished.out
    summary = json.loads((run / "summary.json").read_text())
    own = {"quantile": ["pinball", "coverage_85"], "gaussian_nll": ["nll", "coverage_90"]}[loss]
    assert (summary["task"], summary["loss"]) == ("regression", loss)
    assert list(summary["test"]) == POINT + own
    assert list(summary["baselines"]["ridge"]) == POINT
    assert re.search(r"^ridge .* - +-$", finished.out, re.MULTILINE)

    found = predict("--checkpoint", run, "--data_path", numbers, "--out", out)
    assert (found.code, found.err) == (0, "")
    header, rows = table(out)
    cells = np.array(rows, float)
    truth, prediction = cells[:, -1], cells[:, 1]
    measured = metrics_in(found)
    assert measured["mae"] == pytest.approx(np.abs(truth - prediction).mean(), rel=1e-5)
    if loss == "quantile":
        columns = ["prediction_q5", "prediction_q50", "prediction_q90"]
        assert header == ["line", "prediction", *columns, "y"]
        quantiles = cells[:, 2:5]
        np.testing.assert_array_equal(prediction, quantiles[:, 1])
        assert (np.diff(quantiles) >= 0).all()
        pinball = [mean_pinball_loss(truth, quantiles[:, k], alpha=q) for k, q in LEVELS]
        assert measured["pinball"] == pytest.approx(np.mean(pinball), rel=1e-5)
        inside = (quantiles[:, 0] <= truth) & (truth <= quantiles[:, 2])
        assert measured["coverage_85"] == pytest.approx(inside.mean(), rel=1e-5)
    else:
        assert header == ["line", "prediction", "prediction_std", "y"]
        spread = cells[:, 2]
        nll = -norm.logpdf(truth, prediction, spread).mean()
        assert measured["nll"] == pytest.approx(nll, rel=1e-5)
        low, high = norm.interval(0.9, prediction, spread)
        inside = (low <= truth) & (truth <= high)
        assert measured["coverage_90"] == pytest.approx(inside.mean(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_of_two_targets_has_its_own(train, predict, two, tmp_path, one_backend, loss):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = (*TINY, *LOSSES[loss], "--data_path", two, "--target", "y,z")
    assert train(*argv, "--backend", one_backend, "--out", run).code == 0
    assert predict("--checkpoint", run, "--data_path", two, "--out", out).code == 0
    header, rows = table(out)
    suffixes = ["", "_q5", "_q50", "_q90"] if loss == "quantile" else ["", "_std"]
    assert header[1:-2] == [f"prediction_{name}{suffix}" for name in "yz" for suffix in suffixes]
    cells = dict(zip(header, np.array(rows, float).T, strict=True))
    for name in "yz":  # hardly trained: the predictions are of the size of the target
        near = np.abs(cells[f"prediction_{name}"] - cells[name].mean())
        assert (near < 2 * cells[name].std()).all()
        if loss == "gaussian_nll":
            assert (cells[f"prediction_{name}_std"] < 3 * cells[name].std()).all()
            assert (cells[f"prediction_{name}_std"] > cells[name].std() / 10).all()


def test_an_even_number_of_quantiles_has_no_point(train, predict, numbers, tmp_path, one_backend):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = (*TINY, "--loss", "quantile", "--quantiles", "0.025,0.975", "--data_path", numbers)
    finished = train(*argv, "--backend", one_backend, "--out", run)
    assert finished.code == 0, finished.err
    assert list(json.loads((run / "summary.json").read_text())["test"]) == [
        "pinball",
        "coverage_95",
    ]
    assert re.search(r"^mean +- +-$", finished.out, re.MULTILINE)
    found = predict("--checkpoint", run, "--data_path", numbers, "--out", out)
    assert list(metrics_in(found)) == ["pinball", "coverage_95"]
    assert table(out)[0] == ["line", "prediction_q2.5", "prediction_q97.5", "y"]


def test_no_column_replaces_another_whatever_the_targets_are_called():
    model = ModelConfig(loss="gaussian_nll", output_size=4)
    names, places = zip(*columns(model, ("a", "a_std")), strict=True)
    assert names == ("prediction_a", "prediction_a_std", "prediction_a_std", "prediction_a_std_std")
    assert places == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("quantiles", "expected"),
    [("0.5", 0), ("0.1,0.5,0.6,0.9", 1), ("0.1,0.4,0.9", 1), ("0.1,0.9", None), ("0.3", 0)],
)
def test_the_point_is_the_median_or_else_the_middle(quantiles, expected):
    assert point(ModelConfig(loss="quantile", quantiles=quantiles, output_size=12)) == expected


def test_quantiles_that_cross_are_sorted_for_each_target():
    model = ModelConfig(loss="quantile", output_size=6)
    scaling = Scaling(np.zeros(1), np.ones(1), np.array([10.0, -5.0]), np.array([2.0, 0.5]))
    layout = Layout(("x",), ("y", "z"), None, True, None)
    meaning = Meaning("regression", (), layout, scaling)
    outputs = np.array([[3, 1, 2, -1, -2, 4], [1, 2, 3, 4, 5, 6]], np.float32)
    np.testing.assert_array_equal(
        answers(model, meaning, outputs),
        [[12, 14, 16, -6, -5.5, -3], [12, 14, 16, -3, -2.5, -2]],
    )


def test_metrics_agree_with_scikit_learn_and_scipy():
    draw = np.random.default_rng(4)
    truth, levels = draw.normal(size=(30, 2)), (0.1, 0.6)
    guess = np.sort(draw.normal(size=(30, 2, 2)))
    pinball = [
        mean_pinball_loss(truth, guess[..., k], alpha=level) for k, level in enumerate(levels)
    ]
    inside = (guess[..., 0] <= truth) & (truth <= guess[..., 1])
    assert metrics.quantiles(guess, truth, levels) == pytest.approx(
        {"pinball": np.mean(pinball), "coverage_50": inside.mean()}, rel=1e-12
    )
    assert list(metrics.quantiles(guess[..., :1], truth, levels[:1])) == ["pinball"]
    center, std = draw.normal(size=(30, 2)), draw.uniform(0.3, 2, size=(30, 2))
    low, high = norm.interval(0.9, center, std)
    assert metrics.gaussian(center, std, truth) == pytest.approx(
        {
            "nll": -norm.logpdf(truth, center, std).mean(),
            "coverage_90": ((low <= truth) & (truth <= high)).mean(),
        },
        rel=1e-12,
    )


def test_balanced_weights_are_scikit_learns():
    targets = np.random.default_rng(1).choice(4, size=50, p=[0.1, 0.6, 0.2, 0.1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets)
    assert balanced(targets, 4) == pytest.approx(expected, rel=1e-15)
    assert balanced(np.array([0, 0, 2]), 3) == pytest.approx((0.75, 1.0, 1.5))


def test_class_weights_are_said_stored_and_of_the_training_rows(train, rare, tmp_path, one_backend):
    run = tmp_path / "run"
    argv = (*TINY, "--class_weights", "balanced", "--data_path", rare, "--backend", one_backend)
    finished = train(*argv, "--out", run)
    assert finished.code == 0, finished.err
    config = RunConfig(data_path=str(rare), class_weights="balanced")
    part = read_dataset(config, "float32").train
    counts = np.bincount(part.targets[part.rows])
    expected = counts.sum() / (2 * counts)
    assert counts[0] < counts[1]
    stored = checkpoint.load(run / LAST).meaning.class_weights
    assert stored == pytest.approx(expected, rel=1e-15)
    np.testing.assert_array_equal(part.class_weights, stored)
    note = f"class weights in the loss, balanced over the training rows: 'high' {expected[0]:.4g}"
    assert note in finished.out


@pytest.mark.parametrize("first", FRAMEWORKS)
@pytest.mark.parametrize(
    "options",
    [
        ("--class_weights", "balanced", "--label_smoothing", "0.2"),
        LOSSES["quantile"],
        LOSSES["gaussian_nll"],
    ],
    ids=["weights", "quantile", "gaussian"],
)
def test_the_other_backend_continues_with_the_same_loss(
    train, rare, numbers, tmp_path, first, options
):
    """Two epochs and one more in the other are three in one, to rounding."""
    second = next(name for name in FRAMEWORKS if name != first)
    for name in FRAMEWORKS:
        installed(name)
    data = rare if "--class_weights" in options else numbers
    argv = (*TINY, *options, "--dtype", "float64", "--data_path", data)
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    assert train(*argv, "--backend", first, "--out", straight).code == 0
    assert train(*argv, "--backend", first, "--epochs", 2, "--out", moved).code == 0
    finished = train("--resume", moved, "--backend", second, "--epochs", 3)
    assert finished.code == 0, finished.err
    expected = checkpoint.load(straight / LAST)
    found = checkpoint.load(moved / LAST)
    assert found.meaning.class_weights == expected.meaning.class_weights
    assert found.progress.best_loss == pytest.approx(expected.progress.best_loss, rel=1e-11)
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_class_weights_stay_when_the_data_change(train, rare, tmp_path, one_backend):
    run = tmp_path / "run"
    argv = (*TINY, "--class_weights", "balanced", "--data_path", rare, "--backend", one_backend)
    assert train(*argv, "--out", run).code == 0
    before = checkpoint.load(run / LAST).meaning.class_weights
    rare.write_text(series(60, lambda last: "high" if last > 0 else "low"))
    assert train("--resume", run, "--epochs", 4, "--allow_data_change").code == 0
    assert checkpoint.load(run / LAST).meaning.class_weights == before


def test_a_run_keeps_its_loss(train, numbers, tmp_path, one_backend):
    run = tmp_path / "run"
    argv = (*TINY, *LOSSES["quantile"], "--quantiles", "0.4,0.6", "--data_path", numbers)
    assert train(*argv, "--backend", one_backend, "--out", run).code == 0
    finished = train("--resume", run, "--loss", "gaussian_nll", "--epochs", 4)
    assert finished.code == 3
    assert "loss: quantile -> gaussian_nll" in finished.error()
    said_again = ("--resume", run, "--loss", "quantile", "--epochs", 4)
    assert "quantiles: 0.4,0.6 -> 0.5" in train(*said_again, "--quantiles", "0.5").error()
    assert train(*said_again).code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--label_smoothing", "0.1"), "--label_smoothing 0.1: is for classification, and the"),
        (("--class_weights", "balanced"), "--class_weights balanced: is for classification"),
    ],
)
def test_what_the_data_turn_out_not_to_be_is_said_before_a_file_is_written(
    train, numbers, tmp_path, options, says
):
    finished = train("--data_path", numbers, "--out", tmp_path / "run", *options)
    assert finished.code == 2
    assert says in finished.error()
    assert not (tmp_path / "run").exists()


def test_a_loss_decides_the_task_that_is_left_open(train, tmp_path, one_backend):
    """Few whole numbers are classes, unless the loss is of numbers."""
    data = tmp_path / "few.csv"
    data.write_text(series(20, lambda last: int(last > 0)))
    for loss, task in ((), "classification"), (("--loss", "quantile"), "regression"):
        argv = (*TINY, *loss, "--data_path", data, "--backend", one_backend)
        assert train(*argv, "--out", tmp_path / task).code == 0
        assert json.loads((tmp_path / task / "summary.json").read_text())["task"] == task


def without_objective(header, record):
    """Make of a checkpoint one from before there was a choice of losses."""
    for name in ("loss", "quantiles", "label_smoothing", "class_weights"):
        record["config"].pop(name, None)  # the best checkpoint may be the last one's other name
    record.pop("class_weights", None)


def test_a_checkpoint_from_before_losses_could_be_chosen(
    train, predict, labels, tmp_path, one_backend
):
    run = tmp_path / "run"
    argv = (*TINY, "--data_path", labels, "--backend", one_backend, "--out", run)
    assert train(*argv).code == 0
    for name in (LAST, BEST):
        expected = checkpoint.load(run / name)
        forge(run / name, without_objective)
        found = checkpoint.load(run / name)
        assert (found.config, found.meaning.classes) == (expected.config, expected.meaning.classes)
        assert found.meaning.class_weights == ()
    finished = predict("--checkpoint", run, "--data_path", labels, "--out", tmp_path / "out.csv")
    assert finished.code == 0, finished.err
    assert train("--resume", run, "--epochs", 4).code == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_folder_answers_as_predict_and_its_card_says_what(
    train, predict, two, tmp_path, capsys, monkeypatch, one_backend, loss
):
    run, out, folder = tmp_path / "run", tmp_path / "out.csv", tmp_path / "model"
    argv = (*TINY, *LOSSES[loss], "--data_path", two, "--target", "y,z")
    assert train(*argv, "--backend", one_backend, "--out", run).code == 0
    export = command(export_command.main, capsys, monkeypatch)
    finished = export("--checkpoint", run, "--format", "safetensors", "--out", folder)
    assert (finished.code, finished.err) == (0, "")
    assert predict("--checkpoint", run, "--data_path", two, "--out", out).code == 0
    header, rows = table(out)
    cells = dict(zip(header, np.array(rows, float).T, strict=True))
    inputs = [line.split(",")[:5] for line in two.read_text().splitlines()[1:]]
    model = from_pretrained(folder, one_backend)
    found = model.answer(np.array(inputs, float)[..., None])
    names = json.loads((folder / "config.json").read_text())["answers"]
    assert found.shape == (20, len(names))
    for name, column in zip(names, found.T, strict=True):
        np.testing.assert_allclose(column, cells[f"prediction_{name}"], rtol=1e-6)
    assert ", ".join(f"`{name}`" for name in names) in (folder / CARD).read_text()
    assert "| mean |" in (folder / CARD).read_text()


def test_a_model_of_sizes_that_do_not_fit_is_refused():
    with pytest.raises(ConfigError, match="takes 3 outputs of each target"):
        ModelConfig(loss="quantile", output_size=4)
    with pytest.raises(ConfigError, match="is for classification"):
        ModelConfig(label_smoothing=0.1)
