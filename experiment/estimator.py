"""Sequence models as scikit-learn estimators, in either backend.

Dimensions: N sequences, T time, D input features, C classes, O regression targets, Q quantiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from experiment.answers import in_unit, point
from experiment.estimator_base import SequenceEstimator
from experiment.metrics import softmax


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceClassifier(ClassifierMixin, SequenceEstimator):
    """Classify sequences; the labels, of any type that sorts, are in `classes_`.

    `class_weight` is None, "balanced" (by the sum of sample weights of each class) or a dict of
    labels; it counts in the loss, not in the standardising. `label_smoothing` is the share of a
    label that the loss spreads evenly over all classes.
    """

    class_weight: Mapping[Any, float] | str | None = None
    label_smoothing: float = 0.0

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "SequenceClassifier":
        """Train for one epoch, from the present weights and the optimiser's state.

        The first call of a new estimator fits the scaling, and needs all labels as `classes`;
        nothing is held out for validation.

        Raises:
          ValueError: as `fit`; or a label is not among the classes.
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight 'balanced': partial_fit cannot know it; give a dict")
        if classes is None and not hasattr(self, "arrays_"):
            raise ValueError("classes: the first call of partial_fit needs all labels")
        again = classes is not None and hasattr(self, "arrays_")
        if again and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes {classes!s:.60}: the first were {self.classes_!s:.60}")
        return self._partial_fit(X, y, sample_weight, classes)

    def _first_targets(self, y: np.ndarray, classes: Any) -> np.ndarray:
        check_classification_targets(y)
        self.classes_ = np.unique(y if classes is None else classes)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has 1 class, {self.classes_.tolist()[0]!r:.60}; a classifier needs two at least"
            )
        return self._targets(y)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        check_classification_targets(y)
        unknown = np.unique(y[~np.isin(y, self.classes_)])
        if len(unknown):
            raise ValueError(f"y holds labels that are no classes: {unknown[:5].tolist()}")
        return np.searchsorted(self.classes_, y)

    def _loss_weights(self, targets: np.ndarray, weights: np.ndarray | None) -> Any:
        if self.class_weight is None:
            return weights
        if self.class_weight == "balanced":
            counts = np.bincount(targets, weights, len(self.classes_))
            factors = counts.sum() / (len(counts) * counts)
        else:
            labels = self.classes_
            factors = compute_class_weight(self.class_weight, classes=labels, y=labels)
        if not (np.isfinite(factors) & (factors >= 0)).all():
            raise ValueError(f"class_weight {self.class_weight}: expected finite weights >= 0")
        return factors[targets] if weights is None else factors[targets] * weights

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sequence [N]."""
        outputs = self._outputs(X)
        return self.classes_[outputs.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities [N, C], in the order of `classes_`."""
        return softmax(self._outputs(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities [N, C], finite where those are 0."""
        outputs = self._outputs(X)
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceRegressor(RegressorMixin, SequenceEstimator):
    """Predict one number a sequence, y [N], or several, y [N, O], in the unit of y.

    `loss` decides what is learned: "squared_error" the mean; "quantile" the `quantiles`, numbers
    that increase within 0 and 1, None for 0.1, 0.5, 0.9; "gaussian_nll" mean and standard deviation.
    """

    loss: str = "squared_error"
    quantiles: Sequence[float] | None = None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SequenceRegressor":
        """Train for one epoch, from the present weights and the optimiser's state.

        The first call of a new estimator fits the scaling; nothing is held out for validation.

        Raises:
          ValueError: as `fit`; or y has another number of columns than before.
        """
        return self._partial_fit(X, y, sample_weight)

    def _first_targets(self, y: np.ndarray, classes: Any) -> np.ndarray:
        self.y_ndim_ = y.ndim
        return y.reshape(len(y), -1).astype(np.float64)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        targets, model = y.reshape(len(y), -1), self.model_config_
        expected = model.output_size // model.outputs_per_target
        if targets.shape[1] != expected or y.ndim != self.y_ndim_:
            raise ValueError(f"y has shape {y.shape}; the first had {expected} columns")
        return targets.astype(np.float64)

    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return predictions of the shape of y, [N] or [N, O], float64.

        Of quantiles the median, or the middle one of an odd number.

        Args:
          return_std: return the standard deviations too, of the same shape.

        Raises:
          ValueError: there are no standard deviations, or quantiles without a middle one.
        """
        numbers = self._numbers(X)
        model = self.model_config_
        if return_std and model.criterion != "gaussian_nll":
            raise ValueError("return_std: there are none; fit with loss='gaussian_nll'")
        at = point(model)
        if at is None:
            raise ValueError(
                f"quantiles {self.quantiles}: an even number without 0.5 has no middle one; call "
                "predict_quantiles"
            )
        return (numbers[..., at], numbers[..., 1]) if return_std else numbers[..., at]

    def predict_quantiles(self, X: Any) -> np.ndarray:
        """Return the quantiles in increasing order, [N, Q] or [N, O, Q], float64.

        Raises:
          ValueError: the loss is another.
        """
        numbers = self._numbers(X)
        if self.model_config_.criterion != "quantile":
            raise ValueError("predict_quantiles: there are none; fit with loss='quantile'")
        return numbers

    def _numbers(self, X: Any) -> np.ndarray:
        """Return what is said of each target in the unit of y, [N, P] or [N, O, P]."""
        outputs, model = self._outputs(X), self.model_config_
        numbers = in_unit(model, self.scaling_, outputs)
        numbers = numbers.reshape(len(outputs), -1, model.outputs_per_target)
        return numbers[:, 0] if self.y_ndim_ == 1 else numbers
