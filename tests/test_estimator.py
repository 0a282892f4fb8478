"""The scikit-learn estimators: inputs, weights, continuing, saving, and scikit-learn's own checks."""

import pickle
import sys
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_pinball_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from data.config import SAMPLES, DataConfig
from data.sequences import read_sequences
from data.splits import split_off
from experiment import checkpoint
from experiment.config import RunConfig
from experiment.estimator import SequenceClassifier, SequenceRegressor
from spec.config import Architecture, Execution, UpdateRule
from spec.errors import CheckpointError, ConfigError, DivergedError
from tests.conftest import FRAMEWORKS, TINY, installed

N, T, D = 10, 5, 2  # two batches an epoch, the second one short
SMALL = {"model": "rnn", "hidden_size": 4, "epochs": 3, "batch_size": 6, "lr": 1e-2}
DRAW = np.random.default_rng(7)
X = DRAW.normal([3, -50], [1, 20], size=(N, T, D))
NUMBERS = 1e3 + 200 * DRAW.normal(size=(N, 3)) + 5 * X.sum(axis=(1, 2))[:, None]
LABELS = np.array(["wade", "sit", "run"])[np.arange(N) % 3]
TIMES = np.array([0, 2, 1, 3, 0, 1, 1, 2, 1, 1])
RAGGED = [sequence[: 1 + n % T] for n, sequence in enumerate(X)]
BOTH = pytest.mark.parametrize(
    ("make", "y"), [(SequenceClassifier, LABELS), (SequenceRegressor, NUMBERS)]
)


def answers(estimator, X=X):
    """Return the numbers an estimator predicts: probabilities or targets."""
    return getattr(estimator, "predict_proba", estimator.predict)(X)


def assert_same_state(first, second, inputs=X):
    """Compare weights, running means and answers bit by bit."""
    assert first.arrays_.keys() == second.arrays_.keys()
    for name, array in first.arrays_.items():
        np.testing.assert_array_equal(array, second.arrays_[name], name)
    np.testing.assert_array_equal(answers(first, inputs), answers(second, inputs))


# scikit-learn's own checks

# Enough for their thresholds of accuracy and R², at a fifth of the defaults' time.
QUICK = {"model": "lstm", "hidden_size": 16, "epochs": 50, "batch_size": 64, "lr": 2e-2}
MAKERS = pytest.mark.parametrize("make", [SequenceClassifier, SequenceRegressor])


def check(estimator):
    """Run check_estimator; all must pass, but the check of array libraries that are not there."""
    results = estimator_checks.check_estimator(estimator, on_skip=None)
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    others = {result["check_name"] for result in results} - passed
    assert others <= {"check_array_api_input"}
    assert len(passed) > 40
    assert "check_sample_weight_equivalence_on_dense_data" in passed


@MAKERS
def test_check_estimator(make):
    check(make(backend=installed("torch"), **QUICK))


@pytest.mark.long
@MAKERS
def test_check_estimator_of_the_defaults(make, backend):
    check(make(backend=backend))


@pytest.mark.parametrize(
    "name",
    [
        "check_sample_weight_equivalence_on_dense_data",
        "check_estimators_pickle",
        "check_fit_check_is_fitted",
    ],
)
def test_telling_checks_in_jax(name):
    estimator = SequenceClassifier(backend=installed("jax"), **SMALL | {"batch_size": 32})
    getattr(estimator_checks, name)("SequenceClassifier", estimator)


@MAKERS
def test_the_parameters_are_the_options_of_train(make):
    """All that decide on model, optimiser and place, with their defaults but for the dtype."""
    params = make().get_params()
    expected = {f.name: f.default for c in (Architecture, UpdateRule, Execution) for f in fields(c)}
    training = {"backend", "num_features", "epochs", "batch_size", "valid_fraction", "patience"}
    expected |= {f.name: f.default for f in fields(RunConfig) if f.name in training}
    expected["attention_score"] = expected.pop("score")  # a method in scikit-learn
    del expected["teacher_forcing"]  # of models that forecast windows of a series
    ours = {"dtype": "float64", "num_features": 1, "valid_fraction": 0.0}
    if make is SequenceRegressor:
        expected |= {"loss": "squared_error", "quantiles": None}
    else:
        expected |= {"label_smoothing": 0.0, "class_weight": None}
    assert params == expected | ours | {
        name: params[name] for name in ("random_state", "callbacks")
    }


