"""Whether a PyTorch callable and a JAX callable compute the same, array by array.

Both get the same numbers. Each array is held against the truth: of float32 the float64 value, of
float64 the value in extended precision (`parity.truth`). How far rounding may carry a side from it
is measured, not guessed: every input and weight is moved by one rounding error, and the tolerance is
`FACTOR` times what that does to the array. An ill-conditioned model thereby gets a wide tolerance,
a well-conditioned one a narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from parity.measure import SAME_BUT_WEIGHTS, Measured, distance, same_pattern, ulps
from parity.rounding import (
    FACTOR,
    computed_weights,
    exact_values,
    merged,
    of_weights,
    responses,
    responses_everywhere,
    tolerance,
)
from parity.sides import (
    Arrays,
    Inputs,
    JaxSide,
    TorchSide,
    is_float,
    split_module,
)
from parity.variants import variants
from parity.weights import Weights


@dataclass
class Report:
    """What a comparison found; `print` shows it, `same` is the answer.

    Attributes:
      dtype: the comparison's.
      outputs, gradients: one entry an array, in order.
      variants: further inputs that were tried (a batch of one, one time step ..) and what came out.
      notes: what the comparison had to decide.
    """

    dtype: str
    outputs: list[Measured]
    gradients: list[Measured]
    variants: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def arrays(self) -> list[Measured]:
        return self.outputs + self.gradients

    @property
    def same(self) -> bool:
        """Whether all that was compared agrees, further inputs included."""
        return all(a.same for a in self.arrays) and not any(
            text.startswith("differs") for text in self.variants.values()
        )

    @property
    def verdict(self) -> str:
        """The gravest verdict among the arrays."""
        order = ["they compute different functions", "shapes differ", "NaN or inf on one side"]
        order += ["dtypes differ", "both are off", "torch is off", "JAX is off", SAME_BUT_WEIGHTS]
        found = {a.verdict for a in self.arrays}
        odd = next((n for n, t in self.variants.items() if t.startswith("differs")), None)
        fallback = f"they differ for {odd}" if odd else "both within rounding"
        return next((verdict for verdict in order if verdict in found), fallback)

    def __getitem__(self, name: str) -> Measured:
        for array in self.arrays:
            if array.name == name:
                return array
        raise KeyError(f"no array {name!r}; there are {', '.join(a.name for a in self.arrays)}")

    def __str__(self) -> str:
        width = max([len(a.name) for a in self.arrays] + [5])
        lines = [f"{self.verdict} ({self.dtype})"]
        head = ("array", "rel", "torch", "JAX", "bound", "max ULP", "verdict")
        lines.append(f"{head[0]:<{width}}  " + "{:>8}{:>9}{:>9}{:>9}{:>10}  {}".format(*head[1:]))
        for a in self.arrays:
            lines.append(
                f"{a.name:<{width}}  {a.rel:>8.1e}{a.torch_rel:>9.1e}{a.jax_rel:>9.1e}"
                f"{a.tolerance:>9.1e}{a.max_ulp:>10.3g}  {a.verdict}"
            )
        lines += [explain(a) for a in self.arrays if not a.same][:5]
        lines += [f"with {name}: {text}" for name, text in self.variants.items()]
        return "\n".join(lines + self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values: {"verdict", "outputs": {name: {...}}, ...}."""

        def plain(arrays):
            return {a.name: {k: v for k, v in asdict(a).items() if k != "name"} for a in arrays}

        parts = {"outputs": plain(self.outputs), "gradients": plain(self.gradients)}
        rest = {"variants": self.variants, "notes": self.notes}
        return {"verdict": self.verdict, "same": self.same, "dtype": self.dtype, **parts, **rest}


def explain(a: Measured) -> str:
    """Say where an array is worst, and what stands there."""
    at = f"{a.name}{list(a.worst)}" if a.worst else a.name
    seen = f"torch {a.torch!r}, JAX {a.jax!r}, truth {a.truth!r}"
    return f"{at}: {a.verdict}: {seen}, {a.max_ulp:.3g} ULP at most" + (
        f"; {a.note}" if a.note else ""
    )


