"""Begin a run, or continue one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.dataset import load_dataset
from data.files import check_file, sha256
from experiment import checkpoint
from experiment.checkpoint import Progress, model_config
from experiment.config import FIXED, RunConfig
from experiment.flags import changes, to_yaml
from experiment.loop import Training, steps_per_epoch
from experiment.run_directory import RunDirectory
from spec.backend import load_backend
from spec.config import Execution, OptimizerConfig
from spec.errors import CheckpointError, ConfigError
from spec.options import subset
from spec.params import init_params, parameter_schema, select_arrays


def begin(config: RunConfig, out: str | None) -> Training:
    """Read the data, make the directory, draw or load the first weights.

    Raises:
      ConfigError, DataError: an option or the data is at fault; nothing was written.
      OutputError: the directory cannot be made.
    """
    backend = load_backend(config.backend)
    dataset = load_dataset(config, config.dtype, config.seed)
    schema = parameter_schema(model_config(config, dataset.meaning))
    arrays = init_params(schema, config.seed)
    if config.init:
        try:
            arrays = select_arrays(schema, checkpoint.load(Path(config.init)).arrays)
        except CheckpointError as error:
            raise CheckpointError(f"--init {config.init}: {error}") from None
    state = init_state(backend, config, dataset, arrays, 0)
    name = f"{Path(config.files[0]).stem}-{config.model}-{config.backend}"
    directory = RunDirectory.create(None if out is None else Path(out), name)
    directory.write("config.yaml", to_yaml(config))
    training = Training(config, dataset, backend, state, Progress(), directory)
    training.save()
    return training


def resume(given: dict[str, Any], path: str | None, allow_data_change: bool) -> Training:
    """Continue the run in `path` as if it had never stopped.

    Args:
      given: options to change; those in `FIXED` may only be repeated.
      path: run directory, or a checkpoint in one.
      allow_data_change: go on although the data files differ from those of the run.

    Raises:
      CheckpointError: there is no whole checkpoint, or what was asked for does not continue it.
    """
    if path is None:
        raise ConfigError("--resume: which run? give its directory: --resume DIR, or --out DIR")
    directory = RunDirectory.reopen(Path(path))
    stored = directory.load()
    before = asdict(stored.config)
    if different := changes(before, given, FIXED):
        raise CheckpointError(f"{path}: cannot continue with {'; '.join(different)}")
    config = RunConfig(**(before | given))
    for kind, data_path in zip(("data", "test"), config.files, strict=True):
        if data_path:
            check_file(data_path)
            if sha256(data_path) != stored.sha256.get(kind) and not allow_data_change:
                raise CheckpointError(
                    f"{path}: {data_path} is not the data this run began with; restore it, or "
                    "say --allow_data_change"
                )
    backend = load_backend(config.backend)
    dataset = load_dataset(config, config.dtype, config.seed, stored.meaning)
    state = init_state(backend, config, dataset, stored.arrays, stored.progress.step)
    directory.write("config.yaml", to_yaml(config))
    if config.backend != stored.config.backend:
        dataset.notes.append(
            f"continued in {config.backend} what {stored.config.backend} began: equal to "
            f"{config.dtype} rounding, not to the bit"
        )
    return Training(config, dataset, backend, state, stored.progress, directory)


def init_state(backend, config: RunConfig, dataset, arrays, step: int):
    """Build the backend's state, with a schedule over the whole run."""
    total = config.epochs * steps_per_epoch(config, dataset)
    optimizer = OptimizerConfig(**subset(OptimizerConfig, config), total_steps=total)
    model = model_config(config, dataset.meaning)
    return backend.init_state(
        model, optimizer, Execution(**subset(Execution, config)), arrays, step
    )
