"""The models of `spec.reference`, as ONNX operators.

Dimensions: B batch, T time, D input features, H hidden units, F features of an encoder output, O
outputs (targets or class logits).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

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


def recurrent(
    graph: Graph, config: ModelConfig, params: Mapping[str, np.ndarray], inputs: str, lengths: str
) -> tuple[str, str]:
    """Run recurrent layers over inputs [B, T, D]; return outputs [T, B, F], last state [B, F]."""
    options = {
        "rnn": {"activations": [config.nonlinearity.capitalize()] * config.directions},
        "gru": {"linear_before_reset": int(config.reset_after)},
        "lstm": {"input_forget": int(config.coupled_gates)},
    }[config.cell]
    direction = "bidirectional" if config.bidirectional else "forward"
    lengths = graph("Cast", lengths, to=TensorProto.INT32)

    def stacked(directions: Sequence[Mapping], *names: str, order: str = config.cell) -> np.ndarray:
        parts = ([own[name] for name in names] for own in directions)
        return np.stack([gates(ORDER[order], config.coupled_gates, *own) for own in parts])

    below, last = graph("Transpose", inputs, perm=(1, 0, 2)), ""
    for layer, directions in enumerate(split_layers(params)):
        optional = ()
        if config.peepholes:  # behind the first states, which are zeros
            optional = ("", "", stacked(directions, "weight_ch", order="peepholes"))
        outputs, last = graph(
            config.cell.upper(),
            below,
            stacked(directions, "weight_ih"),
            stacked(directions, "weight_hh"),
            stacked(directions, "bias_ih", "bias_hh"),
            lengths,
            *optional,
            outputs=2,
            hidden_size=config.hidden_size,
            direction=direction,
            **options,
        )
        by_step = graph("Transpose", outputs, perm=(0, 2, 1, 3))  # [T, B, directions, H]
        above = graph("Reshape", by_step, whole(0, 0, -1))
        below = graph("Add", above, below) if layer and config.residual else above
    by_sequence = graph("Transpose", last, perm=(1, 0, 2))
    return below, graph("Reshape", by_sequence, whole(0, -1))


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
    forward = np.arange(config.encoded_size) < config.hidden_size
    return graph("Where", forward, end, start)


def attention(
    graph: Graph,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    query: str,
    keys: str,
    valid: str,
) -> str:
    """Attend with queries [B, F] over keys [B, T, F]; return contexts [B, F]."""
    number = np.dtype(graph.dtype).type
    if config.score == "additive":
        from_query = graph("Unsqueeze", graph("MatMul", query, params["W_a"].T), whole(1))
        compared = graph("Tanh", graph("Add", from_query, graph("MatMul", keys, params["U_a"].T)))
        scores = graph("MatMul", compared, params["v_a"])
    else:
        query = graph("MatMul", query, params["W_a"].T) if config.score == "general" else query
        products = graph("MatMul", keys, graph("Unsqueeze", query, whole(2)))
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
    return attention(graph, config, params, last, y, graph("Less", times, ends))


def model(
    graph: Graph, config: ModelConfig, arrays: Mapping[str, np.ndarray], inputs: str, lengths: str
) -> str:
    """Run a whole model on scaled inputs [B, T, D]; return predictions [B, O]."""

    def part(name: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(name): a for n, a in arrays.items() if n.startswith(name)}

    times = steps(graph, inputs)
    valid = graph("Less", times, graph("Unsqueeze", lengths, whole(1)))
    zero = np.zeros((), graph.dtype)
    inputs = graph("Where", graph("Unsqueeze", valid, whole(2)), inputs, zero)
    if config.recurrent:
        outputs, features = recurrent(graph, config, part(f"{config.cell}."), inputs, lengths)
        keys = graph("Transpose", outputs, perm=(1, 0, 2))
        if config.residual:  # the operator's own last state lacks what was added to it
            features = last_layer(graph, config, keys, lengths, times)
        if config.attends:
            if config.self_attention:
                mask = graph("Unsqueeze", valid, whole(1, 2))
                keys = multi_head_attention(graph, config, part("self_attention."), keys, mask)
            context = attention(graph, config, part("attention."), features, keys, valid)
            features = graph("Concat", context, features, axis=-1)
    else:
        x = embedding(graph, part("embedding."), inputs, times)
        y = transformer_encoder(graph, config, part("transformer."), x, valid, times)
        features = pool(graph, config, part("attention."), y, lengths, times)
    return linear(graph, part("head."), "", features)
