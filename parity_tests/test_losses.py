"""The losses agree with each other, with NumPy and with others' own, values and gradients."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss

import jax_impl.losses
import jax_impl.training
import torch_impl.losses
import torch_impl.training
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch, relative_error
from spec import losses
from spec.config import ModelConfig
from spec.units import LEAST_STD

B, O, C, T = 5, 2, 3, 4
LEVELS = (0.1, 0.5, 0.8)  # neither symmetric nor as many as there are targets
DRAW = np.random.default_rng(2).normal
NUMBERS, LABELS = DRAW(size=(B, O)), np.array([2, 0, 1, 1, 2])
WEIGHTS = np.array([0.7, 0.0, 2.0, 0.3, 1.1])
OF_CLASSES = np.array([0.4, 2.5, 1.3])
SIDES = ((torch_impl.losses, torch.tensor), (jax_impl.losses, jnp.asarray))


@dataclass
class Case:
    """A loss with its options, on targets and predictions of `width` columns."""

    name: str
    targets: np.ndarray
    width: int
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.predictions = DRAW(size=(B, self.width))

    def by(self, library, put, targets=None, *weights):
        """Return the loss as a function of named predictions."""
        options = {n: put(x) if isinstance(x, np.ndarray) else x for n, x in self.options.items()}
        given = [put(x) for x in (self.targets if targets is None else targets, *weights)]
        loss = getattr(library, self.name)
        return lambda leaves: {"loss": loss(leaves["predictions"], *given, **options)}

    @property
    def leaves(self):
        return {"predictions": self.predictions}


CASES = {
    "squared error": Case("mean_squared_error", NUMBERS, O),
    "quantiles": Case("quantile_loss", NUMBERS, O * 3, {"quantiles": LEVELS}),
    "gaussian": Case("gaussian_nll", NUMBERS, O * 2),
    "classes": Case("cross_entropy", LABELS, C),
    "smoothed": Case("cross_entropy", LABELS, C, {"label_smoothing": 0.15}),
    "weighted": Case("cross_entropy", LABELS, C, {"class_weights": OF_CLASSES}),
    "smoothed and weighted": Case(
        "cross_entropy", LABELS, C, {"label_smoothing": 0.15, "class_weights": OF_CLASSES}
    ),
}
COTANGENT = {"loss": np.array(1.7)}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def by_torch(case):
    """Return the loss that torch itself offers, where it has one, written for one target a time."""
    functions, targets = torch.nn.functional, torch.tensor(case.targets)

    def other(leaves):
        found = leaves["predictions"]
        if case.name == "mean_squared_error":
            return {"loss": functions.mse_loss(found, targets)}
        if case.name == "gaussian_nll":
            centers, raw = found[:, 0::2], found[:, 1::2]
            variance = (torch.log1p(torch.exp(raw)) + LEAST_STD) ** 2
            return {"loss": functions.gaussian_nll_loss(centers, targets, variance, full=True)}
        if case.name == "quantile_loss":
            u = [targets[:, n] - found[:, n * 3 + k] for n in range(O) for k in range(3)]
            each = [torch.maximum(q * x, (q - 1) * x) for q, x in zip(LEVELS * O, u, strict=True)]
            return {"loss": torch.stack(each).mean()}
        weight = case.options.get("class_weights")
        return {
            "loss": functions.cross_entropy(
                found,
                targets,
                weight=None if weight is None else torch.tensor(weight),
                label_smoothing=case.options.get("label_smoothing", 0.0),
            )
        }

    return other


@each_case
def test_loss_matches(case):
    in_t, in_j = (
        run(case.by(*side), case.leaves, COTANGENT)
        for run, side in zip((in_torch, in_jax), SIDES, strict=True)
    )
    in_n = in_numpy(case.by(losses, np.asarray), case.leaves, COTANGENT)
    other = in_torch(by_torch(case), case.leaves, COTANGENT)
    assert_same(in_t, in_j)
    assert_same(in_j, in_n)
    assert_same(in_t, other)


@each_case
def test_both_are_within_rounding_of_the_exact_loss(case):
    wide = {"predictions": case.predictions.astype(np.longdouble)}
    exact = case.by(losses, np.asarray)(wide)["loss"]
    for library, put in SIDES:
        found = case.by(library, put)({"predictions": put(case.predictions)})["loss"]
        assert relative_error(found, exact) <= 4 * np.finfo(np.float64).eps


@each_case
def test_weighted_loss_matches(case):
    """Both backends and NumPy; and NumPy's is that of each row alone, averaged by weight."""
    in_t, in_j = (
        run(case.by(*side, None, WEIGHTS), case.leaves, COTANGENT)
        for run, side in zip((in_torch, in_jax), SIDES, strict=True)
    )
    in_n = in_numpy(case.by(losses, np.asarray, None, WEIGHTS), case.leaves, COTANGENT)
    assert_same(in_t, in_j)
    assert_same(in_j, in_n)
    alone = [
        case.by(losses, np.asarray, case.targets[b : b + 1])(
            {"predictions": case.predictions[b : b + 1]}
        )["loss"]
        for b in range(B)
    ]
    of_rows = WEIGHTS
    if "class_weights" in case.options:
        of_rows = WEIGHTS * OF_CLASSES[case.targets]
    assert in_n["loss"] == pytest.approx(np.average(alone, weights=of_rows), rel=1e-14)
    assert not in_t["d predictions"][1].any()


