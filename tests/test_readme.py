"""What the README shows exists and runs."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, installed

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_python_runs(code):
    for name in ("torch", "jax"):
        installed(name)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    for line in result.stdout.splitlines():
        assert without_numbers(line) in without_numbers(README), line


def without_numbers(text: str) -> str:
    """Leave out errors like 2.7e-16, which depend on the processor."""
    return re.sub(r"\d\.\de-\d\d", "", text)


@pytest.mark.parametrize(
    "command", ["train.py", "predict.py", "compare.py", "inspect_model.py", "export.py"]
)
def test_its_commands_have_these_flags(command):
    help_text = subprocess.run(
        [sys.executable, command, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    lines = re.findall(rf"python {command} ([^`\n]*)", README)
    assert lines
    for line in lines:
        for flag in re.findall(r"--\w+", line):
            assert re.search(rf" {flag}\b", help_text), line


def test_its_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][\w-]*)", README):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"[\w./]+/[\w.]*\.(?:py|png|txt|md)", README):
        assert (ROOT / path).exists(), path


def test_its_feature_table_names_tests_that_are_there():
    for name in ("torch", "jax"):
        installed(name)
    table = README.partition("## Feature by feature")[2].partition("\n## ")[0]
    held = re.findall(r'`(\w*tests/[\w/]+\.py)`((?:, (?:cases )?"[\w-]+"|, `test_\w+`)*)', table)
    named = [(path, word) for path, of in held for word in re.findall(r'["`]([\w-]+)["`]', of)]
    assert {path for path, _ in held} > {path for path, _ in named} > set()
    for path, _ in held:
        assert "\ndef test_" in (ROOT / path).read_text(), path
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, *sorted({path for path, _ in named})],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for path, word in named:
        assert any(line.startswith(f"{path}::") and word in line for line in found), (path, word)
