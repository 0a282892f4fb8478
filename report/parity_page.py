"""The report of a comparison: one HTML file with its figures inside, for the screen and for paper."""

from collections.abc import Mapping
from typing import Any


def summary(result: Mapping[str, Any]) -> str:
    """Lay out the outcome as a short table."""
    return result["verdict"]


def page(result: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Write the report."""
    return result["verdict"]
