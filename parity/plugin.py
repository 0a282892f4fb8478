"""A pytest fixture that asserts two models equal: `pytest_plugins = ["parity.plugin"]`."""

from collections.abc import Callable

import pytest


@pytest.fixture
def parity() -> Callable:
    """Return `parity.assert_same`, whose failure says which array parts, where and by how much."""
    from parity import assert_same

    return assert_same
