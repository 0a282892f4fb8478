"""A trained model without its run: a folder of weights, configuration and model card.

Dimensions: N sequences, T time, D input features, O regression targets or classes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.batching import Part
from data.dataset import Meaning
from experiment.answers import answers, output_names
from experiment.checkpoint import SCALING, Checkpoint, meaning_of, model_config
from experiment.loop import predict_part
from experiment.predictions import weights_of
from spec import __version__
from spec.backend import Backend, load_backend
from spec.config import Execution, ModelConfig, OptimizerConfig
from spec.errors import CheckpointError, DataError
from spec.params import parameter_schema, select_arrays
from spec.tensors import decode, encode

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class Pretrained:
    """A model with what its data mean to it, ready to answer as `predict.py` does.

    Attributes:
      config: of the model.
      meaning: task, labels, columns, scaling.
      backend: that computes.
      state: the backend's; `backend.predict` takes it.
      dtype: of its arithmetic.
    """

    config: ModelConfig
    meaning: Meaning
    backend: Backend
    state: Any
    dtype: str

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        meaning: Meaning,
        backend: Backend,
        arrays: Mapping[str, np.ndarray],
        dtype: str,
    ) -> "Pretrained":
        """Put a model on the CPU, in the dtype to compute in."""
        execution = Execution(dtype=dtype)
        state = backend.init_state(config, OptimizerConfig(), execution, arrays)
        return cls(config, meaning, backend, state, dtype)

    def answer(self, inputs: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Predict in the unit of the data.

        Args:
          inputs: readings [N, T, D], unscaled, NaN where one is missing, which is taken for its
            feature's mean; what stands past a sequence's end is ignored.
          lengths: real steps of each sequence [N]; None when all have T.

        Returns:
          float64 [N, O]: predictions, or the probabilities of `meaning.classes`; of each target
          its quantiles in increasing order, or mean and standard deviation, where that is what the
          model was trained for. Of every step [N, T, O], of which what stands past an end means
          nothing.

        Raises:
          DataError: the shapes or lengths do not fit, or a reading is beyond the dtype.
        """
        inputs = np.asarray(inputs, np.float64)
        D = self.config.input_size
        if inputs.ndim != 3 or inputs.shape[2] != D or not inputs.size:
            raise DataError(f"inputs have shape {list(inputs.shape)}, expected [N, T, {D}]")
        N, T, _ = inputs.shape
        lengths = np.full(N, T) if lengths is None else np.asarray(lengths)
        if lengths.shape != (N,) or lengths.dtype.kind not in "iu":
            raise DataError(
                f"lengths are {lengths.dtype} {list(lengths.shape)}, expected int [{N}]"
            )
        if lengths.min() < 1 or lengths.max() > T:
            raise DataError(f"lengths reach from {lengths.min()} to {lengths.max()}, not 1 to {T}")
        real = np.arange(T) < lengths[:, None]
        try:
            readings = np.where(real[..., None], inputs, 0)
            scaled = self.meaning.scaling.inputs(readings, Execution(dtype=self.dtype).master_dtype)
        except OverflowError as error:
            raise DataError(f"inputs: {error}") from None
        part = Part(scaled, lengths.astype(np.int64), None, np.arange(N))
        outputs = predict_part(self.backend, self.state, part).outputs
        return answers(self.config, self.meaning, outputs)


def described(stored: Checkpoint) -> dict[str, Any]:
    """Say all of a model but its weights, as JSON can."""
    meaning = stored.meaning
    scaling = {name: array.tolist() for name, array in vars(meaning.scaling).items()}
    model = model_config(stored.config, meaning)
    return {
        "format": FORMAT,
        "seqduet": __version__,
        "model": asdict(model),
        "dtype": stored.config.dtype,
        "trained_in": stored.config.backend,
        "task": meaning.task,
        "classes": meaning.classes,
        "answers": output_names(model, meaning),
        "layout": asdict(meaning.layout),
        "scaling": scaling,
    }


def to_files(stored: Checkpoint) -> dict[str, bytes]:
    """Return the weights and the configuration of the folder; equal models give equal bytes."""
    weights = encode(weights_of(stored), {"format": "seqduet"})
    config = described(stored) | {"sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {WEIGHTS: weights, CONFIG: text.encode()}


def from_files(files: Mapping[str, bytes], backend: Backend) -> Pretrained:
    """Build the model that the files of a folder hold.

    Raises:
      CheckpointError: they are damaged or do not fit together.
    """
    try:
        record = json.loads(files[CONFIG])
        if record["format"] != FORMAT:
            raise ValueError(f"has format {record['format']!r:.40}, this program reads {FORMAT}")
        if hashlib.sha256(files[WEIGHTS]).hexdigest() != record["sha256"]:
            raise ValueError(f"{WEIGHTS} is damaged: its checksum is not that in {CONFIG}")
        arrays, _ = decode(files[WEIGHTS])
        config, dtype = ModelConfig(**record["model"]), record["dtype"]
        scaling = {SCALING + n: np.array(v, np.float64) for n, v in record["scaling"].items()}
        meaning = meaning_of(scaling, record)
        outputs = meaning.output_size * config.outputs_per_target
        sizes = (meaning.task, len(meaning.layout.features), outputs)
        if (config.task, config.input_size, config.output_size) != sizes:
            raise ValueError("the model's task or sizes are not those of its columns and classes")
        for name, array in (arrays | scaling).items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")
        arrays = select_arrays(parameter_schema(config), arrays)
        return Pretrained.build(config, meaning, backend, arrays, dtype)
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"misses {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"is not usable: {reason}") from None


def from_pretrained(folder: str | Path, backend: Literal["torch", "jax"] = "torch") -> Pretrained:
    """Read a folder that `export.py --format safetensors` wrote, in either framework.

    Raises:
      ConfigError: the framework is not installed.
      CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    found = load_backend(backend)
    try:
        files = {name: (Path(folder) / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from None
    try:
        return from_files(files, found)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
