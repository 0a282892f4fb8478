"""NumPy <-> torch: dtype, device and threads in one place."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np
import torch
from torch import Tensor, nn

from spec.config import Execution
from spec.errors import ConfigError
from spec.params import ParamSpec, draw


def prepare(execution: Execution) -> None:
    """Set what holds for the whole process: CPU threads, and a device that exists.

    Raises:
      ConfigError: the device is unknown or absent.
    """
    # Its own kernel runs in float32, too, but torch says so on stderr.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    try:
        torch.empty(0, device=device(execution))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {execution.device!r}: torch cannot use it ({reason})"
        ) from None
    if execution.device != "cpu":  # float32 and not TF32, which has 10 bits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def device(execution: Execution) -> torch.device:
    """Return the device; "gpu" and "cuda" name the same."""
    return torch.device(execution.device.replace("gpu", "cuda"))


def from_numpy(array: np.ndarray, execution: Execution) -> Tensor:
    """Put an array on the device: floats in the dtype of weights, the rest as it is.

    The result never shares memory with the array.
    """
    dtype = getattr(torch, execution.master_dtype) if array.dtype.kind == "f" else None
    return torch.tensor(array, dtype=dtype, device=device(execution))


def rounded(tensor: Tensor, execution: Execution) -> Tensor:
    """Round to the dtype that the model computes in; the gradient comes back in the array's."""
    return tensor.to(getattr(torch, execution.dtype))


def widened(tensor: Tensor, execution: Execution) -> Tensor:
    """Turn what the model computed into the dtype of weights and loss."""
    return tensor.to(getattr(torch, execution.master_dtype))


def in_float32(function: Callable) -> Callable:
    """Turn a function of arrays into one that computes in float32 what comes in a narrower float.

    The result is rounded once, to the dtype of the first array.
    """

    def wide(x):
        return x.float() if getattr(x, "dtype", None) in (torch.bfloat16, torch.float16) else x

    @wraps(function)
    def run(x, *others, **options):
        return function(wide(x), *map(wide, others), **options).to(x.dtype)

    return run


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy an array to NumPy, keeping its dtype."""
    return tensor.detach().cpu().numpy().copy()


def add_parameters(module: nn.Module, schema: Mapping[str, ParamSpec]) -> None:
    """Give a module the parameters of a schema, from torch's random numbers; none on device meta."""
    if torch.get_default_device().type == "meta":  # where they are to be replaced
        values = {name: torch.empty(spec.shape) for name, spec in schema.items()}
    else:
        seed = torch.randint(2**62, ()).item()
        dtype = torch.get_default_dtype()
        values = {n: torch.tensor(draw(spec, seed, n), dtype=dtype) for n, spec in schema.items()}
    for name, tensor in values.items():
        module.register_parameter(name, nn.Parameter(tensor))
