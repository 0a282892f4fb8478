"""What decides a run, a prediction, an export; each field is a flag, of a run a key of config.yaml."""

import os
from dataclasses import dataclass, fields
from typing import Literal

from data.config import DataConfig
from spec.config import (
    ONLY_LSTM,
    TASK_OF,
    Architecture,
    Execution,
    Objective,
    Recurrence,
    UpdateRule,
)
from spec.errors import ConfigError
from spec.options import expectation, option, validate


@dataclass(frozen=True, kw_only=True)
class Recipe(UpdateRule, Objective, Architecture, DataConfig):
    """What is learned from what: the options that a run and a study of both backends share."""

    def __post_init__(self) -> None:
        for group in (Architecture, Objective, DataConfig):
            group.__post_init__(self)
        if self.task == "auto" and self.loss != "auto":
            object.__setattr__(self, "task", TASK_OF[self.loss])
        if self.task != "auto":
            self.check_task(self.task)
        if self.every_step:
            self.check_every_step()
        if self.decodes and self.forecast != "path":
            raise ConfigError(
                f"--model {self.model}: forecasts a series step by step; needs --windows W "
                "--horizon K --forecast path"
            )
        if self.decodes and self.outputs_per_target != 1:
            raise ConfigError(
                f"--loss {self.loss}: --model {self.model} reads its own forecasts, one number a "
                "target; use squared_error"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Execution, Recipe):
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
        Recipe.__post_init__(self)
        Execution.__post_init__(self)
        for flag in ["--remat"] * self.remat + [f"--unroll {self.unroll}"] * (self.unroll > 1):
            if not self.recurrent:
                raise ConfigError(f"{flag}: is for recurrent layers, not --model {self.model}")
        if self.cudnn and self.cell != "lstm":
            raise ConfigError(f"--cudnn: is for an lstm, not --model {self.model}")
        for name in (*ONLY_LSTM, "recurrent_dropout", "zoneout") if self.cudnn else ():
            if name != "forget_bias" and getattr(self, name) != getattr(Recurrence, name):
                raise ConfigError(f"--cudnn: its kernel knows no --{name}; leave one of them out")


# What a run is built on: to change one of these is to begin another run.
FIXED = (
    {f.name for group in (Architecture, Objective, DataConfig) for f in fields(group)}
    - {"data_path", "test_path"}
) | {"seed", "batch_size", "dtype", "optimizer"}


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction"""

    checkpoint: str | None = option(None, "run directory (its best checkpoint), or a checkpoint")
    data_path: str | None = option(None, "file to predict, in the form of the training data")
    backend: Literal["torch", "jax"] | None = option(None, "framework; none: the one that trained")
    out: str = option("predictions.csv", "CSV to write; it must not exist yet")
    attention: str | None = option(None, "CSV for the attention weights, a row each sequence")
    device: str = option("cpu", "cpu, or cuda / gpu with an index after a colon: cuda:1")
    threads: int | None = option(
        None,
        "CPU threads of the framework",
        "a whole number from 1 to 1024",
        lambda n: 1 <= n <= 1024,
    )

    def __post_init__(self) -> None:
        validate(self)
        for name in ("checkpoint", "data_path"):
            if getattr(self, name) is None:
                raise ConfigError(f"--{name}: is required")
        if self.attention and os.path.realpath(self.attention) == os.path.realpath(self.out):
            raise ConfigError(f"--attention {self.attention}: is --out as well; name two files")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export"""

    checkpoint: str = option(
        None,
        "run directory (its best checkpoint), or a checkpoint",
        "a run directory or checkpoint",
    )
    format: Literal["onnx", "torchscript", "torch_export", "stablehlo", "safetensors"] = option(
        None, "of the file; safetensors: a folder"
    )
    out: str = option(None, "file or folder to write; it must not exist yet", "a new path")
    backend: Literal["torch", "jax"] | None = option(
        None, "framework to check the answers against; none: the one that trained"
    )

    def __post_init__(self) -> None:
        for item in fields(self)[:3]:
            if getattr(self, item.name) is None:
                raise ConfigError(f"--{item.name}: is required: {expectation(type(self), item)}")
        validate(self)
