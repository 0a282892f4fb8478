"""The score of the parity tests by cosmic-ray: mutants of both twins, and which of them survive.

    python -m parity_tests.mutants                        every file below; takes an hour
    python -m parity_tests.mutants --only losses          the files whose path holds this text

Each file is mutated in a copy of its own. Mutants that `EQUIVALENT` explains compute the same and
are not run; one that survives is shown with its change, and the exit code is 1 if they are more
than 5 % of the others.
"""

import argparse
import difflib
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

from parity_tests.faults import ROOT, copy_sources
from parity_tests.warm import QUIET, warm_pytest

FILES = [
    f"{side}_impl/{name}.py"
    for name in (
        *("losses", "attention", "cells", "optimizers", "models", "carry", "recurrent", "decoder"),
        *("encoder", "fast"),
    )
    for side in ("torch", "jax")
]
BAR = 0.95
# One other operator for each: cosmic-ray's own twelve for every + are mostly TypeErrors, which any
# test that runs the line kills. | stands in annotations only.
KEPT = [
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|Pow_Mul)",
    "ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)",
    "ReplaceUnaryOperator_Delete_.*",
    "Replace(And|Or)With.*",
    "Replace(True|False)With.*",
    "NumberReplacer",
    "AddNot",
    "ZeroIterationForLoop",
    "RemoveDecorator",
]
# Why no test can tell: (file on both sides, what stands in the changed line, what instead).
EQUIVALENT = {
    "the last of two axes is axis 1": [
        *(
            (f"{name}.py", "=-1", "=1")
            for name in ("losses", "attention", "cells", "models", "decoder")
        ),
        ("fast.py", "axis=-1", "axis=1"),
        ("cells.py", "shape[-1]", "shape[1]"),
        ("cells.py", "gates.shape[-1]", "gates.shape[1]"),
        ("cells.py", "c.shape[-1]", "c.shape[1]"),
    ],
    "the last two of four axes are 2 and 3": [
        ("torch_impl/attention.py", "flatten(-2)", "flatten(2)"),
        ("torch_impl/attention.py", "transpose(-1, -2)", "transpose(-1, 2)"),
        ("jax_impl/attention.py", "swapaxes(-1, -2)", "swapaxes(-1, 2)"),
    ],
    "the lengths are equal by construction": [
        ("recurrent.py", "strict=True", "strict=False"),
        ("fast.py", "strict=True", "strict=False"),
        ("cells.py", "strict=True", "strict=False"),
        ("carry.py", "strict=True", "strict=False"),
        ("models.py", "strict=True", "strict=False"),
    ],
    "the mean over targets and quantiles is one, in either order": [
        ("losses.py", "dim=-1), w", "dim=- 2), w"),
        ("losses.py", "axis=-1), w", "axis=- 2), w"),
    ],
    "nothing but options comes behind": [("losses.py", "*,", "/,")],
    "without a mask its rate is not used": [
        ("carry.py", "read_rate: float = 0.0", "read_rate: float = 1.0"),
        ("carry.py", "read_rate: float = 0.0", "read_rate: float = -1.0"),
        ("recurrent.py", "rate: float = 0.0", "rate: float = 1.0"),
        ("recurrent.py", "rate: float = 0.0", "rate: float = -1.0"),
        ("fast.py", "rate=0.0", "rate= 1.0"),
        ("fast.py", "rate=0.0", "rate= -1.0"),
    ],
    "nothing is drawn at random in there": [
        ("carry.py", "rng_state=False", "rng_state=True"),
    ],
    "any finite number does: what comes of it is cut off, and so are its gradients": [
        ("attention.py", "keys, 0.0)", "keys, 1.0)"),
        ("attention.py", "keys, 0.0)", "keys, -1.0)"),
        ("models.py", "inputs, 0.0)", "inputs, 1.0)"),
        ("models.py", "inputs, 0.0)", "inputs, -1.0)"),
        ("recurrent.py", "inputs, 0.0)", "inputs, 1.0)"),
        ("recurrent.py", "inputs, 0.0)", "inputs, -1.0)"),
        ("encoder.py", "x, 0.0)", "x, 1.0)"),
        ("encoder.py", "x, 0.0)", "x, -1.0)"),
        ("fast.py", "0.0, 0.0]", "0.0, 1.0]"),
        ("fast.py", "0.0, 0.0]", "0.0, -1.0]"),
    ],
    "an input gate that is shut lets nothing of the candidate in": [
        ("fast.py", "0.0, 0.0]", "1.0, 0.0]"),
        ("fast.py", "0.0, 0.0]", "-1.0, 0.0]"),
    ],
    "1e30 is the float64 beside 1e30": [
        ("fast.py", "-1e30", "- 1e+30"),
        ("fast.py", " 1e30", " 1e+30"),
    ],
    "a gate is shut by any large number": [
        ("fast.py", "max / 2", "max / 1"),
        ("fast.py", "max / 2", "max / 3"),
    ],
    "a kernel of one layer drops nothing": [
        ("fast.py", "1, 0.0, train", "1, 1.0, train"),
        ("fast.py", "1, 0.0, train", "1, -1.0, train"),
    ],
    "states computed again are the same states": [("recurrent.py", "True, False)", "True, True)")],
    "a step behind the last is not run": [
        ("torch_impl/recurrent.py", "resets[:, :1])", "resets[:, : 2])"),
    ],
    "the first is the last of one": [
        ("recurrent.py", "stack([shown[0]", "stack([shown[ -1]"),
        ("cells.py", "forget[0]", "forget[ -1]"),
        ("fast.py", "last = last[0]", "last = last[ -1]"),
        ("fast.py", "c[0]", "c[ -1]"),
        ("fast.py", "[:, 0]", "[:, -1]"),
        ("fast.py", "d_after[0]", "d_after[ -1]"),
        ("fast.py", "- after[0]", "- after[ -1]"),
        ("fast.py", "where(after[0]", "where(after[ -1]"),
        ("attention.py", ")[:, 0]", ")[:, -1]"),
        ("attention.py", "[..., 0]", "[..., -1]"),
        ("jax_impl/attention.py", "[..., 0]", "[..., 1]"),  # which JAX clamps to 0
        ("jax_impl/attention.py", ")[:, 0]", ")[:, 1]"),  # which JAX clamps to 0
    ],
    "any element has the dtype and the device": [
        ("optimizers.py", "params[0]", "params[ 1]"),
        ("optimizers.py", "params[0]", "params[ -1]"),
    ],
    "without warm-up no step is before its end, and where() takes the other branch": [
        ("jax_impl/optimizers.py", "warmup_steps, 1)", "warmup_steps, 0)"),
    ],
    "a sequence without steps takes its first state instead": [("fast.py", "min=0", "min= -1")],
    "all layers, and all states, have the same H": [
        ("recurrent.py", "weights[0].shape", "weights[ -1].shape"),
        ("recurrent.py", "recurrent[0]", "recurrent[ -1]"),
        ("fast.py", "befores[0].shape", "befores[ -1].shape"),
    ],
}
OPTIONS = ["-x", "-q", "-m", "not long", "-p", "no:xdist", "-p", "no:cacheprovider"]
CONFIGURATION = """
[cosmic-ray]
module-path = "{source}"
timeout = 600.0
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["^core/(?!({kept})$)"]
"""


