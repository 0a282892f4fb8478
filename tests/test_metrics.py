"""Metrics against scikit-learn's, and baselines against models fitted by hand."""

import numpy as np
import pytest
from sklearn import metrics as oracle
from sklearn.linear_model import Ridge

from data.dataset import load_dataset
from experiment import metrics
from experiment.baselines import baselines
from experiment.config import RunConfig
from tests.conftest import series


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_agrees_with_scikit_learn(outputs):
    draw = np.random.default_rng(outputs).normal
    truth = draw(size=(20, outputs)) * 10.0 ** np.arange(outputs)  # targets of unequal weight
    guess = truth + draw(size=(20, outputs))
    found = metrics.regression(guess, truth)
    assert found == pytest.approx(
        {
            "mse": oracle.mean_squared_error(truth, guess),
            "rmse": oracle.root_mean_squared_error(truth, guess),
            "mae": oracle.mean_absolute_error(truth, guess),
            "r2": oracle.r2_score(truth, guess),
        },
        rel=1e-12,
    )


def test_a_constant_target_explains_nothing():
    found = metrics.regression(np.array([[1.0], [2.0]]), np.full((2, 1), 3.0))
    assert found == {"mse": 2.5, "rmse": 2.5**0.5, "mae": 1.5, "r2": 0.0}


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_agrees_with_scikit_learn(classes):
    draw = np.random.default_rng(classes)
    truth = draw.integers(0, classes, 40)
    chances = metrics.softmax(draw.normal(size=(40, classes)) * 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-15)
    guess = chances.argmax(axis=1)
    found = metrics.classification(chances, truth)
    assert found == pytest.approx(
        {
            "accuracy": oracle.accuracy_score(truth, guess),
            "macro_f1": oracle.f1_score(truth, guess, average="macro"),
            "log_loss": oracle.log_loss(truth, chances, labels=range(classes)),
        },
        rel=1e-12,
    )


def test_f1_counts_the_classes_that_occur_and_log_loss_stays_finite():
    truth, chances = np.array([0, 0, 1]), np.eye(4)[[0, 3, 1]]
    found = metrics.classification(chances, truth)
    guess = chances.argmax(axis=1)
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, guess, average="macro"))
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) / 3)


def test_softmax_of_large_logits_is_finite():
    np.testing.assert_array_equal(metrics.softmax(np.array([[1e30, -1e30]], np.float32)), [[1, 0]])


def test_baselines_of_a_regression(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(series(60, lambda last: round(3 * last + 7, 2)))
    dataset = load_dataset(RunConfig(data_path=str(path)), "float64", 0)
    found = baselines(dataset)
    assert list(found) == ["mean", "ridge", "persistence"]
    truth, restore = dataset.test_known.targets, dataset.meaning.scaling.restore
    train, test = dataset.train, dataset.test
    mean = restore(train.targets[train.rows]).mean()
    assert found["mean"]["mae"] == pytest.approx(np.abs(truth - mean).mean())
    model = Ridge().fit(train.inputs[train.rows][..., 0], train.targets[train.rows])
    guess = restore(model.predict(test.inputs[test.rows][..., 0]).reshape(-1, 1))
    assert found["ridge"]["mse"] == pytest.approx(oracle.mean_squared_error(truth, guess))
    # The last reading decides the target: y = 3 last + 7.
    last = (truth - 7) / 3
    assert found["persistence"]["mae"] == pytest.approx(np.abs(truth - last).mean())


def test_baselines_of_a_classification(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(series(60, lambda last: "high" if last > -0.5 else "low"))
    dataset = load_dataset(RunConfig(data_path=str(path)), "float32", 0)
    found = baselines(dataset)
    assert list(found) == ["majority", "logistic regression"]
    truth, train = dataset.test_known.targets, dataset.train
    share = np.bincount(train.targets[train.rows]) / len(train)
    assert found["majority"]["accuracy"] == pytest.approx((truth == share.argmax()).mean())
    assert found["majority"]["log_loss"] == pytest.approx(-np.log(share[truth]).mean())
    assert found["logistic regression"]["accuracy"] > found["majority"]["accuracy"]


def test_a_class_that_no_training_row_has_gets_no_chance(tmp_path):
    rows = series(40, lambda last: "high" if last > 0 else "low").splitlines()
    rows[-1] = rows[-1].rpartition(",")[0] + ",just one"
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(rows) + "\n")
    config = RunConfig(data_path=str(path), split="time")
    dataset = load_dataset(config, "float32", 0)
    assert dataset.meaning.classes == ("high", "just one", "low")
    found = baselines(dataset)
    assert found["logistic regression"]["accuracy"] >= 5 / 6  # all but the one
    assert np.isfinite([value for row in found.values() for value in row.values()]).all()


def test_a_large_training_part_is_thinned_out_evenly(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text(series(60, lambda last: round(3 * last + 7, 2)))
    dataset = load_dataset(RunConfig(data_path=str(path)), "float64", 0)
    train, test, restore = dataset.train, dataset.test, dataset.meaning.scaling.restore
    for name, most, step in (("MOST_ROWS", 20, 3), ("MOST_VALUES", 50, 5)):  # of 43 rows of 5
        monkeypatch.setattr(f"experiment.baselines.{name}", most)
        rows = train.rows[::step]
        model = Ridge().fit(train.inputs[rows][..., 0], train.targets[rows])
        guess = restore(model.predict(test.inputs[test.rows][..., 0]).reshape(-1, 1))
        expected = oracle.mean_squared_error(dataset.test_known.targets, guess)
        assert baselines(dataset)["ridge"]["mse"] == pytest.approx(expected)


def test_a_forecast_is_compared_with_persistence(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text("x,y\n" + "".join(f"{n % 7},{n}\n" for n in range(40)))
    config = RunConfig(data_path=str(path), windows=3, horizon=2, target="y")
    found = baselines(load_dataset(config, "float64", 0))
    # y rises by one a step, so its last reading is off by the horizon.
    assert (found["persistence"]["mae"], found["persistence"]["mse"]) == (2, 4)
