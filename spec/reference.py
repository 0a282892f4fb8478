"""The models once more, in plain NumPy: the third opinion that both backends are held to.

One sequence at a time, each run over its own length, so there are neither masks nor padding to get
wrong. Any dtype works: longdouble for the exact answer, complex for derivatives (a step of 1e-200
along the imaginary axis gives them without rounding; Squire & Trapp, 1998).

Dimensions: B batch, T time, n steps of one sequence, D input features, H hidden units, L layers x
directions, F features of an encoder output, O outputs; of a transformer N heads, H features,
U units of its feed-forward network.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy import tanh

from spec.config import ModelConfig
from spec.params import sinusoidal_positions, split_layers


class Encoded(NamedTuple):
    """Outputs [B, T, F], 0 past each end; of recurrent layers the last states [L, B, H]: h, of an
    LSTM c too."""

    outputs: np.ndarray
    h: np.ndarray | None = None
    c: np.ndarray | None = None


class Answer(NamedTuple):
    """Predictions [B, O]; attention weights [B, T], 0 past each end, of models that have them; of
    a decoder [B, K, T] with K steps of a forecast."""

    predictions: np.ndarray
    attention: np.ndarray | None


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) = inf is right: the result is 0
        return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    """Return x where its real part is above 0, else 0."""
    return np.where(x.real > 0, x, 0)


def rnn_cell(params, x, h, nonlinearity="tanh"):
    """Advance one sequence, x [D] and h [H], by one step."""
    gate = params["weight_ih"] @ x + params["bias_ih"] + params["weight_hh"] @ h + params["bias_hh"]
    return tanh(gate) if nonlinearity == "tanh" else relu(gate)


def gru_cell(params, x, h, reset_after=True):
    """Advance one sequence, x [D] and h [H], by one step."""
    H = len(h)
    i = params["weight_ih"] @ x + params["bias_ih"]
    weight, bias = params["weight_hh"], params["bias_hh"]
    r = sigmoid(i[:H] + weight[:H] @ h + bias[:H])
    z = sigmoid(i[H : 2 * H] + weight[H : 2 * H] @ h + bias[H : 2 * H])
    weight, bias = weight[2 * H :], bias[2 * H :]
    hidden = r * (weight @ h + bias) if reset_after else weight @ (r * h) + bias
    return (1 - z) * tanh(i[2 * H :] + hidden) + z * h


def lstm_cell(params, x, h, c):
    """Advance one sequence, x [D], h [H] and c [H], by one step."""
    H = len(h)
    gates = (
        params["weight_ih"] @ x + params["bias_ih"] + params["weight_hh"] @ h + params["bias_hh"]
    )
    i, f, g, o = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def advance(config: ModelConfig, params, x, h, c):
    """Advance one sequence by one step of the cell that a configuration names: (h, c)."""
    if config.cell == "lstm":
        return lstm_cell(params, x, h, c)
    if config.cell == "gru":
        return gru_cell(params, x, h, config.reset_after), c
    return rnn_cell(params, x, h, config.nonlinearity), c


def encode(
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    lengths: np.ndarray | None = None,
    h: np.ndarray | None = None,
    c: np.ndarray | None = None,
    keep: Sequence[np.ndarray] | None = None,
) -> Encoded:
    """Run recurrent layers over each sequence.

    Args:
      config: names the cell, and the rate of dropout between layers.
      params: a recurrent layer's parameters by torch's names.
      inputs: [B, T, D]; what stands past an end is not looked at.
      lengths: steps of each sequence [B]; None when all have T.
      h, c: first states [L, B, H]; None for zeros.
      keep: dropout masks [B, T, F], one between each two layers.
    """
    layers = split_layers(params)
    B, T, _ = inputs.shape
    L, H = sum(map(len, layers)), layers[0][0]["weight_hh"].shape[1]
    lengths = [T] * B if lengths is None else lengths
    dtype = np.result_type(inputs, *params.values(), *[s for s in (h, c) if s is not None])
    h = np.zeros((L, B, H), dtype) if h is None else h
    c = np.zeros((L, B, H), dtype) if c is None else c
    last_h, last_c = h.astype(dtype), c.astype(dtype)
    outputs = np.zeros((B, T, len(layers[-1]) * H), dtype)
    for b, n in enumerate(lengths):
        below = inputs[b, :n]
        number = 0
        for layer, directions in enumerate(layers):
            if layer and keep:
                below = np.where(keep[layer - 1][b, :n], below / (1 - config.dropout), 0)
            above = np.zeros((n, len(directions) * H), dtype)
            for reverse, weights in enumerate(directions):
                state = h[number, b], c[number, b]
                for t in range(n - 1, -1, -1) if reverse else range(n):
                    state = advance(config, weights, below[t], *state)
                    above[t, reverse * H : (reverse + 1) * H] = state[0]
                last_h[number, b], last_c[number, b] = state
                number += 1
            below = above
        outputs[b, :n] = below
    return Encoded(outputs, last_h, last_c if config.cell == "lstm" else None)


def attention(
    params: Mapping[str, np.ndarray], query: np.ndarray, keys: np.ndarray, score: str = "additive"
) -> tuple[np.ndarray, np.ndarray]:
    """Attend with one query [F] over the keys of one sequence [n, F]: (context [F], weights [n])."""
    own = {
        "additive": lambda key: params["v_a"] @ tanh(params["W_a"] @ query + params["U_a"] @ key),
        "dot": lambda key: key @ query,
        "scaled_dot": lambda key: key @ query / np.sqrt(query.real.dtype.type(len(key))),
        "general": lambda key: key @ (params["W_a"] @ query),
    }[score]
    scores = np.array([own(key) for key in keys])
    weights = np.exp(scores - scores.real.max())
    weights = weights / weights.sum()
    return weights @ keys, weights


def part(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Pick what stands under a name, and drop the name."""
    return {n.removeprefix(f"{name}."): a for n, a in arrays.items() if n.startswith(f"{name}.")}


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, by a series of equal signs.

    Source: NIST Digital Library of Mathematical Functions, 7.6.2.
    """
    root = 2 * np.sqrt(np.arctan(x.real.dtype.type(1)))  # of pi, in any precision
    term = total = np.ones_like(x)
    n = 0
    with np.errstate(over="ignore", invalid="ignore"):
        while n < 300 and np.any(abs(term) > np.finfo(x.dtype).eps / 8 * abs(total)):
            n += 1
            term = term * 2 * x * x / (2 * n + 1)
            total = total + term
        return np.where(abs(x.real) > 7, np.sign(x.real), 2 / root * x * np.exp(-x * x) * total)


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    """Return gelu, its tanh approximation (gelu_tanh) or relu of x."""
    if activation == "relu":
        return relu(x)
    if activation == "gelu":
        return x / 2 * (1 + erf(x * np.sqrt(x.real.dtype.type(0.5))))
    scale = np.sqrt(2 / (4 * np.arctan(x.real.dtype.type(1))))
    return x / 2 * (1 + tanh(scale * (x + 0.044715 * x**3)))


def layer_norm(params: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Shift and scale each row of [n, H] to mean 0 and variance 1, then by the weights."""
    moved = x - x.mean(axis=-1, keepdims=True)
    variance = (moved * moved).mean(axis=-1, keepdims=True)
    return moved / np.sqrt(variance + 1e-5) * params["weight"] + params["bias"]


