"""The models once more, in plain NumPy: the third opinion that both backends are held to.

One sequence at a time, each run over its own length, so there are neither masks nor padding to get
wrong. Any dtype works: longdouble for the exact answer, complex for derivatives (a step of 1e-200
along the imaginary axis gives them without rounding; Squire & Trapp, 1998).

Dimensions: B batch, T time, n steps of one sequence, D input features, H hidden units, L layers x
directions, F features of an encoder output, O outputs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy import tanh

from spec.config import ModelConfig
from spec.params import split_layers


class Encoded(NamedTuple):
    """Outputs [B, T, F], 0 past each end; last hidden and cell state [L, B, H] (of lstm only)."""

    outputs: np.ndarray
    h: np.ndarray
    c: np.ndarray | None


class Answer(NamedTuple):
    """Predictions [B, O]; attention weights [B, T], 0 past each end, of models that have them."""

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


def additive_attention(
    params: Mapping[str, np.ndarray], query: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Attend with one query [F] over the keys of one sequence [n, F]: (context [F], weights [n])."""
    scores = np.array(
        [params["v_a"] @ tanh(params["W_a"] @ query + params["U_a"] @ key) for key in keys]
    )
    weights = np.exp(scores - scores.real.max())
    weights = weights / weights.sum()
    return weights @ keys, weights


def predict(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    lengths: np.ndarray | None = None,
    h: np.ndarray | None = None,
    c: np.ndarray | None = None,
    keep: Mapping[str, np.ndarray] | None = None,
) -> Answer:
    """Run a whole model; `keep` as in `spec.batch.keep_masks`."""

    def part(name: str) -> dict[str, np.ndarray]:
        return {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith(f"{name}.")}

    masks = [keep[f"layer{n}"] for n in range(config.num_layers - 1)] if keep else None
    encoded = encode(config, part(config.cell), inputs, lengths, h, c, masks)
    B, T, _ = inputs.shape
    predictions, attention = [], []
    for b in range(B):
        n = T if lengths is None else lengths[b]
        features = encoded.h[-config.directions :, b].reshape(-1)
        if config.attends:
            context, weights = additive_attention(
                part("attention"), features, encoded.outputs[b, :n]
            )
            attention.append(np.pad(weights, (0, T - n)))
            features = np.concatenate([context, features])
        if keep:
            features = np.where(keep["head"][b], features / (1 - config.dropout), 0)
        predictions.append(arrays["head.weight"] @ features + arrays["head.bias"])
    return Answer(np.stack(predictions), np.stack(attention) if attention else None)


def mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the mean of (prediction - target)**2 over [B, O]."""
    return ((predictions - targets) ** 2).mean()


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the mean of -log softmax(logits)[target] over [B, C] and class indices [B]."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        shifted = row - row.real.max()
        losses.append(np.log(np.exp(shifted).sum()) - shifted[target])
    return np.mean(losses)