def test_a_model_that_forecasts_step_by_step_is_refused():
    rows = np.zeros((5, 4))
    with pytest.raises(ValueError, match=r"gru_seq2seq: forecasts .* which train.py does; choose"):
        SequenceRegressor(model="gru_seq2seq").fit(rows, rows[:, 0])


# Losses

STILL = SMALL | {"epochs": 1, "batch_size": N, "lr": 1e-12}  # the loss is that of what it fits
WEIGHTS = np.linspace(0.5, 2, N)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_quantiles_are_those_of_the_pinball_loss(backend, weights):
    options = {"loss": "quantile", "quantiles": (0.2, 0.5, 0.7), "valid_fraction": 0.3}
    found = SequenceRegressor(backend=backend, **STILL | options).fit(X, NUMBERS, weights)
    scaled = found._outputs(X).reshape(N, 3, 3)  # before they are sorted
    targets = found.scaling_.targets(NUMBERS, "float64")
    _, valid = split_off(np.arange(N), 0.3, None, False, "valid_fraction", 0)
    train = np.setdiff1d(np.arange(N), valid)
    for rows, losses in ((train, found.loss_curve_), (valid, found.valid_loss_curve_)):
        own = None if weights is None else weights[rows]
        expected = np.mean(
            [
                mean_pinball_loss(targets[rows], scaled[rows, :, n], sample_weight=own, alpha=q)
                for n, q in enumerate(options["quantiles"])
            ]
        )
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
    quantiles = found.predict_quantiles(X)
    in_unit = np.sort(scaled) * found.scaling_.target_std[:, None]
    np.testing.assert_allclose(quantiles, in_unit + found.scaling_.target_mean[:, None])
    assert (scaled != np.sort(scaled)).any()
    np.testing.assert_array_equal(found.predict(X), quantiles[..., 1])
    single = clone(found).fit(X, NUMBERS[:, 0])
    assert single.predict_quantiles(X).shape == (N, 3)
    np.testing.assert_array_equal(single.predict(X), single.predict_quantiles(X)[:, 1])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_mean_and_std_are_those_of_the_likelihood(backend, weights):
    options = {"loss": "gaussian_nll", "valid_fraction": 0.3}
    found = SequenceRegressor(backend=backend, **STILL | options).fit(X, NUMBERS, weights)
    mean, std = found.predict(X, return_std=True)
    np.testing.assert_array_equal(found.predict(X), mean)
    losses = -norm.logpdf(NUMBERS, mean, std) - np.log(found.scaling_.target_std)
    _, valid = split_off(np.arange(N), 0.3, None, False, "valid_fraction", 0)
    train = np.setdiff1d(np.arange(N), valid)
    for rows, curve in ((train, found.loss_curve_), (valid, found.valid_loss_curve_)):
        own = None if weights is None else weights[rows]
        expected = np.average(losses[rows].mean(axis=1), weights=own)
        np.testing.assert_allclose(curve, expected, rtol=1e-9)
    single = clone(found).fit(X, NUMBERS[:, 0])
    assert [part.shape for part in single.predict(X, return_std=True)] == [(N,), (N,)]


def test_label_smoothing_spreads_a_share_over_all_classes(backend):
    options = {"label_smoothing": 0.3, "valid_fraction": 0.3}
    found = SequenceClassifier(backend=backend, **STILL | options).fit(X, LABELS)
    surprise = -found.predict_log_proba(X)
    own = surprise[np.arange(N), np.searchsorted(found.classes_, LABELS)]
    losses = 0.7 * own + 0.3 * surprise.mean(axis=1)
    _, valid = split_off(np.arange(N), 0.3, found._targets(LABELS), False, "valid_fraction", 0)
    train = np.setdiff1d(np.arange(N), valid)
    np.testing.assert_allclose(found.loss_curve_, losses[train].mean(), rtol=1e-9)
    np.testing.assert_allclose(found.valid_loss_curve_, losses[valid].mean(), rtol=1e-9)


