"""The twins are one text: same files, same public names in the same order, same docstrings."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.name for path in (ROOT / "torch_impl").glob("*.py"))

# What one framework needs and the other has of its own.
ONLY_TORCH = {
    "arrays.py": {"add_parameters": "JAX has no modules to hold parameters"},
    "export.py": {
        "OpenEmbedding": "in JAX the places in time are passed as parameters",
        "quiet": "JAX has no word to say of an export",
        "write_torchscript": "of torch's formats; JAX has one, for which export is enough",
        "write_torch_export": "of torch's formats",
        "unroll_scan": "jax.export keeps the loop of recurrent.py",
        "scripted": "a loop for TorchScript",
        "unroll_scripted": "a loop for TorchScript",
        "scripting": "a loop for TorchScript",
    },
    "optimizers.py": {"GradientTransformation": "optax has it"},
    "recurrent.py": {"Weights": "JAX cells take a dict"},
    "training.py": {"flatten": "jax.flatten_util.ravel_pytree and optax.flatten in JAX"},
}
ONLY_JAX = {
    "attention.py": {
        "additive_scores": "a method of the module in torch",
        "multiplicative_scores": "a method of the module in torch",
        "additive_keys": "a method of the module in torch",
        "compare": "a method of the module in torch",
        "additive_step": "a method of the module in torch",
        "multiplicative_keys": "a method of the module in torch",
        "multiplicative_step": "a method of the module in torch",
    },
    "carry.py": {
        "other_axis_first": "a JAX loop runs over the first axis",
        "split_time": "one loop over chunks, which torch has anyway",
        "over_chunks": "one loop over chunks, which torch has anyway",
        "join_time": "one loop over chunks, which torch has anyway",
        "root": "in JAX fast.py has chunks too",
        "read_from": "autograd adds up step by step anyway",
        "step_by_step": "autograd adds up step by step anyway",
    },
    "recurrent.py": {
        "each_unroll": "torch has one change of how layers are unrolled, recomputing",
        "by_steps": "torch has no loop that is compiled",
    },
    "models.py": {"attention_step": "methods of what attention_over_steps builds in torch"},
    "arrays.py": {
        "to_tree": "a torch module is no tree",
        "to_names": "named_parameters in torch",
        "draw": "torch modules take the numbers of spec.params",
    },
    "optimizers.py": {"one_minus_power": "torch has the step as a Python number, in float64"},
}


def snake(name: str) -> str:
    """LSTMCell -> lstm_cell, RNN -> rnn, AdditiveAttention -> additive_attention."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def public(side: str, name: str) -> dict[str, str]:
    """Map each public name of a file, in order, to its docstring with all names in snake case."""
    tree = ast.parse((ROOT / side / name).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            text = re.sub(r"`([\w.]+)`", lambda match: f"`{snake(match[1])}`", text)
            found[snake(node.name)] = text
    return found


def without(names, exceptions):
    return {n: text for n, text in names.items() if n not in {snake(e) for e in exceptions}}


def test_same_files():
    assert sorted(path.name for path in (ROOT / "jax_impl").glob("*.py")) == FILES


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("__init__.py", "fast.py")])
def test_same_names_order_and_docstrings(name):
    in_torch = without(public("torch_impl", name), ONLY_TORCH.get(name, {}))
    in_jax = without(public("jax_impl", name), ONLY_JAX.get(name, {}))
    assert list(in_torch) == list(in_jax)
    assert in_torch == in_jax


def test_fast_offers_what_recurrent_does():
    """fast.py is free inside; its unroll functions and layers have recurrent.py's names."""
    import jax_impl.fast
    import torch_impl.fast

    assert issubclass(torch_impl.fast.LSTM, torch_impl.LSTM)
    assert issubclass(torch_impl.fast.GRU, torch_impl.GRU)
    assert issubclass(torch_impl.fast.RNN, torch_impl.RNN)
    for name in ("unroll_rnn", "unroll_gru", "unroll_lstm", "rnn", "gru", "lstm"):
        assert callable(getattr(jax_impl.fast, name))
    for name in ("unroll_rnn", "unroll_gru", "unroll_lstm"):
        in_torch = list(inspect.signature(getattr(torch_impl.fast, name)).parameters.values())
        assert in_torch.pop().name == "slowly"  # JAX exports any loop
        in_jax = dict(inspect.signature(getattr(jax_impl.fast, name)).parameters)
        assert "factor" in in_jax  # torch compiles no loop
        in_jax = [p for p in in_jax.values() if p.name not in ("factor", "recompute")]
        assert in_torch == in_jax


def test_exports_are_the_same():
    import jax_impl
    import torch_impl

    assert {snake(n) for n in torch_impl.__all__} == {snake(n) for n in jax_impl.__all__}
