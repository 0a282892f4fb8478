"""What a step of training reads.

Dimensions: B batch, T time, D input features, O regression targets, F features of an encoder
output, G features that the head reads, K steps of a forecast, N heads, H features of a
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
      targets: scaled numbers [B, O], or class indices [B]; None when only predicting.
      keep: masks of training by name, True = keep, as `keep_masks` draws them.
      weights: how much each sequence counts in the loss [B], >= 0 and not all 0; None for alike.
    """

    inputs: np.ndarray
    lengths: np.ndarray | None = None
    targets: np.ndarray | None = None
    keep: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray | None = None


def keep_masks(
    config: ModelConfig, seed: int, step: int, rows: int, time: int
) -> dict[str, np.ndarray]:
    """Draw the masks of one training step, the same for either backend.

    Returns:
      "head" [B, G], and of recurrent models "layer0" .. [B, T, F] after each layer but the last;
      of a transformer "embedding" [B, T, H] and, of each layer n, "layer<n>.weights" [B, N, T, T]
      and what leaves its three matrix products: "layer<n>.attention" [B, T, H], "layer<n>.units"
      [B, T, U] and "layer<n>.feedforward" [B, T, H]. None of these when the model drops nothing.
      Of a decoder "head" is [B, K, G], and "teacher" [B, K], where True keeps the true value of a
      step for the next one, and False replaces it by the forecast; none when all are replaced.

    Source: Williams & Zipser (1989), "A Learning Algorithm", for the true value always; Bengio et
    al. (2015), "Scheduled Sampling", for the coin at every step.
    """
    masks = {}
    if config.decodes and config.teacher_forcing > 0:
        told = (rows, config.forecast_steps)
        masks["teacher"] = keep_mask(told, 1 - config.teacher_forcing, seed, "teacher", step)
    if config.dropout == 0:
        return masks
    layer = (rows, time, config.encoded_size)
    if config.recurrent:
        shapes = {f"layer{n}": layer for n in range(config.num_layers - 1)}
    else:
        shapes = {"embedding": layer}
        for n in range(config.num_layers):
            shapes[f"layer{n}.weights"] = (rows, config.num_heads, time, time)
            shapes[f"layer{n}.attention"] = layer
            shapes[f"layer{n}.units"] = (rows, time, config.units)
            shapes[f"layer{n}.feedforward"] = layer
    path = (config.forecast_steps,) if config.decodes else ()
    shapes["head"] = (rows, *path, config.head_size)
    return masks | {
        name: keep_mask(shape, config.dropout, seed, "dropout", step, name)
        for name, shape in shapes.items()
    }
