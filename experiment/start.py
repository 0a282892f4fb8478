"""Begin a run, or continue one."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Dataset, Meaning, load_dataset
from data.files import check_file, sha256
from data.header import shown
from experiment import checkpoint
from experiment.checkpoint import Checkpoint, Progress, model_config
from experiment.config import FIXED, Recipe, RunConfig
from experiment.flags import changes, to_yaml
from experiment.loop import Training, steps_per_epoch
from experiment.run_directory import CONFIG, RunDirectory, checkpoint_at, refuse_run
from spec.backend import Backend, load_backend
from spec.config import Execution, OptimizerConfig
from spec.errors import CheckpointError, ConfigError
from spec.options import subset
from spec.params import ParamSpec, init_params, parameter_schema, select_arrays


def begin(config: RunConfig, out: str | None, listen: Callable[[], None]) -> Training:
    """Read the data, draw or load the first weights, make the directory.

    Args:
      config: of the run.
      out: its directory; None for the next free one under runs/.
      listen: called before the first file is written.

    Raises:
      ConfigError, DataError: an option or the data is at fault; nothing was written.
      CheckpointError: the checkpoint of --init is.
      OutputError: the directory cannot be made.
    """
    if out == "":
        raise ConfigError("--out: is empty; name a directory, or leave it out")
    if out is not None:
        refuse_run(Path(out))
    dataset = read_dataset(config, config.master_dtype)
    backend = load_backend(config.backend)  # takes seconds: a fault in the data is told before
    schema = parameter_schema(model_config(config, dataset.meaning))
    check_memory(config, schema)
    if config.init is None:
        arrays = init_params(schema, config.seed)
    else:
        try:
            stored = checkpoint.load(checkpoint_at(Path(config.init)))
            arrays = select_arrays(schema, stored.arrays)
        except CheckpointError as error:
            raise CheckpointError(f"--init {config.init}: {error}") from None
    state = init_state(backend, config, dataset, arrays, 0)
    name = f"{Path(config.files[0]).stem[:60]}-{config.model}-{config.backend}"
    listen()
    directory = RunDirectory.create(None if out is None else Path(out), name)
    training = Training(config, dataset, backend, state, Progress(), directory)
    training.save()
    directory.write(CONFIG, to_yaml(config))
    return training


def resume(
    given: Mapping[str, Any],
    path: str,
    out: str | None,
    allow_data_change: bool,
    listen: Callable[[], None],
) -> Training:
    """Continue a run as if it had never stopped.

    Args:
      given: options to change; those in `FIXED` may only be repeated.
      path: directory of the run, or a checkpoint in one; empty for `out`.
      out: what --out says, which is the same directory or nothing.
      allow_data_change: go on although the data files differ from those of the run.
      listen: called before the first file is written.

    Raises:
      ConfigError: no directory is named, or two.
      CheckpointError: there is no whole checkpoint, or what was asked for does not continue it.
    """
    if not path and not out:
        raise ConfigError("--resume: which run? give its directory: --resume DIR, or --out DIR")
    same = (os.path.realpath(path), os.path.dirname(os.path.realpath(path)))
    if path and out and os.path.realpath(out) not in same:
        raise ConfigError(f"--out {out}: --resume {path} continues in place; leave --out out")
    path = path or out
    directory = RunDirectory.reopen(Path(path))
    stored = directory.load()
    before = asdict(stored.config)
    if different := changes(before, given, FIXED):
        raise CheckpointError(
            f"{path}: cannot continue with {'; '.join(different)}; leave that out, or begin "
            "another run"
        )
    config = RunConfig(**before | given)
    if not allow_data_change:
        check_data(path, config, stored)
    dataset = read_dataset(config, config.master_dtype, stored.meaning)
    backend = load_backend(config.backend)
    state = init_state(backend, config, dataset, stored.arrays, stored.progress.step)
    dataset.notes.extend(continued(config, stored))
    listen()
    directory.write(CONFIG, to_yaml(config))
    return Training(config, dataset, backend, state, stored.progress, directory)


def read_dataset(config: Recipe, dtype: str, meaning: Meaning | None = None) -> Dataset:
    """Read the data and weigh the classes; a given `meaning` is kept, its class weights as well.

    Raises:
      DataError: a file is at fault, or too small to be divided.
      ConfigError: the loss is not for what the data are.
    """
    dataset = load_dataset(config, dtype, config.seed, meaning)
    config.check_task(dataset.meaning.task)
    if config.loss != "auto":
        dataset.notes.append(f"task: {dataset.meaning.task}, as --loss {config.loss} says")
    check_causal(config, dataset.meaning)
    if config.class_weights is None:
        return dataset
    train, valid, meaning = dataset.train, dataset.valid, dataset.meaning
    if not meaning.class_weights:
        targets = train.own_targets
        targets = targets if train.weights is None else targets[train.own_weights > 0]
        weights = balanced(targets, len(meaning.classes))
        meaning = replace(meaning, class_weights=weights)
    pairs = zip(meaning.classes, meaning.class_weights, strict=True)
    said = shown([f"{label!r} {weight:.4g}" for label, weight in pairs])
    dataset.notes.append(f"class weights in the loss, balanced over the training rows: {said}")
    train, valid = (
        replace(part, class_weights=np.array(meaning.class_weights)) for part in (train, valid)
    )
    return replace(dataset, meaning=meaning, train=train, valid=valid)


def check_causal(config: Recipe, meaning: Meaning) -> None:
    """Raise ConfigError where a model would read at a step what it is to forecast there."""
    layout = meaning.layout
    forecasts = config.windows is not None and set(layout.targets) <= set(layout.features)
    if config.every_step and forecasts and config.sees_ahead:
        how = "--bidirectional" if config.recurrent else "--model transformer without --causal"
        raise ConfigError(
            f"{how}: sees the later readings of {shown(layout.targets)} that --every_step asks it "
            "to forecast; let it see the past alone"
        )


def balanced(targets: np.ndarray, classes: int) -> tuple[float, ...]:
    """Return rows / (classes x rows of the class), as scikit-learn's class_weight="balanced".

    A class without a training row is not counted, and its own weight is 1.
    """
    counts = np.bincount(targets, minlength=classes)
    weights = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return tuple(np.where(counts > 0, weights, 1.0).tolist())


def check_data(path: str, config: RunConfig, stored: Checkpoint) -> None:
    """Raise CheckpointError where the data files are not those that the run began with."""
    for kind, file in zip(("data", "test"), config.files, strict=True):
        if file is not None:
            check_file(file)
        if (file and sha256(file)) != stored.sha256.get(kind):
            raise CheckpointError(
                f"{path}: {file or 'no test file'} is not what this run began with; restore it, "
                "or say --allow_data_change"
            )


def check_memory(config: RunConfig, schema: Mapping[str, ParamSpec]) -> None:
    """Raise ConfigError for a model that this machine cannot hold."""
    count = sum(math.prod(spec.shape) for spec in schema.values())
    # First values in float64; weights, gradient, two running means and a copy to save.
    needed = count * (8 + 5 * np.dtype(config.master_dtype).itemsize)
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise ConfigError(
            f"--hidden_size {config.hidden_size} with --num_layers {config.num_layers}: "
            f"{count} parameters take {needed / 2**30:.0f} GiB, this machine has "
            f"{present / 2**30:.0f}; choose a smaller model"
        )


def continued(config: RunConfig, stored: Checkpoint) -> list[str]:
    """Say from where a run goes on, and what makes it another than one that never stopped."""
    progress, before = stored.progress, stored.config
    notes = [f"continued after epoch {progress.epoch} of {config.epochs}, step {progress.step}"]
    if progress.epoch >= config.epochs:
        notes.append("every epoch is done; a larger --epochs trains on")
    if config.backend != before.backend:
        notes.append(
            f"continued in {config.backend} what {before.backend} began: equal to "
            f"{config.dtype} rounding, not to the bit"
        )
    if config.schedule == "cosine" and config.epochs != before.epochs:
        notes.append(f"the cosine now falls to 0 at epoch {config.epochs}, not {before.epochs}")
    return notes


def init_state(
    backend: Backend,
    config: RunConfig,
    dataset: Dataset,
    arrays: Mapping[str, np.ndarray],
    step: int,
) -> Any:
    """Build the backend's state, with a schedule over the whole run."""
    total = config.epochs * steps_per_epoch(config, dataset)
    if total >= 2**31:
        raise ConfigError(f"--epochs {config.epochs}: makes {total} steps; at most 2**31 - 1")
    optimizer = OptimizerConfig(**subset(OptimizerConfig, config), total_steps=total)
    model = model_config(config, dataset.meaning)
    for part in (dataset.train, dataset.test):
        model.check_length(part.inputs.shape[1])
    return backend.init_state(
        model, optimizer, Execution(**subset(Execution, config)), arrays, step
    )