@pytest.mark.parametrize("loss", ["quantile", "gaussian_nll"])
def test_a_distribution_is_saved_and_continued_in_the_other_backend(tmp_path, loss):
    for name in FRAMEWORKS:
        installed(name)
    levels = np.array([0.1, 0.5]) if loss == "quantile" else None
    found = SequenceRegressor(loss=loss, quantiles=levels, **SMALL).fit(X, NUMBERS)
    found.save(tmp_path / "model")
    same = SequenceRegressor.load(tmp_path / "model")
    other = SequenceRegressor.load(tmp_path / "model", backend="jax")
    assert_same_state(same, found)
    if loss == "quantile":
        expected = found.predict_quantiles(X)
        np.testing.assert_allclose(other.predict_quantiles(X), expected, rtol=1e-12)
    for estimator in (found, other):
        estimator.partial_fit(X, NUMBERS)
    np.testing.assert_allclose(other.predict(X), found.predict(X), rtol=1e-10)
    with pytest.raises(ValueError, match="partial_fit cannot change loss"):
        found.set_params(loss="squared_error", quantiles=None).partial_fit(X, NUMBERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "absolute"}, "loss"),
        ({"loss": "cross_entropy"}, "loss cross_entropy: is for classification"),
        ({"quantiles": (0.1, 0.9)}, "quantiles 0.1,0.9: is for loss quantile"),
        ({"loss": "quantile", "quantiles": (0.9, 0.1)}, "quantiles"),
        ({"loss": "quantile", "quantiles": ()}, "quantiles"),
    ],
)
def test_a_loss_that_is_none_is_refused(options, message, one_backend):
    with pytest.raises(ValueError, match=message):
        SequenceRegressor(backend=one_backend, **SMALL | options).fit(X, NUMBERS)


def test_what_a_loss_does_not_say_is_refused(one_backend):
    found = SequenceRegressor(backend=one_backend, **STILL).fit(X, NUMBERS)
    with pytest.raises(ValueError, match="return_std: there are none; fit with loss"):
        found.predict(X, return_std=True)
    with pytest.raises(ValueError, match="predict_quantiles: there are none; fit with loss"):
        found.predict_quantiles(X)
    found.set_params(loss="quantile", quantiles=(0.1, 0.9)).fit(X, NUMBERS)
    with pytest.raises(ValueError, match="has no middle one; call predict_quantiles"):
        found.predict(X)
    assert found.predict_quantiles(X).shape == (N, 3, 2)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["quantile", "gaussian_nll"])
def test_check_estimator_of_a_distribution(loss, backend):
    epochs = 200 if loss == "quantile" else QUICK["epochs"]  # whose gradients are of one size
    check(SequenceRegressor(backend=backend, loss=loss, **QUICK | {"epochs": epochs}))


# What X may be


@BOTH
def test_flat_rows_3d_and_lists_are_read_alike(make, y, backend):
    expected = make(backend=backend, **SMALL).fit(X, y)
    assert not hasattr(expected, "n_features_in_")
    assert_same_state(clone(expected).fit(X.tolist(), y), expected)
    flat = X.reshape(N, T * D)  # time-major
    for rows in (flat, list(flat)):
        found = clone(expected).set_params(num_features=D).fit(rows, y)
        np.testing.assert_array_equal(answers(found, rows), answers(expected))
        assert found.n_features_in_ == T * D
        np.testing.assert_array_equal(answers(found, X), answers(expected))


def test_sequences_in_an_object_array_are_a_list_of_them(one_backend):
    in_array = np.empty(N, object)
    in_array[:] = RAGGED
    found = SequenceRegressor(backend=one_backend, **SMALL).fit(RAGGED, NUMBERS)
    for again in (in_array, pd.Series(RAGGED)):
        other = SequenceRegressor(backend=one_backend, **SMALL).fit(again, NUMBERS)
        assert_same_state(other, found, RAGGED)
        np.testing.assert_array_equal(found.predict(again), found.predict(RAGGED))
    uneven = [*X[1:], X[0][:, :1]]
    with pytest.raises(ValueError, match=r"the arrays of X have \[1, 2\] features a step"):
        found.predict(uneven)


@BOTH
def test_a_shorter_sequence_is_read_to_its_end_only(make, y, backend):
    """The scaling is that of the real steps, an answer that of the sequence alone."""
    found = make(backend=backend, **SMALL).fit(RAGGED, y)
    steps = np.concatenate(RAGGED)
    np.testing.assert_allclose(found.scaling_.input_mean, steps.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.scaling_.input_std, steps.std(axis=0), rtol=1e-14)
    together = answers(found, RAGGED)
    for n in (0, 3):
        np.testing.assert_allclose(answers(found, RAGGED[n][None])[0], together[n], rtol=1e-13)
    cells = [sequence.reshape(-1) for sequence in RAGGED]
    flat = clone(found).set_params(num_features=D).fit(cells, y)
    np.testing.assert_array_equal(answers(flat, cells), together)


