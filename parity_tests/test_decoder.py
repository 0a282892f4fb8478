"""The decoder: what each step sees, what teaching changes, and that predictions are never taught.

Values and gradients of whole models stand in test_models.py, cases "seq2seq".
"""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from jax_impl.decoder import decode as decode_in_jax
from parity_tests.cases import CASES, Case
from parity_tests.compare import assert_same, in_jax, in_torch
from parity_tests.test_attention import SCORES, draw, module, valid
from parity_tests.test_models import run_torch
from spec.batch import Batch, keep_masks
from spec.config import Execution, ModelConfig, OptimizerConfig
from torch_impl.decoder import decode as decode_in_torch

STEPS, M = 4, 2


LIBRARIES = {"torch": (decode_in_torch, torch), "jax": (decode_in_jax, jnp)}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_step_attends_from_the_state_before_it(library):
    """A state that counts the steps: asked from 0, 1, 2, 3; read out as 1, 2, 3, 4."""
    decode, np_ = LIBRARIES[library]
    found = decode(
        lambda query: (query * 0, query),
        lambda x, state: (state[0] + 1,),
        lambda features, mask: features[:, 1:],
        STEPS,
        (np_.zeros((1, 1)),),
        np_.zeros((1, 1)),
    )
    assert np.asarray(found.attention)[0, :, 0].tolist() == [0, 1, 2, 3]
    assert np.asarray(found.values)[0, :, 0].tolist() == [1, 2, 3, 4]


def echo(library, teacher):
    """Decode with a state that is the last input: each forecast is the value seen plus 1."""
    decode, np_ = LIBRARIES[library]
    truth = np_.asarray(100.0 * np.arange(1, 2 * STEPS * M + 1).reshape(2, STEPS, M))
    found = decode(
        lambda query: (query * 0, query),
        lambda x, state: (x[:, :M],),
        lambda features, mask: features[:, M:] + 1,
        STEPS,
        (np_.zeros((2, M)),),
        np_.asarray([[5.0, 6.0], [7.0, 8.0]]),
        None,
        truth,
        None if teacher is None else np_.asarray(teacher),
    )
    return np.asarray(found.values), np.asarray(truth)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_step_sees_the_truth_where_it_is_taught(library):
    free, truth = echo(library, None)
    assert free[:, :, 0].tolist() == [[6, 7, 8, 9], [8, 9, 10, 11]]
    never, _ = echo(library, np.zeros((2, STEPS), bool))
    np.testing.assert_array_equal(never, free)
    always, _ = echo(library, np.ones((2, STEPS), bool))
    np.testing.assert_array_equal(always[:, 0], free[:, 0])
    np.testing.assert_array_equal(always[:, 1:], truth[:, :-1] + 1)
    some, _ = echo(library, np.array([[1, 0, 0, 1], [0, 0, 1, 0]], bool))
    np.testing.assert_array_equal(some[0], [free[0, 0], *(truth[0, 0] + n for n in (1, 2, 3))])
    np.testing.assert_array_equal(some[1], [*free[1, :3], truth[1, 2] + 1])


@pytest.mark.parametrize("score", SCORES)
def test_keys_that_were_prepared_serve_every_query(score):
    """Two queries over one set of keys: the same as attention called twice, gradients too."""
    leaves, cotangents = draw(score, True)
    leaves["other"] = np.random.default_rng(2).normal(size=leaves["query"].shape)
    both = {f"{n}{k}": a * (k + 1) for k in (0, 1) for n, a in cotangents.items()}
    mask = valid(True)
    own = [name for name in leaves if name not in ("query", "other", "keys")]

    def named(first, second):
        pairs = ((0, first), (1, second))
        return {f"{n}{k}": array for k, found in pairs for n, array in found._asdict().items()}

    def in_steps(leaves):
        layer = module(score)
        for name in own:
            delattr(layer, name)
            setattr(layer, name, leaves[name])
        known = layer.keys(leaves["keys"], torch.tensor(mask))
        return named(*(layer.step(leaves[name], known) for name in ("query", "other")))

    def twice(leaves):
        given = {name: leaves[name] for name in own}
        run = partial(torch.func.functional_call, module(score), given)
        rest = leaves["keys"], torch.tensor(mask)
        return named(*(run((leaves[name], *rest)) for name in ("query", "other")))

    def in_steps_of_jax(leaves):
        kind = "additive" if score == "additive" else "multiplicative"
        prepare = getattr(jax_impl.attention, f"{kind}_keys")
        step = getattr(jax_impl.attention, f"{kind}_step")
        options = {} if score == "additive" else {"score": score}
        known = prepare(leaves, leaves["keys"], mask)
        return named(*(step(leaves, leaves[name], known, **options) for name in ("query", "other")))

    expected = in_torch(twice, leaves, both)
    assert_same(in_torch(in_steps, leaves, both), expected)
    assert_same(in_jax(in_steps_of_jax, leaves, both), expected)


