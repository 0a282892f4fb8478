"""Run a function in either framework or in NumPy, pull cotangents back, compare array by array."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import torch

Arrays = Mapping[str, np.ndarray]

# Normwise, float64. Rounding reaches 2e-13 over the whole table; a wrong formula starts at 1e-7.
BOUND = 1e-12


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ||found - expected|| / ||expected||; 0 where both are 0, inf where only one is."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"shapes {found.shape} and {expected.shape}"
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), "NaN patterns differ")
    kept = ~np.isnan(expected)
    wide = np.result_type(found, expected, np.float64)
    difference = np.linalg.norm((found[kept].astype(wide) - expected[kept]).astype(np.float64))
    size = np.linalg.norm(expected[kept].astype(np.float64))
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return float(difference / size)


def assert_same(found: Arrays, expected: Arrays, bound: float = BOUND) -> None:
    """Compare two sets of named arrays; the message lists every array that is off."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    off = {name: f"{error:.1e}" for name, error in errors.items() if not error <= bound}
    assert not off, f"relative errors above {bound:.0e}: {off}"


def in_torch(
    function: Callable, leaves: Arrays, cotangents: Arrays, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Run a torch function of named tensors; return its outputs, and the gradient of each leaf."""

    def put(array):
        return torch.tensor(array, dtype=getattr(torch, dtype))

    tensors = {name: put(array).requires_grad_() for name, array in leaves.items()}
    outputs = function(tensors)
    assert set(outputs) == set(cotangents)
    torch.autograd.backward(list(outputs.values()), [put(cotangents[name]) for name in outputs])
    results = {name: tensor.detach().numpy() for name, tensor in outputs.items()}
    return results | {f"d {name}": tensor.grad.numpy() for name, tensor in tensors.items()}


def in_jax(
    function: Callable, leaves: Arrays, cotangents: Arrays, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Run a JAX function of named arrays under jit; return its outputs, and each gradient."""

    @jax.jit
    def forward_and_back(leaves, cotangents):
        outputs, pullback = jax.vjp(function, leaves)
        return outputs, pullback(cotangents)[0]

    cast = [{n: a.astype(dtype) for n, a in arrays.items()} for arrays in (leaves, cotangents)]
    outputs, gradients = forward_and_back(*cast)
    results = {name: np.asarray(array) for name, array in outputs.items()}
    return results | {f"d {name}": np.asarray(array) for name, array in gradients.items()}


def in_numpy(function: Callable, leaves: Arrays, cotangents: Arrays) -> dict[str, np.ndarray]:
    """Run a NumPy function of named arrays; return its outputs, and each gradient.

    A gradient is taken element by element: the function at x + i 1e-200 has the derivative as its
    imaginary part / 1e-200, without rounding from a difference.
    """
    step = 1e-200
    results = dict(function(leaves))
    for name, array in leaves.items():
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            moved = array.astype(complex)
            moved[index] += 1j * step
            outputs = function({**leaves, name: moved})
            gradient[index] = sum(
                np.nansum(cotangents[n] * outputs[n].imag / step) for n in outputs
            )
        results[f"d {name}"] = gradient
    return results