@pytest.mark.parametrize(
    ("options", "inputs", "y", "message"),
    [
        ({}, X * [1, np.nan], LABELS, "Input X contains NaN"),
        ({}, [X[0], X[1, :3] ** 2 * np.inf], LABELS[:2], r"Input X\[1\] contains infinity"),
        ({}, [X[0], X[1, :3, :1]], LABELS[:2], r"the arrays of X have \[1, 2\] features a step"),
        ({}, X[..., None], LABELS, "Found array with dim 4"),
        ({}, X[0, :, 0], LABELS, "Expected 2D array, got 1D array"),
        ({}, X[:0], LABELS[:0], "Found array with 0 sample"),
        ({}, X[:, :0], LABELS, r"X has shape \(10, 0, 2\); expected at least one step"),
        ({}, [X[0], X[1, :0]], LABELS[:2], "Found array with 0 sample"),
        ({}, X, LABELS[:-1], "inconsistent numbers of samples"),
        ({}, X, None, "requires y to be passed"),
        ({}, X, LABELS[[0] * N], "y has 1 class, 'wade'"),
        ({}, X, NUMBERS[:, 0], "Unknown label type: continuous"),
        ({}, X * 1e200, LABELS, "X holds values too large to be standardised"),
        ({"num_features": 4}, X.reshape(N, -1), LABELS, "10 cells a row, .* num_features=4"),
        ({"num_features": None}, X, LABELS, "^num_features None: expected a whole number >= 1"),
        ({"backend": "tensorflow"}, X, LABELS, "^backend 'tensorflow': expected one of torch, jax"),
        ({"hidden_size": 0}, X, LABELS, "^hidden_size 0: expected a whole number >= 1"),
        ({"model": "lsmt"}, X, LABELS, r"^model 'lsmt': expected one of .* \(did you mean lstm"),
        ({"schedule": "cosine", "warmup_steps": 9}, X, LABELS, "^warmup_steps 9: a cosine over 6"),
        (
            {"model": "transformer", "num_heads": 3},
            X,
            LABELS,
            "^num_heads 3: must divide hidden_size 4",
        ),
        (
            {"attention_score": "dott"},
            X,
            LABELS,
            "^attention_score 'dott': expected one of additive",
        ),
        ({"valid_fraction": 0.01}, X, LABELS, "^valid_fraction 0.01 of 10 rows is 0"),
        ({"random_state": "one"}, X, LABELS, "'one' cannot be used to seed"),
        ({"callbacks": print}, X, LABELS, "callbacks .*: expected a list of functions"),
        ({"class_weight": "fair"}, X, LABELS, "class_weight"),
        ({"class_weight": {"sit": -1}}, X, LABELS, "class_weight .* expected finite weights >= 0"),
        ({"class_weight": dict.fromkeys(LABELS, 0)}, X, LABELS, "leaves no sequence"),
    ],
)
def test_bad_input_is_told_in_a_sentence(options, inputs, y, message, one_backend):
    estimator = SequenceClassifier(**{"backend": one_backend, **SMALL} | options)
    with pytest.raises(ValueError, match=message) as error:
        estimator.fit(inputs, y)
    assert "--" not in str(error.value)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


def test_bad_input_after_fit(one_backend):
    found = SequenceRegressor(backend=one_backend, num_features=D, **SMALL)
    found.fit(X.reshape(N, -1), NUMBERS)
    with pytest.raises(ValueError, match=r"X has 8 features, but .* is expecting 10 features"):
        found.predict(X[:, 1:].reshape(N, -1))
    with pytest.raises(ValueError, match=r"X has 3 features a step, but .* was fitted with 2"):
        found.predict(X[..., [0, 1, 1]])
    with pytest.raises(ValueError, match=r"y has shape \(10,\); the first had 3 columns"):
        found.partial_fit(X, NUMBERS[:, 0])
    assert not hasattr(
        clone(found).fit(X.reshape(N, -1), NUMBERS).fit(X, NUMBERS), "n_features_in_"
    )
    found.set_params(dtype="float32", hidden_size=5)
    with pytest.raises(ValueError, match=r"cannot change hidden_size: 4 -> 5; .*dtype"):
        found.partial_fit(X, NUMBERS)
    with pytest.raises(ValueError, match="too many standard deviations"):
        SequenceRegressor(backend=one_backend, dtype="float32", **SMALL).fit(X, NUMBERS).predict(
            X * 1e60
        )


