"""The pytest fixture `parity`, there wherever seqduet is installed: it asserts two models equal."""

from collections.abc import Callable

import pytest


@pytest.fixture
def parity() -> Callable:
    """Return `parity.assert_same`, whose failure says which array parts, where and by how much."""
    from parity import assert_same  # here: every pytest session loads this file

    return assert_same
