"""The models of `spec.reference`, as ONNX operators.

Dimensions: B batch, T time, D input features, H hidden units, F features of an encoder output, O
outputs (targets or class logits); of a forecast step by step K steps, M targets of each.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from onnx_impl.cells import CELLS, scanned
from onnx_impl.encoder import embedding, linear, multi_head_attention, transformer_encoder
from onnx_impl.graph import Graph, whole
from spec.config import ModelConfig
from spec.params import split_layers

# Blocks of ours that make up ONNX's: a GRU's z, r, h from r, z, n; an LSTM's i, o, f, c from i, f,
# g, o, its peepholes' i, o, f from i, f, o.
ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "peepholes": (0, 2, 1)}


def steps(graph: Graph, inputs: str) -> str:
    """Count the steps of inputs [B, T, D] from 0: whole numbers [T]."""
    T = graph("Gather", graph("Shape", inputs), np.int64(1), axis=0)
    return graph("Range", np.int64(0), T, np.int64(1))


def gates(order: Sequence[int], coupled: bool, *parts: np.ndarray) -> np.ndarray:
    """Put the gates of each part in ONNX's order, and the parts end to end.

    Coupled gates have no forget gate: ONNX has its place all the same, and reads nothing there.
    """
    found = []
    for part in parts:
        own = np.split(part, len(order) - coupled)
        own[1:1] = [np.zeros_like(own[0])] * coupled
        found += [own[n] for n in order]
    return np.concatenate(found)


def has_operator(graph: Graph, config: ModelConfig, params: Mapping[str, np.ndarray]) -> bool:
    """Tell whether ONNX has an operator for a layer with such cells, and onnxruntime a kernel."""
    known = not config.zoneout and not {"weight_hr", "gain_ih"} & set(params)
    return known and graph.dtype == "float32"


def layer(
    graph: Graph,
    config: ModelConfig,
    directions: Sequence[Mapping[str, np.ndarray]],
    inputs: str,
    lengths: str,
) -> tuple[str, list[str]]:
    """Run one layer over inputs [T, B, D] by ONNX's operator.

    Args:
      directions: a cell's parameters for each.
      lengths: real steps of each sequence [B], int32.

    Returns:
      outputs [T, B, F], zero past each end; last states [B, F], h and of an LSTM c.
    """
    H = directions[0]["weight_hh"].shape[1]
    coupled = config.cell == "lstm" and len(directions[0]["weight_ih"]) == 3 * H
    options = {
        "rnn": {"activations": [config.nonlinearity.capitalize()] * len(directions)},
        "gru": {"linear_before_reset": int(config.reset_after)},
        "lstm": {"input_forget": int(coupled)},
    }[config.cell]

    def stacked(*names: str, order: str = config.cell) -> np.ndarray:
        parts = ([own[name] for name in names] for own in directions)
        return np.stack([gates(ORDER[order], coupled, *own) for own in parts])

    optional = []
    if "weight_ch" in directions[0]:
        optional = ["", "", stacked("weight_ch", order="peepholes")]  # first states of zeros
    outputs, *last = graph(
        config.cell.upper(),
        inputs,
        stacked("weight_ih"),
        stacked("weight_hh"),
        stacked("bias_ih", "bias_hh"),
        lengths,
        *optional,
        outputs=3 if config.cell == "lstm" else 2,
        hidden_size=H,
        direction="bidirectional" if len(directions) == 2 else "forward",
        **options,
    )
    by_step = graph("Transpose", outputs, perm=(0, 2, 1, 3))  # [T, B, directions, H]
    states = [graph("Transpose", part, perm=(1, 0, 2)) for part in last]  # [B, directions, H]
    outputs = graph("Reshape", by_step, whole(0, 0, -1))
    return outputs, [graph("Reshape", part, whole(0, -1)) for part in states]


def recurrent(
    graph: Graph,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    inputs: str,
    lengths: str,
    valid: str,
) -> tuple[str, list[str]]:
    """Run recurrent layers over inputs [B, T, D]: outputs [T, B, F], last states [B, F]."""
    layers, last = split_layers(params), []
    below = graph("Transpose", inputs, perm=(1, 0, 2))
    if has_operator(graph, config, layers[0][0]):
        run, steps = layer, graph("Cast", lengths, to=TensorProto.INT32)
    else:
        run, steps = scanned, graph("Unsqueeze", graph("Transpose", valid, perm=(1, 0)), whole(2))
    for n, directions in enumerate(layers):
        above, last = run(graph, config, directions, below, steps)
        below = graph("Add", above, below) if n and config.residual else above
    return below, last


def at_end(graph: Graph, y: str, lengths: str, times: str) -> str:
    """Pick each sequence's last real step of y [B, T, H], finite past the ends: [B, H]."""
    is_last = graph(
        "Equal", times, graph("Unsqueeze", graph("Sub", lengths, np.int64(1)), whole(1))
    )
    alone = graph("Mul", y, graph("CastLike", graph("Unsqueeze", is_last, whole(2)), y))
    return graph("ReduceSum", alone, whole(1), keepdims=0)


def last_layer(graph: Graph, config: ModelConfig, y: str, lengths: str, times: str) -> str:
    """Put the last outputs of y [B, T, F] side by side: forward at the end, reverse at step 0."""
    end = at_end(graph, y, lengths, times)
    if not config.bidirectional:
        return end
    start = graph("Gather", y, np.int64(0), axis=1)
    forward = np.arange(config.encoded_size) < config.encoded_size // 2
    return graph("Where", forward, end, start)