@pytest.mark.parametrize("absent", FRAMEWORKS)
def test_an_absent_framework_is_named(absent, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == f"{absent}_impl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigError, match=rf"--backend {absent}: {absent}.* is not installed"):
        SequenceClassifier(backend=absent).fit(X, LABELS)


def test_an_absent_device_is_named(one_backend):
    with pytest.raises(ConfigError, match="--device 'moon'"):
        SequenceClassifier(backend=one_backend, device="moon").fit(X, LABELS)


# What a fit is


@pytest.mark.parametrize("options", [{}, {"dropout": 0.4, "num_layers": 2, "weights": TIMES}])
@BOTH
def test_backends_agree(make, y, options):
    """After 10 steps, to float64 rounding."""
    options = SMALL | {"epochs": 5} | options
    weights = options.pop("weights", None)
    pair = [
        make(backend=installed(backend), **options).fit(RAGGED, y, weights)
        for backend in FRAMEWORKS
    ]
    found, expected = (answers(estimator, RAGGED) for estimator in pair)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(pair[0].loss_curve_, pair[1].loss_curve_, rtol=1e-12)


def test_a_fit_is_the_run_of_train(train, numbers, tmp_path, backend):
    """The same bits as train.py gives with the same options on the same rows."""
    options = {"epochs": 3, "dropout": 0.3, "dtype": "float64", "random_state": 5}
    argv = ("--seed", 5, "--dropout", 0.3, "--valid_fraction", 0, "--dtype", "float64")
    paths = ("--data_path", numbers, "--test_path", numbers, "--out", tmp_path / "run")
    assert train(*TINY, *argv, *paths, "--backend", backend).code == 0
    expected = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").arrays
    table = np.loadtxt(numbers, delimiter=",", skiprows=1)
    found = SequenceRegressor(
        backend=backend, model="lstm", hidden_size=4, batch_size=8, **options
    ).fit(table[:, :-1], table[:, -1])
    assert found.arrays_.keys() == expected.keys()
    for name, array in found.arrays_.items():
        np.testing.assert_array_equal(array, expected[name], name)


@BOTH
def test_fit_repeats_its_bits_and_partial_fit_continues(make, y, backend):
    found = make(backend=backend, **SMALL).fit(X, y)
    once = pickle.loads(pickle.dumps(found))
    assert_same_state(found.fit(X, y), once)
    steps = make(backend=backend, **SMALL)
    for epoch in range(SMALL["epochs"]):
        first = {"classes": np.unique(y)} if make is SequenceClassifier and not epoch else {}
        assert steps.partial_fit(X, y, **first) is steps
        assert (steps.n_iter_, steps.n_steps_) == (epoch + 1, 2 * epoch + 2)
    assert_same_state(steps, found)
    assert steps.loss_curve_ == found.loss_curve_
    other = clone(found).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(answers(other), answers(found))


def test_partial_fit_keeps_the_first_scaling_and_classes(one_backend):
    found = SequenceClassifier(backend=one_backend, **SMALL)
    with pytest.raises(ValueError, match="first call of partial_fit needs all labels"):
        found.partial_fit(X, LABELS)
    found.partial_fit(X[:2], LABELS[:2], classes=["sit", "run", "wade"])
    assert found.classes_.tolist() == ["run", "sit", "wade"]
    scaling = found.scaling_
    assert found.partial_fit(1e3 * X, LABELS, classes=LABELS).scaling_ is scaling
    with pytest.raises(ValueError, match=r"labels that are no classes: \['fly'\]"):
        found.partial_fit(X[:1], ["fly"])
    with pytest.raises(ValueError, match="the first were"):
        found.partial_fit(X, LABELS, classes=["run", "sit"])
    with pytest.raises(ValueError, match="'balanced': partial_fit cannot know it"):
        found.set_params(class_weight="balanced").partial_fit(X, LABELS)


def test_targets_come_back_in_their_unit(one_backend):
    """Targets of a million, of a thousandth and without spread are learned alike."""
    total = X.sum(axis=(1, 2))
    y = np.stack([1e6 + total, 1e-3 * total, np.full(N, 7.5)], axis=1)
    options = SMALL | {"hidden_size": 8, "epochs": 150, "lr": 0.03}
    found = SequenceRegressor(backend=one_backend, **options).fit(X, y)
    error = np.abs(found.predict(X) - y)
    assert (error.mean(axis=0)[:2] < 0.3 * y.std(axis=0)[:2]).all()
    assert (error[:, 2] < 0.3).all()
    one = clone(found).set_params(epochs=1)
    assert one.fit(X, y[:, 0]).predict(X).shape == (N,)
    assert one.fit(X, y[:, :1]).predict(X).shape == (N, 1)


@pytest.mark.parametrize("values", [[0, 1, 2], [False, True], [2.0, -1.0], ["b", "a", "ä"]])
def test_any_labels(values, one_backend, tmp_path):
    for dtype in (None, object) if isinstance(values[0], str) else (None,):
        y = np.array(values, dtype)[np.arange(N) % len(values)]
        found = SequenceClassifier(backend=one_backend, **SMALL).fit(X, y)
        assert found.classes_.tolist() == sorted(values)
        chances = found.predict_proba(X)
        np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-15)
        np.testing.assert_allclose(np.exp(found.predict_log_proba(X)), chances, rtol=1e-14)
        assert found.predict(X).dtype == y.dtype
        assert (found.predict(X) == found.classes_[chances.argmax(axis=1)]).all()
        found.save(tmp_path / "labels")
        again = SequenceClassifier.load(tmp_path / "labels")
        np.testing.assert_array_equal(again.predict(X), found.predict(X), strict=True)