def multi_head_attention(params, x, num_heads, causal, keep=None):
    """Let each step of one sequence [n, H] attend to all; `keep` drops weights [N, n, n]."""
    n, H = x.shape
    K = H // num_heads
    projected = x @ params["in_proj_weight"].T + params["in_proj_bias"]
    contexts = []
    for head in range(num_heads):
        own = slice(head * K, (head + 1) * K)
        query, key, value = (projected[:, m * H : (m + 1) * H][:, own] for m in range(3))
        rows = []
        for t in range(n):
            seen = t + 1 if causal else n
            scores = key[:seen] @ query[t] / np.sqrt(x.real.dtype.type(K))
            weights = np.exp(scores - scores.real.max())
            weights = weights / weights.sum()
            rows.append(
                (weights if keep is None else keep(head, t)[:seen] * weights) @ value[:seen]
            )
        contexts.append(np.stack(rows))
    return np.hstack(contexts) @ params["out_proj.weight"].T + params["out_proj.bias"]


def encoder_layer(config: ModelConfig, params, x, drop):
    """Run one layer over a sequence [n, H]; `drop(name, array)` drops what has that name."""
    own, norm1, norm2 = (part(params, name) for name in ("self_attn", "norm1", "norm2"))

    def attend(x):
        scale = drop("weights", np.ones((config.num_heads, len(x), len(x)), x.dtype))
        attended = multi_head_attention(
            own, x, config.num_heads, config.causal, lambda head, t: scale[head, t]
        )
        return drop("attention", attended)

    def feed(x):
        units = activate(x @ params["linear1.weight"].T + params["linear1.bias"], config.activation)
        found = drop("units", units) @ params["linear2.weight"].T + params["linear2.bias"]
        return drop("feedforward", found)

    if config.norm_first:
        x = x + attend(layer_norm(norm1, x))
        return x + feed(layer_norm(norm2, x))
    x = layer_norm(norm1, x + attend(x))
    return layer_norm(norm2, x + feed(x))


