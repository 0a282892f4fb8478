"""One file that holds a run: weights, optimiser, progress, scaling, labels, configuration.

The format is safetensors, which any framework reads; a SHA-256 over the whole file, which
safetensors lacks, stands in its metadata. Equal states give equal bytes.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from data.dataset import Meaning
from data.scaling import Scaling
from data.sequences import Layout
from experiment import atomic
from experiment.config import RunConfig
from spec.config import ModelConfig
from spec.errors import CheckpointError
from spec.options import subset
from spec.params import ParamSpec, parameter_schema, select_arrays
from spec.precision import SCALE_NAME, LossScale
from spec.tensors import decode, encode

FORMAT = 1
MAX_HEADER = 10**8  # bytes, as in safetensors
BLANK = "0" * 64
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
SCALING = "scaling."
Read = TypeVar("Read")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      epoch: epochs completed.
      batch: batches done of the epoch under way.
      step: optimiser steps taken.
      loss_sum, rows: of the epoch under way, for its mean loss; rows are steps of --every_step.
      seconds: spent on the epoch under way.
      best_loss, best_epoch: of the best epoch so far, by validation loss.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_epoch: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment.

    Attributes:
      arrays: parameters by name, and the optimiser's means as optimizer.m.<name> and .v., of
        float16 the loss scale.
      config: of the run.
      meaning: task, labels, columns, scaling, class weights.
      progress: how far it is; with config.seed this is the state of every random stream.
      sha256: of the data files it is trained on.
    """

    arrays: Mapping[str, np.ndarray]
    config: RunConfig
    meaning: Meaning
    progress: Progress
    sha256: Mapping[str, str]


def model_config(config: RunConfig, meaning: Meaning) -> ModelConfig:
    """Complete an architecture by the sizes that the data decide."""
    sizes = {
        "input_size": len(meaning.layout.features),
        "output_size": meaning.output_size * config.outputs_per_target,
    }
    if config.decodes:
        layout = meaning.layout
        sizes["forecast_steps"] = layout.forecast_steps
        sizes["feedback"] = ",".join(map(str, layout.target_features))
    options = subset(ModelConfig, config) | sizes | {"task": meaning.task}
    return ModelConfig(**options)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
      OutputError: it cannot be written; the file that was there stays.
    """
    meaning = checkpoint.meaning
    arrays = dict(checkpoint.arrays)
    arrays |= {SCALING + name: array for name, array in vars(meaning.scaling).items()}
    record = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "task": meaning.task,
        "classes": meaning.classes,
        "class_weights": meaning.class_weights,
        "layout": asdict(meaning.layout),
        "progress": asdict(checkpoint.progress),
        "random": "Philox keyed by SHA-256 of seed/purpose/step; see spec/random.py",
        "sha256": dict(checkpoint.sha256),
    }
    write_sealed(path, arrays, record)


def write_sealed(path: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write arrays and a record of JSON values atomically, with a checksum over both.

    Raises:
      OutputError: the file cannot be written; the one that was there stays.
    """
    metadata = {"format": "seqduet", "seqduet": json.dumps(record, sort_keys=True)}
    content = encode(arrays, metadata | {"checksum": BLANK})
    digest = hashlib.sha256(content).hexdigest()
    blank, sealed = (f'"checksum":"{text}"'.encode() for text in (BLANK, digest))
    atomic.write(path, content.replace(blank, sealed, 1))


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
      CheckpointError: it is missing, damaged, of another format, or not consistent in itself.
    """
    return read_sealed(path, assemble)


def read_sealed(
    path: Path, assemble: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Read]
) -> Read:
    """Verify what `write_sealed` wrote and return what `assemble` makes of arrays and record.

    Raises:
      CheckpointError: the file is missing, damaged or of another format, or `assemble` raised
        one of the errors that unfit content causes.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is no regular file; give a checkpoint")
        with open(path, "rb") as file:
            header = min(int.from_bytes(file.read(8), "little"), MAX_HEADER)
            found = CHECKSUM.search(file.read(header))
            file.seek(0)
            content = file.read() if found else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read: {reason}") from None
    if not found:
        raise CheckpointError(f"{path}: is damaged, or no checkpoint of this program")
    view, start, end = memoryview(content), 8 + found.start(1), 8 + found.end(1)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[end:])
    if digest.hexdigest().encode() != found[1]:
        raise CheckpointError(f"{path}: is damaged: its checksum does not match its content")
    try:
        arrays, metadata = decode(content)
        record = json.loads(metadata["seqduet"])
        if record["format"] != FORMAT:
            raise ValueError(f"has format {record['format']!r:.40}, this program reads {FORMAT}")
        return assemble(arrays, record)
    except (
        *(CheckpointError, ValueError, KeyError, TypeError),
        *(AttributeError, OverflowError, RecursionError),
    ) as error:
        reason = f"misses {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: is not usable: {reason}") from None


