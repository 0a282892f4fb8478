"""Why a PyTorch callable and a JAX callable differ: which known explanation removes the difference.

Each explanation is a change to one side (`parity.explanations`). One is believed only if with it all
outputs agree to rounding, on the given inputs and on others; where the outputs agree from the start,
the gradients. Single changes are tried first, then pairs.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from jax.extend import core

from parity import explanations as known
from parity.explanations import Change
from parity.jaxprs import literals, place, rewrite
from parity.judge import about_weights, sides
from parity.measure import distance, same_pattern
from parity.patches import Patched
from parity.rounding import (
    FACTOR,
    computed_weights,
    of_weights,
    responses,
    responses_everywhere,
    tolerance,
)
from parity.sides import Arrays, Inputs, JaxSide, TorchSide, by_name, is_float
from parity.weights import Weights


@dataclass
class Diagnosis:
    """What explains a difference.

    Attributes:
      verdict: "the same", "explained" or "none of the known ones".
      causes: the change or the two changes that remove it.
      others: further explanations that remove it as well, in other words.
      before, after: largest relative difference of an output (or, if `where` says so, gradient).
      where: "outputs" or "gradients".
      notes: what else was seen.
    """

    verdict: str
    causes: list[Change] = field(default_factory=list)
    others: list[list[Change]] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    where: str = "outputs"
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the causes; empty where nothing is claimed."""
        return [cause.name for cause in self.causes]

    def __str__(self) -> str:
        if self.verdict == "the same":
            lines = [f"the same: they agree to {self.before:.1e}"]
        elif not self.causes:
            lines = [
                f"none of the known ones explains the difference of {self.before:.1e} in {self.where}"
            ]
        else:
            lines = [
                f"{self.where}: {self.before:.1e} apart, {self.after:.1e} once this is mended:"
            ]
            for cause in self.causes:
                lines += [f"  {cause.name}: {cause.says}", f"    mend: {cause.fix}"]
            words = {" + ".join(c.name for c in other) for other in self.others}
            words -= {" + ".join(self.names)}
            if words:
                lines.append(f"  as good: {'; '.join(sorted(words))}")
        return "\n".join(lines + self.notes)


def diagnose(
    torch_model: Callable,
    jax_fn: Callable,
    inputs: Inputs,
    params: Any = None,
    weights: Weights | str | None = None,
    *,
    pairs: bool = True,
    seconds: float = 90.0,
) -> Diagnosis:
    """Look for what makes two callables differ.

    Args:
      torch_model, jax_fn, inputs, params, weights: as for `parity.compare`.
      pairs: whether to try two explanations at once where none suffices.
      seconds: time after which no further pair is tried.

    Raises:
      WeightsError: the parameters do not fit together.
    """
    return Search(*sides(torch_model, jax_fn, inputs, params, weights), seconds).run(pairs)


