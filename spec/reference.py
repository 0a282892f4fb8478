"""The models once more, in plain NumPy: the third opinion that both backends are held to.

One sequence at a time, each run over its own length, so there are neither masks nor padding to get
wrong. Any dtype works: longdouble for the exact answer, complex for derivatives (a step of 1e-200
along the imaginary axis gives them without rounding; Squire & Trapp, 1998).

Dimensions: B batch, T time, n steps of one sequence, D input features, H hidden units, L layers x
directions, F features of an encoder output, O outputs; of a transformer N heads, H features,
U units of its feed-forward network.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy import tanh

from spec.config import ModelConfig
from spec.params import sinusoidal_positions, split_layers


class Encoded(NamedTuple):
    """Outputs [B, T, F]; of recurrent layers the last states [L, B, H], h and of an LSTM c, and
    those of every step [L, B, T, H]. What stands past an end is 0."""

    outputs: np.ndarray
    h: np.ndarray | None = None
    c: np.ndarray | None = None
    all_h: np.ndarray | None = None
    all_c: np.ndarray | None = None


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


def gru_cell(params, x, h, reset_after=True, read=None):
    """Advance one sequence, x [D] and h [H], by one step; the gates see `read`, without it h."""
    H = len(h)
    read = h if read is None else read
    i = params["weight_ih"] @ x + params["bias_ih"]
    weight, bias = params["weight_hh"], params["bias_hh"]
    r = sigmoid(i[:H] + weight[:H] @ read + bias[:H])
    z = sigmoid(i[H : 2 * H] + weight[H : 2 * H] @ read + bias[H : 2 * H])
    weight, bias = weight[2 * H :], bias[2 * H :]
    hidden = r * (weight @ read + bias) if reset_after else weight @ (r * read) + bias
    return (1 - z) * tanh(i[2 * H :] + hidden) + z * h


def lstm_cell(params, x, h, c):
    """Advance one sequence, x [D], h [H or its projection] and c [H], by one step.

    The parameters that there are decide what beside the plain cell is computed.
    """
    H = len(c)
    from_input, from_hidden = params["weight_ih"] @ x, params["weight_hh"] @ h
    if "gain_ih" in params:
        from_input = standardize(from_input) * params["gain_ih"]
        from_hidden = standardize(from_hidden) * params["gain_hh"]
    gates = from_input + params["bias_ih"] + from_hidden + params["bias_hh"]
    coupled = len(gates) == 3 * H
    i, g, o = gates[:H], gates[-2 * H : -H], gates[-H:]
    f = None if coupled else gates[H : 2 * H]
    peepholes = params.get("weight_ch")
    if peepholes is not None:
        i = i + peepholes[:H] * c
        f = None if coupled else f + peepholes[H : 2 * H] * c
    i = sigmoid(i)
    c = (1 - i if coupled else sigmoid(f)) * c + i * tanh(g)
    if peepholes is not None:
        o = o + peepholes[-H:] * c
    shown = standardize(c) * params["gain_c"] + params["bias_c"] if "gain_c" in params else c
    h = sigmoid(o) * tanh(shown)
    return params["weight_hr"] @ h if "weight_hr" in params else h, c


def standardize(x):
    """Shift and scale each row of x [.., H] to mean 0 and variance 1, with 1e-5 added to it."""
    moved = x - x.mean(axis=-1, keepdims=True)
    variance = (moved * moved).mean(axis=-1, keepdims=True)
    return moved / np.sqrt(variance + 1e-5)


def advance(config: ModelConfig, params, x, h, c, read):
    """Advance one sequence by one step of the cell that a configuration names: (h, c).

    The gates see `read`, which is h but for recurrent dropout.
    """
    if config.cell == "lstm":
        return lstm_cell(params, x, read, c)
    if config.cell == "gru":
        return gru_cell(params, x, h, config.reset_after, read), c
    return rnn_cell(params, x, read, config.nonlinearity), c


def encode(
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    lengths: np.ndarray | None = None,
    h: np.ndarray | None = None,
    c: np.ndarray | None = None,
    keep: Mapping[str, np.ndarray] | None = None,
    resets: np.ndarray | None = None,
) -> Encoded:
    """Run recurrent layers over each sequence.

    Args:
      config: names the cell, and the rates at which it drops.
      params: a recurrent layer's parameters by torch's names.
      inputs: [B, T, D]; what stands past an end is not looked at.
      lengths: steps of each sequence [B]; None when all have T.
      h, c: first states [L, B, H]; None for zeros.
      keep: dropout masks by name, see `spec.batch.keep_masks`.
      resets: steps [B, T] that begin anew from a state of zeros, in either direction.
    """
    keep, layers = keep or {}, split_layers(params)
    B, T, _ = inputs.shape
    L, P = sum(map(len, layers)), layers[0][0]["weight_hh"].shape[1]
    H = layers[0][0]["weight_hr"].shape[1] if "weight_hr" in layers[0][0] else P
    lengths = [T] * B if lengths is None else lengths
    dtype = np.result_type(inputs, *params.values(), *[s for s in (h, c) if s is not None])
    h = np.zeros((L, B, P), dtype) if h is None else h
    c = np.zeros((L, B, H), dtype) if c is None else c
    last_h, last_c = h.astype(dtype), c.astype(dtype)
    all_h, all_c = np.zeros((L, B, T, P), dtype), np.zeros((L, B, T, H), dtype)
    outputs = np.zeros((B, T, len(layers[-1]) * P), dtype)
    for b, n in enumerate(lengths):
        below, number = inputs[b, :n], 0
        if "input" in keep:
            below = np.where(keep["input"][b, :n], below / (1 - config.input_dropout), 0)
        for layer, directions in enumerate(layers):
            if layer and f"layer{layer - 1}" in keep:
                mask = keep[f"layer{layer - 1}"][b, :n]
                dropped = np.where(mask, below / (1 - config.dropout), 0)
            else:
                dropped = below
            above = np.zeros((n, len(directions) * P), dtype)
            for reverse, weights in enumerate(directions):
                end = f"l{layer}" + "_reverse" * reverse
                state = h[number, b], c[number, b]
                for t in range(n - 1, -1, -1) if reverse else range(n):
                    begins = t + 1 < n and resets is not None and resets[b, t + 1]
                    begins = begins if reverse else resets is not None and resets[b, t]
                    before = tuple(0 * part for part in state) if begins else state
                    read = before[0]
                    if f"recurrent_{end}" in keep:
                        mask = keep[f"recurrent_{end}"][b]
                        read = np.where(mask, read / (1 - config.recurrent_dropout), 0)
                    after = advance(config, weights, dropped[t], *before, read)
                    masks = [keep.get(f"zoneout_{part}_{end}") for part in "hc"]
                    state = tuple(
                        zone_out(config.zoneout, mask if mask is None else mask[b, t], new, old)
                        for mask, new, old in zip(masks, after, before, strict=True)
                    )
                    above[t, reverse * P : (reverse + 1) * P] = state[0]
                    all_h[number, b, t], all_c[number, b, t] = state
                last_h[number, b], last_c[number, b] = state
                number += 1
            below = above + below if layer and config.residual else above
        outputs[b, :n] = below
    if config.cell == "lstm":
        return Encoded(outputs, last_h, last_c, all_h, all_c)
    return Encoded(outputs, last_h, None, all_h, None)


def zone_out(rate, advances, new, old):
    """Hold what does not advance; without a mask, its expected value."""
    if advances is None:
        return rate * old + (1 - rate) * new if rate else new
    return np.where(advances, new, old)


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
    return standardize(x) * params["weight"] + params["bias"]


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
        encoded = encode(config, part(arrays, config.cell), inputs, lengths, h, c, keep)
    else:
        encoded = transform(config, arrays, inputs, lengths, keep)
    B, T, _ = inputs.shape
    predictions, attended = [], []
    for b in range(B):
        outputs = encoded.outputs[b, : T if lengths is None else lengths[b]]
        if config.every_step:
            n, features = len(outputs), outputs
            if keep and "head" in keep:
                features = np.where(keep["head"][b, :n], features / (1 - config.dropout), 0)
            own = features @ arrays["head.weight"].T + arrays["head.bias"]
            predictions.append(np.pad(own, ((0, T - n), (0, 0))))
            continue
        if config.recurrent:
            P = config.state_size
            features = np.concatenate([outputs[-1, :P], outputs[0, P:]])
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
        if keep and "head" in keep:
            features = np.where(keep["head"][b], features / (1 - config.dropout), 0)
        predictions.append(arrays["head.weight"] @ features + arrays["head.bias"])
    return Answer(np.stack(predictions), np.stack(attended) if attended else None)


def forecast(config, arrays, inputs, lengths, h, c, keep, targets) -> Answer:
    """Encode each sequence, then forecast step by step; arguments as of `predict`."""
    encoded = encode(config, part(arrays, config.cell), inputs, lengths, h, c, keep)
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
            state = advance(config, part(arrays, "decoder"), x, *state, state[0])
            features = np.concatenate([context, state[0]])
            if "head" in keep:
                features = np.where(keep["head"][b, k], features / (1 - config.dropout), 0)
            value = arrays["head.weight"] @ features + arrays["head.bias"]
            predictions.append(value)
            attended.append(np.pad(weights, (0, T - len(outputs))))
            if "teacher" in keep and keep["teacher"][b, k]:
                value = targets[b].reshape(K, -1)[k]
    return Answer(np.reshape(predictions, (B, -1)), np.reshape(attended, (B, K, T)))
