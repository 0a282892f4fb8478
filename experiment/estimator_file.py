"""A fitted estimator in one file: safetensors, with parameters and labels as JSON; no pickle."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment.checkpoint import (
    FORMAT,
    SCALING,
    read_sealed,
    scaling_of,
    state_of,
    write_sealed,
)
from experiment.config import RunConfig
from spec.config import ModelConfig

if TYPE_CHECKING:
    from experiment.estimator_base import SequenceEstimator

# Fitted attributes that are JSON as they are, and those that are arrays of labels or names.
PLAIN = {"n_iter_": int, "n_steps_": int, "loss_curve_": list, "valid_loss_curve_": list}
OPTIONAL = {"y_ndim_": int, "n_features_in_": int}
LABELS = ("classes_", "feature_names_in_")


def save(estimator: "SequenceEstimator", path: Path) -> None:
    """Write a fitted estimator; see its `save`."""
    estimator._config(estimator.config_.seed)  # raises where a parameter set since is at fault
    params = estimator.get_params(deep=False)
    del params["callbacks"]
    if isinstance(params["random_state"], np.random.RandomState):
        params["random_state"] = estimator.config_.seed
    numpy = np.generic | np.ndarray
    params = {n: v.tolist() if isinstance(v, numpy) else v for n, v in params.items()}
    if isinstance(params.get("class_weight"), Mapping):
        params["class_weight"] = [
            [np.asarray(label).item(), float(weight)]
            for label, weight in params["class_weight"].items()
        ]
    fitted = vars(estimator)
    record = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "params": params,
        "config": asdict(estimator.config_),
        "model": asdict(estimator.model_config_),
        "fitted": {name: fitted[name] for name in (*PLAIN, *OPTIONAL) if name in fitted},
        "labels": {name: as_json(fitted[name]) for name in LABELS if name in fitted},
    }
    scaling = {SCALING + name: array for name, array in vars(estimator.scaling_).items()}
    write_sealed(path, estimator.arrays_ | scaling, record)


def load(cls: type["SequenceEstimator"], path: Path) -> "SequenceEstimator":
    """Read a fitted estimator of a class; see its `load`."""

    def assemble(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Any:
        found = record.get("estimator", "run of train.py, which predict.py reads")
        if found != cls.__name__:
            raise ValueError(f"it holds a {found}, no {cls.__name__}")
        params = dict(record["params"])
        if isinstance(params.get("class_weight"), list):
            params["class_weight"] = dict(map(tuple, params["class_weight"]))
        estimator = cls(**params)
        estimator.config_ = config = RunConfig(**record["config"])
        estimator.model_config_ = model = ModelConfig(**record["model"])
        for name, kind in (PLAIN | OPTIONAL).items():
            if name in PLAIN or name in record["fitted"]:
                value = record["fitted"][name]
                if not isinstance(value, kind):
                    raise ValueError(f"{name} is {value!r:.40}")
                setattr(estimator, name, value)
        for name, labels in record["labels"].items():
            if name not in LABELS:
                raise ValueError(f"it holds unknown labels: {name!r:.40}")
            setattr(estimator, name, np.array(labels["values"], labels["dtype"]))
        estimator._config(config.seed)
        regression = model.task == "regression"
        if not regression and len(estimator.classes_) != model.output_size:
            raise ValueError(f"{len(estimator.classes_)} classes, {model.output_size} outputs")
        estimator.arrays_ = state_of(arrays, config, model)
        estimator.scaling_ = scaling_of(
            arrays,
            model.input_size,
            model.output_size // model.outputs_per_target if regression else 1,
        )
        return estimator

    return read_sealed(path, assemble)


def as_json(labels: np.ndarray) -> dict[str, Any]:
    """Write labels with their dtype; raise ValueError where JSON would not give them back."""
    values = labels.tolist()
    if labels.dtype.kind not in "biufU" and not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"labels of dtype {labels.dtype} cannot be saved; use numbers, truth values or text"
        )
    return {"dtype": labels.dtype.str, "values": values}
