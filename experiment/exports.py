"""Exports of a checkpoint: made, run at sizes that nothing was traced at, and only then written.

Dimensions: B batch, T time, D input features, O outputs (targets or classes).
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.dataset import Meaning
from experiment import checkpoint, pretrained
from experiment.checkpoint import Checkpoint, model_config
from experiment.config import ExportConfig
from experiment.model_card import model_card
from experiment.predictions import check_new, weights_of
from experiment.pretrained import CARD, Pretrained
from experiment.run_directory import checkpoint_at
from spec.backend import Backend, load_backend
from spec.errors import ConfigError, OutputError
from spec.precision import UNIT_ROUNDOFF

# Who makes a format, and the extra that installs it.
MAKERS = {
    "onnx": ("onnx_impl", "export"),
    "torchscript": ("torch_impl.export", "torch"),
    "torch_export": ("torch_impl.export", "torch"),
    "stablehlo": ("jax_impl.export", "jax"),
}
# Measured over the table of the parity tests: 0.9 with its weights, 1.8 with three times those, 7.7
# with eight times, where models are chaotic. A wrong formula shows as 1000 and more.
FACTOR = 32
# Of bfloat16 and float16, whose rounding is measured itself.
NARROW_FACTOR = 4

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
Content = bytes | Mapping[str, bytes]


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
      files: path and content of what is to be written; of a folder, its files by name.
      check: what running it showed, in a line.
    """

    files: list[tuple[str, Content]]
    check: str


def export(config: ExportConfig) -> Exported:
    """Read a checkpoint, make the file or folder, and run it.

    Raises:
      CheckpointError: the checkpoint cannot be used.
      ConfigError: the format does not express the model, needs what is not installed, or a file to
        write exists.
      OutputError: its answers are not the framework's, or it cannot be written.
    """
    beside = f"{config.out}.json"  # what the format has no room for
    folder = config.format == "safetensors"
    if not (folder and empty_directory(config.out)):
        check_new("out", config.out.rstrip("/") if folder else config.out)
    if config.format == "stablehlo":
        check_new("out", beside)
    path = checkpoint_at(Path(config.checkpoint))
    stored = checkpoint.load(path)
    backend = load_backend(config.backend or stored.config.backend)
    if folder:
        files = pretrained.to_files(stored)
        found = pretrained.from_files(files, backend).answer
        content = files | {CARD: model_card(stored, path).encode()}
        return Exported([(config.out, content)], check(config, stored, backend, found))
    record = json.dumps(pretrained.described(stored), ensure_ascii=False)
    program, run = make(config.format, stored, record)
    written = [(beside, f"{record}\n".encode())] * (config.format == "stablehlo")
    return Exported([*written, (config.out, program)], check(config, stored, backend, run))


def empty_directory(path: str) -> bool:
    """Tell whether a path is a directory that holds nothing."""
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def make(format: str, stored: Checkpoint, record: str) -> tuple[bytes, Run]:
    """Return an artefact, and what runs it."""
    module, extra = MAKERS[format]
    try:
        maker = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("onnx", "onnxruntime", "torch", "jax", "flax"):
            raise
        raise ConfigError(
            f"--format {format}: {package} is not installed; "
            f"run: pip install -c constraints/py311.txt -e '.[{extra}]'"
        ) from None
    scaling = stored.meaning.scaling
    model = replace(model_config(stored.config, stored.meaning), truncated_bptt_steps=None)
    arrays, dtype = weights_of(stored), stored.config.dtype
    content = maker.export(model, arrays, dtype, scaling, format, record)
    return content, lambda inputs, lengths: maker.run(content, format, inputs, lengths)


def check(config: ExportConfig, stored: Checkpoint, backend: Backend, run: Run) -> str:
    """Hold what an artefact answers to the framework's own answers, and say how far it is off.

    Both compute in the run's dtype. How far rounding may take it is measured: by how much the
    framework's narrower floats differ from its float64 on the same sequences.

    Raises:
      OutputError: it is off by more than that explains, or does not run.
    """
    meaning, dtype = stored.meaning, stored.config.dtype
    # Of the second no sequence reaches the end.
    sizes = [(1, 1, 0), (2, 9, 2), (5, meaning.layout.steps + 6, 0)]
    if stored.config.longest is not None:
        sizes = [(B, min(T, stored.config.longest), beyond) for B, T, beyond in sizes]
    shown = ", ".join(f"{B} x {T}" for B, T, _ in sizes)
    sequences = [ragged(meaning, B, T, max(1, T - beyond)) for B, T, beyond in sizes]
    unit = 1.0
    if meaning.task == "regression":
        unit = meaning.scaling.target_std.repeat(stored.config.outputs_per_target)

    def answers(run: Run) -> np.ndarray:
        found = [run(*these) for these in sequences]
        if stored.config.every_step:
            pairs = zip(found, sequences, strict=True)
            found = [own[np.arange(own.shape[1]) < lengths[:, None]] for own, (_, lengths) in pairs]
        return np.concatenate(found) / unit

    def own(dtype: str) -> np.ndarray:
        model, arrays = model_config(stored.config, meaning), weights_of(stored)
        return answers(Pretrained.build(model, meaning, backend, arrays, dtype).answer)

    by_dtype = {name: own(name) for name in dict.fromkeys((dtype, "float32", "float64"))}
    try:
        found = answers(run)
    except Exception as error:  # which one depends on the framework
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise OutputError(
            f"--format {config.format}: made, but it does not run at sizes {shown}: {reason[0]}; "
            "nothing was written"
        ) from error
    apart = float(np.abs(found - by_dtype[dtype]).max())
    allowed = rounding(by_dtype, dtype)
    name = config.backend or stored.config.backend
    if not apart <= allowed:
        raise OutputError(
            f"--format {config.format}: at sizes {shown} its answers differ from {name}'s by "
            f"{apart:.1e}, rounding explains {allowed:.1e}; nothing was written"
        )
    scale = "" if meaning.task == "classification" else " standard deviations of the target"
    return (
        f"run on random ragged sequences, {shown} (batch x time): largest difference from "
        f"{name} {apart:.1e}{scale}, rounding allows {allowed:.1e}"
    )


def rounding(by_dtype: Mapping[str, np.ndarray], dtype: str) -> float:
    """Return how far two roundings of the same answers may be apart in a dtype."""
    largest = np.abs(by_dtype["float64"]).max()
    narrow = dtype in ("bfloat16", "float16")
    measured = dtype if narrow else "float32"
    amplified = np.abs(by_dtype[measured] - by_dtype["float64"]).max() / UNIT_ROUNDOFF[measured]
    factor = NARROW_FACTOR if narrow else FACTOR
    return float(factor * (amplified + 2 * largest) * UNIT_ROUNDOFF[dtype])


def ragged(meaning: Meaning, B: int, T: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw sequences [B, T, D] spread as the data, and lengths from 1 to the longest; NaN behind."""
    draw = np.random.default_rng([B, T])
    mean, std = meaning.scaling.input_mean, meaning.scaling.input_std
    inputs = mean + std * draw.normal(size=(B, T, len(mean)))
    lengths = draw.integers(1, longest, B, endpoint=True)
    lengths[-1], lengths[0] = 1, longest
    inputs[np.arange(T) >= lengths[:, None]] = np.nan
    return inputs, lengths
