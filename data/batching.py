"""Parts of a data set, as batches.

Dimensions: n rows of the part, T time, D input features, O regression targets, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spec.batch import Batch
from spec.random import permutation


@dataclass(frozen=True)
class Part:
    """Rows of a file, scaled for the model.

    Attributes:
      inputs: all sequences of the file, scaled [N, T, D].
      lengths: real steps of each [N].
      targets: scaled numbers [N, O] or class indices [N], of every step [N, T, O] or [N, T]; None
        where unknown.
      rows: which sequences belong to the part [n].
      weights: how much each sequence counts [N], or each step [N, T], 0 where it has no target;
        None for alike.
      class_weights: how much each class counts [C]; None for alike.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray | None
    rows: np.ndarray
    weights: np.ndarray | None = None
    class_weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def own_targets(self) -> np.ndarray:
        """Targets of the part's rows."""
        return self.targets[self.rows]

    @property
    def own_weights(self) -> np.ndarray | None:
        """Weights of the part's rows; None for alike."""
        return None if self.weights is None else self.weights[self.rows]

    def batch(self, positions: np.ndarray) -> Batch:
        """Copy out the sequences at these positions of the part."""
        rows = self.rows[positions]
        ragged = self.lengths.min() < self.inputs.shape[1]
        return Batch(
            np.ascontiguousarray(self.inputs[rows]),
            self.lengths[rows] if ragged else None,
            None if self.targets is None else self.targets[rows],
            weights=None if self.weights is None else self.weights[rows],
            class_weights=self.class_weights,
        )


def in_order(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the positions 0 .. count - 1 in batches; the last one may be short."""
    yield from np.split(np.arange(count), range(batch_size, count, batch_size))


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return an epoch's batches of positions; the last one may be short.

    The order depends on the seed and the epoch alone, so a run can be continued anywhere.
    """
    order = permutation(count, seed, "shuffle", epoch)
    return [order[positions] for positions in in_order(count, batch_size)]
