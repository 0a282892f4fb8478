"""One file that holds a run: weights, optimiser, progress, scaling, labels, configuration.

The format is safetensors, which any framework reads; a SHA-256 over the whole file, which
safetensors lacks, stands in its metadata. Equal states give equal bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Meaning
from data.scaling import Scaling
from data.sequences import Layout
from experiment import atomic
from experiment.config import RunConfig
from spec.config import ModelConfig
from spec.errors import CheckpointError, ConfigError
from spec.options import subset
from spec.params import parameter_schema, select_arrays
from spec.tensors import decode, encode

FORMAT = 1
BLANK = "0" * 64
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
SCALING = "scaling."


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      epoch: epochs completed.
      batch: batches done of the epoch under way.
      step: optimiser steps taken.
      loss_sum, rows: of the epoch under way, for its mean loss.
      best_loss, best_epoch: of the best epoch so far, by validation loss.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    best_loss: float | None = None
    best_epoch: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment.

    Attributes:
      arrays: parameters by name, and the optimiser's means as optimizer.m.<name> and .v.
      config: of the run.
      meaning: task, labels, columns, scaling.
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
    sizes = {"input_size": len(meaning.layout.features), "output_size": meaning.output_size}
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
        "layout": asdict(meaning.layout),
        "progress": asdict(checkpoint.progress),
        "random": "Philox keyed by SHA-256 of seed/purpose/step; see spec/random.py",
        "sha256": dict(checkpoint.sha256),
    }
    metadata = {"format": "seqduet", "seqduet": json.dumps(record, sort_keys=True)}
    content = encode(arrays, metadata | {"checksum": BLANK})
    digest = hashlib.sha256(content).hexdigest()
    blank, sealed = (f'"checksum":"{text}"'.encode() for text in (BLANK, digest))
    atomic.write(path, content.replace(blank, sealed, 1))


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
      CheckpointError: it is missing, damaged, of a newer format, or not consistent in itself.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    header = 8 + int.from_bytes(content[:8], "little")
    found = CHECKSUM.search(content, 8, min(header, len(content)))
    if not found:
        raise CheckpointError(f"{path}: is damaged, or no checkpoint of this program")
    start, end = found.span(1)
    digest = hashlib.sha256(content[:start] + BLANK.encode() + content[end:]).hexdigest()
    if digest.encode() != found[1]:
        raise CheckpointError(f"{path}: is damaged: its checksum does not match its content")
    try:
        arrays, metadata = decode(content)
        record = json.loads(metadata["seqduet"])
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: has format {record['format']}, this program reads {FORMAT}; update it"
            )
        return assemble(arrays, record)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: is not consistent: {reason}") from None


def assemble(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> Checkpoint:
    """Build a Checkpoint and check that its arrays are those its configuration asks for."""
    scaling = Scaling(
        **{n.removeprefix(SCALING): arrays.pop(n) for n in list(arrays) if n.startswith(SCALING)}
    )
    parts = record["layout"]
    layout = Layout(
        tuple(parts["features"]), tuple(parts["targets"]), parts["steps"], parts["header"]
    )
    meaning = Meaning(record["task"], tuple(record["classes"]), layout, scaling)
    try:
        config = RunConfig(**record["config"])
        schema = parameter_schema(model_config(config, meaning))
    except ConfigError as error:
        raise CheckpointError(f"its configuration is invalid: {error}") from None
    kinds = [""] + (
        ["optimizer.m."] if config.optimizer == "sgd" else ["optimizer.m.", "optimizer.v."]
    )
    for prefix in kinds:
        select_arrays(schema, arrays, prefix)
    known = {prefix + name for prefix in kinds for name in schema}
    if unknown := sorted(set(arrays) - known):
        raise CheckpointError(f"holds unknown arrays: {', '.join(unknown[:5])}")
    D, O = len(layout.features), len(layout.targets)
    for name, size in (("input_mean", D), ("input_std", D), ("target_mean", O), ("target_std", O)):
        if getattr(scaling, name).shape != (size,):
            raise CheckpointError(f"{SCALING}{name} has another shape than [{size}]")
    for name, array in (*arrays.items(), *vars(scaling).items()):
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} holds values that are not finite")
    return Checkpoint(arrays, config, meaning, Progress(**record["progress"]), record["sha256"])
