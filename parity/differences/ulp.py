"""How far the elementary functions of both frameworks are from the truth, in ULP.

An ULP is the distance of neighbouring numbers of the dtype at the true value; a correctly
rounded result is at most 0.5 off. The truth is mpmath's, with 50 digits.

    python -m parity.differences.ulp        measure, and print the table of this machine
"""

import platform
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import torch
from torch.nn import functional


class Function(NamedTuple):
    """The three forms of a function, and the range of its argument."""

    exact: Callable
    in_torch: Callable
    in_jax: Callable
    lowest: float
    largest: float


FUNCTIONS = {
    "tanh": Function(mpmath.tanh, torch.tanh, jnp.tanh, -9.0, 9.0),
    "sigmoid": Function(
        lambda x: 1 / (1 + mpmath.exp(-x)), torch.sigmoid, jax.nn.sigmoid, -20.0, 20.0
    ),
    "exp": Function(mpmath.exp, torch.exp, jnp.exp, -20.0, 20.0),
    "expm1": Function(mpmath.expm1, torch.expm1, jnp.expm1, -10.0, 10.0),
    "log": Function(mpmath.log, torch.log, jnp.log, 0.0, 1e3),
    "log1p": Function(mpmath.log1p, torch.log1p, jnp.log1p, -0.9, 1e3),
    "erf": Function(mpmath.erf, torch.erf, jax.lax.erf, -4.0, 4.0),
    "sqrt": Function(mpmath.sqrt, torch.sqrt, jnp.sqrt, 0.0, 1e3),
    "rsqrt": Function(lambda x: 1 / mpmath.sqrt(x), torch.rsqrt, jax.lax.rsqrt, 0.0, 1e3),
    "sin": Function(mpmath.sin, torch.sin, jnp.sin, -10.0, 10.0),
    "cos": Function(mpmath.cos, torch.cos, jnp.cos, -10.0, 10.0),
    "gelu": Function(
        lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
        functional.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        -4.0,
        4.0,
    ),
    "softplus": Function(
        lambda x: mpmath.log1p(mpmath.exp(x)), functional.softplus, jax.nn.softplus, -19.0, 19.0
    ),
}


@cache
def grid(name: str, dtype: str) -> np.ndarray:
    """Return 400 arguments a sign: half evenly spaced, half in equal ratios from 1e-6."""
    parts = []
    for end in (FUNCTIONS[name].lowest, FUNCTIONS[name].largest):
        if end:
            parts += [
                np.linspace(0, end, 201)[1:],
                np.geomspace(1e-6, abs(end), 200) * np.sign(end),
            ]
    return np.concatenate(parts).astype(dtype)


@cache
def exact(name: str, dtype: str) -> tuple[mpmath.mpf, ...]:
    """Return the true values on the grid."""
    with mpmath.workdps(50):
        return tuple(FUNCTIONS[name].exact(mpmath.mpf(float(x))) for x in grid(name, dtype))


def errors(name: str, dtype: str, values: np.ndarray) -> np.ndarray:
    """Return the error of each value in ULP."""
    with mpmath.workdps(50):
        return np.array(
            [
                float(
                    abs(mpmath.mpf(float(value)) - true)
                    / float(np.spacing(abs(np.dtype(dtype).type(float(true)))))
                )
                for value, true in zip(values, exact(name, dtype), strict=True)
            ]
        )


def most(name: str, dtype: str, side: str) -> float:
    """Return a side's largest error in ULP over the grid; `side` is "torch" or "jax"."""
    x, function = grid(name, dtype), FUNCTIONS[name]
    if side == "torch":
        values = function.in_torch(torch.tensor(x)).numpy()
    else:
        with jax.enable_x64(dtype == "float64"):
            values = np.asarray(function.in_jax(jnp.asarray(x)))
    return errors(name, dtype, values).max()


def main() -> None:
    print(
        f"# {platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    for name in FUNCTIONS:
        row = [
            most(name, dtype, side) for dtype in ("float32", "float64") for side in ("torch", "jax")
        ]
        print(f'    "{name}": ({", ".join(f"{value:.3g}" for value in row)}),', flush=True)


if __name__ == "__main__":
    main()
