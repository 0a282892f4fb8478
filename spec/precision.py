"""Computing in a narrower float than the weights are kept in: bfloat16 and float16.

The rule, which both backends follow: weights, optimiser, data, loss and metrics are float32. The
model computes in the low dtype: parameters, inputs and the values that a decoder is told are
rounded to it at the model's door, and every operation rounds its result once: matrix products and
sums, sigmoid, tanh, GELU, softmax, the shift and scale of a norm, dropout and zoneout are float32
inside. The gates and the cell state of an LSTM stay float32: what many steps add would be lost, and
a forget gate of 0.9975 is 0.996 in bfloat16. What leaves the model is float32 again, and so is each
gradient once it passes the door. The gradients of float16, whose least number is 2**-24, are kept
off 0 by a `LossScale`.

Source: Micikevicius et al. (2018), "Mixed Precision Training".
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from spec.errors import CheckpointError

# Half the distance from 1 to the next number: the largest relative error of one rounding.
UNIT_ROUNDOFF = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
}
GROWTH_INTERVAL = 2000  # steps in a row
LEAST_SCALE = 2.0**-13
SCALE_NAME = "optimizer.loss_scale"  # in a checkpoint


class LossScale(NamedTuple):
    """What float16 multiplies the loss by on the way back; gradients are divided by it in float32.

    A step whose gradient is not finite is skipped: weights, running means and the optimiser's count
    of steps stay, and the scale is halved. After 2000 good steps in a row it is doubled. Below
    2**-13 it was not the scale, and training has diverged.

    Attributes:
      scale: a power of 2, so that neither product nor quotient rounds.
      good: steps in a row since the scale last changed.
      skipped: steps of the run that were skipped.

    Source: torch.amp.GradScaler for the rule, but for the first scale, 2**16 there, at which a
    gradient of 1 overflows; fairseq's --min-loss-scale, 1e-4, for the least.
    """

    scale: float = 2.0**15
    good: int = 0
    skipped: int = 0

    def after(self, finite: bool) -> "LossScale":
        """Return the scale after a step whose gradient was finite, or was not."""
        if not finite:
            return LossScale(self.scale / 2, 0, self.skipped + 1)
        if self.good + 1 < GROWTH_INTERVAL:
            return self._replace(good=self.good + 1)
        # Beyond 2**127 float32 has no power of 2; only gradients of 0 let it grow so far.
        return LossScale(min(self.scale * 2, 2.0**127), 0, self.skipped)

    @property
    def array(self) -> np.ndarray:
        """The three numbers as a checkpoint holds them, exact below 2**24 skipped steps."""
        return np.array(self, np.float32)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "LossScale":
        """Read what `array` wrote among the arrays of a run; a new run's where there is none.

        Raises:
          CheckpointError: it is no such scale.
        """
        if SCALE_NAME not in arrays:
            return cls()
        if arrays[SCALE_NAME].shape != (3,):
            raise CheckpointError(
                f"{SCALE_NAME} has shape {list(arrays[SCALE_NAME].shape)}, not [3]"
            )
        scale, *counts = arrays[SCALE_NAME].tolist()
        if not 0 < scale < math.inf or math.frexp(scale)[0] != 0.5:
            raise CheckpointError(f"{SCALE_NAME} is {scale!r:.40}, no power of 2")
        if not all(n >= 0 and n == int(n) for n in counts):
            raise CheckpointError(f"{SCALE_NAME} counts {counts!s:.60} steps")
        return cls(scale, *map(int, counts))
