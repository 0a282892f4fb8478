"""What introspection shows is what the model computes, and each gradient the true one, in both."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import jax_impl
import jax_impl.introspect
import torch_impl
import torch_impl.introspect
from parity_tests.cases import Case, H, T
from parity_tests.compare import BOUND, assert_same, relative_error
from spec import reference
from spec.batch import Batch
from spec.config import Execution, OptimizerConfig, Recurrence
from spec.introspection import (
    STATES,
    STEPS,
    TOLERANCE,
    array_shapes,
    gradient_norms,
    integrate,
    layer_names,
    saliency,
)

BACKENDS = {
    "torch": (torch_impl, torch_impl.introspect),
    "jax": (jax_impl, jax_impl.introspect),
}
OUTPUT = np.array([1, 0, 1])  # not the same one in each row
DEEP = {"layers": 2, "bidirectional": True, "ragged": True}
CASES = [
    Case("rnn", features=1, ragged=True, task="classification"),
    Case("rnn", **DEEP),
    Case("rnn", nonlinearity="relu", **DEEP),
    Case("gru"),
    Case("gru", reset_after=False, **DEEP),
    Case("lstm", **DEEP),
    Case("gru_attention", **DEEP),
    Case("gru", ragged=True, options=Recurrence(zoneout=0.3)),
    Case("lstm_attention", ragged=True, options=Recurrence(truncated_bptt_steps=2)),
    Case("lstm", layers=2, ragged=True, options=Recurrence(residual=True, layer_norm=True)),
    Case("lstm_attention", options=Recurrence(proj_size=3, coupled_gates=True, peepholes=True)),
    Case("lstm_attention", bidirectional=True),
    Case("gru_attention", ragged=True, score="scaled_dot"),
    # In one direction it makes the steps so alike that the scores' gradient cancels to 1 in 4000.
    Case("lstm_attention", bidirectional=True, ragged=True, score="general", self_attention=True),
    Case("lstm_attention", layers=2, ragged=True, task="classification"),
    Case("transformer", ragged=True, norm_first=True, task="classification"),
    Case("transformer", ragged=True, positions="learned", activation="relu", pooling="attention"),
    Case("transformer", layers=2, ragged=True, causal=True, pooling="last"),
    Case("gru", bidirectional=True, ragged=True, every_step=True),
    Case("transformer", ragged=True, every_step=True, task="classification"),
    Case("rnn_seq2seq", steps=3, nonlinearity="relu", score="general"),
    Case("gru_seq2seq", steps=2, bidirectional=True, ragged=True, reset_after=False),
    Case("lstm_seq2seq", steps=3, layers=2, ragged=True, score="scaled_dot"),
    Case("lstm_seq2seq", steps=2, options=Recurrence(peepholes=True, coupled_gates=True)),
]
# One of each recurrence, with more than one layer and direction.
TRACED = [case for case in CASES if case in (Case("rnn", **DEEP), Case("lstm", **DEEP))]
TRACED += [Case("gru_attention", **DEEP), Case("gru", reset_after=False, **DEEP)]
DECODERS = [case for case in CASES if case.config.decodes and case.options == Recurrence()]
TRUNCATED = [case for case in CASES if case.config.truncated_bptt_steps]
STEP = 1e-200  # along the imaginary axis


def output_of(case: Case) -> np.ndarray:
    """Choose what to explain: of a path, in one row, the last step."""
    return OUTPUT + np.array([case.config.output_size - 2, 0, 1]) * case.config.decodes


def batch_of(case: Case) -> Batch:
    return Batch(case.leaves["inputs"], case.lengths)


def state_of(side: str, case: Case, fast: bool = False, config=None):
    execution = Execution(dtype="float64", fast=fast)
    backend, _ = BACKENDS[side]
    return backend.init_state(config or case.config, OptimizerConfig(), execution, case.params)


@cache
def arrays(side: str, case: Case) -> dict[str, np.ndarray]:
    """Run a case once for all tests."""
    return BACKENDS[side][1].introspect(state_of(side, case), batch_of(case), output_of(case))


def every(values):
    return pytest.mark.parametrize("case", values, ids=str)


@every(CASES)
def test_every_array_and_gradient_is_the_same_in_both(case):
    in_torch, in_jax = arrays("torch", case), arrays("jax", case)
    assert list(in_torch) == list(in_jax)
    assert_same(in_torch, in_jax)


@every(CASES)
def test_the_names_and_shapes_are_those_of_the_table(case):
    shapes = array_shapes(case.config, len(OUTPUT), T)
    found = {name: array.shape for name, array in arrays("torch", case).items()}
    assert found == shapes | {f"d {name}": shape for name, shape in shapes.items()}
    last = f"{case.config.cell}.l{case.layers - 1}" + "_reverse" * case.bidirectional
    names = STEPS[case.config.cell]._fields if case.config.recurrent else ("weights", "residual")
    places = [last, "decoder"] if case.config.decodes else [last]
    assert {f"{place}.{name}" for place in places for name in names} <= set(found)


@every(CASES)
@pytest.mark.parametrize("side", BACKENDS)
def test_the_model_predicts_the_same(case, side):
    found = arrays(side, case)
    prediction = BACKENDS[side][0].predict(state_of(side, case, fast=True), batch_of(case))
    outputs = prediction.outputs
    if case.every_step:
        outputs = outputs[np.arange(len(OUTPUT)), case.lengths - 1]
    assert relative_error(found["predictions"], outputs) < 1e-13
    if case.config.attends:
        assert relative_error(found["attention.weights"], prediction.attention) < 1e-13


@every(CASES)
def test_past_each_end_is_nothing(case):
    if case.lengths is None:
        assert all(np.isfinite(array).all() for array in arrays("torch", case).values())
        return
    padding = np.arange(T) >= case.lengths[:, None]
    parts = (".l", "attention.s", "attention.w", "inputs", "embedded", "encoded")
    for name in [n for n in arrays("torch", case) if any(part in n for part in parts)]:
        for side in BACKENDS:
            found = arrays(side, case)[name]
            if found.ndim == 4 or (case.config.decodes and "attention" in name):  # by query
                found = found.swapaxes(1, 2)
            assert (found[padding] == 0).all(), (side, name)
            assert (found[~padding] != 0).any(), (side, name)
            if found.ndim == 4:  # by key
                assert (found.swapaxes(1, 3)[padding] == 0).all(), (side, name)


def move_state(name, unit, h, c):
    """Add i STEP to one unit of h, or of c and what h reads of it."""
    moved = {"h": h, "c": c}[name].astype(complex)
    moved[unit] += 1j * STEP
    return (moved, c) if name == "h" else (h * np.tanh(moved) / np.tanh(c), moved)


def imaginary(case: Case) -> np.ndarray:
    """Return the derivative that the NumPy model's predictions carry along [B]."""
    inputs = case.leaves["inputs"].astype(complex)
    predictions = reference.predict(case.config, case.params, inputs, case.lengths).predictions
    return predictions[np.arange(len(OUTPUT)), output_of(case)].imag / STEP


