"""What a step of training reads.

Dimensions: B batch, T time, D input features, O regression targets, C classes, F features of an
encoder output, G features that the head reads, K steps of a forecast, N heads, H features of a
transformer, U units of its feed-forward network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from spec.config import ModelConfig
from spec.random import keep_mask


@dataclass(frozen=True)
class Batch:
    """Sequences as NumPy arrays.

    Attributes:
      inputs: scaled readings [B, T, D]; what stands past a sequence's end is never used.
      lengths: real steps of each sequence [B], 1 <= length <= T; None when all have T.
      targets: scaled numbers [B, O], or class indices [B]; of every step [B, T, O] or [B, T];
        None when only predicting.
      keep: masks of training by name, True = keep, as `keep_masks` draws them.
      weights: how much each sequence counts in the loss [B], of every step how much that does
        [B, T], >= 0 and not all 0; None for alike.
      class_weights: how much each class counts in the loss [C], > 0; None for alike.
    """

    inputs: np.ndarray
    lengths: np.ndarray | None = None
    targets: np.ndarray | None = None
    keep: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray | None = None
    class_weights: np.ndarray | None = None


def layer_ends(config: ModelConfig) -> list[str]:
    """List recurrent layers and directions in the order they run: l0, l0_reverse, l1 .."""
    ends = ("", "_reverse")[: config.directions]
    return [f"l{n}{end}" for n in range(config.num_layers) for end in ends]


def keep_masks(
    config: ModelConfig, seed: int, step: int, rows: int, time: int
) -> dict[str, np.ndarray]:
    """Draw the masks of one training step, the same for either backend.

    Returns:
      "head" [B, G], and of recurrent models "layer0" .. [B, T, F] after each layer but the last;
      "input" [B, T, D] of input dropout; of each layer and direction, l0, l0_reverse ..,
      "recurrent_l0" [B, H] of recurrent dropout and "zoneout_h_l0", of an LSTM "zoneout_c_l0"
      too, [B, T, H], True where a unit advances;
      of a transformer "embedding" [B, T, H] and, of each layer n, "layer<n>.weights" [B, N, T, T]
      and what leaves its three matrix products: "layer<n>.attention" [B, T, H], "layer<n>.units"
      [B, T, U] and "layer<n>.feedforward" [B, T, H]. None of these when the model drops nothing.
      Of predictions at every step "head" is [B, T, G]; of a decoder [B, K, G], and "teacher" [B, K], where True keeps the true value of a
      step for the next one, and False replaces it by the forecast; none when all are replaced.

    Source: Williams & Zipser (1989), "A Learning Algorithm", for the true value always; Bengio et
    al. (2015), "Scheduled Sampling", for the coin at every step.
    """
    masks = {}
    if config.decodes and config.teacher_forcing > 0:
        told = (rows, config.forecast_steps)
        masks["teacher"] = keep_mask(told, 1 - config.teacher_forcing, seed, "teacher", step)
    layer = (rows, time, config.encoded_size)
    shapes = {}
    if config.recurrent:
        shapes = {f"layer{n}": layer for n in range(config.num_layers - 1)}
    else:
        shapes["embedding"] = layer
        for n in range(config.num_layers):
            shapes[f"layer{n}.weights"] = (rows, config.num_heads, time, time)
            shapes[f"layer{n}.attention"] = layer
            shapes[f"layer{n}.units"] = (rows, time, config.units)
            shapes[f"layer{n}.feedforward"] = layer
    path = (config.forecast_steps,) if config.decodes else (time,) * config.every_step
    shapes["head"] = (rows, *path, config.head_size)
    kinds = [(config.dropout, shapes)]
    if config.recurrent:
        ends = layer_ends(config)
        state = (rows, time, config.state_size)
        zoneout = {f"zoneout_h_{end}": state for end in ends}
        if config.cell == "lstm":
            zoneout |= {f"zoneout_c_{end}": (rows, time, config.hidden_size) for end in ends}
        kinds += [
            (config.input_dropout, {"input": (rows, time, config.input_size)}),
            (config.recurrent_dropout, {f"recurrent_{e}": (rows, config.state_size) for e in ends}),
            (config.zoneout, zoneout),
        ]
    return masks | {
        name: keep_mask(shape, rate, seed, "dropout", step, name)
        for rate, shapes in kinds
        for name, shape in shapes.items()
        if rate
    }
