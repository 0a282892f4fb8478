"""How an estimator trains: the steps and batches of the training loop, without a run directory."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.batching import Part, shuffled
from experiment.config import RunConfig
from experiment.loop import predict_part, scaled_loss, take_step
from spec.backend import Backend, load_backend
from spec.config import Execution, OptimizerConfig
from spec.errors import ConfigError, DataError, DivergedError
from spec.options import subset
from spec.params import init_params, parameter_schema

if TYPE_CHECKING:
    from experiment.estimator_base import SequenceEstimator


class Epoch(NamedTuple):
    """What a callback is told.

    Attributes:
      epoch: epochs trained so far.
      loss: mean training loss of this one: cross-entropy in nats, or the `loss` of the standardised
        targets.
      valid_loss: the same of the sequences held out by `valid_fraction`; None without.
      estimator: as it is after this epoch, ready to predict and to save.
    """

    epoch: int
    loss: float
    valid_loss: float | None
    estimator: "SequenceEstimator"


@contextmanager
def parameter_errors() -> Iterator[None]:
    """Turn errors about options of train.py into ValueErrors about an estimator's parameters."""
    try:
        yield
    except (ConfigError, DataError, OverflowError) as error:
        raise ValueError(
            str(error).replace("--score", "attention_score").replace("--", "")
        ) from None


def train(
    estimator: "SequenceEstimator", config: RunConfig, rows: Part, valid: Part, epochs: int
) -> None:
    """Train from an estimator's arrays, or from first ones, and give it what comes out.

    Raises:
      ValueError: a callback is no function, or `class_weight` leaves nothing to train on.
      DivergedError: a loss, gradient or weight is not finite; the arrays stay as they were.
    """
    callbacks = estimator.callbacks or ()
    callbacks = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    if not all(map(callable, callbacks)):
        raise ValueError(f"callbacks {estimator.callbacks!r:.60}: expected a list of functions")
    if not len(rows):
        raise ValueError("class_weight leaves no sequence with a weight above 0 to train on")
    backend, model = load_backend(config.backend), estimator.model_config_
    total = 1  # the same whatever the rows where nothing depends on it: jit compiles once
    if config.schedule == "cosine":
        total = config.epochs * math.ceil(len(rows) / config.batch_size)
    with parameter_errors():
        rule = OptimizerConfig(**subset(OptimizerConfig, config), total_steps=total)
    arrays = getattr(estimator, "arrays_", None)
    if arrays is None:
        arrays = init_params(parameter_schema(model), config.seed)
    execution = Execution(**subset(Execution, config))
    state = backend.init_state(model, rule, execution, arrays, estimator.n_steps_)
    least, waited, best = math.inf, 0, None
    for _ in range(epochs):
        state, loss = train_epoch(estimator, config, backend, state, rows)
        judged, valid_loss = loss, None
        estimator.n_iter_ += 1
        estimator.loss_curve_.append(loss)
        if len(valid):
            outputs = predict_part(backend, state, valid).outputs
            judged = valid_loss = scaled_loss(model, outputs, valid)
            estimator.valid_loss_curve_.append(valid_loss)
        waited = 0 if judged < least else waited + 1
        if not waited:
            least = judged
            best = (exported(backend, state), estimator.n_steps_) if len(valid) else None
        if callbacks:
            estimator.arrays_ = exported(backend, state)
        told = Epoch(estimator.n_iter_, loss, valid_loss, estimator)
        answers = [callback(told) for callback in callbacks]
        if any(answers) or waited == config.patience:
            break
    estimator.arrays_, estimator.n_steps_ = best or (exported(backend, state), estimator.n_steps_)


def train_epoch(
    estimator: "SequenceEstimator", config: RunConfig, backend: Backend, state: Any, rows: Part
) -> tuple[Any, float]:
    """Take the steps of an epoch; return the state and the mean loss."""
    total, counted, step = 0.0, 0.0, estimator.n_steps_
    for positions in shuffled(len(rows), config.batch_size, config.seed, estimator.n_iter_):
        batch = rows.batch(positions)
        state, result = take_step(backend, state, estimator.model_config_, batch, config.seed, step)
        step += 1
        if result.diverged:
            raise DivergedError(f"step {step}: {result}; choose a smaller lr or clip_norm")
        count = len(positions) if batch.weights is None else float(batch.weights.sum())
        total, counted = total + result.loss * count, counted + count
    estimator.n_steps_ = step
    return state, total / counted


def exported(backend: Backend, state: Any) -> dict[str, np.ndarray]:
    """Copy out weights and running means.

    Raises:
      DivergedError: one is not finite.
    """
    arrays = backend.export_arrays(state)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DivergedError(f"{name} is not finite; choose a smaller lr or clip_norm")
    return arrays


def outputs_of(estimator: "SequenceEstimator", config: RunConfig, part: Part) -> np.ndarray:
    """Return what the fitted model says of each sequence: logits [N, C], or scaled [N, O]."""
    backend = load_backend(config.backend)
    arrays = {n: a for n, a in estimator.arrays_.items() if not n.startswith("optimizer.")}
    execution = Execution(**subset(Execution, config))
    state = backend.init_state(estimator.model_config_, OptimizerConfig(), execution, arrays)
    return predict_part(backend, state, part).outputs.astype(np.float64)
