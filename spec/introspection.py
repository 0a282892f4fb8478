"""Names for what a forward pass computes, and readings of its gradients.

    inputs                                        [B, T, D]  readings, scaled
    rnn.l0.h                                      [B, T, H]  hidden state
    gru.l0.r .z .n .h                             [B, T, H]  reset, update, candidate, state
    lstm.l0.i .f .g .o .h .c                      [B, T, H]  input, forget, candidate, output, states
                                                  (h of a projection: its size; of zoneout: h and c
                                                  before it holds part of the old)
    transformer.embedded                          [B, T, H]  readings embedded, and their places
    transformer.l0.scores .weights                [B, N, T, T]  of each head, by query and key
    transformer.l0.residual                       [B, T, H]  what the layer returns
    transformer.encoded                           [B, T, H]  what is pooled
    self_attention.scores .weights                [B, N, T, T]  of recurrent layers' outputs
    attention.scores .weights                     [B, T]     before and after the softmax
    attention.context                             [B, F]     what was attended to
    decoder.h, .r .z .n .h, .i .f .g .o .h .c     [B, K, F]  of a forecast step by step: as above
    head.features                                 [B, G]     what the head reads
    predictions                                   [B, O]     scaled targets, or class logits

Of a model that predicts at every step the last two are those of the last real step.
With a decoder .scores and .weights are [B, K, T], .context [B, K, F] and head.features [B, K, G].

Layers are l0, l1 .., their second direction l0_reverse .., as in the parameters' names. A gate is
what its nonlinearity returns: 0 shut, 1 open. Step t is that of the sequence in either direction.
Past a sequence's end every array is 0. `d <name>` is a prediction's derivative by an array.

Dimensions: B batch, T time, D input features, H hidden units, F features of an encoder output,
G features that the head reads, N heads, O outputs, K steps of a forecast step by step.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spec.batch import Batch, layer_ends
from spec.config import ModelConfig

# What one step of each cell computes, its states last.
STEPS = {
    "rnn": namedtuple("RNNStep", "h"),
    "gru": namedtuple("GRUStep", "r z n h"),
    "lstm": namedtuple("LSTMStep", "i f g o h c"),
}
Attending = namedtuple("Attending", "scores weights context")
STATES = ("h", "c", "residual")
DECODED = ("attention.", "decoder.", "head.", "predictions")  # what each step of a decoder shows
NODES, PARTS, TOLERANCE = 16, 64, 1e-4  # of `integrate`; relative to the predictions' sizes


def layer_names(config: ModelConfig) -> list[str]:
    """List the layers and directions in the order they run: lstm.l0, lstm.l0_reverse .."""
    return [f"{config.cell}.{end}" for end in layer_ends(config)]


def array_shapes(config: ModelConfig, rows: int, steps: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each named array for a batch of so many sequences and time steps."""
    shapes: dict[str, tuple[int, ...]] = {"inputs": (rows, steps, config.input_size)}
    hidden, between = (rows, steps, config.hidden_size), (rows, config.num_heads, steps, steps)
    own = {"scores": between, "weights": between, "residual": hidden}
    if config.recurrent:
        own = dict.fromkeys(STEPS[config.cell]._fields, hidden)
        own["h"] = (rows, steps, config.state_size)
    else:
        shapes["transformer.embedded"] = hidden
    for layer in layer_names(config):
        shapes |= {f"{layer}.{name}": shape for name, shape in own.items()}
    if not config.recurrent:
        shapes["transformer.encoded"] = hidden
    if config.self_attention:
        shapes |= {f"self_attention.{name}": between for name in ("scores", "weights")}
    each = (rows, config.forecast_steps) if config.decodes else (rows,)
    if config.attends:
        sizes = Attending(steps, steps, config.encoded_size)._asdict()
        shapes |= {f"attention.{name}": (*each, size) for name, size in sizes.items()}
    if config.decodes:
        own = dict.fromkeys(STEPS[config.cell]._fields, (*each, config.encoded_size))
        shapes |= {f"decoder.{name}": shape for name, shape in own.items()}
    shapes["head.features"] = (*each, config.head_size)
    shapes["predictions"] = (rows, config.output_size)
    return shapes


