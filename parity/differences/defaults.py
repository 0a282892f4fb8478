"""What a layer or function does when nothing is said: its initial weights, axes and constants."""

import jax.numpy as jnp
import torch

from parity.differences.entry import difference


@difference
class MedianOfAnEvenNumber:
    """The median of an even number of values.

    torch takes the lower of the two middle values, JAX their mean.
    """

    def in_torch():
        return torch.tensor([1.0, 2.0, 3.0, 4.0]).median()

    torch_gives = 2.0

    def in_jax():
        return jnp.median(jnp.array([1.0, 2.0, 3.0, 4.0]))

    jax_gives = 2.5
    instead = "`torch.quantile(x, 0.5)`."

    def same():
        x = [1.0, 2.0, 3.0, 4.0]
        return torch.tensor(x).quantile(0.5), jnp.median(jnp.array(x))

    source = ("torch.median", "jax.numpy.median")