@each_case
def test_whole_weights_repeat_rows(case):
    times = np.array([2, 0, 1, 3, 1])
    for library, put in SIDES:
        found = case.by(library, put, None, times.astype(float))
        repeated = case.by(library, put, case.targets.repeat(times, axis=0))
        again = repeated({"predictions": put(case.predictions.repeat(times, axis=0))})["loss"]
        found = found({"predictions": put(case.predictions)})["loss"]
        assert float(found) == pytest.approx(float(again), rel=1e-14)


def test_quantile_loss_is_scikit_learns_pinball_loss():
    case = CASES["quantiles"]
    by_target = case.predictions.reshape(B, O, len(LEVELS))
    for weights in (None, WEIGHTS):
        expected = np.mean(
            [
                mean_pinball_loss(NUMBERS, by_target[..., k], alpha=q, sample_weight=weights)
                for k, q in enumerate(LEVELS)
            ]
        )
        given = () if weights is None else (weights,)
        for library, put in SIDES:
            found = case.by(library, put, None, *given)({"predictions": put(case.predictions)})
            assert float(found["loss"]) == pytest.approx(expected, rel=1e-14)


def test_where_prediction_and_target_are_equal_the_gradient_is_that_from_below():
    """-q of each quantile, on both sides; a maximum of two lines would share it."""
    case = CASES["quantiles"]
    met = {"predictions": NUMBERS.repeat(len(LEVELS), axis=1)}
    expected = np.tile(np.negative(LEVELS), (B, O)) / (B * O * len(LEVELS))
    for run, side in zip((in_torch, in_jax), SIDES, strict=True):
        found = run(case.by(*side), met, {"loss": np.array(1.0)})
        assert found["loss"] == 0
        np.testing.assert_allclose(found["d predictions"], expected, rtol=1e-15)


