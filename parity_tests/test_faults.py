"""The table of deliberate faults is sound; `python -m parity_tests.faults` plants them."""

from collections import Counter

import pytest

from parity_tests.faults import FAULTS, ROOT, catch
from parity_tests.warm import warm_pytest


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.side}-{f.name}")
def test_fault_changes_its_file(fault):
    """A fault whose text is gone would be caught by nothing, and count."""
    assert fault.old in (ROOT / fault.source).read_text()
    assert fault.new != fault.old


def test_table_is_large_and_even():
    assert len({(f.side, f.name) for f in FAULTS}) == len(FAULTS)
    sides = Counter(fault.side for fault in FAULTS)
    assert min(sides.values()) >= 60


@pytest.fixture(scope="module")
def warm():
    with warm_pytest() as command:
        yield command


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.side}-{f.name}")
def test_fault_is_caught(fault, warm):
    assert catch(fault, warm)[1]
