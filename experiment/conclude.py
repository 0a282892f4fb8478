"""The end of a run: test the best checkpoint, compare with baselines, write the summary."""

import json
import math
import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from experiment import checkpoint
from experiment.answers import measure, measure_steps
from experiment.baselines import baselines
from experiment.loop import Training, predict_part
from experiment.run_directory import BEST
from experiment.start import init_state
from spec import __version__
from spec.params import parameter_schema

PACKAGES = {"torch": ("torch",), "jax": ("jax", "jaxlib", "flax", "optax")}


def conclude(training: Training, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Test the best checkpoint; write and return the summary."""
    config, dataset, backend = training.config, training.dataset, training.backend
    best = checkpoint.load(training.directory.path / BEST)
    state = init_state(backend, config, dataset, best.arrays, best.progress.step)
    outputs = predict_part(backend, state, dataset.test).outputs
    summary = {
        "backend": config.backend,
        "model": config.model,
        "task": dataset.meaning.task,
        "loss": training.model.criterion,
        "dtype": config.dtype,
        "seed": config.seed,
        "parameters": sum(math.prod(s.shape) for s in parameter_schema(training.model).values()),
        "epochs": training.progress.epoch,
        "best_epoch": best.progress.epoch,
        "seconds": round(sum(entry["seconds"] for entry in history), 3),
        "test": measure(training.model, dataset.meaning, outputs, dataset.test_known),
        "baselines": baselines(dataset),
        "versions": versions(config.backend),
    }
    if dataset.meaning.layout.forecast_steps > 1:
        told = training.model, dataset.meaning, outputs, dataset.test_known
        summary["test_by_step"] = measure_steps(*told)
    training.directory.write("summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lay out metrics, of which the first row has all; "-" where another has none."""
    names = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [f"{'test':<{width}}" + "".join(f" {name:>11}" for name in names)]
    for row, values in rows.items():
        cells = (f"{values[name]:.6g}" if name in values else "-" for name in names)
        aligned = zip(cells, names, strict=True)
        lines.append(f"{row:<{width}}" + "".join(f" {c:>{max(11, len(n))}}" for c, n in aligned))
    return lines


def versions(backend: str) -> dict[str, str]:
    """Return what the run was computed with."""
    found = {"seqduet": __version__, "python": platform.python_version()}
    for package in ("numpy", *PACKAGES[backend]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def report(summary: dict[str, Any], training: Training) -> str:
    """Lay out the test metrics beside the baselines', and say what can be done next."""
    rows = {f"{summary['model']} ({summary['backend']})": summary["test"]} | summary["baselines"]
    lines = table(rows)
    if steps := summary.get("test_by_step"):
        lines.append("rmse by step: " + " ".join(f"{step['rmse']:.6g}" for step in steps))
    config, path = training.config, training.directory.path
    early = ""
    if summary["epochs"] < config.epochs:
        early = f"; stopped as {config.patience} epochs brought no better ones"
    judge = "validation" if len(training.dataset.valid) else "training"
    lines += [
        f"weights: epoch {summary['best_epoch']} of {summary['epochs']}, by {judge} loss{early}",
        f"predict: python predict.py --checkpoint {shlex.quote(str(path))} --data_path FILE",
    ]
    return "\n".join(lines)
