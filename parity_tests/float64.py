"""How far the two backends and the NumPy reference are from each other in float64.

    python -m parity_tests.float64

prints the largest normwise relative error of each model over all its cases, of recurrent layers with
every option, and of each training run over all its steps.
"""

from collections.abc import Iterable

import jax_impl
import torch_impl
from parity_tests import test_models, test_recurrent
from parity_tests.cases import CASES, LAYERS, Case
from parity_tests.compare import Arrays, relative_error
from parity_tests.test_training import RUNS, STEPS, walk


def largest(found: Arrays, expected: Arrays, names: Iterable[str]) -> float:
    """Return the largest relative error among some arrays."""
    return max(relative_error(found[name], expected[name]) for name in names)


def errors(case: Case, layers: str) -> dict[tuple[str, bool], float]:
    """Return the error of each pair, apart for outputs (False) and gradients (True)."""
    own = test_recurrent if case in LAYERS else test_models
    sides = {
        "torch": own.torch_of(case, layers),
        "JAX": own.jax_of(case, layers),
        "NumPy": own.reference_of(case),
    }
    found = {}
    for first, second in (("torch", "JAX"), ("torch", "NumPy"), ("JAX", "NumPy")):
        for gradients in (False, True):
            names = [name for name in sides[first] if name.startswith("d ") == gradients]
            found[f"{first}, {second}", gradients] = largest(sides[first], sides[second], names)
    return found


def drift(run: str) -> tuple[float, float]:
    """Return the largest error of a loss, and of an array of weights or moments, over a run."""
    losses, arrays = [], []
    walks = (walk(backend, *RUNS[run]) for backend in (torch_impl, jax_impl))
    for (in_t, arrays_t), (in_j, arrays_j) in zip(*walks, strict=True):
        losses.append(relative_error(in_t.loss, in_j.loss))
        arrays.append(largest(arrays_t, arrays_j, arrays_j))
    return max(losses), max(arrays)


def main() -> None:
    print("| model | cases | compared | outputs | gradients |\n|---|---|---|---|---|")
    tables = {case.model: [] for case in CASES} | {"layers with options": LAYERS}
    for case in CASES:
        tables[case.model].append(case)
    for model, cases in tables.items():
        found = [errors(case, layers) for case in cases for layers in ("recurrent", "fast")]
        for pair in dict.fromkeys(pair for pair, _ in found[0]):
            most = [max(error[pair, gradients] for error in found) for gradients in (False, True)]
            print(
                f"| {model} | {len(cases)} | {pair} | {most[0]:.1e} | {most[1]:.1e} |", flush=True
            )
    print(f"\n| {STEPS} training steps | losses | weights and moments |\n|---|---|---|")
    for run in RUNS:
        print("| {} | {:.1e} | {:.1e} |".format(run, *drift(run)), flush=True)


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    main()