# Weights


@BOTH
def test_weight_0_is_as_if_absent(make, y, backend):
    """Bit by bit, although the row left out is the longest one and its readings are enormous."""
    found = make(backend=backend, **SMALL)
    present = [sequence[: 1 + n % 3] for n, sequence in enumerate(X)]
    others = [present[n] if TIMES[n] else 1e30 * X[n] for n in range(N)]
    kept = np.flatnonzero(TIMES)
    rows, weights = [present[n] for n in kept], TIMES[kept]
    assert_same_state(
        clone(found).fit(others, y, TIMES), clone(found).fit(rows, y[kept], sample_weight=weights)
    )


@BOTH
def test_whole_weights_repeat_rows(make, y, backend):
    """To rounding, when one batch holds all."""
    options = SMALL | {"batch_size": int(TIMES.sum())}
    weighted = make(backend=backend, **options).fit(X, y, TIMES)
    repeated = make(backend=backend, **options).fit(X.repeat(TIMES, 0), y.repeat(TIMES, 0))
    np.testing.assert_allclose(answers(weighted), answers(repeated), rtol=1e-11)
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-11)
    assert np.abs(answers(weighted) / answers(clone(weighted).fit(X, y)) - 1).max() > 1e-6


def test_class_weight(one_backend):
    """Balanced is by summed weights; a dict is what it says; neither moves the scaling."""
    y = np.where(np.arange(N) < 7, "common", "rare")
    weights = np.where(np.arange(N) % 2, 0.5, 2.0)
    sums = {label: weights[y == label].sum() for label in ("common", "rare")}
    by_hand = {label: weights.sum() / (2 * total) for label, total in sums.items()}
    plain = SequenceClassifier(backend=one_backend, **SMALL)
    fits = {
        name: clone(plain).set_params(class_weight=chosen).fit(X, y, weights)
        for name, chosen in {"no": None, "balanced": "balanced", "by hand": by_hand}.items()
    }
    np.testing.assert_allclose(answers(fits["balanced"]), answers(fits["by hand"]), rtol=1e-12)
    assert np.abs(answers(fits["balanced"]) - answers(fits["no"])).max() > 1e-4
    for found in fits.values():
        np.testing.assert_array_equal(found.scaling_.input_mean, fits["no"].scaling_.input_mean)
    ignored = clone(plain).set_params(class_weight={"rare": 0.0}, epochs=30).fit(X, y)
    assert set(ignored.predict(X)) == {"common"}
    assert ignored.classes_.tolist() == ["common", "rare"]


@BOTH
def test_the_epochs_loss_is_the_mean_by_both_weights(make, y, one_backend):
    """Over two batches; at a rate of 1e-14 the weights are the first ones throughout."""
    labels = np.unique(y, return_inverse=True)[1] if make is SequenceClassifier else None
    options = SMALL | {"epochs": 1, "lr": 1e-14}
    weights = TIMES
    if labels is not None:
        options |= {"class_weight": {"sit": 3.0, "run": 0.5}}
        weights = TIMES * np.array([0.5, 3.0, 1.0])[labels]
    found = make(backend=one_backend, **options).fit(X, y, TIMES)
    if labels is None:
        rows = (((found.predict(X) - y) / found.scaling_.target_std) ** 2).mean(axis=1)
    else:
        rows = -found.predict_log_proba(X)[np.arange(N), labels]
    np.testing.assert_allclose(found.loss_curve_, [np.average(rows, weights=weights)], rtol=1e-11)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-TIMES, "sample_weight: one is -3.0; expected weights >= 0"),
        (0 * TIMES, "zero"),
        (TIMES[1:], "sample_weight.shape"),
        (TIMES / np.where(TIMES, np.nan, 1), "sample_weight contains NaN"),
    ],
)
def test_bad_weights(weights, message, one_backend):
    with pytest.raises(ValueError, match=message):
        SequenceRegressor(backend=one_backend, **SMALL).fit(X, NUMBERS, weights)


