"""What the scikit-learn estimators share: parameters, the way from X to batches, fit, save, load.

Dimensions: N sequences, T time, D input features, C classes, O regression targets.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from data.batching import Part
from data.splits import split_off
from experiment import estimator_file
from experiment.config import FIXED, RunConfig
from experiment.estimator_input import fit_scaling, read, read_weights
from experiment.estimator_training import Epoch, outputs_of, parameter_errors, train
from experiment.flags import changes
from spec.config import ModelConfig
from spec.errors import ConfigError
from spec.options import subset


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceEstimator(BaseEstimator):
    """What the two estimators share; each parameter is the option of train.py of that name.

    X is [N, T * D], time-major with `num_features` D; or [N, T, D]; or a list of arrays [T_i, D].
    Inputs, and the targets of a regression, are standardised inside. `random_state` is 0 unless
    told otherwise, so a fit repeats its bits; `dtype` is float64, as rounding in float32 is above
    the 1e-7 to which scikit-learn demands that weights equal repetitions.

    Other than in train.py: `attention_score` is its `score`, which scikit-learn has as a method;
    `random_state` is its `seed`, and may be None or a RandomState;
    `valid_fraction` is 0, and where it is not, the weights of the epoch with the least validation
    loss are kept; `callbacks` are called with an `Epoch` after each, and a true answer stops.

    Attributes:
      arrays_: weights and the optimiser's running means by name, as NumPy arrays.
      scaling_: means and standard deviations of inputs and targets.
      model_config_, config_: the model with its sizes; every option at the first fit.
      n_iter_, n_steps_: epochs run, and optimiser steps behind `arrays_`.
      loss_curve_, valid_loss_curve_: losses of each epoch.
      n_features_in_, feature_names_in_: columns of a two-dimensional X, and their names.
    """

    backend: str = "torch"
    model: str = "lstm_attention"
    hidden_size: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    proj_size: int | None = None
    peepholes: bool = False
    coupled_gates: bool = False
    layer_norm: bool = False
    forget_bias: float | None = None
    recurrent_initializer: str = "uniform"
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    residual: bool = False
    truncated_bptt_steps: int | None = None
    nonlinearity: str = "tanh"
    reset_after: bool = True
    attention_score: str = "additive"
    self_attention: bool = False
    num_heads: int = 4
    feedforward_size: int | None = None
    positions: str = "sinusoidal"
    max_length: int = 512
    norm_first: bool = False
    activation: str = "gelu"
    causal: bool = False
    pooling: str = "mean"
    num_features: int = 1
    epochs: int = 100
    batch_size: int = 32
    optimizer: str = "adam"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    valid_fraction: float = 0.0
    patience: int | None = None
    random_state: Any = 0
    dtype: str = "float64"
    device: str = "cpu"
    threads: int | None = None
    fast: bool = True
    remat: bool = False
    unroll: int = 1
    cudnn: bool = False
    callbacks: Iterable[Callable[[Epoch], Any]] | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SequenceEstimator":
        """Train anew for `epochs` epochs; a sequence of weight 0 is as if absent.

        Raises:
          ValueError: a parameter, X, y or a weight is at fault.
          ConfigError: the backend's framework is not installed, or the device absent.
          DivergedError: loss or gradient is no longer finite.
        """
        vars(self).pop("arrays_", None)  # what a failed fit leaves must not predict
        rows, valid = self._begin(X, y, sample_weight)
        train(self, self.config_, rows, valid, self.config_.epochs)
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Any:
        """Train for one epoch, from where the estimator is; begin where it is new."""
        if not hasattr(self, "arrays_"):
            rows, valid = self._begin(X, y, sample_weight, classes, hold_out=False)
            config = self.config_
        else:
            config = self._config(self.config_.seed)
            fixed = FIXED - {"task"}  # which follows from the loss
            if different := changes(asdict(self.config_), asdict(config), fixed):
                raise ValueError(f"partial_fit cannot change {'; '.join(different)}; call fit")
            inputs, lengths, y, weights = self._read(X, y, sample_weight, config)
            rows = self._part(inputs, lengths, self._targets(y), weights)
            valid = replace(rows, rows=rows.rows[:0])
        train(self, config, rows, valid, 1)
        return self

    def _config(self, seed: int) -> RunConfig:
        """Check the parameters, as train.py does its options."""
        given = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
            if name not in ("random_state", "callbacks", "class_weight")
        }
        score = given.pop("attention_score")
        if given.get("loss") == "squared_error":
            del given["loss"]  # as in the files from before there were others
        if given.get("quantiles") is not None:
            given["quantiles"] = ",".join(map(str, np.ravel(given["quantiles"]).tolist()))
        with parameter_errors():
            if given["num_features"] is None:
                raise ConfigError("num_features None: expected a whole number >= 1")
            if str(given["model"]).endswith("_seq2seq"):
                raise ConfigError(
                    f"model {given['model']}: forecasts a series step by step, which train.py does; "
                    "choose another, which learns a path as y [N, K]"
                )
            return RunConfig(**given, score=score, seed=seed)

    def _read(
        self, X: Any, y: Any, sample_weight: Any, config: RunConfig, reset: bool = False
    ) -> tuple:
        """Return inputs, lengths, y and weights of the sequences whose weight is above 0."""
        inputs, lengths, y = read(self, X, y, reset)
        if not reset:
            self._check_features(inputs)
        weights = read_weights(sample_weight, inputs, config.master_dtype)
        if weights is not None:
            kept = weights > 0
            lengths, y, weights = lengths[kept], y[kept], weights[kept]
            inputs = inputs[kept, : lengths.max()]
        return inputs, lengths, y, weights

    def _check_features(self, inputs: np.ndarray) -> None:
        """Raise where time steps do not have the features of those fitted."""
        found, expected = inputs.shape[2], self.model_config_.input_size
        if found != expected:
            raise ValueError(
                f"X has {found} features a step, but {type(self).__name__} was fitted with "
                f"{expected}"
            )

    def _begin(
        self, X: Any, y: Any, sample_weight: Any, classes: Any = None, hold_out: bool = True
    ) -> tuple[Part, Part]:
        """Set everything but the weights; return what to train on and what to hold out."""
        state = check_random_state(self.random_state)
        whole = isinstance(self.random_state, int | np.integer)
        config = self._config(int(self.random_state) if whole else state.randint(2**31 - 1))
        inputs, lengths, y, weights = self._read(X, y, sample_weight, config, reset=True)
        targets = self._first_targets(y, classes)
        numbers, rows = targets.ndim == 2, np.arange(len(inputs))
        valid_rows = rows[:0]
        if hold_out:
            labels = None if numbers else targets
            name, fraction = "valid_fraction", config.valid_fraction
            with parameter_errors():
                rows, valid_rows = split_off(rows, fraction, labels, False, name, config.seed)
        self.scaling_ = fit_scaling(
            inputs[rows],
            targets[rows] if numbers else None,
            None if weights is None else weights[rows],
        )
        self.config_ = config
        sizes = {
            "task": "regression" if numbers else "classification",
            "input_size": inputs.shape[2],
            "output_size": config.outputs_per_target * targets.shape[1]
            if numbers
            else len(self.classes_),
        }
        with parameter_errors():
            self.model_config_ = ModelConfig(**subset(ModelConfig, config) | sizes)
        self.n_iter_ = self.n_steps_ = 0
        self.loss_curve_, self.valid_loss_curve_ = [], []
        part = self._part(inputs, lengths, targets, weights)
        held_out = replace(part, rows=np.intersect1d(valid_rows, part.rows))
        return replace(part, rows=np.intersect1d(rows, part.rows)), held_out

    def _part(
        self,
        inputs: np.ndarray,
        lengths: np.ndarray,
        targets: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Part:
        """Scale sequences; those without weight in the loss are in no row of the part."""
        dtype, rows = self.config_.master_dtype, np.arange(len(inputs))
        with parameter_errors():
            self.model_config_.check_length(inputs.shape[1])
            scaled = self.scaling_.inputs(inputs, dtype)
            if targets is not None and targets.ndim == 2:
                targets = self.scaling_.targets(targets, dtype)
        if targets is not None:
            weights = self._loss_weights(targets, weights)
            rows = rows if weights is None else rows[weights > 0]
        return Part(scaled, lengths, targets, rows, weights)

    def _loss_weights(self, targets: np.ndarray, weights: np.ndarray | None) -> Any:
        """Return how much each sequence counts in the loss; None for alike."""
        return weights

    def _outputs(self, X: Any) -> np.ndarray:
        """Return what the model says of each sequence, float64: logits [N, C], or scaled [N, O]."""
        check_is_fitted(self, "arrays_")
        config = self._config(self.config_.seed)
        inputs, lengths, _ = read(self, X)
        self._check_features(inputs)
        return outputs_of(self, config, self._part(inputs, lengths))

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file, without pickle: safetensors, and JSON in it.

        `callbacks` are not written.

        Raises:
          NotFittedError: there is nothing to save.
          ValueError: labels are neither numbers, truth values nor text.
          OutputError: the file cannot be written; one that was there stays.
        """
        check_is_fitted(self, "arrays_")
        estimator_file.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, backend: str | None = None) -> "SequenceEstimator":
        """Read what `save` wrote; `backend` says in which one to go on, none for the one saved.

        Raises:
          CheckpointError: the file is missing, damaged, or holds no estimator of this class.
        """
        estimator = estimator_file.load(cls, Path(path))
        return estimator if backend is None else estimator.set_params(backend=backend)