def derivative(case: Case, layer: str, t: int, name: str, unit: int, patch) -> np.ndarray:
    """Differentiate the NumPy model by a state, or by what goes into a gate, of one step [B]."""
    config, advance, gates = case.config, reference.advance, STEPS[case.config.cell]._fields
    lengths = [T] * len(OUTPUT) if case.lengths is None else case.lengths
    encoded = [
        (other, now)
        for length in lengths
        for other in layer_names(config)
        for now in (reversed(range(length)) if "reverse" in other else range(length))
    ]
    decoded = [("decoder", k) for k in range(config.forecast_steps)] * config.decodes
    order = iter([*encoded, *decoded * len(lengths)])

    def moved(config, weights, *now):
        if next(order) != (layer, t):
            return advance(config, weights, *now)
        if name in STATES:
            return move_state(name, unit, *advance(config, weights, *now))
        bias = weights["bias_ih"].astype(complex)
        bias[gates.index(name) * len(now[1]) + unit] += 1j * STEP
        return advance(config, {**weights, "bias_ih": bias}, *now)

    patch.setattr(reference, "advance", moved)
    found = imaginary(case)
    patch.undo()
    assert next(order, None) is None
    return found


@every([*TRACED, *DECODERS])
def test_gradients_are_the_derivatives_through_all_that_follows(case, monkeypatch):
    """Of a gate: times the slope of its nonlinearity, the derivative by what goes into it."""
    found = arrays("torch", case)
    for layer in [*layer_names(case.config), *["decoder"] * case.config.decodes]:
        for name in STEPS[case.config.cell]._fields:
            value, gradient = found[f"{layer}.{name}"], found[f"d {layer}.{name}"]
            if name not in STATES:
                gradient = gradient * (1 - value**2 if name in "gn" else value * (1 - value))
            expected = np.zeros_like(value)
            for t, unit in np.ndindex(value.shape[1:]):
                expected[:, t, unit] = derivative(case, layer, t, name, unit, monkeypatch)
            assert relative_error(gradient, expected) < BOUND, (layer, name)


