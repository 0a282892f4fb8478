"""Every model of the table: outputs, attention and all gradients, in four ways and in NumPy."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from jax_impl.arrays import to_names, to_tree
from jax_impl.models import MODELS
from parity_tests.cases import CASES, T
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference
from spec.params import parameter_schema

# Readable layers once under each model; the layers alone are tried in both kinds, all of them.
READABLE = {case.model: case for case in sorted(CASES, key=lambda case: len(str(case)))}
# The most elaborate first: a fault shows in them soonest.
ORDER = sorted(CASES, key=lambda case: len(str(case)), reverse=True)
ON_LAYERS = [
    (c, l) for c in ORDER for l in ("recurrent", "fast") if l == "fast" or c in READABLE.values()
]


def named(output) -> dict:
    return {name: part for name, part in output._asdict().items() if part is not None}


def split(case, leaves):
    """Divide a case's leaves into parameters, inputs and the state as the models take it."""
    params = {name: leaves[name] for name in case.params}
    state = tuple(leaves[name] for name in case.first_state) or None
    return params, leaves["inputs"], state[0] if state and case.config.cell != "lstm" else state


def told(leaves):
    """Give the targets to a model that is to be told them."""
    return {name: leaf for name, leaf in leaves.items() if name == "targets"}


def run_torch(case, layers, leaves):
    params, inputs, state = split(case, leaves)
    model = torch_impl.sequence_model(case.config, layers)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    keep = {name: torch.tensor(mask) for name, mask in case.keep.items()}
    given = (inputs, lengths, state, keep)
    return named(torch.func.functional_call(model, params, given, told(leaves)))


def run_jax(case, layers, leaves):
    params, inputs, state = split(case, leaves)
    lengths = None if case.lengths is None else jnp.asarray(case.lengths)
    model = MODELS[case.model]
    given = (case.config, to_tree(params), inputs, lengths, state, case.keep)
    return named(model(*given, layers=layers, **told(leaves)))


def run_numpy(case, leaves):
    params, inputs, _ = split(case, leaves)
    rest = {name: leaves[name] for name in case.first_state} | told(leaves)
    return named(
        reference.predict(case.config, params, inputs, case.lengths, keep=case.keep, **rest)
    )


@cache
def torch_of(case, layers):
    run = partial(run_torch, case, getattr(torch_impl, layers))
    return in_torch(run, case.leaves, case.cotangents)


@cache
def jax_of(case, layers):
    return in_jax(partial(run_jax, case, getattr(jax_impl, layers)), case.leaves, case.cotangents)


@cache
def reference_of(case):
    return in_numpy(partial(run_numpy, case), case.leaves, case.cotangents)


@pytest.mark.parametrize(("case", "layers"), ON_LAYERS, ids=str)
def test_model_matches(case, layers):
    """torch = JAX: predictions, attention, d parameters, d inputs, d initial states."""
    assert_same(torch_of(case, layers), jax_of(case, layers))
    if case.ragged:
        padding = np.arange(T) >= case.lengths[:, None]
        assert not torch_of(case, layers)["d inputs"][padding].any()
        assert not jax_of(case, layers)["d inputs"][padding].any()


@pytest.mark.parametrize(("case", "layers"), ON_LAYERS, ids=str)
def test_model_matches_the_reference(case, layers):
    """torch = NumPy = JAX, after the faster test above: gradients here are taken one by one."""
    assert_same(torch_of(case, layers), reference_of(case))
    assert_same(jax_of(case, layers), reference_of(case))


def test_padding_changes_nothing():
    """A sequence alone and the same sequence padded in a batch give the same predictions."""
    case = next(c for c in CASES if c.model == "lstm_attention" and c.ragged and c.bidirectional)
    together = reference_of(case)["predictions"]
    model = torch_impl.sequence_model(case.config).double()
    model.load_state_dict({name: torch.tensor(array) for name, array in case.params.items()})
    for row, length in enumerate(case.lengths):
        inputs = torch.tensor(case.leaves["inputs"][row : row + 1, :length])
        masks = {
            name: torch.tensor(mask[row : row + 1, :length] if mask.ndim == 3 else mask[row, None])
            for name, mask in case.keep.items()
        }
        alone = model(inputs, keep=masks).predictions.detach().numpy()
        assert_same({"predictions": alone}, {"predictions": together[row : row + 1]})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_set_of_names(case):
    """state_dict keys, pytree paths and the schema are the same names with the same shapes."""
    schema = {name: tuple(spec.shape) for name, spec in parameter_schema(case.config).items()}
    model = torch_impl.sequence_model(case.config)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == schema
    module = jax_impl.SequenceModel(case.config)
    inputs = jnp.zeros((2, T, case.features))
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
    assert {name: p.shape for name, p in to_names(variables["params"]).items()} == schema


def test_flax_module_is_the_same_function():
    """SequenceModel.apply takes the same tree and gives the same predictions."""
    case = next(c for c in CASES if c.model == "lstm_attention" and c.bidirectional and c.ragged)
    variables = {"params": to_tree(case.params)}
    inputs, lengths = case.leaves["inputs"], jnp.asarray(case.lengths)
    output = jax_impl.SequenceModel(case.config).apply(variables, inputs, lengths, keep=case.keep)
    assert_same(
        {"predictions": output.predictions}, {"predictions": reference_of(case)["predictions"]}
    )


def test_flax_module_draws_both_signs():
    """Initial values are even over [-bound, bound): within them, and far out on either side."""
    config = next(c for c in CASES if c.model == "lstm_attention").config
    inputs = jnp.zeros((2, T, config.input_size))
    variables = jax_impl.SequenceModel(config).init(jax.random.key(0), inputs)
    schema = parameter_schema(config)
    for name, array in to_names(variables["params"]).items():
        scaled = np.asarray(array) / schema[name].bound
        assert np.abs(scaled).max() <= 1
        if scaled.size >= 16:
            assert scaled.min() < -0.5 < 0.5 < scaled.max(), name


@pytest.mark.parametrize("library", [torch_impl, jax_impl], ids=["torch", "jax"])
def test_a_transformer_is_as_fast_as_it_was_asked_to_be(library, monkeypatch):
    """The numbers do not show which of the two has run."""
    case, ran = next(c for c in CASES if c.model == "transformer"), []
    name = "TransformerEncoder" if library is torch_impl else "transformer_encoder"

    def note(kind, own, *given, **options):
        ran.append(kind)
        return own(*given, **options)

    for kind in (library.fast, library.encoder):
        monkeypatch.setattr(kind, name, partial(note, kind, getattr(kind, name)))
    for layers, kind in ((library.fast, library.fast), (library.recurrent, library.encoder)):
        ran.clear()
        if library is torch_impl:
            torch_impl.sequence_model(case.config, layers)
        else:
            params = to_tree({n: jnp.asarray(a) for n, a in case.params.items()})
            MODELS[case.model](case.config, params, case.leaves["inputs"], layers=layers)
        assert ran[0] is kind
