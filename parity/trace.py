"""Where a PyTorch callable and a JAX callable first part: which operation, line and time step.

Both are run on the same numbers and every intermediate value is kept: torch's as its functions return
them, fused recurrent layers taken apart into steps; JAX's as its jaxpr is walked, scans unrolled.
A value of JAX that torch has too, in whatever order of axes, agrees. The two part at the first
operation whose operands agree and whose result, with all that follows from it, does not.
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from parity import patches
from parity.jaxprs import inner_jaxprs, located, place, rewrite
from parity.judge import sides
from parity.measure import distance
from parity.rounding import of_weights, responses, tolerance
from parity.sides import Inputs, JaxSide, TorchSide, call, flat, is_float, numpy_of
from parity.truth import walk, widen
from parity.weights import Weights
from parity.written_out import written_out

# What computes nothing; a slice of a weight may have no counterpart, and tells nothing.
MOVES = (
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "reshape",
    "slice",
    "split",
    "squeeze",
    "transpose",
)
CLOSE = 1e-9  # relative; values of different meaning are further apart, rounding is far below


@dataclass(frozen=True)
class Value:
    """One intermediate value.

    Attributes:
      operation: its name: mul, lstm gates ..
      place: file and line of the user's code.
      steps: time steps, from the outermost loop in.
      array: the value.
    """

    operation: str
    place: str
    steps: tuple[int, ...]
    array: np.ndarray

    def __str__(self) -> str:
        at = f", step {', '.join(map(str, self.steps))}" if self.steps else ""
        return f"{self.operation} ({self.place}{at})"


@dataclass
class Trace:
    """What a comparison of all intermediate values found.

    Attributes:
      first: JAX's first value that torch lacks, with all that follows from it; None if the outputs
        agree.
      nearest: torch's value of the same size that is closest to it, and how far that is.
      agreeing: JAX's last value before that which torch has too, and torch's.
      tags: relative difference of every value that both sides tagged, in order.
      same: whether the outputs agree.
    """

    same: bool
    first: Value | None = None
    nearest: tuple[Value, float] | None = None
    agreeing: tuple[Value, Value] | None = None
    tags: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["they agree in every output"] if self.same else []
        if self.agreeing:
            lines.append(f"agree up to: JAX {self.agreeing[0]} = torch {self.agreeing[1]}")
        if not self.same and not self.first:
            lines.append(
                "every value agrees: the outputs stand in another order or at another place"
            )
        if self.first:
            lines.append(f"first part at: JAX {self.first}")
        if self.nearest:
            lines.append(f"closest in torch: {self.nearest[0]}, {self.nearest[1]:.1e} away")
        odd = next((name for name, gap in self.tags.items() if not gap <= CLOSE), None)
        if odd:
            lines.append(f"first tag that differs: {odd}, by {self.tags[odd]:.1e}")
        return "\n".join(lines)


def tag(name: str, value: Any) -> Any:
    """Name a value for `trace`; returns it as it is. Use the same name on both sides."""
    if isinstance(value, torch.Tensor):
        for recorder in Recorder.active:
            recorder.tags.setdefault(name, numpy_of(value))
        return value
    return checkpoint_name(value, name)


class Recorder(patches.Patched):
    """Keeps what every torch function returns."""

    active: list["Recorder"] = []  # noqa: RUF012 - the recorders that are switched on

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.tags: dict[str, np.ndarray] = {}
        self.steps: tuple[int, ...] = ()

    def __enter__(self):
        Recorder.active.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        Recorder.active.remove(self)
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = patches.name_of(function)
        if name in patches.STEPS and len(args) == 9:
            with self:
                return patches.run_rnn(self.stepwise(name, args), args)
        if name == "linear" and len(args) > 2 and args[2] is not None:
            product = function(args[0], args[1])
            self.keep("matmul", product)
        result = written_out(name, self, args, kwargs or {})
        if result is NotImplemented:
            result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            self.keep(name, part)
        return result

    def keep(self, name: str, result: Any) -> None:
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.values.append(Value(name, caller(), self.steps, numpy_of(result)))

    def stepwise(self, name: str, args: tuple) -> Callable:
        """Return the layer's step, which says at which time step it is."""
        step = patches.STEPS[name]()
        x, _, _, _, bidirectional, _ = patches.unpack_rnn(args)
        count = [0]

        def counted(*arguments):
            cell, t = divmod(count[0], x.shape[1])
            self.steps = (x.shape[1] - 1 - t if bidirectional and cell % 2 else t,)
            count[0] += 1
            try:
                return step(*arguments)
            finally:
                self.steps = ()

        return counted


def caller() -> str:
    """Return file and line of the innermost frame outside torch and this package."""
    here = Path(__file__).parent
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = Path(frame.filename)
        if (
            path.parent != here
            and "torch" not in path.parts[-4:-1]
            and "site-packages" not in path.parts
        ):
            return located(frame.filename, frame.lineno)
    return "torch"