def test_the_best_constant_is_the_quantile_and_the_mean_and_standard_deviation():
    """The minimum is where theory has it: with a wrong sign or a wrong q it is elsewhere."""
    values = np.random.default_rng(3).gamma(2.0, size=(999, 1))
    found = np.quantile(values, LEVELS)
    at = found[None].repeat(999, axis=0)
    center, std = values.mean(), values.std()
    raw = np.log(np.expm1(std - LEAST_STD))
    for library, put in SIDES:
        for column in range(len(LEVELS)):
            levels = {"quantiles": LEVELS}
            moved = [library.quantile_loss(put(at), put(values), **levels)]
            for step in (-0.05, 0.05):
                other = at + step * (np.arange(len(LEVELS)) == column)
                moved.append(library.quantile_loss(put(other), put(values), **levels))
            assert min(map(float, moved)) == float(moved[0])
        pairs = [(center, raw), *((center + d, raw) for d in (-0.05, 0.05))]
        pairs += [(center, raw + d) for d in (-0.05, 0.05)]
        moved = [
            float(library.gaussian_nll(put(np.tile(pair, (999, 1))), put(values))) for pair in pairs
        ]
        assert min(moved) == moved[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_outputs_keep_value_and_gradients_finite(dtype):
    """A standard deviation at its floor or beyond 1e4, a target met exactly or 1e4 away."""
    targets = np.array([[0.0], [0.0], [0.0], [0.0], [1e4]])
    outputs = np.array([[0, -1e4], [1e4, -1e4], [0, 1e4], [1e4, 1e4], [0, 0]])
    results = []
    for run, (library, put) in zip((in_torch, in_jax), SIDES, strict=True):
        target, loss = put(targets.astype(dtype)), library.gaussian_nll
        found = run(
            lambda leaves, target=target, loss=loss: {"loss": loss(leaves["predictions"], target)},
            {"predictions": outputs},
            {"loss": np.array(1.0)},
            dtype,
        )
        assert all(np.isfinite(array).all() for array in found.values())
        assert found["d predictions"].dtype == dtype
        results.append(found)
    assert_same(*results, 1e-12 if dtype == "float64" else 1e-6)
    _, std = torch_impl.losses.mean_and_std(torch.tensor(outputs))
    assert std[0, 0] == LEAST_STD
    assert std[2, 0] == 1e4 + LEAST_STD


def test_a_spread_beyond_20_is_no_identity():
    """torch's own softplus is off by 2e-9 there, which is no rounding."""
    raw = np.array([[0.0, 20.5]])
    exact = np.logaddexp(np.longdouble(20.5), 0) + LEAST_STD
    for library, put in SIDES:
        _, std = library.mean_and_std(put(raw))
        assert relative_error(np.asarray(std), np.array([[exact]])) < 1e-15


def test_mean_and_std_of_every_step():
    """Two targets of three steps: each pair keeps its place."""
    outputs = DRAW(size=(B, T, O * 2))
    for library, put in (*SIDES, (losses, np.asarray)):
        found = library.mean_and_std(put(outputs))
        for b in range(B):
            alone = losses.mean_and_std(outputs[b])
            for whole, one in zip(found, alone, strict=True):
                np.testing.assert_allclose(whole[b], one, rtol=1e-15)


def test_certain_and_wrong_stays_finite():
    """A logit 1e4 above the target's gives a loss of 1e4, not inf."""
    logits, target = np.array([[1e4, 0.0]]), np.array([1])
    for library, put in SIDES:
        assert library.cross_entropy(put(logits), put(target)) == 1e4
        assert library.cross_entropy(put(logits), put(target), label_smoothing=0.5) == 7.5e3


NAMES = {
    "mean_squared_error": "squared_error",
    "quantile_loss": "quantile",
    "gaussian_nll": "gaussian_nll",
    "cross_entropy": "cross_entropy",
}


@each_case
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "by weight"])
def test_a_configuration_chooses_the_loss_and_its_options(case, weights):
    options = {
        "loss": NAMES[case.name],
        "task": "classification" if case.name == "cross_entropy" else "regression",
        "output_size": case.width,
        "label_smoothing": case.options.get("label_smoothing", 0.0),
        "quantiles": "0.1, 0.5,0.8" if "quantiles" in case.options else None,
    }
    given = {"targets": case.targets, "weights": weights}
    given |= {"class_weights": case.options.get("class_weights")}
    rows = () if weights is None else (weights,)
    expected = case.by(losses, np.asarray, None, *rows)(case.leaves)["loss"]
    chosen = [options]
    if NAMES[case.name] in ("squared_error", "cross_entropy"):
        chosen.append(options | {"loss": "auto"})
    for config in (ModelConfig(**own) for own in chosen):
        for training, put in (
            (torch_impl.training, torch.tensor),
            (jax_impl.training, jnp.asarray),
        ):
            arrays = {name: put(x) for name, x in given.items() if x is not None}
            found = training.objective(config, put(case.predictions), arrays)
            assert float(found) == pytest.approx(float(expected), rel=1e-14)
        if weights is None:
            given_weights = given["class_weights"]
            found = losses.training_loss(config, case.predictions, case.targets, given_weights)
            assert found == expected


