"""NumPy <-> JAX: dtype, device and threads in one place."""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import orthogonal
from jax.tree_util import tree_leaves_with_path

from spec.config import Execution
from spec.errors import ConfigError
from spec.params import ParamSpec


def prepare(execution: Execution) -> None:
    """Set what holds for the whole process: CPU threads, and a device that exists.

    Raises:
      ConfigError: the device is unknown or absent.
    """
    if execution.threads is not None:
        os.environ["NPROC"] = str(execution.threads)  # XLA reads it when it starts.
    if execution.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    try:
        device(execution)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {execution.device!r}: JAX cannot use it ({reason})") from None
    if execution.device != "cpu":  # float32 and not TF32, which has 10 bits
        jax.config.update("jax_default_matmul_precision", "highest")


def device(execution: Execution) -> jax.Device:
    """Return the device; "gpu" and "cuda" name the same."""
    platform, _, index = execution.device.partition(":")
    return jax.devices(platform)[int(index or 0)]


def from_numpy(array: np.ndarray, execution: Execution) -> Array:
    """Put an array on the device: floats in the dtype of weights, the rest as it is.

    The result never shares memory with the array.
    """
    dtype = execution.master_dtype if array.dtype.kind == "f" else None
    # The copy is NumPy's: device_put may keep the very memory it is given.
    return jax.device_put(np.array(array, dtype), device(execution))


def rounded(array: Array, execution: Execution) -> Array:
    """Round to the dtype that the model computes in; the gradient comes back in the array's."""
    return array.astype(execution.dtype)


def widened(array: Array, execution: Execution) -> Array:
    """Turn what the model computed into the dtype of weights and loss."""
    return array.astype(execution.master_dtype)


def in_float32(function: Callable) -> Callable:
    """Turn a function of arrays into one that computes in float32 what comes in a narrower float.

    The result is rounded once, to the dtype of the first array.
    """

    def wide(x):
        return (
            x.astype(jnp.float32) if getattr(x, "dtype", None) in (jnp.bfloat16, jnp.float16) else x
        )

    @wraps(function)
    def run(x, *others, **options):
        return function(wide(x), *map(wide, others), **options).astype(x.dtype)

    return run


# As torch's are; JAX's round each operation inside.
sigmoid, softmax, tanh = map(in_float32, (jax.nn.sigmoid, jax.nn.softmax, jax.nn.tanh))


def to_numpy(array: Array) -> np.ndarray:
    """Copy an array to NumPy, keeping its dtype."""
    return np.array(array)


def to_tree(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turn names with dots into nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parts, last = name.split(".")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[last] = leaf
    return tree


def to_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dicts into names with dots."""
    return {".".join(key.key for key in path): leaf for path, leaf in tree_leaves_with_path(tree)}


def draw(rng: Array, spec: ParamSpec, dtype: Any) -> Array:
    """Draw the initial values of one parameter from JAX's random numbers; may be compiled."""
    if spec.orthogonal:
        keys = jax.random.split(rng, spec.orthogonal)
        size = spec.shape[0] // spec.orthogonal, spec.shape[1]
        return jax.vmap(lambda key: orthogonal()(key, size, dtype))(keys).reshape(spec.shape)
    center, bound = (spec.by_row(own).astype(dtype) for own in (spec.center, spec.bound))
    return center + bound * jax.random.uniform(rng, spec.shape, dtype, -1.0, 1.0)
