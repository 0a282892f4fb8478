"""The judge: whether, where and why a PyTorch callable and a JAX callable differ."""

from parity.diagnosis import Diagnosis, diagnose
from parity.judge import Report, compare
from parity.measure import Measured
from parity.weights import WeightsError

__all__ = ["Diagnosis", "Measured", "Report", "WeightsError", "compare", "diagnose"]