@pytest.mark.parametrize("scale", [1e-60, 1e300])
def test_weights_count_by_their_shares(scale, one_backend):
    """In float32 as well, whose range ends before either."""
    options = {"backend": one_backend, **SMALL, "dtype": "float32"}
    found, expected = (
        SequenceRegressor(**options).fit(X, NUMBERS, TIMES * by) for by in (scale, 1.0)
    )
    np.testing.assert_allclose(found.predict(X), expected.predict(X), rtol=1e-5)
    steep = np.where(TIMES == 3, 1.0, 1e-50)
    with pytest.raises(ValueError, match=r"^sample_weight: 1e-50 beside 1.0 is zero in float32"):
        SequenceRegressor(**options).fit(X, NUMBERS, steep)


# Epochs


def test_callbacks_see_each_epoch_and_can_stop_it(backend):
    seen = []

    def watch(told):
        seen.append((told.epoch, told.loss, told.estimator.predict_proba(X)))

    def stop(told):
        return told.epoch == 2

    found = SequenceClassifier(backend=backend, callbacks=[stop, watch], **SMALL).fit(X, LABELS)
    assert [epoch for epoch, *_ in seen] == [1, 2]
    assert found.n_iter_ == 2
    assert found.loss_curve_ == [loss for _, loss, _ in seen]
    np.testing.assert_array_equal(seen[1][2], found.predict_proba(X))
    two = SequenceClassifier(backend=backend, **SMALL | {"epochs": 2}).fit(X, LABELS)
    assert_same_state(found, two)


@pytest.mark.parametrize(
    ("make", "y"), [(SequenceClassifier, LABELS[:9]), (SequenceRegressor, X[:9, 0])]
)
def test_the_best_epoch_is_kept_and_patience_ends(make, y, one_backend):
    seen = []
    options = SMALL | {"epochs": 200, "lr": 0.1, "valid_fraction": 0.34, "patience": 4}
    found = make(backend=one_backend, **options)
    found.set_params(callbacks=[lambda told: seen.append((told.valid_loss, answers(found)))])
    found.fit(X[:9], y, sample_weight=np.arange(1, 10))
    losses = [loss for loss, _ in seen]
    best = int(np.argmin(losses))
    assert found.valid_loss_curve_ == losses
    assert found.n_iter_ == best + 1 + 4 < 200
    np.testing.assert_array_equal(answers(found), seen[best][1])
    labels = np.unique(y, return_inverse=True)[1] if make is SequenceClassifier else None
    rows, held_out = split_off(np.arange(9), 0.34, labels, False, "valid_fraction", 0)
    mean = np.average(X[rows].mean(axis=1), axis=0, weights=rows + 1)
    np.testing.assert_allclose(found.scaling_.input_mean, mean, rtol=1e-14)
    guess, weights = answers(found)[held_out], held_out + 1
    if labels is None:
        errors = ((guess - y[held_out]) / found.scaling_.target_std) ** 2
    else:
        errors = -np.log(guess[np.arange(3), labels[held_out]])[:, None]
    expected = np.average(errors.mean(axis=1), weights=weights)
    np.testing.assert_allclose(losses[best], expected, rtol=1e-12)
    assert found.n_steps_ == best + 1  # six rows are one batch


def test_a_fit_that_diverges_leaves_nothing_to_predict_with(one_backend):
    options = SMALL | {"optimizer": "sgd", "lr": 1e200, "clip_norm": None}
    found = SequenceRegressor(backend=one_backend, **options)
    with pytest.raises(DivergedError, match="choose a smaller lr or clip_norm"):
        found.fit(X, NUMBERS)
    with pytest.raises(NotFittedError):
        found.predict(X)


# Files


@pytest.mark.parametrize(
    ("make", "y", "options"),
    [
        (SequenceClassifier, LABELS, {"class_weight": {"sit": 2.0}, "random_state": np.int64(3)}),
        (
            SequenceRegressor,
            NUMBERS,
            {"random_state": np.random.RandomState(4), "lr": np.float64(0.1)},
        ),
    ],
)
def test_saved_and_loaded_it_goes_on_alike(make, y, options, backend, tmp_path):
    found = make(backend=backend, **SMALL | options).fit(RAGGED, y)
    path = tmp_path / "model"
    found.save(path)
    again = make.load(path)
    assert_same_state(again, found, RAGGED)
    assert_same_state(again.partial_fit(RAGGED, y), found.partial_fit(RAGGED, y), RAGGED)
    assert again.get_params() | {"random_state": 0} == found.get_params() | {"random_state": 0}
    assert b"pickle" not in path.read_bytes()