class Search:
    """Tries changes and remembers what each made of its side."""

    def __init__(self, torch_side: TorchSide, jax_side: JaxSide, seconds: float):
        self.torch_side, self.jax_side = torch_side, jax_side
        self.inputs = by_name(torch_side.inputs)
        self.deadline = time.monotonic() + seconds
        self.compiled: dict[Any, Callable] = {}
        self.gradients = False
        self.bound = 0.0
        self.about_weights: list[str] = []

    # Running one side with changes

    def torch_values(self, changes: Sequence[Change], inputs: Arrays | None = None) -> Any:
        """Return torch's outputs (and gradients by name, where those are in question)."""
        patches = Patched([c.patch for c in changes if c.patch])
        arrays = {n: self.torch_side.arrays[n] for n in self.torch_side.parameters}
        values = dict(inputs or self.inputs)
        for c in changes:
            arrays = c.arrays(arrays) if c.arrays else arrays
            values = c.inputs(values) if c.inputs else values
        changed = {n: x for n, x in arrays.items() if x is not self.torch_side.arrays[n]}
        with contextlib.ExitStack() as stack:
            for c in changes:
                if c.around:
                    stack.enter_context(c.around())
            state = torch.get_rng_state()
            stack.callback(torch.set_rng_state, state)
            stack.enter_context(patches)
            outputs, gradients = self.torch_side.run(
                "float64", self.cotangents_t(), changed, values
            )
        return changed_outputs(changes, outputs), gradients

    def jax_values(self, changes: Sequence[Change], inputs: Arrays | None = None) -> Any:
        """Return JAX's outputs (and gradients by name, where those are in question)."""
        leaves, values = self.jax_side.leaves, dict(inputs or self.inputs)
        for c in changes:
            leaves = c.arrays(leaves) if c.arrays else leaves
            values = c.inputs(values) if c.inputs else values
        literals = tuple(c.literal for c in changes if c.literal)
        if literals:
            outputs, gradients = self.rewritten(literals, leaves, values)
        else:
            outputs, gradients = self.jax_side.run("float64", self.cotangents_j(), leaves, values)
        return changed_outputs(changes, outputs), gradients

    def rewritten(self, literals: tuple, leaves: Arrays, values: Arrays) -> tuple[Arrays, Arrays]:
        """Run JAX's function with other numbers written in it."""
        with jax.enable_x64(self.jax_side.x64):
            function, floats = self.jax_side.prepare("float64", leaves, values)
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*floats)
            for literal in literals:
                closed = closed.replace(jaxpr=rewrite(closed.jaxpr, literal))
            tree = jax.tree.structure(shape)

            def changed(*floats):
                found = core.jaxpr_as_fun(closed)(*jax.tree.leaves(floats))
                return jax.tree.unflatten(tree, found)

            names = list(self.jax_side.names)
            if not self.gradients:
                outputs = changed(*floats)
                return {n: np.array(outputs[n]) for n in names}, {}
            outputs, grads = self.jax_side.pull(changed)(self.cotangents_j(), *floats)
            merged = {**grads[0], **grads[1]}
            return {n: np.array(outputs[n]) for n in names}, {
                n: np.array(x) for n, x in merged.items()
            }

    def cotangents_t(self) -> Arrays | None:
        return self.pulled[0] if self.gradients else None

    def cotangents_j(self) -> Arrays | None:
        return self.pulled[1] if self.gradients else None

    # Comparing

    def error(self, in_t: Any, in_j: Any, touched: frozenset[str] = frozenset()) -> float:
        """Return the largest relative difference; inf where shapes or NaN differ."""
        worst = 0.0
        pairs = (
            list(zip(in_t[0], in_j[0], strict=False)) if len(in_t[0]) == len(in_j[0]) else [None]
        )
        if None in pairs:
            return np.inf
        if self.gradients:
            shared = [n for n in in_t[1] if n in in_j[1] and n not in touched]
            sizes = {n: np.linalg.norm(np.nan_to_num(in_j[1][n])) for n in shared}
            least = FACTOR * np.finfo("float64").eps * max(sizes.values(), default=0.0)
            # A gradient so small is 0 on paper, and its digits are noise.
            pairs += [(in_t[1][n], in_j[1][n]) for n in shared if not 0 < sizes[n] <= least]
        for x, y in pairs:
            if x.shape != y.shape:
                return np.inf
            if x.dtype.kind not in "fc" or y.dtype.kind not in "fc":
                worst = max(worst, 0.0 if np.array_equal(x, y) else np.inf)
                continue
            if not same_pattern(x.astype(float), y.astype(float)):
                return np.inf
            worst = max(worst, distance(x, y))
        return worst

    def attempt(
        self, run: Callable, changes: Sequence[Change], inputs: Arrays | None = None
    ) -> Any:
        """Run one side; None where it cannot."""
        try:
            return run(changes, inputs)
        except Exception:
            return None  # a change that does not fit this model's shapes or arguments

    # The search

    def run(self, pairs: bool) -> Diagnosis:
        """Find the explanation."""
        notes = []
        plain_t, plain_j = self.torch_values([]), None
        try:
            plain_j = self.jax_values([])
        except Exception as error:
            notes.append(f"JAX cannot run: {type(error).__name__}: {str(error).splitlines()[0]}")
        before = np.inf if plain_j is None else self.error(plain_t, plain_j)
        self.bound = self.rounding()
        where = "outputs"
        if self.agrees(plain_t, plain_j, before):
            self.bound = max(self.bound, before)
            before_g = self.with_gradients()
            plain_t, plain_j = self.torch_values([]), self.jax_values([])
            if self.agrees(plain_t, plain_j, before_g):
                return Diagnosis("the same", before=max(before, before_g), notes=self.about_weights)
            where, before = "gradients", before_g
        if plain_j is not None:  # a mended difference leaves that of rounded weights
            self.bound = max(self.bound, min(self.by_weights(), before / 16))
        found = self.of_precision(plain_t, plain_j, before) if np.isfinite(before) else None
        if found is None:
            found = self.search(plain_t, plain_j, before, pairs)
        verdict = "explained" if found else "none of the known ones"
        if not found:
            return Diagnosis(verdict, before=before, where=where, notes=notes)
        found.sort(key=lambda f: (len(f[1]), preference(f[1])))
        after, causes = found[0]
        if where == "outputs":
            notes += self.still_apart(causes)
        return Diagnosis(verdict, causes, [c for _, c in found[1:]], before, after, where, notes)

    def still_apart(self, causes: Sequence[Change]) -> list[str]:
        """Say if gradients of parameters differ where the causes make the outputs agree."""
        if any(c.slot == "precision" or c.outputs for c in causes):
            return []  # shown in extended precision only; or cotangents would go to other outputs
        try:
            self.with_gradients()
        except Exception:
            return []  # JAX cannot run as it is
        in_t = self.attempt(self.torch_values, [c for c in causes if c.side == "torch"])
        in_j = self.attempt(self.jax_values, [c for c in causes if c.side == "jax"])
        if in_t is None or in_j is None:
            return []
        touched = frozenset(self.inputs).union(*(c.touched for c in causes))
        apart = self.error(in_t, in_j, touched)
        if apart <= FACTOR * self.bound:
            return []
        return [f"gradients stay {apart:.1e} apart with it: mend it, then diagnose again"]

    def rounding(self) -> float:
        """Return what rounding may make of a difference."""
        try:
            moved = responses(self.jax_side)[0].values()
        except Exception:
            moved = [1.0]  # JAX cannot run as it is; a change will say why
        return tolerance(moved)

    def agrees(self, plain_t: Any, plain_j: Any, before: float) -> bool:
        """Tell whether rounding explains a difference, that of weights included."""
        if before <= self.bound:
            return True
        if plain_j is not None and before <= self.by_weights():
            self.about_weights = [about_weights(computed_weights(self.torch_side, self.jax_side))]
            return True
        return self.only_rounding(plain_t, plain_j, before)

    def by_weights(self) -> float:
        """Return what weights rounded to float32 may make of a difference."""
        parts = of_weights(self.torch_side, self.jax_side, self.cotangents_j())
        return max([bound for part in parts for bound in part.values()], default=0.0)

    def only_rounding(self, plain_t: Any, plain_j: Any, before: float) -> bool:
        """Tell whether the roundings inside explain a difference, alike on both sides."""
        if plain_j is None or not before < 1e-6 or not self.jax_side.is_small:
            return False
        try:
            parts = responses_everywhere(self.jax_side, self.cotangents_j())
            exact = self.exact()
        except Exception:
            return False  # an operation that has no form in extended precision
        moved = [response for part in parts for response in part.values()]
        near, far = sorted((self.error(plain_t, exact), self.error(plain_j, exact)))
        return far <= FACTOR * near and before <= FACTOR * np.finfo("float64").eps * max(moved)

    def exact(self, observe: Callable | None = None) -> Any:
        """Return JAX's outputs, and gradients if in question, in extended precision."""
        outputs, gradients = self.jax_side.exact(self.cotangents_j(), observe=observe)
        return list(outputs.values()), gradients

    def with_gradients(self) -> float:
        """Draw cotangents, and return the largest relative difference with gradients."""
        names_t = list(self.torch_side.run("float64")[0])
        names_j = list(self.jax_side.names)
        drawn = self.torch_side.cotangents()
        order = dict(zip(names_t, names_j, strict=True))
        self.pulled = drawn, {order[n]: c for n, c in drawn.items()}
        self.gradients = True
        in_t, in_j = self.torch_values([]), self.jax_values([])
        moved = responses(self.jax_side, self.pulled[1])[1].values()
        self.bound = max(self.bound, tolerance(moved))
        return self.error(in_t, in_j) if drawn else 0.0

    def search(
        self, plain_t: Any, plain_j: Any, before: float, pairs: bool
    ) -> list[tuple[float, list[Change]]]:
        """Try single changes, then pairs."""
        on_torch, on_jax = self.candidates(plain_t, plain_j)
        made_t = [(c, self.attempt(self.torch_values, [c])) for c in on_torch]
        made_t = [(c, v) for c, v in made_t if v is not None and self.differs(v, plain_t)]
        made_j = [(c, self.attempt(self.jax_values, [c])) for c in on_jax]
        made_j = [(c, v) for c, v in made_j if v is not None and self.differs(v, plain_j)]
        singles = [([c], v, plain_j) for c, v in made_t] + [([c], plain_t, v) for c, v in made_j]
        found = self.confirm(singles) or self.confirm(self.in_places(on_torch, plain_j))
        if found or not pairs:
            return found
        crossed = (
            ([a, b], v, w)
            for (a, v), (b, w) in itertools.product(made_t, made_j)
            if not a.name == b.name == "missing_bias"  # without its weights nothing differs
        )
        return (
            self.confirm(crossed)
            or self.confirm(self.both_on([c for c, _ in made_t], self.torch_values, plain_j, True))
            or self.confirm(self.both_on([c for c, _ in made_j], self.jax_values, plain_t, False))
        )

    def in_places(self, changes: list[Change], other: Any) -> Iterable:
        """Yield what a change makes in one of the places where torch calls a function."""
        for change in changes:
            for one in known.in_one_place(change, self.calls) if change.patch else ():
                if time.monotonic() > self.deadline:
                    return
                yield [one], self.attempt(self.torch_values, [one]), other

    def both_on(
        self, changes: list[Change], run: Callable, other: Any, torch_first: bool
    ) -> Iterable:
        """Yield what two changes to the same side make, until time is up."""
        for a, b in itertools.combinations(changes, 2):
            if time.monotonic() > self.deadline:
                return
            if a.slot == b.slot:
                continue
            made = self.attempt(run, [a, b])
            if made is not None:
                yield ([a, b], made, other) if torch_first else ([a, b], other, made)

    def differs(self, made: Any, plain: Any) -> bool:
        """Tell whether a change changed anything."""
        return plain is None or self.error(made, plain) > 1e-14

    def confirm(self, tried: Iterable) -> list[tuple[float, list[Change]]]:
        """Keep what makes both sides agree, on other inputs too and in the gradients."""
        found = []
        for changes, in_t, in_j in tried:
            if in_t is None or in_j is None:
                continue
            touched = frozenset().union(*(c.touched for c in changes))
            error = self.error(in_t, in_j, touched)
            if error <= self.bound and self.holds(changes, touched):
                found.append((error, changes))
        return found

    def holds(self, changes: Sequence[Change], touched: frozenset[str]) -> bool:
        """Try an explanation on inputs that are moved at random."""
        draw = np.random.default_rng(11)
        moved = {
            n: x + 0.1 * draw.normal(size=x.shape) * (np.std(x) or 1.0) if is_float(x) else x
            for n, x in self.inputs.items()
        }
        if self.gradients:
            return True  # ties, which inputs moved at random no longer have
        on_torch = [c for c in changes if c.side == "torch"]
        in_t = self.attempt(self.torch_values, on_torch, moved)
        in_j = self.attempt(self.jax_values, [c for c in changes if c.side == "jax"], moved)
        return (
            in_t is not None
            and in_j is not None
            and self.error(in_t, in_j, touched) <= 16 * self.bound
        )

    def candidates(self, plain_t: Any, plain_j: Any) -> tuple[list[Change], list[Change]]:
        """List the changes that may matter to these two."""
        with Patched() as heard:
            self.torch_side.run("float64")
        self.calls = {name: len(calls) for name, calls in heard.calls.items()}
        called = set(heard.calls)
        depths = {
            a[0].shape[-1]
            for n in ("matmul", "bmm", "einsum", "__matmul__", "linear")
            for a, _ in heard.calls.get(n, [])
            if isinstance(a[0], torch.Tensor) and a[0].ndim
        }
        on_torch = (
            known.of_functions()
            + known.of_structure()
            + known.of_softmax_scale(depths)
            + known.of_masks(self.inputs)
        )
        on_torch = [c for c in on_torch if called & set(c.patch.functions)]
        parameters = {n: self.torch_side.arrays[n] for n in sorted(self.torch_side.parameters)}
        on_torch += known.of_modules(self.torch_side.model) + known.of_arrays(parameters, "torch")
        if not plain_t[1] and not self.torch_differentiates():
            on_torch += known.of_optimisers()
        for change in known.of_inputs(self.inputs, called):
            if change.side == "torch":
                on_torch.append(change)
        on_jax = [c for c in known.of_inputs(self.inputs, called) if c.side == "jax"]
        if plain_j is not None:
            on_outputs = known.of_outputs(plain_j[0], self.inputs)
            on_torch += [c for c in on_outputs if c.side == "torch"]
            on_jax += [c for c in on_outputs if c.side == "jax"]
            on_jax += known.of_literals(self.literals(), called, self.masked())
            on_jax.append(
                Change(
                    "detach", "gradient: JAX stops it (stop_gradient) where torch lets it through",
                    "x.detach()", "jax", "stop_gradient", literal="stop_gradient",
                )
            )  # fmt: skip
        if self.jax_side.weights is None:
            on_jax += known.of_arrays(self.jax_side.leaves, "jax")
        return on_torch, on_jax

    def torch_differentiates(self) -> bool:
        """Tell whether torch's outputs have gradients; an optimiser's step has none."""
        return bool(self.torch_side.cotangents())

    def masked(self) -> bool:
        """Tell whether an input is a mask: booleans, or zeros and ones alone."""
        return any(x.dtype == bool or np.isin(x, (0, 1)).all() for x in self.inputs.values())

    def literals(self) -> set[float]:
        """Return the numbers written in the JAX function."""
        with jax.enable_x64(self.jax_side.x64):
            function, floats = self.jax_side.prepare("float64")
            closed = jax.make_jaxpr(function)(*floats)
        return literals(closed.jaxpr)

    def of_precision(
        self, plain_t: Any, plain_j: Any, before: float
    ) -> list[tuple[float, list[Change]]] | None:
        """Tell a difference of precision: JAX's function without its own rounding is torch's."""
        if self.gradients or before > 0.1 or not (self.jax_side.x64 and self.jax_side.is_small):
            return None
        born: dict[str, float] = {}
        narrow: list[str] = []

        def observe(eqn, operands, results, steps):
            name = eqn.primitive.name
            kinds = {str(v.aval.dtype) for v in eqn.outvars if hasattr(v.aval, "dtype")}
            if kinds & {"float32", "bfloat16", "float16"}:
                narrow.append(f"{sorted(kinds)[0]} in {name} ({place(eqn)})")
            if name in ("sub", "add") and is_float(results[0]) and results[0].size:
                size = max(float(np.abs(x).max(initial=0)) for x in operands)
                least = float(np.abs(results[0]).max(initial=0))
                born[f"{name} ({place(eqn)})"] = max(
                    born.get(f"{name} ({place(eqn)})", 0), size / (least or 1e-300)
                )

        try:
            after = self.error(plain_t, self.exact(observe))
        except Exception:
            return None  # an operation that has no form in extended precision
        if not after <= max(self.bound, before / FACTOR):
            return None
        if narrow:
            product = next((text for text in narrow if "dot_general" in text), None)
            name = "matmul_precision" if product else "dtype_truncation"
            says = f"{name.replace('_', ' ')}: JAX rounds to {product or narrow[0]}"
            fix = 'precision="highest"' if product else "x.astype(jnp.float64)"
            return [(after, [Change(name, says, fix, "jax", "precision")])]
        where, ratio = max(born.items(), key=lambda item: item[1], default=("", 1.0))
        says = f"fast variance (LayerNorm: E[x^2] - E[x]^2) or the like: JAX cancels {ratio:.0e}-fold in {where}"
        fix = "nn.LayerNorm(use_fast_variance=False)"
        return [(after, [Change("fast_variance", says, fix, "jax", "precision")])]


def changed_outputs(changes: Sequence[Change], outputs: Arrays) -> list[np.ndarray]:
    """Apply what changes do to the outputs."""
    found = list(outputs.values())
    for c in changes:
        found = c.outputs(found) if c.outputs else found
    return found


def preference(changes: Sequence[Change]) -> tuple:
    """Put first what is the likelier explanation, other things equal."""
    vague = {"time_reversed", "eps", "state_of_layer", "concatenation_order", "initial_state"}
    return sum(c.name in vague for c in changes), sum(len(c.touched) > 1 for c in changes) * -1