def compared_keys(
    graph: Graph, config: ModelConfig, params: Mapping[str, np.ndarray], keys: str
) -> str:
    """Return what scores compare a query with, of keys [B, T, F]; the same for every query."""
    return graph("MatMul", keys, params["U_a"].T) if config.score == "additive" else keys


def attention(
    graph: Graph,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    query: str,
    keys: str,
    compared: str,
    valid: str,
) -> str:
    """Attend with queries [B, F] over keys [B, T, F], `compared_keys` at hand: contexts [B, F]."""
    number = np.dtype(graph.dtype).type
    if config.score == "additive":
        from_query = graph("Unsqueeze", graph("MatMul", query, params["W_a"].T), whole(1))
        scores = graph("Tanh", graph("Add", from_query, compared))
        scores = graph("MatMul", scores, params["v_a"])
    else:
        query = graph("MatMul", query, params["W_a"].T) if config.score == "general" else query
        products = graph("MatMul", compared, graph("Unsqueeze", query, whole(2)))
        scale = config.encoded_size**-0.5 if config.score == "scaled_dot" else 1.0
        scores = graph("Mul", graph("Squeeze", products, whole(2)), number(scale))
    scores = graph("Where", valid, scores, np.finfo(number).min)
    weights = graph("Where", valid, graph("Softmax", scores, axis=-1), number(0))
    context = graph("MatMul", graph("Unsqueeze", weights, whole(1)), keys)
    return graph("Squeeze", context, whole(1))


def pool(
    graph: Graph,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    y: str,
    lengths: str,
    times: str,
) -> str:
    """Reduce steps [B, T, H] to one vector a sequence: their mean, their last, what it attends to."""
    ends = graph("Unsqueeze", lengths, whole(1))
    if config.pooling == "mean":
        total = graph("ReduceSum", y, whole(1), keepdims=0)
        return graph("Div", total, graph("CastLike", ends, y))
    last = at_end(graph, y, lengths, times)
    if config.pooling == "last":
        return last
    compared = compared_keys(graph, config, params, y)
    return attention(graph, config, params, last, y, compared, graph("Less", times, ends))


def decode(
    graph: Graph,
    config: ModelConfig,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    keys: str,
    valid: str,
    states: Sequence[str],
    value: str,
) -> str:
    """Forecast step by step from `states` [B, F] and the last `value` [B, M]: [B, O].

    Args:
      arrays: parameters of "attention", "decoder" and "head" by their names.
      keys, valid: what every step attends to, [B, T, F] and [B, T].
    """
    own = arrays["attention"]
    compared = compared_keys(graph, config, own, keys)

    def step(graph: Graph, carried: Sequence[str], now: Sequence[str]) -> tuple[list[str], str]:
        value, h, *c = carried
        context = attention(graph, config, own, h, keys, compared, valid)
        inputs = graph("Concat", value, context, axis=-1)
        h, *c = CELLS[config.cell](graph, config, arrays["decoder"], inputs, h, *c)
        features = graph("Concat", context, h, axis=-1)
        value = linear(graph, arrays["head"], "", features)
        return [value, h, *c], graph("Identity", value)  # an output has a name of its own

    K = graph("Range", *(np.int64(n) for n in (0, config.forecast_steps, 1)))
    _, values = graph.scan([value, *states], [K], False, step)
    return graph("Reshape", graph("Transpose", values, perm=(1, 0, 2)), whole(0, -1))


def model(
    graph: Graph, config: ModelConfig, arrays: Mapping[str, np.ndarray], inputs: str, lengths: str
) -> str:
    """Run a whole model on scaled inputs [B, T, D]; return predictions [B, O], or [B, T, O]."""

    def part(name: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(name): a for n, a in arrays.items() if n.startswith(name)}

    times = steps(graph, inputs)
    valid = graph("Less", times, graph("Unsqueeze", lengths, whole(1)))
    zero = np.zeros((), graph.dtype)
    inputs = graph("Where", graph("Unsqueeze", valid, whole(2)), inputs, zero)
    if config.recurrent:
        own = part(f"{config.cell}.")
        outputs, states = recurrent(graph, config, own, inputs, lengths, valid)
        features = states[0]
        keys = graph("Transpose", outputs, perm=(1, 0, 2))
        if config.decodes:
            own = {name: part(f"{name}.") for name in ("attention", "decoder", "head")}
            fed_back = graph("Gather", inputs, whole(*config.fed_back), axis=2)
            value = at_end(graph, fed_back, lengths, times)
            return decode(graph, config, own, keys, valid, states, value)
        if config.residual:  # the operator's own last state lacks what was added to it
            features = last_layer(graph, config, keys, lengths, times)
        if config.attends:
            if config.self_attention:
                mask = graph("Unsqueeze", valid, whole(1, 2))
                keys = multi_head_attention(graph, config, part("self_attention."), keys, mask)
            own = part("attention.")
            compared = compared_keys(graph, config, own, keys)
            context = attention(graph, config, own, features, keys, compared, valid)
            features = graph("Concat", context, features, axis=-1)
        features = keys if config.every_step else features
    else:
        x = embedding(graph, part("embedding."), inputs, times)
        y = transformer_encoder(graph, config, part("transformer."), x, valid, times)
        features = y
        if not config.every_step:
            features = pool(graph, config, part("attention."), y, lengths, times)
    predictions = linear(graph, part("head."), "", features)
    if config.every_step:
        return graph("Where", graph("Unsqueeze", valid, whole(2)), predictions, zero)
    return predictions
