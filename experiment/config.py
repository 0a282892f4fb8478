"""Everything that decides a run; each field is a flag of train.py and a key of config.yaml."""

from dataclasses import dataclass, fields
from typing import Literal

from data.config import DataConfig
from spec.config import Architecture, Execution, UpdateRule
from spec.options import option, validate


@dataclass(frozen=True, kw_only=True)
class RunConfig(Execution, UpdateRule, Architecture, DataConfig):
    """Training"""

    backend: Literal["torch", "jax"] = option("torch", "framework to train in")
    epochs: int = option(
        100, "passes over the training rows, in total", "a whole number >= 1", lambda n: n >= 1
    )
    batch_size: int = option(32, "sequences of a step", "a whole number >= 1", lambda n: n >= 1)
    patience: int | None = option(
        None,
        "stop after so many epochs without a better validation loss",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    seed: int = option(
        0, "of weights, split, order and dropout", "a whole number >= 0", lambda n: n >= 0
    )
    init: str | None = option(None, "checkpoint to take the first weights from")

    def __post_init__(self) -> None:
        validate(self)
        DataConfig.__post_init__(self)


# What a run is built on: to change one of these is to begin another run.
FIXED = (
    {f.name for group in (Architecture, DataConfig) for f in fields(group)}
    - {"data_path", "test_path"}
) | {"seed", "batch_size", "dtype", "optimizer"}