class Mutant(NamedTuple):
    """One change of one line: killed, survived, incompetent (killed by a crash) or equivalent."""

    source: str
    removed: str
    added: str
    outcome: str


def tests_of(source: str) -> list[str]:
    """The tests that a file's mutants must not pass: its own, without those of what uses it."""
    if source.endswith("fast.py"):
        return ["parity_tests/test_recurrent.py", "parity_tests/test_encoder.py", "-k", "fast"]
    if source.endswith("decoder.py"):  # a whole model's state has two parts
        both = ["parity_tests/test_decoder.py", "parity_tests/test_models.py"]
        return [*both, "-k", "test_decoder or lstm_seq2seq"]
    if source.endswith("cells.py"):  # and how they round
        both = ["parity_tests/test_cells.py", "parity_tests/test_mixed_precision.py"]
        return [*both, "-k", "test_cells or standardize"]
    if source.endswith(("carry.py", "recurrent.py")):  # what a layer does with its state
        return [f"parity_tests/test_{name}.py" for name in ("recurrent", "carry")]
    return [f"parity_tests/test_{Path(source).name}"]


def mutate(source: str, warm: list[str]) -> list[Mutant]:
    """Run the tests on every mutant of a file that is not known to compute the same."""
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_sources(folder)
        command = shlex.join([*warm, *OPTIONS, *tests_of(source)])
        text = CONFIGURATION.format(source=source, command=command, kept="|".join(KEPT))
        (folder / "mutants.toml").write_text(text)

        def run(tool, *arguments):
            command = [tools / tool, *arguments]
            subprocess.run(command, cwd=folder, env=QUIET, check=True, capture_output=True)

        run("cosmic-ray", "init", "mutants.toml", "mutants.sqlite")
        run("cr-filter-operators", "mutants.sqlite", "mutants.toml")
        with use_db(folder / "mutants.sqlite") as session:
            same = skip_equivalent(session, source)
        run("cosmic-ray", "exec", "mutants.toml", "mutants.sqlite")
        with use_db(folder / "mutants.sqlite") as session:
            found = [result for _, result in session.results]
    ran = [result for result in found if result.worker_outcome == WorkerOutcome.NORMAL]
    return same + [Mutant(source, *lines(r.diff), r.test_outcome.value.lower()) for r in ran]


