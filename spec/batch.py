"""What a step of training reads.

Dimensions: B batch, T time, D input features, O regression targets, F features of an encoder
output, G features that the head reads.
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
      keep: dropout masks by name, True = keep; empty when nothing is dropped.
    """

    inputs: np.ndarray
    lengths: np.ndarray | None = None
    targets: np.ndarray | None = None
    keep: Mapping[str, np.ndarray] = field(default_factory=dict)


def keep_masks(
    config: ModelConfig, seed: int, step: int, rows: int, time: int
) -> dict[str, np.ndarray]:
    """Draw the dropout masks of one training step, the same for either backend.

    Returns:
      "layer0" .. [B, T, F] after each recurrent layer but the last, and "head" [B, G]; nothing
      when the model drops nothing.
    """
    if config.dropout == 0:
        return {}
    layer = (rows, time, config.encoded_size)
    shapes = {f"layer{n}": layer for n in range(config.num_layers - 1)}
    shapes["head"] = (rows, config.head_size)
    return {
        name: keep_mask(shape, config.dropout, seed, "dropout", step, name)
        for name, shape in shapes.items()
    }
