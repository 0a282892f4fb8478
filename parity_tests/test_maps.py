"""Each ready map makes the library's layer the same function as torch.nn's, gradients included.

Every parameter and running statistic is random and all sizes differ; the same map with an array
dropped, two gates exchanged or a kernel transposed must be told apart.

B batch, T time, S source time, D features in, O out, H hidden units, E features of attention.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # read once, when keras is imported

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from parity import WeightsError, compare, maps
from parity.judge import sides
from parity.measure import distance
from parity.weights import convert

B, T, S, D, O, H, E, HEADS, VOCABULARY = 2, 5, 7, 3, 8, 4, 6, 2, 9
KEY = jax.random.key(0)


class Plain(nn.Module):
    """A layer inside a model, so that its parameters have a prefix."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class ChannelsLast(Plain):
    """Take [B, T, C] as the JAX libraries do."""

    def forward(self, x):
        return self.layer(x.mT).mT


class Recurrent(Plain):
    """Take and return [B, H] states one by one."""

    def forward(self, x, h, c=None):
        first = h[None] if c is None else (h[None], c[None])
        outputs, last = self.layer(x, first)
        return (outputs, last[0]) if c is None else (outputs, *(s[0] for s in last))


class Attention(Plain):
    def forward(self, query, key, value, keep):
        return self.layer(query, key, value, key_padding_mask=~keep)[0]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape)


KEEP = np.arange(S) < np.array([[S - 3], [S]])
SOURCE = (draw(B, T, E), draw(B, S, E), draw(B, S, E) * 0.9, KEEP)
ODD_SOURCE = (draw(B, T, E), draw(B, S, D), draw(B, S, O), KEEP)  # key and value of other sizes
X, FIRST = draw(B, T, D), draw(B, H)
TORCH: dict[str, tuple[Callable, tuple[np.ndarray, ...]]] = {
    "linear": (lambda: Plain(nn.Linear(D, O)), (X,)),
    "square": (lambda: Plain(nn.Linear(D, D)), (X,)),
    "without_bias": (lambda: Plain(nn.Linear(D, O, bias=False)), (X,)),
    "layer_norm": (lambda: Plain(nn.LayerNorm(D)), (X,)),
    "conv1d": (lambda: ChannelsLast(nn.Conv1d(D, O, 3)), (X,)),
    "batch_norm": (lambda: ChannelsLast(nn.BatchNorm1d(D)), (X,)),
    "embedding": (
        lambda: Plain(nn.Embedding(VOCABULARY, D)),
        (np.arange(B * T).reshape(B, T) % 4,),
    ),
    "attention": (lambda: Attention(nn.MultiheadAttention(E, HEADS, batch_first=True)), SOURCE),
    "odd_attention": (
        lambda: Attention(nn.MultiheadAttention(E, HEADS, kdim=D, vdim=O, batch_first=True)),
        ODD_SOURCE,
    ),
    "rnn": (lambda: Recurrent(nn.RNN(D, H, batch_first=True)), (X, FIRST)),
    "relu": (lambda: Recurrent(nn.RNN(D, H, nonlinearity="relu", batch_first=True)), (X, FIRST)),
    "lstm": (lambda: Recurrent(nn.LSTM(D, H, batch_first=True)), (X, FIRST, FIRST * 0.8)),
    "gru": (lambda: Recurrent(nn.GRU(D, H, batch_first=True)), (X, FIRST)),
}


@dataclass
class Jax:
    """One library's layer: function of (params, *inputs), parameters, and the map to them.

    dtype is "float32" of a layer that computes in float32 only.
    """

    function: Callable
    params: Any
    weights: maps.Map
    dtype: str = "float64"