def assemble(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Checkpoint:
    """Build a Checkpoint; raise where its parts do not fit together."""
    config = RunConfig(**record["config"])
    meaning = meaning_of(arrays, record)
    if bool(meaning.class_weights) != bool(config.class_weights):
        raise ValueError(f"class_weights is {config.class_weights}, its weights do not fit that")
    own = state_of(arrays, config, model_config(config, meaning))
    progress = Progress(**record["progress"])
    for name, kind in get_type_hints(Progress).items():
        value = getattr(progress, name)
        if not isinstance(value, kind) or not (value is None or 0 <= value < math.inf):
            raise ValueError(f"progress: {name} is {value!r:.40}")
    return Checkpoint(own, config, meaning, progress, dict(record["sha256"]))


def state_of(
    arrays: Mapping[str, np.ndarray], config: RunConfig, model: ModelConfig
) -> dict[str, np.ndarray]:
    """Pick weights and moments; raise where one is unfit, or an array is neither nor scaling."""
    schema = parameter_schema(model)
    moments = ("optimizer.m.",) + (() if config.optimizer == "sgd" else ("optimizer.v.",))
    own = {}
    for prefix in ("", *moments):
        selected = select_arrays(schema, arrays, prefix)
        own |= {prefix + name: array for name, array in selected.items()}
    if config.dtype == "float16":
        own[SCALE_NAME] = arrays[SCALE_NAME]
        LossScale.of(own)
    unknown = sorted(set(arrays) - set(own) - {SCALING + f.name for f in fields(Scaling)})
    if unknown:
        raise ValueError(f"it holds unknown arrays: {', '.join(map(repr, unknown[:5]))}")
    for name, array in own.items():
        if array.dtype != config.master_dtype:
            raise ValueError(f"{name} is {array.dtype}, the run {config.master_dtype}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
    return own


def meaning_of(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Meaning:
    """Build what the data mean to the model; raise where its parts do not fit together."""
    parts, classes = record["layout"], tuple(record["classes"])
    features, targets = tuple(parts["features"]), tuple(parts["targets"])
    columns = None if parts["columns"] is None else tuple(parts["columns"])
    ahead = parts.get("forecast_steps", 1)  # absent from what was written before there were paths
    layout = Layout(features, targets, parts["steps"], parts["header"], columns, ahead)
    if not all(isinstance(text, str) for text in (*classes, *features, *targets, *(columns or ()))):
        raise ValueError("a class or a column is not text")
    if not (isinstance(layout.steps, int) and isinstance(layout.header, bool)):
        raise ValueError("steps is no whole number, or header not true or false")
    if not (isinstance(ahead, int) and 1 <= ahead < 2**31):
        raise ValueError(f"forecast_steps is {ahead!r:.40}")
    if not (len(classes) > 1 if record["task"] == "classification" else not classes):
        raise ValueError(f"{len(classes)} classes do not fit the task {record['task']!r:.40}")
    scaling = scaling_of(arrays, len(features), len(layout.outputs))
    weights = tuple(record.get("class_weights", ()))  # which older checkpoints lack
    if weights and (len(weights) != len(classes) or not all(0 < w < math.inf for w in weights)):
        raise ValueError(f"{len(classes)} classes have weights {list(weights)!s:.60}")
    return Meaning(record["task"], classes, layout, scaling, weights)


def scaling_of(arrays: Mapping[str, np.ndarray], inputs: int, targets: int) -> Scaling:
    """Pick the scaling of so many features and targets; raise where it is none."""
    sizes = {"input_mean": inputs, "target_mean": targets}
    sizes |= {"input_std": inputs, "target_std": targets}
    schema = {name: ParamSpec((size,), 0.0) for name, size in sizes.items()}
    scaling = Scaling(**select_arrays(schema, arrays, SCALING))
    if not (scaling.input_std > 0).all() or not (scaling.target_std > 0).all():
        raise ValueError("a standard deviation is not above 0")
    return scaling
