"""What a backend offers, whichever framework it is written in.

Dimensions: B batch, T time, O outputs (targets or class logits).
"""

import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.errors import ConfigError
from spec.precision import LEAST_SCALE


class StepResult(NamedTuple):
    """Loss of a step's batch, the global norm of its gradient before clipping, and of float16 the
    loss scale after the step, which is skipped where the norm is not finite."""

    loss: float
    gradient_norm: float
    loss_scale: float | None = None

    @property
    def taken(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def diverged(self) -> bool:
        """Whether training cannot go on: no smaller loss scale makes this step finite."""
        skipped = math.isfinite(self.loss) and (self.loss_scale or 0.0) >= LEAST_SCALE
        return not (self.taken or skipped)

    def __str__(self) -> str:
        scale = "" if self.loss_scale is None else f", loss scale {self.loss_scale:.4g}"
        return f"loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g}{scale}"


class Prediction(NamedTuple):
    """Outputs [B, O], scaled as the targets are; attention weights [B, T] of models that have them,
    of a decoder [B, K, T] with K steps of a forecast."""

    outputs: np.ndarray
    attention: np.ndarray | None


class Backend(Protocol):
    """The functions that `torch_impl` and `jax_impl` export; a state is opaque to their caller."""

    @staticmethod
    def init_state(
        model: ModelConfig,
        optimizer: OptimizerConfig,
        execution: Execution,
        arrays: Mapping[str, np.ndarray],
        step: int = 0,
    ) -> Any:
        """Build a model from named arrays, and an optimiser that has taken `step` steps.

        `arrays` holds every parameter by name and, to continue a run, the optimiser's running
        means as `optimizer.m.<name>` and `optimizer.v.<name>`; without them they are 0. Of float16
        `optimizer.loss_scale` says how many of the steps were skipped; see `spec.precision`.
        """

    @staticmethod
    def train_step(state: Any, batch: Batch) -> tuple[Any, StepResult]:
        """Take one step; the old state is used up."""

    @staticmethod
    def predict(state: Any, batch: Batch) -> Prediction:
        """Run the model without dropout."""

    @staticmethod
    def export_arrays(state: Any) -> dict[str, np.ndarray]:
        """Copy out what `init_state` takes in."""


def load_backend(name: str) -> Backend:
    """Import a backend by name, "torch" or "jax".

    Raises:
      ConfigError: its framework is not installed.
    """
    try:
        return importlib.import_module(f"{name}_impl")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "jax", "jaxlib", "flax", "optax"):
            raise
        raise ConfigError(
            f"--backend {name}: {error.name} is not installed; "
            f"run: pip install -c constraints/py311.txt -e '.[{name}]'"
        ) from None
