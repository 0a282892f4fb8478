"""A study of both backends on one data set: its options, and training as steps that can be watched."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.batching import shuffled
from data.dataset import Dataset
from experiment.checkpoint import model_config
from experiment.command import say
from experiment.config import Recipe, RunConfig
from experiment.loop import steps_per_epoch
from experiment.start import init_state, read_dataset
from spec import __version__
from spec.backend import load_backend
from spec.batch import Batch, keep_masks
from spec.options import option, option_of, subset

TIMED_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Recipe):
    """Training, in both backends and both dtypes"""

    epochs: int = option(
        20, "passes over the training rows", "a whole number >= 1", lambda n: n > 0
    )
    batch_size: int = option_of(RunConfig, "batch_size")
    seed: int = option_of(RunConfig, "seed")
    threads: int | None = option_of(RunConfig, "threads")
    fast: bool = option_of(RunConfig, "fast")

    def run(self, dtype: str) -> RunConfig:
        """Return the options of the training run that `train.py` would do."""
        return RunConfig(**subset(RunConfig, self), dtype=dtype)


def batches(config: StudyConfig, dataset: Dataset) -> Iterator[Batch]:
    """Yield every batch of a training run in order, as `experiment.loop` takes them."""
    model, step = model_config(config, dataset.meaning), 0
    for epoch in range(config.epochs):
        for positions in shuffled(len(dataset.train), config.batch_size, config.seed, epoch):
            batch = dataset.train.batch(positions)
            rows, steps = batch.inputs.shape[:2]
            yield replace(batch, keep=keep_masks(model, config.seed, step, rows, steps))
            step += 1


def steps_of(config: StudyConfig, dataset: Dataset) -> int:
    """Return the steps of a run."""
    return config.epochs * steps_per_epoch(config, dataset)


def training(name: str, config: StudyConfig, dataset: Dataset) -> Callable:
    """Return a run for `parity.drift`: loss, parameters and moments after each step."""
    backend = load_backend(name)

    def run(start: Mapping[str, np.ndarray], dtype: str) -> Iterator[dict[str, np.ndarray]]:
        state = init_state(backend, config.run(dtype), dataset, start, 0)
        for batch in batches(config, dataset):
            state, result = backend.train_step(state, batch)
            yield {"loss": np.float64(result.loss), **backend.export_arrays(state)}

    return run


def counted(run: Callable, steps: int) -> Callable:
    """Return the run, which in float64 shows how far it is."""

    def watched(start: Mapping[str, np.ndarray], dtype: str) -> Iterator[dict[str, np.ndarray]]:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        with tqdm(total=steps, unit="step", disable=dtype != "float64" or not terminal) as bar:
            for number, arrays in enumerate(run(start, dtype), 1):
                bar.update()
                if dtype == "float64" and not terminal and number % max(1, steps // 10) == 0:
                    say(f"step {number}/{steps}")
                yield arrays

    return watched


def speed(name: str, config: StudyConfig, start: Mapping[str, np.ndarray], dtype: str) -> dict:
    """Train alone in this process; return the median time of a step and the peak memory."""
    dataset = read_dataset(config, "float64")
    backend = load_backend(name)
    state = init_state(backend, config.run(dtype), dataset, start, 0)
    seconds, first = [], None
    for batch in batches(config, dataset):
        began = time.perf_counter()
        state, _ = backend.train_step(state, batch)
        took = time.perf_counter() - began
        if first is None:
            first = took
        elif len(batch.inputs) == min(config.batch_size, len(dataset.train)):
            seconds.append(took)
        if len(seconds) > TIMED_STEPS:
            break
    return {
        "first_step_seconds": first,
        "step_seconds": float(np.median(seconds[1:] or seconds or [first])),
        "peak_mib": peak_memory(),
    }


def peak_memory() -> float:
    """Return the most memory this process has held resident, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def alone(function: Callable, *arguments: Any) -> Any:
    """Call a function in a fresh process, which holds nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def environment(command: str, config: StudyConfig, dataset: Dataset) -> dict[str, Any]:
    """Say what a result depends on: versions, machine, command, data."""
    packages = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"seqduet": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: version(name) for name in packages},
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "command": command,
        "seed": config.seed,
        "data": {
            "files": [Path(path).name for path in config.files if path],
            "sha256": dataset.sha256,
            "notes": dataset.notes,
        },
        "options": asdict(config),
    }


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
