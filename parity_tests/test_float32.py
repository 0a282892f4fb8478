"""In float32 neither side is further from the truth than the frameworks' own layers are."""

import pytest

from parity_tests.float32 import CASES, errors, ratios

# Measured at up to 1.7: oneDNN's gradients against torch's own packed kernel, and one long sum
# against many short ones. Twice the framework's error is still rounding.
MOST = 2.0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_the_frameworks_own(case):
    found = errors(case)
    assert all(0 < error < 1e-5 for pair in found.values() for error in pair)
    off = {name: pair for name, pair in ratios(found).items() if max(pair) > MOST}
    assert not off, f"error over the framework's, (outputs, gradients): {off}"
