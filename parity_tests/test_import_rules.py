"""Each folder imports what it may, and neither backend the other's framework."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "spec": {"numpy", "safetensors", "spec"},
    "data": {"numpy", "tqdm", "spec", "data"},
    "torch_impl": {"torch", "numpy", "jaxtyping", "spec", "torch_impl"},
    "jax_impl": {"jax", "flax", "optax", "numpy", "jaxtyping", "spec", "jax_impl"},
    # The models a third time: it exports from either backend, with neither installed.
    "onnx_impl": {"onnx", "onnxruntime", "numpy", "spec", "onnx_impl"},
    "experiment": {"numpy", "filelock", "yaml", "tqdm", "sklearn", "spec", "data", "experiment"},
    "report": {"numpy", "matplotlib", "spec", "experiment", "report"},
}
COMMANDS = {"spec", "data", "experiment", "report"}
# The judge itself; its atlas and its maps are about other libraries.
PARITY = {"torch", "jax", "mpmath", "numpy", "spec", "torch_impl", "jax_impl", "parity", "pytest"}


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_what_it_may(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= ALLOWED[folder], path


@pytest.mark.parametrize("command", ["train.py", "predict.py", "export.py", "inspect_model.py"])
def test_commands_import_no_framework(command):
    assert imported(ROOT / command) <= COMMANDS


@pytest.mark.parametrize("path", sorted((ROOT / "parity").glob("*.py")), ids=lambda path: path.stem)
def test_judge_imports_only_what_it_may(path):
    assert imported(path) <= PARITY


def test_compare_imports_no_framework_but_through_parity():
    assert imported(ROOT / "compare.py") <= COMMANDS | {"parity"}