def which_output(config: ModelConfig, output: int | np.ndarray, rows: int) -> np.ndarray:
    """Return the output to differentiate in each row, int64 [B].

    Raises:
      ValueError: the model has no such output, or there is not one for each row.
    """
    output = np.asarray(output)
    if output.dtype.kind not in "iu" or output.shape not in ((), (rows,)):
        raise ValueError(
            f"output: expected a whole number, or one for each of {rows} rows, found {output}"
        )
    if not ((output >= 0) & (output < config.output_size)).all():
        raise ValueError(f"output: the model has outputs 0 to {config.output_size - 1}: {output}")
    return np.broadcast_to(output, rows).astype(np.int64)


def saliency(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return |d prediction / d input| [B, T, D] from what `introspect` found with gradients.

    Source: Simonyan, Vedaldi & Zisserman (2014), "Deep Inside Convolutional Networks".
    """
    return np.abs(arrays["d inputs"])


def gradient_norms(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ||d prediction / d state_t|| [B, T] of each layer's states, by their names.

    A decoder's are [B, K]. What falls towards 0 away from the prediction vanishes, what grows
    explodes; 0 past each end.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training RNNs".
    """
    return {
        name.removeprefix("d "): np.linalg.norm(array, axis=-1)
        for name, array in arrays.items()
        if name.startswith("d ") and name.rpartition(".")[2] in STATES
    }


class Attribution(NamedTuple):
    """Shares of the inputs [B, T, D], 0 past each end; the prediction and the baseline's [B]."""

    shares: np.ndarray
    prediction: np.ndarray
    baseline: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """What the shares miss of prediction - baseline [B]: the quadrature's error."""
        return self.prediction - self.baseline - self.shares.sum(axis=(1, 2))


def integrate(explained: Callable[[Batch], tuple[np.ndarray, np.ndarray]], batch: Batch):
    """Share out among the inputs what sets a prediction apart from that of the baseline.

        shares = inputs * integral from 0 to 1 of (d prediction / d input at a * inputs) da

    The baseline is 0: each feature at its training mean. Over any part of the way the shares have
    to add up to what the prediction changes there; the part that misses most is halved until all
    of it adds up to `TOLERANCE`, or there are `PARTS`.

    Args:
      explained: prediction [B] and d prediction / d input [B, T, D] of a batch.
      batch: the sequences; what stands past an end is ignored, NaN included.

    Source: Sundararajan, Taly & Yan (2017), "Axiomatic Attribution for Deep Networks"; Gauss-
    Legendre nodes, divided as in QAG of QUADPACK (Piessens et al., 1983).
    """
    inputs = batch.inputs
    if batch.lengths is not None:
        valid = np.arange(inputs.shape[1]) < batch.lengths[:, None]
        inputs = np.where(valid[..., None], inputs, 0)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)

    def at(a: float) -> tuple[np.ndarray, np.ndarray]:
        return explained(replace(batch, inputs=inputs * float(a)))

    def part(a: float, b: float, before: np.ndarray, after: np.ndarray):
        where = (a + b) / 2 + (b - a) / 2 * nodes
        gradients = [float(w) * at(x)[1] for x, w in zip(where, weights, strict=True)]
        shares = inputs * sum(gradients) * ((b - a) / 2)
        return np.abs(after - before - shares.sum(axis=(1, 2))), shares, (a, b, before, after)

    baseline, prediction = at(0)[0], at(1)[0]
    allowed = TOLERANCE * (np.abs(baseline) + np.abs(prediction))
    parts = [part(0, 1, baseline, prediction)]
    while (sum(p[0] for p in parts) > allowed).any() and len(parts) < PARTS:
        worst = max(range(len(parts)), key=lambda n: (parts[n][0] - allowed).max())
        a, b, before, after = parts.pop(worst)[2]
        middle = (a + b) / 2
        halfway = at(middle)[0]
        parts += [part(a, middle, before, halfway), part(middle, b, halfway, after)]
    return Attribution(sum(p[1] for p in parts), prediction, baseline)
