"""The atlas: differences between PyTorch and JAX, Flax and Optax that run.

    python -m parity.differences            render docs/differences.md
    python -m parity.differences NAME       run one entry and print it
    python -m parity.differences --check    exit 1 when a behaviour has changed or the file is stale

`parity_tests/test_differences.py` holds every entry to what it says. Source: one or two
documentation pages or issue threads each; the numbers are of the versions in `constraints/`.
"""

from importlib import import_module

from parity.differences.entry import DIFFERENCES, GROUPS, Difference, difference

for group in GROUPS:
    import_module(f"{__name__}.{group}")

__all__ = ["DIFFERENCES", "GROUPS", "Difference", "difference"]