def trace(
    torch_model: Callable,
    jax_fn: Callable,
    inputs: Inputs,
    params: Any = None,
    weights: Weights | str | None = None,
) -> Trace:
    """Find where two callables first part; arguments as for `parity.compare`."""
    torch_side, jax_side = sides(torch_model, jax_fn, inputs, params, weights)
    model, values = torch_side.built("float64")
    with Recorder() as recorder, torch.no_grad():
        in_t = list(run_flat(model, torch_side, values))
    bound = tolerance(responses(jax_side)[0].values())  # and finds out whether JAX takes float64
    bound = max(bound, *of_weights(torch_side, jax_side)[0].values(), 0.0)
    in_j, seen, tags, graph, straight = run_jax(jax_side)
    same = len(in_t) == len(in_j) and all(
        x.shape == y.shape and distance(x, y) <= bound for x, y in zip(in_t, in_j, strict=True)
    )
    gaps = {n: gap_of(recorder.tags[n], x) for n, x in tags.items() if n in recorder.tags}
    if same:
        return Trace(True, tags=gaps)
    given = {n: numpy_of(x) for n, x in values.items()} | torch_side.arrays
    pool = Pool([Value("given", n, (), x) for n, x in given.items()] + recorder.values)
    matched = [pool.find(value.array, max(CLOSE, bound)) for _, value in seen]
    index = first_parting(seen, [m is not None for m in matched], graph, straight)
    if index is None:
        return Trace(False, tags=gaps)
    agreed = [n for n in range(index) if matched[n] is not None]
    computed = [n for n in agreed if matched[n].operation != "given"]  # a weight tells less
    before = max(computed or agreed, default=None)
    return Trace(
        False,
        seen[index][1],
        pool.nearest(seen[index][1].array),
        None if before is None else (seen[before][1], matched[before]),
        gaps,
    )


def run_flat(model: Callable, side: TorchSide, values: dict) -> Iterable[np.ndarray]:
    """Run torch; return its outputs in order."""
    return [numpy_of(x) for x in flat(call(model, side.inputs, values)).values()]


def gap_of(x: np.ndarray, y: np.ndarray) -> float:
    return distance(x, y) if x.shape == y.shape else np.inf


def run_jax(side: JaxSide) -> tuple[list, list, dict, dict, dict]:
    """Walk JAX's function; return outputs, its float values with their equations, tags, `follow`'s."""
    seen: list[tuple[core.JaxprEqn, Value]] = []
    tags: dict[str, np.ndarray] = {}

    def observe(eqn, operands, results, steps):
        if eqn.primitive.name == "name":
            tags.setdefault(eqn.params["name"], np.asarray(results[0], float))
        for x in results:
            if is_float(x) and np.any(x != np.ravel(x)[:1]):  # a constant equals any other
                value = Value(eqn.primitive.name, place(eqn), steps, np.asarray(x, float))
                seen.append((eqn, value))

    with jax.enable_x64(side.x64):
        function, floats = side.prepare("float64")
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*floats)
        closed = closed.replace(jaxpr=rewrite(closed.jaxpr))
        leaves = [widen(x) for x in jax.tree.leaves(floats)]
        found = walk(closed.jaxpr, [widen(c) for c in closed.consts], leaves, observe)
    outputs = jax.tree.unflatten(jax.tree.structure(shape), found)
    graph: dict[int, set[int]] = {}
    straight: dict[int, set[int]] = {}
    nothing = [set() for _ in closed.jaxpr.invars]
    pending = set().union(*follow(closed.jaxpr, nothing, graph, straight))
    unused = set(graph)
    while pending:  # what leads to no output, as linen.RNN's trial of its cell, matches nothing
        node = pending.pop()
        if node in unused:
            unused.remove(node)
            pending |= graph[node]
    seen = [(eqn, value) for eqn, value in seen if id(eqn) not in unused]
    return [np.asarray(outputs[n], float) for n in side.names], seen, tags, graph, straight


def follow(
    jaxpr: Any, given: list[set[int]], graph: dict[int, set[int]], *straight: dict[int, set[int]]
) -> list[set[int]]:
    """Note for each operation, by id, those it follows from; return what the outputs follow from.

    `straight`, where given, gets what it follows from within one round of each loop.
    """
    origin: dict[Any, set[int]] = dict(zip(jaxpr.invars, given, strict=True))

    def of(variable):
        return set() if isinstance(variable, core.Literal) else origin.get(variable, set())

    for eqn in jaxpr.eqns:
        operands = [of(v) for v in eqn.invars]
        inner = [x for x in inner_bodies(eqn) if len(x.invars) <= len(operands)]
        if inner:
            results = [set() for _ in eqn.outvars]
            for body in inner:
                entering = operands[len(operands) - len(body.invars) :]
                for graphs in ((graph, *straight), (graph,)):  # then what a carry brings round
                    leaving = follow(body, entering, *graphs)
                    consts, carry = eqn.params.get("num_consts", 0), eqn.params.get("num_carry", 0)
                    for k in range(carry):
                        entering[consts + k] = entering[consts + k] | leaving[k]
                for result, part in zip(results, leaving, strict=False):
                    result |= part
        else:
            for edges in (graph, *straight):
                edges[id(eqn)] = edges.get(id(eqn), set()).union(*operands)
            results = [{id(eqn)}] * len(eqn.outvars)
        for variable, result in zip(eqn.outvars, results, strict=True):
            origin[variable] = set(result)
    return [of(v) for v in jaxpr.outvars]


