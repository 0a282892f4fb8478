"""The judge: whether, where and why a PyTorch callable and a JAX callable differ."""

from parity import interop, maps, weights
from parity.diagnosis import Diagnosis, diagnose
from parity.drift import drift
from parity.judge import Report, assert_same, compare
from parity.measure import Measured
from parity.trace import Trace, tag, trace
from parity.weights import WeightsError

__all__ = [
    "Diagnosis",
    "Measured",
    "Report",
    "Trace",
    "WeightsError",
    "assert_same",
    "compare",
    "diagnose",
    "drift",
    "interop",
    "maps",
    "tag",
    "trace",
    "weights",
]
