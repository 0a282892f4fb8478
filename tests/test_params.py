"""Parameter names, shapes and initial values, with neither framework."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from spec.config import ModelConfig
from spec.errors import CheckpointError, ConfigError
from spec.params import init_params, parameter_schema, select_arrays, split_layers

GOLDEN = Path(__file__).parent / "golden" / "parameters.json"
CONFIGS = {
    "rnn": ModelConfig(model="rnn", input_size=3, output_size=2, hidden_size=4),
    "lstm": ModelConfig(
        model="lstm", input_size=3, output_size=2, hidden_size=4, num_layers=2, bidirectional=True
    ),
    "lstm_attention": ModelConfig(
        model="lstm_attention", input_size=1, output_size=5, hidden_size=4, bidirectional=True
    ),
    "gru_seq2seq": ModelConfig(
        model="gru_seq2seq",
        input_size=3,
        output_size=6,
        forecast_steps=3,
        feedback="2,0",
        hidden_size=4,
        bidirectional=True,
    ),
}


def test_names_and_shapes_are_golden():
    """Checkpoints, state_dicts and pytrees carry these names: a change breaks users' files."""
    found = {
        model: {name: list(spec.shape) for name, spec in parameter_schema(config).items()}
        for model, config in CONFIGS.items()
    }
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    message = f"if this change is meant, delete {GOLDEN.name} and run this test once more"
    assert found == expected, message
    assert {m: list(names) for m, names in found.items()} == {
        m: list(names) for m, names in expected.items()
    }, message


def test_initial_values_depend_on_seed_and_name_only():
    """A parameter keeps its numbers when layers are added, and no two share a stream."""
    small = init_params(parameter_schema(CONFIGS["lstm"]), seed=1)
    deeper = ModelConfig(**vars(CONFIGS["lstm"]) | {"num_layers": 3})
    large = init_params(parameter_schema(deeper), seed=1)
    other = init_params(parameter_schema(CONFIGS["lstm"]), seed=2)
    for name, array in small.items():
        np.testing.assert_array_equal(array, large[name])
        assert not np.intersect1d(array, other[name]).size
    values = np.concatenate([array.ravel() for array in large.values()])
    assert len(np.unique(values)) == len(values)


def test_initial_values_are_torchs_distribution():
    """Even over +-1/sqrt(hidden): the bounds are reached, never passed, the spread is theirs."""
    config = ModelConfig(model="lstm", input_size=40, hidden_size=64)
    arrays = init_params(parameter_schema(config), seed=0)
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        bound = 64**-0.5
        assert 0.999 * bound < abs(arrays[name]).max() <= bound
        assert arrays[name].std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert abs(arrays[name].mean()) < 0.02 * bound


def test_split_layers_orders_directions():
    schema = parameter_schema(CONFIGS["lstm"])
    own = {n.removeprefix("lstm."): n for n in schema if n.startswith("lstm.")}
    layers = split_layers(own)
    assert [[cell["weight_hh"] for cell in layer] for layer in layers] == [
        ["lstm.weight_hh_l0", "lstm.weight_hh_l0_reverse"],
        ["lstm.weight_hh_l1", "lstm.weight_hh_l1_reverse"],
    ]


def test_every_misfit_is_listed_at_once():
    schema = parameter_schema(CONFIGS["rnn"])
    arrays = init_params(schema, seed=0)
    del arrays["head.bias"]
    arrays["head.weight"] = arrays["head.weight"].T
    arrays["rnn.bias_ih_l0"] = arrays["rnn.bias_ih_l0"].astype(np.int64)
    with pytest.raises(CheckpointError) as caught:
        select_arrays(schema, arrays)
    for part in (
        "head.bias is missing",
        "head.weight has shape [4, 2], expected [2, 4]",
        "rnn.bias_ih_l0 has dtype int64",
    ):
        assert part in str(caught.value)


def test_forget_bias_and_orthogonal_weights():
    """The two biases of the forget gate sum to the value; each gate's recurrent matrix keeps norms."""
    H, options = 6, {"forget_bias": 1.5, "recurrent_initializer": "orthogonal"}
    for proj in (None, 4):
        config = ModelConfig(model="lstm", hidden_size=H, proj_size=proj, num_layers=2, **options)
        arrays = init_params(parameter_schema(config), seed=5)
        for layer in range(2):
            both = arrays[f"lstm.bias_ih_l{layer}"] + arrays[f"lstm.bias_hh_l{layer}"]
            gates = both.reshape(4, H)
            np.testing.assert_array_equal(gates[1], 1.5)
            assert (np.delete(gates, 1, axis=0) != 0).all()
            blocks = np.split(arrays[f"lstm.weight_hh_l{layer}"], 4)
            for block in blocks:
                np.testing.assert_allclose(block.T @ block, np.eye(proj or H), atol=1e-14)
            assert np.abs(blocks[0] - blocks[1]).max() > 0.1


def test_a_decoder_begins_as_its_encoder():
    """Peepholes, norms and first weights reach both."""
    own = {"forget_bias": 4.0, "recurrent_initializer": "orthogonal", "peepholes": True}
    config = ModelConfig(
        model="lstm_seq2seq", input_size=2, hidden_size=5, layer_norm=True, num_layers=1, **own
    )
    arrays = init_params(parameter_schema(config), seed=1)
    encoder = {n.removesuffix("_l0")[5:] for n in arrays if n.startswith("lstm.")}
    assert {n[8:] for n in arrays if n.startswith("decoder.")} == encoder >= {"weight_ch", "gain_c"}
    forget = (arrays["decoder.bias_ih"] + arrays["decoder.bias_hh"])[5:10]
    np.testing.assert_array_equal(forget, 4.0)
    for block in np.split(arrays["decoder.weight_hh"], 4):
        np.testing.assert_allclose(block.T @ block, np.eye(5), atol=1e-14)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "gru", "peepholes": True}, "--peepholes: is for LSTM layers, which --model gru"),
        (
            {"model": "transformer", "zoneout": 0.1},
            "--zoneout: is for recurrent layers, which --model transformer has not; leave it out",
        ),
        ({"model": "gru", "nonlinearity": "relu"}, "--nonlinearity: is for the rnn cell, which"),
        ({"model": "lstm", "reset_after": False}, "--reset_after: is for the gru cell, which"),
        ({"model": "lstm", "score": "dot"}, "--score: is for attention over the steps, which"),
        ({"model": "transformer", "score": "dot"}, "--score: is for attention over the steps"),
        ({"model": "lstm_attention", "num_heads": 2}, "--num_heads: is for attention in heads"),
        ({"model": "gru", "teacher_forcing": 1.0}, "--teacher_forcing: is for a decoder, as _seq"),
        ({"model": "gru", "residual": True}, "--residual: is for a layer on top of another"),
        ({"model": "transformer", "max_length": 9}, "--max_length: is for learned positions"),
        *(
            ({"model": "rnn", name: value}, f"--{name}: is for the layers of a transformer")
            for name, value in (
                ("feedforward_size", 8),
                ("positions", "learned"),
                ("max_length", 9),
                ("norm_first", True),
                ("activation", "relu"),
                ("causal", True),
                ("pooling", "last"),
            )
        ),
        ({"proj_size": 64}, "--proj_size 64: must be smaller than --hidden_size 64"),
        ({"coupled_gates": True, "forget_bias": 1.0}, "--forget_bias: --coupled_gates have no"),
    ],
)
def test_options_that_a_model_has_not_are_named(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        ModelConfig(**options)
