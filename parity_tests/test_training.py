"""200 steps of training: loss and parameters agree at every step, not only at the last."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import jax_impl
import torch_impl
from jax_impl.arrays import to_tree
from jax_impl.training import apply
from parity_tests.compare import relative_error
from spec import losses
from spec.batch import Batch, keep_masks
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.params import init_params, parameter_schema

STEPS, ROWS, T = 200, 6, 5
# Rounding grows from step to step, to at most 1e-12 over these runs; a formula that leaves out the
# clip's 1e-6 is off by 1e-7.
BOUND = 1e-10

ATTENTION = ModelConfig(
    model="lstm_attention",
    input_size=3,
    output_size=4,
    hidden_size=5,
    num_layers=2,
    bidirectional=True,
    dropout=0.3,
    task="classification",
)
GRU = replace(ATTENTION, model="gru_attention", num_layers=1)
TRANSFORMER = replace(
    ATTENTION,
    model="transformer",
    hidden_size=6,
    num_heads=3,
    feedforward_size=7,
    bidirectional=False,
)
PLAIN = replace(ATTENTION, model="rnn", task="regression", output_size=2, bidirectional=False)
# Two steps of one target each: the batches' sine and cosine.
SEQ2SEQ = replace(
    ATTENTION,
    model="lstm_seq2seq",
    task="regression",
    output_size=2,
    num_layers=1,
    forecast_steps=2,
    feedback="1",
    teacher_forcing=0.5,
)
SMALL = replace(PLAIN, model="gru", num_layers=1)
SMOOTHED = replace(
    SMALL, task="classification", output_size=4, label_smoothing=0.2, class_weights="balanced"
)
LABELLING = replace(SMALL, model="lstm", task="classification", output_size=4, every_step=True)
CLASS_WEIGHTS = np.array([0.4, 1.7, 0.9, 2.1])
RULES = [
    OptimizerConfig(optimizer="adam", lr=1e-2, weight_decay=1e-3, clip_norm=0.3),
    OptimizerConfig(optimizer="adamw", lr=1e-2, weight_decay=1e-1, clip_norm=0.3),
    OptimizerConfig(optimizer="sgd", lr=5e-2, weight_decay=1e-3, clip_norm=0.3),
]


def batches(config):
    """Ragged batches, NaN in the padding, the last of every four with fewer rows."""
    draw = np.random.default_rng(5)
    for step in range(STEPS):
        rows = ROWS - 2 if step % 4 == 3 else ROWS
        lengths = draw.integers(1, T + 1, size=rows)
        inputs = draw.normal(size=(rows, T, config.input_size))
        # Something to learn, so that gradients shrink below the clip as well.
        signal = np.where(np.arange(T) < lengths[:, None], inputs.sum(axis=2), 0).sum(axis=1)
        inputs[np.arange(T) >= lengths[:, None]] = np.nan
        targets = np.stack([np.sin(signal), np.cos(signal)], axis=1)
        if config.task == "classification":
            targets = np.digitize(signal, [-2.0, 0.0, 2.0])
        weights = None
        if config.every_step:
            targets = np.digitize(np.nan_to_num(inputs).sum(axis=2).cumsum(axis=1), [-2, 0, 2])
            known = np.arange(T) < lengths[:, None]
            weights = (known & (draw.random((rows, T)) < 0.8)).astype(float)
            weights[0, 0] = 1
            weights = weights if step % 3 else None  # then all real ones
        of_classes = CLASS_WEIGHTS if config.class_weights else None
        masks = keep_masks(config, 11, step, rows, T)
        yield Batch(inputs, lengths, targets, masks, weights, of_classes)


def walk(backend, config, rule, fast):
    """Yield loss, gradient norm and all exported arrays after each step."""
    arrays = init_params(parameter_schema(config), seed=3)
    state = backend.init_state(config, rule, Execution(dtype="float64", fast=fast), arrays)
    for batch in batches(config):
        state, result = backend.train_step(state, batch)
        yield result, backend.export_arrays(state)


RUNS = {
    "adam-cosine": (
        ATTENTION,
        replace(RULES[0], schedule="cosine", warmup_steps=20, total_steps=STEPS),
        True,
    ),
    "adamw-cosine": (
        ATTENTION,
        replace(RULES[1], schedule="cosine", warmup_steps=20, total_steps=STEPS),
        True,
    ),
    "sgd-warm": (ATTENTION, replace(RULES[2], warmup_steps=20), True),
    "adam-loop": (ATTENTION, RULES[0], False),
    "rnn-adamw": (
        PLAIN,
        replace(RULES[1], clip_norm=0.5, schedule="cosine", total_steps=STEPS),
        True,
    ),
    "gru-adam": (GRU, replace(RULES[0], clip_norm=0.6), True),
    "gru-before-sgd": (replace(GRU, reset_after=False), replace(RULES[2], clip_norm=0.6), False),
    "rnn-sgd-loop": (PLAIN, RULES[2], False),
    "seq2seq-adam": (SEQ2SEQ, replace(RULES[0], clip_norm=0.6), True),
    "seq2seq-gru-sgd-loop": (
        replace(
            SEQ2SEQ, model="gru_seq2seq", bidirectional=False, teacher_forcing=1.0, dropout=0.0
        ),
        RULES[2],
        False,
    ),
    "gru-quantiles": (
        replace(SMALL, loss="quantile", quantiles="0.1,0.5,0.8", output_size=6),
        replace(RULES[0], clip_norm=0.12),
        True,
    ),
    "gru-gaussian": (
        replace(SMALL, loss="gaussian_nll", output_size=4),
        replace(RULES[1], clip_norm=0.6),
        True,
    ),
    "gru-smoothed-weighted": (SMOOTHED, replace(RULES[0], clip_norm=0.3), True),
    "lstm-labelling": (LABELLING, replace(RULES[0], clip_norm=0.6), True),
    "transformer-adamw": (
        TRANSFORMER,
        replace(RULES[1], lr=3e-3, clip_norm=1.2, schedule="cosine", total_steps=STEPS),
        True,
    ),
    "transformer-rmsprop-loop": (
        replace(TRANSFORMER, norm_first=True, causal=True, pooling="attention", dropout=0.0),
        replace(RULES[0], optimizer="rmsprop", lr=1e-3, beta2=0.99, momentum=0.5, clip_norm=1.2),
        False,
    ),
}


# The others have what these have, in other company.
LONG = ("adam-cosine", "adamw-cosine", "gru-before-sgd", "gru-gaussian", "seq2seq-gru-sgd-loop")


@pytest.mark.parametrize(
    ("config", "rule", "fast"),
    [
        pytest.param(*run, id=name, marks=[pytest.mark.long] * (name in LONG))
        for name, run in RUNS.items()
    ],
)
def test_every_step_matches(config, rule, fast):
    walks = (walk(backend, config, rule, fast) for backend in (torch_impl, jax_impl))
    norms = []
    for step, ((in_t, arrays_t), (in_j, arrays_j)) in enumerate(zip(*walks, strict=True)):
        assert abs(in_t.loss - in_j.loss) <= BOUND * abs(in_j.loss), step
        assert abs(in_t.gradient_norm - in_j.gradient_norm) <= BOUND * in_j.gradient_norm, step
        assert set(arrays_t) == set(arrays_j)
        for name, array in arrays_j.items():
            assert relative_error(arrays_t[name], array) <= BOUND, (step, name)
        norms.append(in_j.gradient_norm)
    assert len(norms) == STEPS
    assert min(norms) < rule.clip_norm < max(norms)  # both sides of the clip were walked


def test_one_backend_continues_the_other():
    """Exported after 3 steps and imported by the other, a run goes on as if never moved."""
    rule = replace(RULES[0], schedule="cosine", warmup_steps=2, total_steps=9)
    execution = Execution(dtype="float64")
    some = list(batches(ATTENTION))[:6]
    start = init_params(parameter_schema(ATTENTION), seed=3)

    def run(first, second):
        state = first.init_state(ATTENTION, rule, execution, start)
        for batch in some[:3]:
            state, _ = first.train_step(state, batch)
        state = second.init_state(ATTENTION, rule, execution, first.export_arrays(state), step=3)
        for batch in some[3:]:
            state, _ = second.train_step(state, batch)
        return second.export_arrays(state)

    straight = run(torch_impl, torch_impl)
    for first, second in ((jax_impl, torch_impl), (torch_impl, jax_impl), (jax_impl, jax_impl)):
        moved = run(first, second)
        for name, array in straight.items():
            assert relative_error(moved[name], array) <= 1e-12, name


@pytest.mark.parametrize("backend", [torch_impl, jax_impl])
def test_a_step_weighs_its_classes_and_smooths_its_labels(backend):
    config = replace(SMOOTHED, dropout=0.0)
    start = init_params(parameter_schema(config), seed=3)
    state = backend.init_state(config, RULES[2], Execution(dtype="float64"), start)
    batch = replace(next(batches(config)), keep={})
    outputs = backend.predict(state, batch).outputs
    expected = losses.cross_entropy(
        outputs, batch.targets, label_smoothing=0.2, class_weights=CLASS_WEIGHTS
    )
    plain = losses.cross_entropy(outputs, batch.targets)
    assert abs(plain - expected) > 1e-3
    _, found = backend.train_step(state, batch)
    assert abs(found.loss - expected) <= 1e-14 * expected


@pytest.mark.parametrize("backend", [torch_impl, jax_impl])
def test_a_step_weighs_its_sequences(backend):
    config = replace(PLAIN, dropout=0.0)
    weights = np.random.default_rng(8).random(ROWS) * (np.arange(ROWS) != 2)
    start = init_params(parameter_schema(config), seed=3)
    state = backend.init_state(config, RULES[2], Execution(dtype="float64"), start)
    batch = replace(next(batches(config)), keep={}, weights=weights)
    outputs = backend.predict(state, batch).outputs
    expected = losses.mean_squared_error(outputs, batch.targets, weights)
    _, found = backend.train_step(state, batch)
    assert abs(found.loss - expected) <= 1e-14 * expected


def test_same_start_masks_and_predictions():
    """One seed: the same bits of initial weights, and predictions equal to rounding."""
    schema = parameter_schema(ATTENTION)
    arrays = init_params(schema, seed=3)
    batch = next(batches(ATTENTION))
    found = []
    for backend in (torch_impl, jax_impl):
        execution = Execution(dtype="float64")
        state = backend.init_state(ATTENTION, OptimizerConfig(), execution, arrays)
        for name, array in backend.export_arrays(state).items():
            expected = arrays.get(name, np.zeros_like(array))
            np.testing.assert_array_equal(array, expected)
        found.append(backend.predict(state, batch))
    for t, j in zip(*found, strict=True):
        assert relative_error(t, j) <= 1e-13


@pytest.mark.parametrize("fast", [True, False])
def test_remat_recomputes_in_jax(fast):
    """In the program that JAX would compile: no loop keeps something of more than a chunk's steps."""
    params = to_tree(init_params(parameter_schema(ATTENTION), seed=3))
    batch = next(batches(replace(ATTENTION, dropout=0.0)))
    time = batch.inputs.shape[1]

    def total(params, remat):
        execution = Execution(remat=remat, fast=fast)
        return apply(ATTENTION, execution, params, {"inputs": batch.inputs}).predictions.sum()

    for remat in (False, True):
        program = str(jax.make_jaxpr(partial(jax.grad(total), remat=remat))(params))
        assert (f"length={time}\n" in program) is not remat