def inner_bodies(eqn: core.JaxprEqn) -> list[Any]:
    """Return the jaxprs that an operation runs."""
    return (
        list(inner_jaxprs(eqn))[-1:] if eqn.primitive.name == "while" else list(inner_jaxprs(eqn))
    )


def first_parting(
    seen: list[tuple[core.JaxprEqn, Value]],
    matched: list[bool],
    graph: dict[int, set[int]],
    straight: dict[int, set[int]],
) -> int | None:
    """Return the index of the first value that parts.

    Where an operation agrees in earlier rounds of a loop and not in later ones, it is the first such
    round; else the first operation without a match that never leads to one. What leads to a match,
    later in its own round or in the last, is but another way to the same number, as a sum of two
    biases; in the round found, an operation that reads no such number tells more than one that does.
    """
    rounds: dict[int, set[tuple[int, ...]]] = {}  # where an operation agrees
    run: dict[int, set[tuple[int, ...]]] = {}  # where it gives anything but a constant
    last: dict[int, bool] = {}
    late = None
    for n, ((eqn, value), match) in enumerate(zip(seen, matched, strict=True)):
        last[id(eqn)] = match
        run.setdefault(id(eqn), set()).add(value.steps)
        if match:
            rounds.setdefault(id(eqn), set()).add(value.steps)
        elif id(eqn) in rounds and late is None:
            late = n
    over_all, in_round = turned(graph), turned(straight)

    @cache
    def later(node: int, steps: tuple[int, ...] | None) -> set[int]:
        """Return what follows from an operation, in one round not through a constant, as 0 * x is."""
        follows = over_all if steps is None else in_round
        pending, visited = [node], set()
        while pending:
            fresh = follows.get(pending.pop(), set()) - visited
            if steps is not None:
                fresh = {to for to in fresh if steps in run.get(to, {steps})}
            visited |= fresh
            pending.extend(fresh)
        return visited

    apart = [(n, id(eqn), value) for n, (eqn, value) in enumerate(seen) if id(eqn) not in rounds]
    another_way = {
        node
        for _, node, value in apart
        if any(last.get(to) for to in later(node, None))
        or any(value.steps in rounds.get(to, ()) for to in later(node, value.steps))
    }
    never = (
        n for n, node, value in apart if node not in another_way and value.operation not in MOVES
    )
    known = [n for n in (late, next(never, None)) if n is not None]
    if not known:
        return None
    index = min(known)
    unsure = set(another_way)
    for n in range(index, len(seen)):
        eqn, value = seen[n]
        if value.steps == seen[index][1].steps and not matched[n]:
            sure = id(eqn) not in another_way and not graph[id(eqn)] & unsure
            if sure and value.operation not in MOVES:
                return n
            if not sure:
                unsure.add(id(eqn))
    return index


def turned(graph: dict[int, set[int]]) -> dict[int, set[int]]:
    """Turn every edge of a graph around."""
    found: dict[int, set[int]] = {}
    for node, sources in graph.items():
        for source in sources:
            found.setdefault(source, set()).add(node)
    return found


class Pool:
    """Torch's values, found by their numbers in any order."""

    def __init__(self, values: list[Value]):
        self.by_size: dict[int, list[tuple[np.ndarray, Value]]] = {}
        for value in values:
            if value.array.size > 1:
                entry = np.sort(value.array.astype(float).ravel()), value
                self.by_size.setdefault(value.array.size, []).append(entry)
        self.stacks = {
            size: np.stack([x for x, _ in found]) for size, found in self.by_size.items()
        }

    def gaps(self, array: np.ndarray) -> np.ndarray:
        """Return the relative distance to each value of the same size."""
        if array.size not in self.stacks:
            return np.empty(0)
        wanted = np.sort(array.ravel())
        size = np.linalg.norm(wanted) or 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            return np.linalg.norm(self.stacks[array.size] - wanted, axis=1) / size

    def find(self, array: np.ndarray, bound: float) -> Value | None:
        """Return torch's first value that equals an array."""
        gaps = self.gaps(array)
        close = np.flatnonzero(gaps <= bound)
        return self.by_size[array.size][close[0]][1] if close.size else None

    def nearest(self, array: np.ndarray) -> tuple[Value, float] | None:
        """Return torch's closest value of the same size, and its distance."""
        gaps = self.gaps(array)
        if not gaps.size or np.isnan(gaps).all():
            return None
        n = int(np.nanargmin(gaps))
        return self.by_size[array.size][n][1], float(gaps[n])
