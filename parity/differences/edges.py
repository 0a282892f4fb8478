"""Gradients at kinks, ties, empty and padded input, and what lies outside of a range."""

import jax
import jax.numpy as jnp
import torch

from parity.differences.entry import difference
from parity.differences.expect import Raises


@difference
class AbsGradientAtZero:
    """The gradient of |x| at 0: the L1 loss of a perfect prediction.

    JAX takes the sign of the larger half-line; torch, and sign(x), take 0.
    """

    def in_torch():
        x = torch.zeros((), requires_grad=True)
        x.abs().backward()
        return x.grad

    torch_gives = 0.0

    def in_jax():
        return jax.grad(jnp.abs)(0.0)

    jax_gives = 1.0
    instead = "In JAX, multiply by a sign held constant: `x * lax.stop_gradient(jnp.sign(x))`."

    def same():
        x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        x.abs().sum().backward()
        l1 = jax.grad(lambda x: (x * jax.lax.stop_gradient(jnp.sign(x))).sum())
        return x.grad, l1(jnp.array([-2.0, 0.0, 3.0]))

    source = ("torch.abs", "jax#37820")


@difference
class DivisionOfIntegersByZero:
    """Integer division by zero raises in torch and gives a number in JAX."""

    def in_torch():
        return torch.tensor(7) // torch.tensor(0)

    torch_gives = Raises("RuntimeError", "ZeroDivisionError")

    def in_jax():
        return jnp.array(7) // jnp.array(0)

    jax_gives = -2
    instead = "Divide by a divisor that is never 0, and choose the result there yourself."

    def same():
        a, b = torch.tensor([7, 7]), torch.tensor([0, 2])
        x, y = jnp.array([7, 7]), jnp.array([0, 2])
        return (
            torch.where(b != 0, a // torch.where(b != 0, b, 1), 0),
            jnp.where(y != 0, x // jnp.where(y != 0, y, 1), 0),
        )

    source = ("torch.floor_divide", "jax.numpy.floor_divide")