def skip_equivalent(session: WorkDB, source: str) -> list[Mutant]:
    """Take out of a session the mutants that `EQUIVALENT` explains, and return them."""
    code, same = (ROOT / source).read_text(), []
    for item in session.pending_work_items:
        (mutation,) = item.mutations
        operator = get_operator(mutation.operator_name)(**mutation.operator_args)
        changed = mutate_code(code.encode(), operator, mutation.occurrence)
        diff = difflib.unified_diff(code.splitlines(), changed.splitlines(), n=0, lineterm="")
        mutant = Mutant(source, *lines("\n".join(diff)), "equivalent")
        if why_equivalent(mutant):
            skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="equivalent")
            session.set_result(item.job_id, skipped)
            same.append(mutant)
    return same


def why_equivalent(mutant: Mutant) -> str | None:
    """Return the reason why a mutant computes the same, if one is known."""
    for reason, changes in EQUIVALENT.items():
        for file, old, new in changes:
            if mutant.source.endswith(file) and mutant.removed.replace(old, new) == mutant.added:
                return reason
    return None


def lines(diff: str) -> tuple[str, str]:
    """Return the removed and the added line of a unified diff; a decorator's removal adds none."""
    changed = dict.fromkeys("-+", "")
    for line in diff.splitlines():
        if line[:1] in changed and line[:3] not in ("---", "+++"):
            changed[line[0]] = line[1:].strip()
    return changed["-"], changed["+"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [source for source in FILES if options.only in source]
    tests = {t for source in chosen for t in tests_of(source) if t.endswith(".py")}
    total = killed = explained = 0
    with warm_pytest() as warm, ThreadPoolExecutor(options.jobs) as pool:
        # Tests that fail without a mutant would seem to kill every one.
        subprocess.run([*warm, *OPTIONS, *sorted(tests)], cwd=ROOT, env=QUIET, check=True)
        every = pool.map(partial(mutate, warm=warm), chosen)
        for source, mutants in zip(chosen, every, strict=True):
            gaps = [m for m in mutants if m.outcome == "survived"]
            same = sum(m.outcome == "equivalent" for m in mutants)
            dead = len(mutants) - same - len(gaps)
            total, killed, explained = total + len(mutants), killed + dead, explained + same
            print(
                f"{source}: {len(mutants)} mutants, {dead} killed, {same} equivalent, "
                f"{len(gaps)} survived",
                *(f"  - {m.removed}\n  + {m.added}" for m in gaps),
                sep="\n",
                flush=True,
            )
    score = killed / (total - explained)
    print(f"{killed} of {total} mutants killed, {explained} equivalent: {score:.1%}")
    return int(score < BAR)


if __name__ == "__main__":
    sys.exit(main())