def compare(
    torch_model: Callable,
    jax_fn: Callable,
    inputs: Inputs,
    params: Any = None,
    weights: Weights | str | None = None,
    dtype: str = "float64",
    *,
    truth: Callable | None = None,
    gradients: bool = True,
    thorough: bool = True,
    seed: int = 0,
) -> Report:
    """Run both on the same numbers and compare every output and every gradient.

    Args:
      torch_model: an nn.Module, or a function of tensors.
      jax_fn: a function of (params, *inputs), or of the inputs alone where there are no params; or an
        nnx module, whose own parameters are the params unless others are given.
      inputs: NumPy array, sequence of them, or dictionary of keyword arguments.
      params: tree of JAX parameters. Without `weights` they are used as they are; with it they say
        which names and shapes the map has to give.
      weights: how torch's parameters become JAX's (see `parity.weights`); "equal" for equal names.
      dtype: "float64" or "float32".
      truth: function of the inputs (NumPy, in extended precision) that says what is right. None: the
        JAX function itself in more precision, which cannot tell who is wrong when the two
        compute different functions.
      gradients: whether to pull random cotangents back through both.
      thorough: also try a batch of one, one time step, no row, and memory that is not contiguous.

    Raises:
      WeightsError: the parameters do not fit together.
    """
    torch_side, jax_side = sides(torch_model, jax_fn, inputs, params, weights)
    report = judge(torch_side, jax_side, dtype, truth, gradients, seed)
    if thorough:
        report.variants = variants(torch_side, jax_side, dtype, seed)
    return report


def assert_same(
    torch_model: Callable, jax_fn: Callable, inputs: Inputs, *args, **options
) -> Report:
    """Compare as `compare` does.

    Raises:
      AssertionError: they differ; the message lists every array, and of the worst which element, how
        many ULP, and what is true.
    """
    report = compare(torch_model, jax_fn, inputs, *args, **options)
    assert report.same, str(report)  # noqa: S101 - an assertion is what this is
    return report


def sides(
    torch_model: Callable,
    jax_fn: Callable,
    inputs: Inputs,
    params: Any,
    weights: Weights | str | None,
) -> tuple[TorchSide, JaxSide]:
    """Make both sides."""
    torch_side = TorchSide(torch_model, inputs)
    jax_fn, params = split_module(jax_fn, params)
    optional = frozenset(set(torch_side.arrays) - torch_side.parameters)
    jax_side = JaxSide(jax_fn, inputs, params, weights, torch_side.arrays, optional)
    return torch_side, jax_side


def judge(
    torch_side: TorchSide,
    jax_side: JaxSide,
    dtype: str,
    truth: Callable | None,
    gradients: bool,
    seed: int,
) -> Report:
    """Compare on one set of inputs."""
    notes = []
    outputs64 = torch_side.run("float64")[0]
    shared, trouble = match(outputs64, jax_side.run("float64")[0])
    cotangents = None
    if gradients:
        cotangents = {n: c for n, c in torch_side.cotangents(seed).items() if n in shared}
    to_jax = {shared[n]: c for n, c in cotangents.items()} if cotangents is not None else None

    def both(dtype):
        in_t, in_j = torch_side.run(dtype, cotangents), jax_side.run(dtype, to_jax)
        return merged(in_t, {n: n for n in shared}), merged(in_j, {j: t for t, j in shared.items()})

    wide_t, wide_j = both("float64")
    found_t, found_j = (wide_t, wide_j) if dtype == "float64" else both(dtype)
    moved = merged(responses(jax_side, to_jax), {j: t for t, j in shared.items()})
    bounds = {n: tolerance([moved.get(n, 0.0)]) for n in wide_t}
    by_weights = {}
    if dtype == "float64":  # which sees what float32's own rounding covers
        parts = of_weights(torch_side, jax_side, to_jax)
        by_weights = merged(parts, {j: t for t, j in shared.items()})
    apart_64 = any(distance(wide_t[n], wide_j[n]) > bounds[n] for n in wide_t if n in wide_j)
    needed = dtype == "float64" or truth is not None or apart_64
    exact = exact_values(jax_side, to_jax, shared, truth) if needed else {}
    apart = sorted((set(found_t) ^ set(found_j)) - set(trouble))
    if apart:
        notes.append(f"not compared, as only one side has it: {', '.join(apart)}")
    names = [n for n in found_t if n in found_j]
    scales = {n: np.linalg.norm(np.nan_to_num(wide_j[n])) for n in names if n.startswith("d ")}
    largest = max(scales.values(), default=0.0)

    def judged(responses):
        return [
            measure(
                *(n, dtype, found_t[n], found_j[n], wide_t[n], wide_j[n]),
                *(exact.get(n), responses.get(n, 0.0), truth is not None),
                largest if n in scales else 0.0,
                by_weights.get(n, 0.0),
            )
            for n in names
        ]

    measured = judged(moved)
    if exact and any(m.verdict.endswith("off") or "functions" in m.verdict for m in measured):
        every = merged(responses_everywhere(jax_side, to_jax), {j: t for t, j in shared.items()})
        wider = judged({n: max(moved[n], every.get(n, 0.0)) for n in moved})
        measured = [w if w.same and w.even else m for m, w in zip(measured, wider, strict=True)]
    if any(m.verdict == SAME_BUT_WEIGHTS for m in measured):
        notes.append(about_weights(computed_weights(torch_side, jax_side)))
    return Report(
        dtype,
        [m for m in measured if not m.name.startswith("d ")]
        + [Measured(n, "shapes differ", note=text) for n, text in trouble.items()],
        [m for m in measured if m.name.startswith("d ")],
        notes=notes,
    )


