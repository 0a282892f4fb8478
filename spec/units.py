"""What stands between the numbers of the data and those of the model."""

from typing import Protocol

import numpy as np

# The least standard deviation that a model can predict, in those of the target: what keeps the
# Gaussian likelihood and its gradients finite in float32 where targets are met exactly.
LEAST_STD = 1e-3


class Units(Protocol):
    """Means and standard deviations, float64: of inputs [D] and of regression targets [O].

    A model reads (reading - input_mean) / input_std, and 0 where a reading is missing; a target is
    its output * target_std + target_mean.
    """

    input_mean: np.ndarray
    input_std: np.ndarray
    target_mean: np.ndarray
    target_std: np.ndarray