def derivative_in_transformer(
    case: Case, layer: int, name: str, index: tuple[int, ...], patch
) -> np.ndarray:
    """Differentiate the NumPy model by a layer's residual, or by a factor on one weight [B]."""
    encoder_layer = reference.encoder_layer
    order = iter(list(range(case.layers)) * len(case.lengths))

    def add(array):
        if all(i < size for i, size in zip(index, array.shape, strict=True)):
            array = array.astype(complex)
            array[index] += 1j * STEP
        return array

    def moved(config, params, x, drop):
        if next(order) != layer:
            return encoder_layer(config, params, x, drop)
        if name == "residual":
            return add(encoder_layer(config, params, x, drop))
        return encoder_layer(config, params, x, lambda n, a: add(a) if n == "weights" else a)

    patch.setattr(reference, "encoder_layer", moved)
    found = imaginary(case)
    patch.undo()
    assert next(order, None) is None
    return found


@every([Case("transformer", layers=2, ragged=True, causal=True, pooling="last")])
def test_gradients_in_a_transformer_are_the_derivatives(case, monkeypatch):
    found = arrays("torch", case)
    for layer, place in enumerate(layer_names(case.config)):
        weights, by_weights = found[f"{place}.weights"], found[f"d {place}.weights"]
        of = {"residual": found[f"d {place}.residual"], "weights": weights * by_weights}
        for name, gradient in of.items():
            expected = np.zeros_like(gradient)
            for index in np.ndindex(gradient.shape[1:]):
                by = derivative_in_transformer(case, layer, name, index, monkeypatch)
                expected[(slice(None), *index)] = by
            assert relative_error(gradient, expected) < BOUND, (place, name)
        mean = (weights * by_weights).sum(axis=-1, keepdims=True)
        assert relative_error(found[f"d {place}.scores"], weights * (by_weights - mean)) < BOUND


@every(DECODERS)
def test_gradients_within_a_decoder_follow_its_equations(case, monkeypatch):
    """By the context they are the derivatives; by weights and scores what follows from those."""
    found, F, K = arrays("torch", case), case.config.encoded_size, case.config.forecast_steps
    attention, expected = reference.attention, np.zeros_like(found["attention.context"])
    for k, unit in np.ndindex(K, F):
        order = iter([*range(K)] * len(OUTPUT))

        def moved(*given, k=k, unit=unit, order=order):
            context, weights = attention(*given)
            return context + 1j * STEP * (np.arange(F) == unit) * (next(order) == k), weights

        monkeypatch.setattr(reference, "attention", moved)
        expected[:, k, unit] = imaginary(case)
    assert relative_error(found["d attention.context"], expected) < BOUND
    last = layer_names(case.config)[-case.config.directions :]
    keys = np.concatenate([found[f"{layer}.h"] for layer in last], axis=-1)
    weights = found["attention.weights"]
    valid = np.arange(T) < (T if case.lengths is None else case.lengths[:, None, None])
    by_weights = np.where(valid, np.einsum("btf,bkf->bkt", keys, expected), 0)
    by_scores = weights * (by_weights - (weights * by_weights).sum(axis=-1, keepdims=True))
    assert relative_error(found["d attention.weights"], by_weights) < BOUND
    assert relative_error(found["d attention.scores"], by_scores) < BOUND


@every(
    [
        c
        for c in CASES
        if c.config.attends and c.config.recurrent and not c.self_attention and not c.config.decodes
    ]
)
def test_gradients_within_attention_follow_its_equations(case):
    found, F = arrays("torch", case), case.config.encoded_size
    last = layer_names(case.config)[-case.config.directions :]
    keys = np.concatenate([found[f"{layer}.h"] for layer in last], axis=-1)
    weights = found["attention.weights"]
    by_features = case.params["head.weight"][OUTPUT]
    by_weights = np.einsum("btf,bf->bt", keys, by_features[:, :F])
    by_scores = weights * (by_weights - (weights * by_weights).sum(axis=1, keepdims=True))
    expected = {"d attention.context": by_features[:, :F], "d head.features": by_features}
    expected |= {"d attention.weights": by_weights, "d attention.scores": by_scores}
    assert_same({name: found[name] for name in expected}, expected)
    exponentials = np.where(weights > 0, np.exp(found["attention.scores"]), 0)
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert relative_error(weights, softmax) < BOUND