def about_weights(names: Sequence[str]) -> str:
    """Say which weights were rounded."""
    return (
        f"weights that are float32 and not among torch's numbers: {', '.join(names)}; compute them "
        "from torch's in float64, as a sum of two biases, and compare again to see beyond their rounding"
    )


def match(in_t: Arrays, in_j: Arrays) -> tuple[dict[str, str], dict[str, str]]:
    """Pair the outputs by name, or by order where the names differ; and say which do not fit."""
    if set(in_t) == set(in_j):
        pairs = {n: n for n in in_t}
    elif len(in_t) == len(in_j):
        pairs = dict(zip(in_t, in_j, strict=True))
    else:
        raise ValueError(f"torch returns {list(in_t)}, JAX {list(in_j)}: return the same on both")
    trouble = {
        t: f"torch {in_t[t].shape}, JAX {in_j[j].shape}"
        for t, j in pairs.items()
        if in_t[t].shape != in_j[j].shape
    }
    return {t: j for t, j in pairs.items() if t not in trouble}, trouble


def measure(
    name: str,
    dtype: str,
    in_t: np.ndarray,
    in_j: np.ndarray,
    wide_t: np.ndarray,
    wide_j: np.ndarray,
    exact: np.ndarray | None,
    response: float,
    given: bool,
    largest: float,
    by_weights: float,
) -> Measured:
    """Judge one array.

    `wide` is its float64 value on each side, `exact` the truth if known, `given` whether it is the
    user's and not JAX's own. `largest` is the norm of the largest gradient: one that is smaller by
    float64's rounding is 0 on paper, like that of a bias which a softmax cancels. `by_weights` is what
    weights rounded to float32 may make of a difference.
    """
    common = {"name": name, "shape": in_t.shape, "dtype": dtype}
    if in_t.shape != in_j.shape:
        return Measured(verdict="shapes differ", note=f"{in_t.shape}, {in_j.shape}", **common)
    if not is_float(in_t) or not is_float(in_j):
        equal = np.array_equal(in_t, in_j)
        verdict = "both within rounding" if equal else "they compute different functions"
        if is_float(in_t) != is_float(in_j):
            verdict = "dtypes differ"
        return Measured(verdict=verdict, note=f"{in_t.dtype}, {in_j.dtype}", **common)
    truth = np.asarray(exact if exact is not None else (wide_t + wide_j) / 2, np.longdouble)
    size = float(np.linalg.norm(np.nan_to_num(np.asarray(truth, float))))
    response = max(response, 1.0, largest / size if size else 1.0)
    rounding = {d: FACTOR * np.finfo(d).eps * response for d in ("float32", "float64")}
    agree = distance(wide_t, wide_j) <= 2 * rounding["float64"]
    bound = rounding[dtype]
    off_t, off_j = (distance(x, truth) for x in (in_t, in_j))
    counted = ulps(in_t.astype(dtype), in_j.astype(dtype))
    gap = np.abs(in_t.astype(float) - in_j.astype(float))
    gap = np.where(np.isnan(in_t) != np.isnan(in_j), np.inf, np.nan_to_num(gap, nan=0.0))
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(gap), gap.shape)) if gap.size else ()
    if not same_pattern(in_t, in_j):
        verdict = "NaN or inf on one side"
    elif size == 0 and np.linalg.norm(gap) <= FACTOR * np.finfo(dtype).eps * largest:
        verdict = "both within rounding"
    elif not agree and distance(wide_t, wide_j) <= by_weights:
        verdict = SAME_BUT_WEIGHTS
    elif agree or exact is not None:
        states = {
            (True, True): "both within rounding",
            (False, True): "torch is off",
            (True, False): "JAX is off",
            (False, False): "both are off",
        }
        verdict = states[off_t <= bound, off_j <= bound]
        if not agree and off_t > bound and not given:
            verdict = "they compute different functions"  # of which one alone knows its truth
    else:
        verdict = "they compute different functions"
    if in_t.dtype != in_j.dtype and verdict == "both within rounding":
        verdict = "dtypes differ"
    picked = [float(x[worst]) if worst or x.ndim == 0 else 0.0 for x in (in_t, in_j, truth)]
    return Measured(
        verdict=verdict,
        rel=distance(in_t, in_j, truth),
        max_ulp=float(counted.max(initial=0)),
        mean_ulp=float(counted.mean()) if counted.size else 0.0,
        worst=worst,
        torch=picked[0],
        jax=picked[1],
        truth=picked[2],
        torch_rel=off_t,
        jax_rel=off_j,
        tolerance=bound,
        note=f"{in_t.dtype}, {in_j.dtype}" if in_t.dtype != in_j.dtype else "",
        **common,
    )