CONFIG = ModelConfig(
    model="gru_seq2seq",
    hidden_size=3,
    dropout=0.4,
    input_size=3,
    output_size=6,
    forecast_steps=3,
    feedback="2,0",
    teacher_forcing=1.0,
)


def test_masks_are_drawn_for_every_step():
    drawn = keep_masks(replace(CONFIG, teacher_forcing=0.3), 5, 2, 400, 7)
    assert {name: mask.shape for name, mask in drawn.items()} == {
        "teacher": (400, 3),
        "head": (400, 3, 6),
    }
    assert abs(drawn["teacher"].mean() - 0.3) < 0.05
    assert drawn["teacher"].any(axis=0).all()
    assert not drawn["teacher"].all(axis=0).any()
    other = keep_masks(replace(CONFIG, teacher_forcing=0.3), 5, 3, 400, 7)
    assert (drawn["teacher"] != other["teacher"]).mean() > 0.3
    always = keep_masks(replace(CONFIG, dropout=0.0), 5, 2, 400, 7)
    assert list(always) == ["teacher"]
    assert always["teacher"].all()
    assert keep_masks(replace(CONFIG, dropout=0.0, teacher_forcing=0.0), 5, 2, 400, 7) == {}


@pytest.mark.parametrize("backend", [torch_impl, jax_impl])
def test_predictions_are_never_taught(backend):
    """Targets and masks given along change nothing; in training they do."""
    normal = np.random.default_rng(4).normal
    case = Case("gru_seq2seq", steps=3)
    config = replace(case.config, hidden_size=4, dropout=0.0, teacher_forcing=1.0)
    rule, execution = OptimizerConfig(optimizer="sgd", lr=1e-9), Execution(dtype="float64")
    lengths = np.array([2, 6, 5])
    inputs = normal(size=(3, 6, 3))
    inputs[np.arange(6) >= lengths[:, None]] = np.nan
    batch = Batch(inputs, lengths, normal(size=(3, 6)), keep_masks(config, 0, 0, 3, 6))
    state = backend.init_state(config, rule, execution, case.params)
    found = backend.predict(state, batch)
    alone = backend.predict(state, Batch(inputs, lengths))
    np.testing.assert_array_equal(found.outputs, alone.outputs)
    assert found.attention.shape == (3, 3, 6)
    np.testing.assert_allclose(found.attention.sum(axis=2), 1, rtol=1e-14)
    assert not found.attention.transpose(0, 2, 1)[np.arange(6) >= lengths[:, None]].any()

    mean = ((alone.outputs - batch.targets) ** 2).mean()
    state, free = backend.train_step(state, replace(batch, keep={}))
    assert free.loss == pytest.approx(mean, rel=1e-12)
    _, taught = backend.train_step(state, batch)
    assert abs(taught.loss - mean) > 1e-3 * mean


def test_a_sequence_alone_is_forecast_as_in_a_batch():
    case = next(c for c in CASES if c.model == "lstm_seq2seq" and c.ragged and c.layers == 2)
    case = replace(case, dropout=0.0, teacher=0.0, state=False)
    given = {name: torch.tensor(array) for name, array in case.leaves.items()}
    together = run_torch(case, torch_impl.recurrent, given)
    model = torch_impl.sequence_model(case.config).double()
    model.load_state_dict({name: torch.tensor(array) for name, array in case.params.items()})
    for row, length in enumerate(case.lengths):
        alone = model(given["inputs"][row : row + 1, :length])
        expected = {"values": together["predictions"][row], "weights": together["attention"][row]}
        found = {"values": alone.predictions[0].detach(), "weights": alone.attention[0].detach()}
        expected["weights"] = expected["weights"][:, :length]
        assert_same(found, {name: array.detach() for name, array in expected.items()})