def in_linen(layer: str, inputs) -> Jax:
    make = maps.linen
    plain = {
        "linear": (linen.Dense(O), make.linear),
        "square": (linen.Dense(D), make.linear),
        "layer_norm": (linen.LayerNorm(epsilon=1e-5, use_fast_variance=False), make.layer_norm),
        "conv1d": (linen.Conv(O, 3, padding=0), make.conv1d),
        "embedding": (linen.Embed(VOCABULARY, D), make.embedding),
    }
    cells = {
        "rnn": (linen.SimpleCell(H, parent=None), make.rnn_cell),
        "relu": (linen.SimpleCell(H, activation_fn=jax.nn.relu, parent=None), make.rnn_cell),
        "lstm": (linen.LSTMCell(H, parent=None), make.lstm_cell),
        "optimized_lstm": (linen.OptimizedLSTMCell(H, parent=None), make.lstm_cell),
        "gru": (linen.GRUCell(H, parent=None), make.gru_cell),
    }
    if layer in plain:
        model, maker = plain[layer]
        weights = maps.join({"params": maker("layer.")})
        function = model.apply
    elif layer in cells:
        cell, maker = cells[layer]
        model, weights = linen.RNN(cell), maps.join({"params.cell": maker("layer.")})

        def function(params, x, *first):
            final, outputs = model.apply(params, x, initial_carry=carry(first), return_carry=True)
            return outputs, *states(final)

        inputs = (np.float32(inputs[0]),)
    elif layer == "batch_norm":
        model = linen.BatchNorm(use_running_average=True, epsilon=1e-5, use_fast_variance=False)
        parts = {"params": make.batch_norm("layer."), "batch_stats": make.batch_stats("layer.")}
        function, weights = model.apply, maps.join(parts)
    else:
        model = linen.MultiHeadDotProductAttention(HEADS, qkv_features=E, out_features=E)
        weights = maps.join({"params": make.multi_head_attention("layer.", heads=HEADS)})

        def function(params, query, key, value, keep):
            return model.apply(params, query, key, value, mask=keep[:, None, None])

        inputs = inputs[:3]
    return Jax(function, model.init(KEY, *inputs), weights)


def carry(first):
    """flax's carry of an LSTM is (c, h)."""
    return first[0] if len(first) == 1 else first[::-1]


def states(final):
    return final[::-1] if isinstance(final, tuple) else (final,)