@pytest.mark.parametrize("side", BACKENDS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_gradient_norms_show_what_vanishes_and_explodes(side, factor):
    """Of h' = factor h + x above 0, d h_last / d h_t is a power of the factor."""
    case = Case("rnn", nonlinearity="relu", ragged=True, features=H)
    params = {name: np.zeros_like(array) for name, array in case.params.items()}
    params |= {"rnn.weight_ih_l0": np.eye(H), "rnn.weight_hh_l0": factor * np.eye(H)}
    params["head.weight"] = case.params["head.weight"]
    backend, module = BACKENDS[side]
    state = backend.init_state(
        case.config, OptimizerConfig(), Execution(dtype="float64", fast=False), params
    )
    batch = Batch(np.abs(case.leaves["inputs"]), case.lengths)
    found = gradient_norms(module.introspect(state, batch, 0))
    left = case.lengths[:, None] - 1 - np.arange(T)
    expected = np.where(left >= 0, factor**left, 0) * np.linalg.norm(params["head.weight"][0])
    assert_same(found, {"rnn.l0.h": expected})


@every(
    [
        Case("lstm_attention", layers=2, ragged=True, task="classification"),
        Case("gru"),
        *TRUNCATED,
        DECODERS[-1],
    ]
)
def test_integrated_gradients_add_up_to_what_sets_the_prediction_apart(case):
    batch, rows = batch_of(case), np.arange(len(OUTPUT))
    found = {}
    for side, (backend, module) in BACKENDS.items():
        state = state_of(side, case, fast=True)
        found[side] = module.integrated_gradients(state, batch, output_of(case))
        baseline = Batch(np.zeros_like(batch.inputs), batch.lengths)
        here, there = (
            backend.predict(state, b).outputs[rows, output_of(case)] for b in (batch, baseline)
        )
        expected = {"prediction": here, "baseline": there}
        total = found[side].shares.sum(axis=(1, 2))
        assert relative_error(total, here - there) < TOLERANCE
        np.testing.assert_allclose(found[side].gap, here - there - total, atol=1e-14)
        assert_same({n: getattr(found[side], n) for n in expected}, expected)
    assert_same(found["torch"]._asdict(), found["jax"]._asdict())
    if case.ragged:
        assert (found["torch"].shares[np.arange(T) >= case.lengths[:, None]] == 0).all()


def test_integrated_gradients_find_a_jump_on_the_way():
    """Where almost all of the change happens in a thousandth of the way: far between nodes."""
    batch = Batch(np.array([[[0.5], [2.0]], [[1.0], [-3.0]]]))
    slopes = np.array([1000.0, 1.0])

    def jump(batch):
        a = slopes * (batch.inputs[:, 1, 0] / batch_end - 0.3)
        gradient = np.zeros_like(batch.inputs)
        gradient[:, 1, 0] = slopes / batch_end * (1 - np.tanh(a) ** 2)
        return np.tanh(a), gradient

    batch_end = batch.inputs[:, 1, 0]
    found = integrate(jump, batch)
    expected = np.tanh(slopes * 0.7) - np.tanh(slopes * -0.3)
    assert np.abs(found.gap).max() <= 2 * TOLERANCE
    np.testing.assert_allclose(found.shares[:, :, 0], [[0, x] for x in expected], rtol=TOLERANCE)


@every(
    [
        Case("lstm_attention", layers=2, ragged=True, task="classification"),
        *TRUNCATED,
        DECODERS[-1],
    ]
)
def test_saliency_is_the_size_of_the_gradient_of_the_runs_own_layers(case):
    """Of truncated backpropagation: with the gradient whole."""
    for side, (_, module) in BACKENDS.items():
        whole = replace(case.config, truncated_bptt_steps=None)
        state = state_of(side, case, fast=True, config=whole)
        expected = np.abs(module.explained(state, output_of(case), batch_of(case))[1])
        assert relative_error(saliency(arrays(side, case)), expected) < BOUND


@pytest.mark.parametrize("side", BACKENDS)
def test_arrays_have_the_dtype_of_the_run_and_gradients_only_on_demand(side):
    case, (backend, module) = Case("gru"), BACKENDS[side]
    state = backend.init_state(case.config, OptimizerConfig(), Execution(), case.params)
    found = module.introspect(state, batch_of(case))
    assert list(found) == list(array_shapes(case.config, len(OUTPUT), T))
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    assert_same(found, {name: arrays(side, case)[name] for name in found}, 1e-6)


@pytest.mark.parametrize("side", BACKENDS)
@pytest.mark.parametrize(
    ("output", "message"),
    [(2, "outputs 0 to 1: 2"), (-1, "outputs 0 to 1"), ([0, 1], "one for each of 3"), (0.5, "0.5")],
)
def test_an_output_that_is_none_is_refused(side, output, message):
    _, module = BACKENDS[side]
    state, batch = state_of(side, Case("gru")), batch_of(Case("gru"))
    for function in (module.introspect, module.integrated_gradients):
        with pytest.raises(ValueError, match=message):
            function(state, batch, np.array(output))
