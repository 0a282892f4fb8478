"""What a backend offers, whichever framework it is written in.

Dimensions: B batch, T time, O outputs (targets or class logits).
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.errors import ConfigError


class StepResult(NamedTuple):
    """Loss of a step's batch and the global norm of its gradient, before clipping."""

    loss: float
    gradient_norm: float


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
        means as `optimizer.m.<name>` and `optimizer.v.<name>`; without them they are 0.
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
