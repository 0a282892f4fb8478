"""What `parity.interop` lists, refuses and keeps: names, shapes, dtypes, numbers; each map's way back."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import WeightsError, interop, maps
from parity.weights import named
from spec.config import ModelConfig
from spec.params import multi_head_schema, nested, parameter_schema, recurrent_schema

D, H, E, HEADS = 3, 4, 6, 2
LSTM = interop.cells(maps.linen.lstm_cell, ["l0", "l1"])


def drawn(schema):
    random = np.random.default_rng(3)
    return {n: random.normal(size=s.shape) for n, s in schema.items()}


def schema_of(cell, layers=1):
    return recurrent_schema(cell, D, H, layers, False)


def like_of(weights, params):
    """The tree of shapes that a map makes."""
    with jax.enable_x64(True):
        return jax.eval_shape(weights, params)


def lstm():
    """A map of two layers, our parameters, and zeros in the library's tree."""
    weights, params = maps.join(LSTM), drawn(schema_of("lstm", 2))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), like_of(weights, params))
    return weights, params, zeros


MAKERS = {
    **{f"linen {c}": (c, getattr(maps.linen, f"{c}_cell")) for c in ("rnn", "lstm", "gru")},
    **{f"keras {c}": (c, getattr(maps.keras, f"{c}_cell")) for c in ("rnn", "lstm", "gru")},
    "nnx rnn": ("rnn", maps.nnx.rnn_cell),
    "nnx lstm": ("lstm", maps.nnx.lstm_cell),
    "nnx optimized lstm": ("lstm", maps.nnx.optimized_lstm_cell),
    "nnx gru": ("gru", interop.nnx_gru_cell),
    "equinox lstm": ("lstm", maps.equinox.lstm_cell),
    "equinox gru": ("gru", maps.equinox.gru_cell),
    "haiku lstm": ("lstm", maps.haiku.lstm_cell),
    "haiku rnn": ("rnn", maps.haiku.rnn_cell),
    "torch.nn": ("lstm", lambda prefix, *_: interop.torch_nn(prefix)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_the_sum_of_two_biases_becomes_bias_ih(maker):
    """Every number of theirs is one of ours, or a sum; bias_hh is 0 where bias_ih holds a sum."""
    cell, make = MAKERS[maker]
    weights, params = make("", 0), drawn(schema_of(cell))
    if maker == "nnx gru":
        params["bias_hh_l0"][2 * H :] = 0.0
    theirs = interop.to_library(weights, params, like=like_of(weights, params))
    back = interop.from_library(weights, theirs, like=params)
    two = {"haiku rnn": H, "torch.nn": 4 * H, "keras gru": 3 * H}.get(
        maker, 0
    )  # rows of two biases
    kept = np.arange(len(params["bias_hh_l0"])) < two
    if maker in ("linen gru", "equinox gru"):
        kept[2 * H :] = True
    expected = dict(params)
    expected["bias_hh_l0"] = np.where(kept, params["bias_hh_l0"], 0.0)
    expected["bias_ih_l0"] = params["bias_ih_l0"] + np.where(kept, 0.0, params["bias_hh_l0"])
    for name, array in expected.items():
        if maker == "haiku lstm" and name == "bias_ih_l0":  # 1 is taken off and put on again
            np.testing.assert_allclose(back[name], array, rtol=1e-15, atol=1e-15, err_msg=name)
        else:
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox", "haiku", "keras"])
def test_attention_comes_back(library):
    options = {} if library in ("equinox", "haiku") else {"heads": HEADS}
    weights = getattr(maps, library).multi_head_attention("a.", **options)
    params = drawn(nested({"a": multi_head_schema(E)}))
    theirs = interop.to_library(weights, params, like=like_of(weights, params))
    for name, array in interop.from_library(weights, theirs, like=params).items():
        np.testing.assert_array_equal(array, params[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("x64", [False, True])
def test_dtype_and_every_number_are_kept(dtype, x64):
    """Also a float64 where JAX has float32 only, a NaN, an infinity and a -0."""
    with jax.enable_x64(x64):
        weights, params, like = lstm()
        params = {n: a.astype(jnp.dtype(dtype)) for n, a in params.items()}
        params["weight_ih_l1"][0, :3] = np.nan, -np.inf, -0.0
        params["bias_hh_l0"][:] = 0.0
        params["bias_hh_l1"][:] = 0.0
        theirs = interop.to_library(weights, params, like)
        assert {a.dtype for a in named(theirs).values()} == {jnp.dtype(dtype)}
        back = interop.from_library(weights, theirs, like=params)
    for name, array in params.items():
        assert back[name].tobytes() == array.tobytes(), name


def test_tensors_are_taken():
    """A state_dict, in bfloat16 too, and as what says the names and shapes."""
    module = torch.nn.LSTM(D, H, 2).bfloat16()
    weights = maps.join(LSTM)
    theirs = interop.to_library(weights, dict(module.named_parameters()), like=lstm()[2])
    back = interop.from_library(weights, theirs, like=module.state_dict())
    for name, tensor in module.state_dict().items():
        if name.startswith("weight"):
            np.testing.assert_array_equal(back[name].astype("float32"), tensor.float().numpy())


def test_a_whole_model_comes_back():
    """Layers and head, under the names of a model, in the order of its schema."""
    config = ModelConfig(model="lstm", input_size=D, hidden_size=H, num_layers=2, output_size=5)
    schema = parameter_schema(config)
    cells = interop.cells(maps.linen.lstm_cell, ["RNN_0.cell", "RNN_1.cell"], "lstm.")
    weights = maps.join({**cells, "Dense_0": maps.linen.linear("head.")})
    params = drawn(schema)
    theirs = interop.to_library(weights, params, like_of(weights, params))
    back = interop.from_library(weights, theirs, like=schema)
    assert list(back) == list(schema)
    np.testing.assert_array_equal(back["head.weight"], theirs["Dense_0"]["kernel"].T)
    forget = back["lstm.weight_hh_l1"][H : 2 * H]
    np.testing.assert_array_equal(forget, theirs["RNN_1"]["cell"]["hf"]["kernel"].T)


def without(arrays, name):
    return {n: a for n, a in arrays.items() if n != name}


def test_all_that_does_not_fit_is_listed_on_the_way_back():
    weights, params, theirs = lstm()
    theirs["l0"]["ii"]["kernel"] = np.zeros((1, H))
    theirs["l1"] = {**without(theirs["l1"], "hf"), "peephole": np.zeros(H)}
    like = params | {"head.weight": np.zeros((2, H))}
    with pytest.raises(WeightsError) as caught:
        interop.from_library(weights, theirs, like)
    for fault in (
        "theirs has l0.ii.kernel of the shape (1, 4), expected (3, 4)",
        "theirs has no l1.hf.bias; theirs has no l1.hf.kernel",
        "theirs has l1.peephole, which is not used",
        "nothing gives our head.weight a value",
    ):
        assert fault in str(caught.value)


def test_all_that_does_not_fit_is_listed_on_the_way_there():
    weights, params, like = lstm()
    like["l0"]["ii"]["kernel"] = np.zeros((1, H))
    like["l1"] = {**without(like["l1"], "hf"), "peephole": np.zeros(H)}
    with pytest.raises(WeightsError) as caught:
        interop.to_library(weights, params | {"head.weight": np.zeros((2, H))}, like)
    for fault in (
        "JAX's l0.ii.kernel has the shape (3, 4), expected (1, 4)",
        "JAX has no l1.hf.bias; JAX has no l1.hf.kernel",
        "JAX's l1.peephole gets no value",
        "torch's head.weight is not used",
    ):
        assert fault in str(caught.value)


def test_missing_layers_are_listed():
    weights, params, like = lstm()
    missing = (
        r"l0: torch has no weight_ih_l0.*; l1: torch has no bias|l1: torch has no weight_hh_l1"
    )
    params = without(without(params, "weight_ih_l0"), "weight_hh_l1")
    for convert in (
        lambda: interop.to_library(weights, params, like),
        lambda: interop.from_library(weights, like, params),
    ):
        with pytest.raises(WeightsError, match=missing):
            convert()


REFUSED = {
    "one number for a whole bias": ({"bias_hh_l0": np.ones(1)}, "bias_hh_l0 is used more than once"),
    "rows": ({"weight_ih_l0": np.ones((15, D))}, r"do not fit each other: .*weight_ih_l0 \(15, 3\)"),
    "several dtypes": ({"bias_hh_l0": np.ones(16, "float32")}, r"one dtype.* float32 \(bias_hh_l0\)"),
    "a wide float": ({}, "at most float64"),
    "integers": ({}, "at most float64; found int64"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_would_be_guessed_is_refused(fault):
    weights, params, like = lstm()
    change, words = REFUSED[fault]
    dtype = {"a wide float": np.longdouble, "integers": int}.get(fault)
    params = {n: a.astype(dtype or a.dtype) for n, a in params.items()} | change
    with pytest.raises(WeightsError, match=words):
        interop.to_library(weights, params, like)


@pytest.mark.parametrize("rule", ["scaled", "averaged", "used twice", "negative", "dropped"])
def test_map_that_does_not_move_numbers_is_refused(rule):
    def weights(arrays):
        a, b = arrays["a"], arrays["b"]
        return {
            "scaled": {"a": 2 * a, "b": b},
            "averaged": {"a": (a + b) / 2, "b": (a + b) / 2},
            "used twice": {"a": a, "b": b, "c": a},
            "negative": {"a": a, "b": -b},
            "dropped": {"a": a},
        }[rule]

    params = {"a": np.arange(3.0), "b": np.arange(4.0, 7.0)}
    words = "nothing gives our b a value" if rule == "dropped" else "only move numbers"
    with pytest.raises(WeightsError, match=words):
        interop.from_library(weights, weights(params), like=params)


def test_gru_to_nnx_needs_no_hidden_bias():
    weights, params = interop.nnx_gru_cell("", 0), drawn(schema_of("gru"))
    like = like_of(weights, params)
    with pytest.raises(WeightsError, match="no place for a part of bias_hh_l0"):
        interop.to_library(weights, params, like)
    params["bias_hh_l0"][2 * H :] = 0.0
    interop.to_library(weights, params, like)


def test_the_page_runs():
    """Its example, which compares the outputs."""
    page = (Path(__file__).parents[1] / "docs" / "interop.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