def in_nnx(layer: str, inputs) -> Jax:
    make, options = maps.nnx, {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
    cells = {
        "rnn": (nnx.SimpleCell, make.rnn_cell, {}),
        "lstm": (nnx.LSTMCell, make.lstm_cell, {}),
        "optimized_lstm": (nnx.OptimizedLSTMCell, make.optimized_lstm_cell, {}),
    }
    if layer in cells:
        kind, maker, extra = cells[layer]
        model = nnx.RNN(kind(D, H, **extra, **options, dtype=jnp.float64), rngs=nnx.Rngs(0))
        weights = maps.join({"cell": maker("layer.")})
    elif layer == "attention":
        # With dropout nnx leaves jax.nn.dot_product_attention, whose softmax is in float32.
        dropout = {"dropout_rate": 0.5, "deterministic": True}
        model = nnx.MultiHeadAttention(HEADS, E, decode=False, **dropout, **options)
        weights = make.multi_head_attention("layer.", heads=HEADS)
    else:
        norm = {"epsilon": 1e-5, "use_fast_variance": False}
        model, maker = {
            "linear": lambda: (nnx.Linear(D, O, **options), make.linear),
            "layer_norm": lambda: (nnx.LayerNorm(D, **norm, **options), make.layer_norm),
            "conv1d": lambda: (nnx.Conv(D, O, 3, padding=0, **options), make.conv1d),
            "embedding": lambda: (nnx.Embed(VOCABULARY, D, **options), make.embedding),
            "batch_norm": lambda: (
                nnx.BatchNorm(D, use_running_average=True, **norm, **options),
                make.batch_norm,
            ),
        }[layer]()
        weights = maker("layer.")
    graph, params, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def function(params, *inputs):
        model = nnx.merge(graph, params, rest)
        if layer in cells:
            x, *first = inputs
            final, outputs = model(x, initial_carry=carry(tuple(first)), return_carry=True)
            return outputs, *states(final)
        if len(inputs) == 4:
            return model(*inputs[:3], mask=inputs[3][:, None, None])
        return model(*inputs)

    return Jax(function, params, weights)


def in_equinox(layer: str, inputs) -> Jax:
    import equinox as eqx

    make = maps.equinox
    attend = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias"), True)
    attend |= {"use_output_bias": True}
    if layer == "batch_norm":
        model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(D, "batch", mode="batch")
        model = {"model": model, "state": state}
        parts = {"model": make.batch_norm("layer."), "state.1": make.batch_stats("layer.")}
        weights = maps.join(parts)
    else:
        model, maker = {
            "linear": lambda: (eqx.nn.Linear(D, O, key=KEY), make.linear),
            "without_bias": lambda: (eqx.nn.Linear(D, O, False, key=KEY), make.linear),
            "layer_norm": lambda: (eqx.nn.LayerNorm(D), make.layer_norm),
            "conv1d": lambda: (eqx.nn.Conv1d(D, O, 3, key=KEY), make.conv1d),
            "embedding": lambda: (eqx.nn.Embedding(VOCABULARY, D, key=KEY), make.embedding),
            "attention": lambda: (
                eqx.nn.MultiheadAttention(HEADS, E, **attend, key=KEY),
                make.multi_head_attention,
            ),
            "odd_attention": lambda: (
                eqx.nn.MultiheadAttention(
                    HEADS, E, D, O, qk_size=E // HEADS, vo_size=E // HEADS, **attend, key=KEY
                ),
                make.multi_head_attention,
            ),
            "lstm": lambda: (eqx.nn.LSTMCell(D, H, key=KEY), make.lstm_cell),
            "gru": lambda: (eqx.nn.GRUCell(D, H, key=KEY), make.gru_cell),
        }[layer]()
        weights = maker("layer.")
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def of_one(model, *inputs):
        if layer in ("lstm", "gru"):
            x, *first = inputs

            def advance(state, now):
                state = model(now, state)
                return state, state[0] if layer == "lstm" else state

            final, outputs = jax.lax.scan(advance, tuple(first) if layer == "lstm" else first[0], x)
            return outputs, *(final if layer == "lstm" else (final,))
        if layer == "conv1d":
            return model(inputs[0].T).T
        if layer == "batch_norm":
            return model["model"](inputs[0].T, model["state"], inference=True)[0].T
        if len(inputs) == 4:
            return model(*inputs[:3], mask=jnp.broadcast_to(inputs[3], (T, S)))
        return jax.vmap(model)(*inputs)

    def function(params, *inputs):
        model = eqx.combine(params, static)
        return jax.vmap(lambda *xs: of_one(model, *xs), axis_name="batch")(*inputs)

    return Jax(function, params, weights)


def in_haiku(layer: str, inputs) -> Jax:
    import haiku as hk

    make = maps.haiku
    plain = {
        "linear": lambda: hk.Linear(O, name="own"),
        "layer_norm": lambda: hk.LayerNorm(-1, True, True, name="own"),
        "conv1d": lambda: hk.Conv1D(O, 3, padding="VALID", name="own"),
        "embedding": lambda: hk.Embed(VOCABULARY, D, name="own"),
    }

    def model(*inputs):
        if layer in plain:
            return plain[layer]()(*inputs)
        if layer == "batch_norm":
            norm = hk.BatchNorm(True, True, 0.9, name="own")
            return norm(*inputs, is_training=hk.running_init())
        if layer == "relu":
            outputs, final = hk.dynamic_unroll(
                hk.VanillaRNN(H, name="own"), *inputs, time_major=False
            )
            return outputs, final
        if layer == "lstm":
            x, h, c = inputs
            core, first = hk.LSTM(H, name="own"), hk.LSTMState(h, c)
            outputs, final = hk.dynamic_unroll(core, x, first, time_major=False)
            return outputs, *final
        *arrays, keep = inputs
        core = hk.MultiHeadAttention(
            HEADS, E // HEADS, w_init=hk.initializers.RandomNormal(), name="own"
        )
        return core(*arrays, mask=keep[:, None, None])

    transformed = hk.without_apply_rng(hk.transform_with_state(model))
    params, state = transformed.init(KEY, *map(jnp.asarray, inputs))
    maker = {
        "batch_norm": lambda prefix: make.batch_norm(prefix, ndim=3),
        "relu": make.rnn_cell,
        "lstm": make.lstm_cell,
        **dict.fromkeys(("attention", "odd_attention"), make.multi_head_attention),
    }.get(layer) or getattr(make, layer)
    weights = {"params": make.join({"own": maker("layer.")})}
    if layer == "batch_norm":
        weights["state"] = make.join({"own": make.batch_stats("layer.", ndim=3)})

    def function(tree, *inputs):
        return transformed.apply(tree["params"], tree.get("state", state), *inputs)[0]

    tree = {"params": params} | ({"state": state} if state else {})
    return Jax(function, tree, maps.join(weights))


def in_keras(layer: str, inputs) -> Jax:
    import keras

    assert keras.config.backend() == "jax", "keras was imported with another backend before"
    # On JAX these round to float32 inside whatever their dtype.
    narrow = layer in (
        "layer_norm",
        "batch_norm",
        "attention",
        "odd_attention",
        "rnn",
        "lstm",
        "gru",
    )
    dtype = "float32" if narrow else "float64"
    make, options = maps.keras, {"name": "own", "dtype": dtype}
    recurrent = {"name": "own", "return_sequences": True, "return_state": True}
    model, weights = {
        "linear": lambda: (keras.layers.Dense(O, **options), make.linear),
        "layer_norm": lambda: (
            keras.layers.LayerNormalization(epsilon=1e-5, **options),
            make.layer_norm,
        ),
        "batch_norm": lambda: (
            keras.layers.BatchNormalization(epsilon=1e-5, **options),
            make.batch_norm,
        ),
        "conv1d": lambda: (keras.layers.Conv1D(O, 3, **options), make.conv1d),
        "embedding": lambda: (keras.layers.Embedding(VOCABULARY, D, **options), make.embedding),
        "rnn": lambda: (keras.layers.SimpleRNN(H, **recurrent), make.rnn_cell),
        "lstm": lambda: (keras.layers.LSTM(H, **recurrent), make.lstm_cell),
        "gru": lambda: (keras.layers.GRU(H, **recurrent), make.gru_cell),
        **dict.fromkeys(
            ("attention", "odd_attention"),
            lambda: (
                keras.layers.MultiHeadAttention(HEADS, E // HEADS, output_shape=E, **options),
                lambda prefix: make.multi_head_attention(prefix, heads=HEADS),
            ),
        ),
    }[layer]()
    if layer in ("rnn", "lstm", "gru"):
        model.build(inputs[0].shape)
        run, params = make.functional(model)
        weights = maps.join({f"own.{model.cell.name}": weights("layer.")})

        def function(params, x, *first):
            return run(params, x, initial_state=list(first))

        return Jax(function, params, weights, dtype)
    if len(inputs) == 4:
        model(inputs[0], inputs[2], inputs[1])
        run, params = make.functional(model)

        def function(params, query, key, value, keep):
            return run(params, query, value, key, attention_mask=keep[:, None])
    else:
        model(inputs[0])
        function, params = make.functional(model)
    return Jax(function, params, maps.join({"own": weights("layer.")}), dtype)


LIBRARIES = {
    "linen": in_linen,
    "nnx": in_nnx,
    "equinox": in_equinox,
    "haiku": in_haiku,
    "keras": in_keras,
}
COMMON = ("linear", "layer_norm", "conv1d", "batch_norm", "embedding", "attention")
LAYERS = {
    "linen": ("square", "odd_attention", "rnn", "relu", "lstm", "optimized_lstm", "gru"),
    "nnx": ("rnn", "lstm", "optimized_lstm"),
    "equinox": ("without_bias", "odd_attention", "lstm", "gru"),
    "haiku": ("odd_attention", "relu", "lstm"),
    "keras": ("rnn", "lstm", "gru"),
}
PAIRS = [(library, layer) for library, layers in LAYERS.items() for layer in (*COMMON, *layers)]


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic random values: 0 and 1 would hide an array never read."""
    random = np.random.default_rng(5)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                values = random.normal(scale=0.6, size=tensor.shape)
                values = np.exp(values) if name.endswith("var") else values
                tensor.copy_(torch.from_numpy(values))
    return module.eval()


def pair(library: str, layer: str) -> tuple[nn.Module, tuple[np.ndarray, ...], Jax]:
    pytest.importorskip(library if library in ("equinox", "haiku", "keras") else "flax")
    make, inputs = TORCH[layer.removeprefix("optimized_")]
    return randomised(make().double()), inputs, LIBRARIES[library](layer, inputs)


@pytest.mark.parametrize(("library", "layer"), PAIRS)
def test_layer_is_the_same_function(library, layer):
    """Outputs and the gradients of every torch parameter and float input."""
    model, inputs, theirs = pair(library, layer)
    report = compare(
        model, theirs.function, inputs, theirs.params, theirs.weights, theirs.dtype, thorough=False
    )
    assert report.same, report
    assert max(a.rel for a in report.arrays) < {"float32": 1e-5, "float64": 1e-12}[theirs.dtype]
    names = {n for n, _ in model.named_parameters()}
    names |= {f"input.{n}" for n, x in enumerate(inputs) if x.dtype.kind == "f"}
    assert {a.name for a in report.gradients} == {f"d {n}" for n in names}


def dropped(array: np.ndarray) -> np.ndarray:
    return jnp.zeros_like(array)


def exchanged(array: np.ndarray) -> np.ndarray:
    """Exchange the first two gates."""
    return jnp.concatenate([array[H : 2 * H], array[:H], array[2 * H :]])


def turned(array: np.ndarray) -> np.ndarray:
    """Transpose every square block along axis 0."""
    size = array.shape[1]
    return array.reshape(-1, size, size).transpose(0, 2, 1).reshape(array.shape)


def faults(model: nn.Module) -> dict[str, tuple[str, Callable]]:
    """List what a map can get wrong about each of torch's arrays without a wrong shape."""
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            found[f"{name} dropped"] = name, dropped
        if any(gates in name for gates in ("_ih_l", "_hh_l")) and len(tensor) > H:
            found[f"gates of {name} exchanged"] = name, exchanged
        if tensor.ndim == 2 and len(tensor) % tensor.shape[1] == 0 and "embedding" not in name:
            found[f"{name} transposed"] = name, turned
    return found


@pytest.mark.parametrize(("library", "layer"), PAIRS)
def test_wrong_map_is_told_apart(library, layer):
    """Each array dropped, each two gates exchanged, each square kernel transposed."""
    model, inputs, theirs = pair(library, layer)
    torch_side, jax_side = sides(model, theirs.function, inputs, theirs.params, theirs.weights)
    expected = torch_side.run(theirs.dtype)[0]
    for fault, (name, change) in faults(model).items():
        arrays = {**torch_side.arrays, name: change(torch_side.arrays[name])}
        found = jax_side.run(theirs.dtype, leaves=arrays)[0]
        assert max(distance(found[n], expected[n]) for n in found) > 1e-2, fault


@pytest.mark.parametrize("fault", faults(TORCH["lstm"][0]()))
def test_wrong_map_is_not_same(fault):
    """The judge says so of a map that gets one array wrong."""
    model, inputs, theirs = pair("linen", "lstm")
    name, change = faults(model)[fault]

    def wrong(arrays):
        return theirs.weights({**arrays, name: change(arrays[name])})

    options = {"gradients": False, "thorough": False}
    assert not compare(model, theirs.function, inputs, theirs.params, wrong, **options).same


def test_maps_compose():
    """Layers, directions and other modules of one model, each at its place in both trees."""
    sizes = {"num_layers": 2, "bidirectional": True, "batch_first": True}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.LSTM(D, H, **sizes), nn.Linear(2 * H, O)

        def forward(self, x):
            return self.head(self.encoder(x)[0])

    class InLinen(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                cells = [linen.OptimizedLSTMCell(H, param_dtype=x.dtype, parent=None) for _ in "fb"]
                x = linen.Bidirectional(*(linen.RNN(cell, parent=None) for cell in cells))(x)
            return linen.Dense(O)(x)

    parts = {"params.Dense_0": maps.linen.linear("head.")}
    for layer in range(2):
        for reverse, name in enumerate(("forward_rnn", "backward_rnn")):
            path = f"params.Bidirectional_{layer}.{name}.cell"
            parts[path] = maps.linen.lstm_cell("encoder.", layer, bool(reverse))
    theirs, model = InLinen(), randomised(Model().double())
    report = compare(model, theirs.apply, X, theirs.init(KEY, X), maps.join(parts), thorough=False)
    assert report.same, report


def test_cell_alone():
    """layer=None names the parameters of torch.nn.LSTMCell."""

    class Cell(Plain):
        def forward(self, x, h, c):
            return self.layer(x, (h, c))

    own = linen.LSTMCell(H)

    def function(params, x, h, c):
        return own.apply(params, (c, h), x)[0][::-1]

    inputs = (X[:, 0], FIRST, FIRST * 0.8)
    params = own.init(KEY, (FIRST, FIRST), inputs[0])
    weights = maps.join({"params": maps.linen.lstm_cell("layer.", layer=None)})
    model = randomised(Cell(nn.LSTMCell(D, H)).double())
    report = compare(model, function, inputs, params, weights, thorough=False)
    assert report.same, report


BOTH = maps.join({"a": maps.linen.linear("0."), "b": maps.linen.lstm_cell("1.", layer=3)})
MISFITS = {
    "misshapen": (maps.linen.linear(), {"weight": (4, 3), "bias": (5,)}, ["JAX's bias has the shape (5,), expected (4,)"]),
    "unused": (maps.linen.linear(), {"weight": (4, 3), "bias": (4,), "gain": (4,)}, ["torch's gain is not used"]),
    "without value": (maps.linen.linear(), {"weight": (4, 3)}, ["JAX's bias gets no value"]),
    "extra": (maps.linen.batch_stats(), {"running_mean": (3,), "running_var": (3,)}, ["JAX has no mean", "JAX has no var", "JAX's bias gets no value"]),
    "missing": (BOTH, {"weight": (4, 3)}, ["a: torch has no 0.weight", "b: torch has no 1.weight_ih_l3, 1.weight_hh_l3"]),
    "projected": (maps.linen.lstm_cell(), {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 2), "weight_hr_l0": (2, 4)}, ["torch's weight_hr_l0 is not used"]),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_listed(misfit):
    weights, shapes, words = MISFITS[misfit]
    template = {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}
    with pytest.raises(WeightsError) as caught:
        convert(weights, {name: np.zeros(shape) for name, shape in shapes.items()}, template)
    for word in words:
        assert word in str(caught.value)


def test_impossible_maps_are_refused():
    for maker in (maps.nnx.gru_cell, maps.haiku.gru_cell):
        with pytest.raises(WeightsError, match=r"cannot be torch\.nn\.GRU"):
            maker("layer.")
