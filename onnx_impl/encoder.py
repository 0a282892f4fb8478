"""The Transformer's encoder of `spec.reference`, as ONNX operators.

Dimensions: B batch, T time, D input features, H features of a step, N heads, K features of a head.
"""

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto, helper

from onnx_impl.cells import standardize
from onnx_impl.graph import Graph, whole
from spec.config import ModelConfig
from spec.params import position_rates


def embedding(graph: Graph, params: Mapping[str, np.ndarray], inputs: str, times: str) -> str:
    """Turn each reading into H features and add its place in time, of `times` [T]."""
    x = linear(graph, params, "", inputs)
    H = params["weight"].shape[0]
    if "positions" in params:
        return graph("Add", x, graph("Gather", params["positions"], times, axis=0))
    time = graph("Unsqueeze", graph("Cast", times, to=TensorProto.DOUBLE), whole(1))
    angle = graph("Div", time, position_rates(H))
    odd = np.arange(H) % 2 == 1
    places = graph("Where", odd, graph("Cos", angle), graph("Sin", angle))
    return graph(
        "Add", x, graph("Cast", places, to=helper.np_dtype_to_tensor_dtype(np.dtype(graph.dtype)))
    )


def linear(graph: Graph, params: Mapping[str, np.ndarray], name: str, x: str) -> str:
    """Return W x + b, whose names begin with `name`."""
    product = graph("MatMul", x, params[f"{name}weight"].T)
    return graph("Add", product, params[f"{name}bias"])


def layer_norm(graph: Graph, params: Mapping[str, np.ndarray], name: str, x: str) -> str:
    """Shift and scale each row to mean 0 and variance 1, then by a weight and a bias."""
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return graph("Add", graph("Mul", standardize(graph, x), weight), bias)


def gelu(graph: Graph, x: str, number: Callable) -> str:
    """Return x (1 + erf(x / sqrt 2)) / 2."""
    error = graph("Erf", graph("Mul", x, number(0.5**0.5)))
    return graph("Mul", graph("Mul", x, number(0.5)), graph("Add", error, number(1)))


def gelu_tanh(graph: Graph, x: str, number: Callable) -> str:
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) / 2."""
    cube = graph("Mul", graph("Mul", x, x), x)
    bent = graph("Add", x, graph("Mul", cube, number(0.044715)))
    bent = graph("Tanh", graph("Mul", bent, number((2 / np.pi) ** 0.5)))
    return graph("Mul", graph("Mul", x, number(0.5)), graph("Add", bent, number(1)))


def relu(graph: Graph, x: str, number: Callable) -> str:
    """Return x above 0, else 0."""
    return graph("Relu", x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def multi_head_attention(
    graph: Graph, config: ModelConfig, params: Mapping[str, np.ndarray], x: str, mask: str
) -> str:
    """Let every step attend to those that `mask` [B, 1, 1 or T, T] allows, in several heads."""
    N, K = config.num_heads, config.encoded_size // config.num_heads
    number = np.dtype(graph.dtype).type
    projected = linear(graph, params, "in_proj_", x)
    heads = graph("Reshape", projected, whole(0, 0, 3, N, K))
    heads = graph("Transpose", heads, perm=(2, 0, 3, 1, 4))
    query, key, value = (graph("Gather", heads, np.int64(n), axis=0) for n in range(3))
    products = graph("MatMul", query, graph("Transpose", key, perm=(0, 1, 3, 2)))
    scores = graph("Mul", products, number(K**-0.5))
    scores = graph("Where", mask, scores, np.finfo(number).min)
    context = graph("MatMul", graph("Softmax", scores, axis=-1), value)
    context = graph("Transpose", context, perm=(0, 2, 1, 3))
    return linear(graph, params, "out_proj.", graph("Reshape", context, whole(0, 0, N * K)))


def encoder_layer(
    graph: Graph, config: ModelConfig, params: Mapping[str, np.ndarray], x: str, mask: str
) -> str:
    """Let steps attend to each other, then pass each through a feed-forward network."""
    own = {n.removeprefix("self_attn."): a for n, a in params.items() if "self_attn" in n}

    def attention(x: str) -> str:
        return multi_head_attention(graph, config, own, x, mask)

    def feedforward(x: str) -> str:
        units = linear(graph, params, "linear1.", x)
        units = ACTIVATIONS[config.activation](graph, units, params["linear1.bias"].dtype.type)
        return linear(graph, params, "linear2.", units)

    for norm, part in (("norm1", attention), ("norm2", feedforward)):
        if config.norm_first:
            x = graph("Add", x, part(layer_norm(graph, params, norm, x)))
        else:
            x = layer_norm(graph, params, norm, graph("Add", x, part(x)))
    return x


def transformer_encoder(
    graph: Graph,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    x: str,
    valid: str,
    times: str,
) -> str:
    """Run encoder layers on top of each other; return [B, T, H], zero where `valid` is False."""
    mask = graph("Unsqueeze", valid, whole(1, 2))
    if config.causal:
        past = graph("LessOrEqual", times, graph("Unsqueeze", times, whole(1)))
        mask = graph("And", mask, past)
    for layer in range(config.num_layers):
        start = f"layers.{layer}."
        own = {n.removeprefix(start): a for n, a in params.items() if n.startswith(start)}
        x = encoder_layer(graph, config, own, x, mask)
    x = layer_norm(graph, params, "norm", x) if config.norm_first else x
    zero = np.zeros((), graph.dtype)
    return graph("Where", graph("Unsqueeze", valid, whole(2)), x, zero)