def transform(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    lengths: np.ndarray | None = None,
    keep: Mapping[str, np.ndarray] | None = None,
) -> Encoded:
    """Run a transformer's embedding and layers over each sequence; `keep` as in `predict`."""
    B, T, _ = inputs.shape
    embedding, params = part(arrays, "embedding"), part(arrays, "transformer")
    dtype = np.result_type(inputs, *arrays.values())
    positions = embedding.get("positions")
    if positions is None:
        positions = sinusoidal_positions(T, config.hidden_size)
    outputs = np.zeros((B, T, config.hidden_size), dtype)
    for b, n in enumerate([T] * B if lengths is None else lengths):

        def drop(name, x, b=b, n=n):
            if not keep:
                return x
            mask = keep[name][b][..., :n, :n] if name.endswith("weights") else keep[name][b, :n]
            return np.where(mask, x / (1 - config.dropout), 0)

        x = inputs[b, :n] @ embedding["weight"].T + embedding["bias"] + positions[:n]
        x = drop("embedding", x.astype(dtype))
        for layer in range(config.num_layers):
            x = encoder_layer(
                config,
                part(params, f"layers.{layer}"),
                x,
                lambda name, x, layer=layer, drop=drop: drop(f"layer{layer}.{name}", x),
            )
        outputs[b, :n] = layer_norm(part(params, "norm"), x) if config.norm_first else x
    return Encoded(outputs)


def predict(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    lengths: np.ndarray | None = None,
    h: np.ndarray | None = None,
    c: np.ndarray | None = None,
    keep: Mapping[str, np.ndarray] | None = None,
    targets: np.ndarray | None = None,
) -> Answer:
    """Run a whole model; `keep` as in `spec.batch.keep_masks`, `targets` [B, O] for its "teacher"."""
    if config.decodes:
        return forecast(config, arrays, inputs, lengths, h, c, keep or {}, targets)
    if config.recurrent:
        masks = [keep[f"layer{n}"] for n in range(config.num_layers - 1)] if keep else None
        encoded = encode(config, part(arrays, config.cell), inputs, lengths, h, c, masks)
    else:
        encoded = transform(config, arrays, inputs, lengths, keep)
    B, T, _ = inputs.shape
    predictions, attended = [], []
    for b in range(B):
        outputs = encoded.outputs[b, : T if lengths is None else lengths[b]]
        if config.recurrent:
            features = encoded.h[-config.directions :, b].reshape(-1)
        else:
            features = outputs.mean(axis=0) if config.pooling == "mean" else outputs[-1]
        if config.attends:
            if config.self_attention:
                own = part(arrays, "self_attention")
                outputs = multi_head_attention(own, outputs, config.num_heads, causal=False)
            own = part(arrays, "attention")
            context, weights = attention(own, features, outputs, config.score)
            attended.append(np.pad(weights, (0, T - len(outputs))))
            features = np.concatenate([context, features]) if config.recurrent else context
        if keep:
            features = np.where(keep["head"][b], features / (1 - config.dropout), 0)
        predictions.append(arrays["head.weight"] @ features + arrays["head.bias"])
    return Answer(np.stack(predictions), np.stack(attended) if attended else None)


def forecast(config, arrays, inputs, lengths, h, c, keep, targets) -> Answer:
    """Encode each sequence, then forecast step by step; arguments as of `predict`."""
    masks = [keep[f"layer{n}"] for n in range(config.num_layers - 1) if f"layer{n}" in keep]
    encoded = encode(config, part(arrays, config.cell), inputs, lengths, h, c, masks)
    B, T, _ = inputs.shape
    K, columns = config.forecast_steps, config.fed_back
    predictions, attended = [], []
    for b in range(B):
        outputs = encoded.outputs[b, : T if lengths is None else lengths[b]]
        last = slice(-config.directions, None)
        state = encoded.h[last, b].reshape(-1), None
        if config.cell == "lstm":
            state = state[0], encoded.c[last, b].reshape(-1)
        value = inputs[b, len(outputs) - 1, columns]
        for k in range(K):
            own = part(arrays, "attention")
            context, weights = attention(own, state[0], outputs, config.score)
            x = np.concatenate([value, context])
            state = advance(config, part(arrays, "decoder"), x, *state)
            features = np.concatenate([context, state[0]])
            if "head" in keep:
                features = np.where(keep["head"][b, k], features / (1 - config.dropout), 0)
            value = arrays["head.weight"] @ features + arrays["head.bias"]
            predictions.append(value)
            attended.append(np.pad(weights, (0, T - len(outputs))))
            if "teacher" in keep and keep["teacher"][b, k]:
                value = targets[b].reshape(K, -1)[k]
    return Answer(np.reshape(predictions, (B, -1)), np.reshape(attended, (B, K, T)))


def mean_squared_error(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of (prediction - target)**2 over [B, O], rows by weights [B] if given."""
    squares = (predictions - targets) ** 2
    return squares.mean() if weights is None else np.average(squares.mean(axis=1), weights=weights)


def cross_entropy(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of -log softmax(logits)[target] over [B, C] and class indices [B].

    With weights [B] of the rows it is sum(w * loss) / sum(w).
    """
    losses = []
    for row, target in zip(logits, targets, strict=True):
        shifted = row - row.real.max()
        losses.append(np.log(np.exp(shifted).sum()) - shifted[target])
    return np.average(losses, weights=weights)