@BOTH
def test_the_other_backend_goes_on_to_rounding(make, y, tmp_path):
    found = make(backend=installed("torch"), **SMALL).fit(X, y)
    found.save(tmp_path / "model")
    other = make.load(tmp_path / "model", backend=installed("jax"))
    np.testing.assert_allclose(answers(other), answers(found), rtol=1e-13)
    other.partial_fit(X, y)
    np.testing.assert_allclose(answers(other), answers(found.partial_fit(X, y)), rtol=1e-12)


def test_a_file_that_is_no_such_estimator(train, labels, one_backend, tmp_path):
    path = tmp_path / "model"
    found = SequenceClassifier(backend=one_backend, **SMALL)
    with pytest.raises(NotFittedError):
        found.save(path)
    assert not path.exists()
    found.fit(X, LABELS).save(path)
    with pytest.raises(CheckpointError, match="holds a SequenceClassifier, no SequenceRegressor"):
        SequenceRegressor.load(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        SequenceClassifier.load(path)
    with pytest.raises(CheckpointError, match="No such file"):
        SequenceClassifier.load(tmp_path / "absent")
    out = ("--data_path", labels, "--out", tmp_path / "run", "--backend", one_backend)
    assert train(*TINY, *out).code == 0
    with pytest.raises(CheckpointError, match=r"holds a run of train.py, which predict.py reads"):
        SequenceClassifier.load(tmp_path / "run" / "best.safetensors")


# In scikit-learn's hands


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.long)])
def test_pipeline_grid_search_and_cross_validation(backend):
    installed(backend)
    flat = X.reshape(N, -1)
    estimator = SequenceRegressor(backend=backend, num_features=D, **SMALL)
    pipeline = make_pipeline(StandardScaler(), estimator)
    pipeline.fit(flat, NUMBERS, sequenceregressor__sample_weight=TIMES)
    assert pipeline.predict(flat).shape == NUMBERS.shape
    sizes = np.array([3, 4])
    search = GridSearchCV(pipeline, {"sequenceregressor__hidden_size": sizes}, cv=2)
    search.fit(flat, NUMBERS)
    assert search.best_params_["sequenceregressor__hidden_size"] in sizes
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(cross_val_score(estimator, RAGGED, NUMBERS, cv=2, error_score="raise")) == 2


def test_a_data_frame_gives_its_names(one_backend):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X[..., 0], columns=[f"t{t}" for t in range(T)])
    found = SequenceClassifier(backend=one_backend, **SMALL).fit(frame, pandas.Series(LABELS))
    assert found.feature_names_in_.tolist() == ["t0", "t1", "t2", "t3", "t4"]
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.long)])
def test_accuracy_on_real_sequences(backend):
    """Cross-validated on a list of unequal arrays, above logistic regression on the flat row."""
    data = read_sequences(str(SAMPLES / "japanese_vowels_train.csv"), DataConfig())
    spoken = [row[:length] for row, length in zip(data.inputs, data.lengths, strict=True)]
    speakers = np.array([label for (label,) in data.targets])
    flat = np.nan_to_num(data.inputs).reshape(len(spoken), -1)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    options = {"model": "gru", "hidden_size": 32, "bidirectional": True, "dropout": 0.3}
    options |= {"epochs": 15, "batch_size": 16, "lr": 1e-2, "dtype": "float32"}
    ours = SequenceClassifier(backend=installed(backend), **options)
    accuracy = {
        name: cross_val_score(estimator, inputs, speakers, cv=folds, error_score="raise").mean()
        for name, estimator, inputs in (
            ("ours", ours, spoken),
            ("linear", linear, flat),
            ("majority", DummyClassifier(), flat),
        )
    }
    # 0.970, 0.956 and 0.111 when this was written.
    assert accuracy["ours"] > accuracy["linear"] > accuracy["majority"]
    assert accuracy["ours"] > 0.96


@pytest.mark.long
def test_grid_search_in_processes(backend):
    estimator = SequenceClassifier(backend=backend, **SMALL)
    search = GridSearchCV(estimator, {"hidden_size": [3, 4]}, cv=2, n_jobs=2, error_score="raise")
    assert search.fit(X, LABELS).predict(X).shape == (N,)