@each_case
@pytest.mark.parametrize("every", [True, False], ids=["all known", "some unknown"])
def test_a_loss_over_steps_is_that_of_the_known_ones(case, every):
    """Rows as steps of three sequences; what stands where a target is unknown is of no account."""
    known = (
        np.ones((3, T), bool) if every else np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]]) > 0
    )
    draw = np.random.default_rng(8)
    predictions = draw.normal(size=(3, T, case.width))
    rows = draw.choice(B, size=(3, T))
    targets = case.targets[rows]
    expected = in_numpy(
        case.by(losses, np.asarray, targets[known]), {"predictions": predictions[known]}, COTANGENT
    )
    gradient = np.zeros_like(predictions)
    gradient[known] = expected["d predictions"]
    expected["d predictions"] = gradient
    weights = () if every else (known.astype(float),)

    def over_steps(library, put):
        options = {n: put(x) if isinstance(x, np.ndarray) else x for n, x in case.options.items()}
        own = partial(library.over_steps, getattr(library, case.name), **options)
        given = [put(x) for x in (targets, *weights)]
        return lambda leaves: {"loss": own(leaves["predictions"], *given)}

    for run, side in zip((in_torch, in_jax), SIDES, strict=True):
        assert_same(run(over_steps(*side), {"predictions": predictions}, COTANGENT), expected)


@pytest.mark.parametrize("training", [torch_impl.training, jax_impl.training])
def test_without_weights_the_real_steps_count(training):
    """Of predictions at every step; NumPy is given the mask."""
    put = torch.tensor if training is torch_impl.training else jnp.asarray
    lengths, draw = np.array([3, 1, T]), np.random.default_rng(9)
    predictions, targets = draw.normal(size=(2, 3, T, O))
    config = ModelConfig(model="rnn", every_step=True, output_size=O)
    real = (np.arange(T) < lengths[:, None]).astype(float)
    masked = losses.training_loss(config, predictions, targets, weights=real)
    whole = losses.training_loss(config, predictions, targets)
    assert abs(masked - whole) > 0.01
    for given, expected in (({"lengths": put(lengths)}, masked), ({}, whole)):
        found = training.objective(config, put(predictions), {"targets": put(targets)} | given)
        assert float(found) == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize(("library", "put"), SIDES)
def test_shapes_that_would_be_broadcast_are_refused(library, put):
    one, two, labels = put(np.zeros((B, 1))), put(np.zeros((B, 2))), put(np.zeros((B, 1), int))
    with pytest.raises(ValueError, match=r"predictions \[5, 1\] do not fit targets \[5, 2\]"):
        library.mean_squared_error(one, two)
    with pytest.raises(ValueError, match=r"\[5, 2\]: expected \[5, 6\]"):
        library.quantile_loss(two, two, quantiles=LEVELS)
    with pytest.raises(ValueError, match=r"\[5, 1\]: expected \[5, 2\]"):
        library.gaussian_nll(one, one)
    with pytest.raises(ValueError, match=r"logits \[5, 2\] do not fit targets \[5, 1\]"):
        library.cross_entropy(two, labels)
    steps = put(np.zeros((3, 4, 2))), put(np.zeros((3, 4, 1)))
    with pytest.raises(ValueError, match=r"predictions \[12, 2\] do not fit targets \[12, 1\]"):
        library.over_steps(library.mean_squared_error, *steps)
