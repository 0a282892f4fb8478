"""What a trained model computes on a few sequences, and what its predictions rest on.

Dimensions: B sequences, T time, D input features.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from data.dataset import Meaning, described, truth_of, with_targets
from data.header import shown
from data.sequences import Sequences, read_sequences
from experiment import checkpoint
from experiment.answers import answers, output_names, point
from experiment.checkpoint import model_config
from experiment.config import PredictConfig, RunConfig
from experiment.predictions import weights_of
from experiment.run_directory import checkpoint_at
from spec import __version__
from spec.backend import load_backend
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.errors import ConfigError
from spec.introspection import Attribution, saliency
from spec.options import nearest, option, option_of, subset, validate
from spec.tensors import encode

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Inspection"""

    checkpoint: str | None = option_of(PredictConfig, "checkpoint")
    data_path: str | None = option(None, "file to look at, in the form of the training data")
    rows: int = option(3, "sequences, from the first", "a whole number >= 1", lambda n: n >= 1)
    explain: str | None = option(
        None,
        "target or class to explain; none: the first target, of a path its last step, and each row's "
        "predicted class",
    )
    backend: Literal["torch", "jax"] | None = option_of(PredictConfig, "backend")
    out: str | None = option(None, "directory to make and write to")
    device: str = option_of(PredictConfig, "device")
    threads: int | None = option_of(PredictConfig, "threads")

    def __post_init__(self) -> None:
        validate(self)
        for name in ("checkpoint", "data_path", "out"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: is required")


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
      run: the training run's options.
      model: what was run.
      meaning: of inputs and outputs.
      backend: what it was run in.
      source: data file, and what was understood of it, a line each.
      lines: where each sequence stands in the file, from 1 [B].
      lengths: real steps of each sequence [B].
      readings: in the unit of the data [B, T, D]; NaN past an end and where one is missing.
      explained: index of the output that is explained, of each sequence [B].
      truth: numbers [n, O] or class indices [n] of the first n <= B sequences; None if unknown.
      arrays: as `introspect` returns them with gradients, `saliency`, `integrated gradients`.
      attribution: integrated gradients with their ends.
      params: parameters by name.
    """

    run: RunConfig
    model: ModelConfig
    meaning: Meaning
    backend: str
    source: list[str]
    lines: np.ndarray
    lengths: np.ndarray
    readings: np.ndarray
    explained: np.ndarray
    truth: np.ndarray | None
    arrays: Mapping[str, np.ndarray]
    attribution: Attribution
    params: Mapping[str, np.ndarray]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Name the model's outputs."""
        return output_names(self.model, self.meaning)

    def summary(self) -> list[dict[str, str]]:
        """Say of each sequence where it stands, what was predicted and what is true."""
        found = []
        said = answers(self.model, self.meaning, self.arrays["predictions"])
        for b, numbers in enumerate(said):
            row = {"line": f"{self.lines[b]}", "steps": f"{self.lengths[b]}"}
            if classes := self.meaning.classes:
                row["prediction"] = classes[numbers.argmax()]
                row["probability"] = f"{numbers.max():.3f}"
            else:
                row["prediction"] = " / ".join(f"{value:.5g}" for value in numbers)
            if self.truth is not None:
                row["truth"] = UNKNOWN
                values = self.truth[b : b + 1].reshape(-1)
                known = values >= 0 if classes else np.isfinite(values)
                if values.size and known.all():
                    row["truth"] = " / ".join(classes[v] if classes else f"{v:.5g}" for v in values)
            found.append(row | {"explained": self.outputs[self.explained[b]]})
        return found


def inspect(config: InspectConfig) -> Inspection:
    """Run a checkpoint on the first sequences of a file and keep everything.

    Raises:
      CheckpointError, DataError: either cannot be used.
      ConfigError: --rows or --explain asks for what there is not.
    """
    stored = checkpoint.load(checkpoint_at(Path(config.checkpoint)))
    meaning, run = stored.meaning, stored.config
    sequences = read_sequences(config.data_path, run, meaning.layout, need_targets=False)
    if config.rows > len(sequences):
        raise ConfigError(
            f"--rows {config.rows}: {config.data_path} has {len(sequences)} sequences; "
            "ask for no more"
        )
    model, name = model_config(run, meaning), config.backend or run.backend
    wanted = chosen_output(config, model, meaning)
    batch = first_rows(sequences, config.rows, meaning, run.master_dtype)
    model.check_length(batch.inputs.shape[1])
    backend = load_backend(name)
    tools = import_module(f"{name}_impl.introspect")
    execution = Execution(  # of a low precision the weights are shown at work, not its rounding
        **subset(Execution, run)
        | {"dtype": run.master_dtype, "device": config.device, "threads": config.threads}
    )
    params = weights_of(stored)
    state = backend.init_state(model, OptimizerConfig(), execution, params)
    last = model.output_size - model.output_size // meaning.layout.forecast_steps
    explained = np.full(config.rows, last + (point(model) or 0) if wanted is None else wanted)
    if wanted is None and meaning.classes:
        outputs = backend.predict(state, batch).outputs
        outputs = at_end(outputs, batch.lengths) if model.every_step else outputs
        explained = outputs.argmax(axis=1)
    arrays = tools.introspect(state, batch, explained)
    attribution = tools.integrated_gradients(state, batch, explained)
    arrays |= {"saliency": saliency(arrays), "integrated gradients": attribution.shares}
    B, T, _ = batch.inputs.shape
    known, lines = None, sequences.lines[:B]
    if sequences.targets and len(with_targets(sequences)):
        known = truth_of(sequences, meaning.classes)[:B]
    if model.every_step:  # what is explained is said of each sequence's last step
        known = None if known is None else at_end(known, batch.lengths)
        lines = at_end(lines, batch.lengths) if lines.ndim == 2 else lines
    return Inspection(
        run,
        model,
        meaning,
        name,
        [f"{config.data_path}: {described(sequences)}", *sequences.notes],
        lines,
        sequences.lengths[:B],
        sequences.inputs[:B, :T],
        explained,
        known,
        arrays,
        attribution,
        params,
    )


def at_end(parts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Pick each sequence's last real step of [B, T, ..]."""
    return parts[np.arange(len(parts)), lengths - 1]


def first_rows(sequences: Sequences, rows: int, meaning: Meaning, dtype: str) -> Batch:
    """Return the first sequences, scaled, as long as the longest of them."""
    inputs, lengths = sequences.scaled(meaning.scaling, dtype)[:rows], sequences.lengths[:rows]
    return Batch(np.ascontiguousarray(inputs[:, : lengths.max()]), lengths)


def chosen_output(config: InspectConfig, model: ModelConfig, meaning: Meaning) -> int | None:
    """Return the index of the output that --explain names; None where it is left out.

    Raises:
      ConfigError: there is none of that name.
    """
    if config.explain is None:
        return None
    names = output_names(model, meaning)
    if config.explain not in names:
        kind = (
            "class" if meaning.classes else "target" if model.outputs_per_target == 1 else "output"
        )
        raise ConfigError(
            f"--explain {config.explain}: no such {kind}{nearest(config.explain, names)}; "
            f"there are {shown(names)}"
        )
    return names.index(config.explain)


def as_tensors(found: Inspection) -> bytes:
    """Serialise every array behind the figures, with lengths and lines, as safetensors."""
    rows = {"lengths": found.lengths, "lines": found.lines, "explained": found.explained}
    ends = {name: getattr(found.attribution, name) for name in ("prediction", "baseline")}
    arrays = {name: np.asarray(array, np.int64) for name, array in rows.items()}
    return encode({**found.arrays, **arrays, **ends, "readings": found.readings}, {})


def versions(backend: str) -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = {"torch": ("torch",), "jax": ("jax", "jaxlib")}[backend]
    found = {"seqduet": __version__, "python": platform.python_version()}
    return found | {name: version(name) for name in (*packages, "numpy", "matplotlib")}
