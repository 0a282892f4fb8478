"""Print how far each oracle was off at most."""

from parity_tests.oracles import ours


def pytest_terminal_summary(terminalreporter):
    if ours.LARGEST:
        terminalreporter.section("largest error of an output or gradient", sep="-")
    for oracle, error in sorted(ours.LARGEST.items()):
        terminalreporter.line(f"{oracle:<30}{error:.1e}")
