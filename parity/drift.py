"""How two training runs part, step by step, and whether rounding explains it.

Training multiplies rounding: runs with nothing wrong may part by a factor at every step, in float32
and float64 alike (chaos). A bug does not wait for that. What rounding does to these very runs is
measured twice: by how far each side's float32 run leaves its own float64 run, and by one more float64
run whose start is moved by one rounding. In float64 the two sides may part by `FACTOR` times
what these show; what parts further, or earlier, is a bug, and the first step and array are named.
Where float64 agrees and one side's float32 does not, the formula is the same, and an operation of
that side loses digits.

Dimensions: S steps, N arrays.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from parity.rounding import FACTOR

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, str], Iterable[Arrays]]
Place = tuple[str, str]
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
SCALE = EPS["float64"] / EPS["float32"]
APART = 1e-2  # relative; from here on a difference no longer grows in proportion


@dataclass(frozen=True)
class Drift:
    """Two runs side by side; `print` shows it, `verdict` is the answer.

    Attributes:
      verdict: "same": rounding, and it stays small. "chaos": rounding, and the run multiplies it until
        it shows. "precision": in float32 one side rounds far more than the other. "bug": more than
        rounding.
      sentence: the verdict in words: rates, or the step and the arrays.
      step, array, dtype: where a bug or a loss of precision shows first; steps count from 1.
      parted: by dtype the first step at which more than rounding parts the runs, None for never.
      names: of the arrays [N].
      gaps: ||torch - JAX|| by dtype [S, N].
      bounds: what rounding explains of them by dtype [S, N]; see the module.
      sizes: ||array|| in torch's float64 run [S, N].
      growth: by what factor the difference grows at a step: "float32", "float64", and
        "one rounding" of a float64 run whose start was moved by that.
      numbers: what the runs yield as single numbers: [dtype][name] -> (torch [S], JAX [S]).
    """

    verdict: str
    sentence: str
    step: int | None
    array: str | None
    dtype: str | None
    parted: Mapping[str, int | None]
    names: Sequence[str]
    gaps: Mapping[str, np.ndarray]
    bounds: Mapping[str, np.ndarray]
    sizes: np.ndarray
    growth: Mapping[str, float]
    numbers: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]

    def relative(
        self, dtype: str, names: Iterable[str] | None = None, bound: bool = False
    ) -> np.ndarray:
        """Return how far the runs are apart at each step [S], or with `bound` may be by rounding.

        Relative to the norm of the named arrays end to end; of all by default.
        """
        chosen = [n for n, name in enumerate(self.names) if names is None or name in set(names)]
        parts = (self.bounds if bound else self.gaps)[dtype]
        return ratio(total(parts[:, chosen]), total(self.sizes[:, chosen]))

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.sentence}"]
        lines.append(f"{'step':>7}{'float32':>10}{'float64':>10}{'rounding explains, float64':>30}")
        shown = [self.relative("float32"), self.relative("float64")]
        shown.append(self.relative("float64", bound=True))
        for s in picked(len(self.sizes), self.step):
            lines.append(
                f"{s + 1:>7}" + "{:>10.1e}{:>10.1e}{:>30.1e}".format(*(x[s] for x in shown))
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        kept = ("verdict", "sentence", "dtype", "step", "array")
        return {name: getattr(self, name) for name in kept} | {"growth": dict(self.growth)}


def drift(torch_run: Run, jax_run: Run, start: Arrays) -> Drift:
    """Run both in both dtypes, in step, and compare every array at every step.

    A run is a function of (start, dtype): it begins from those float64 arrays cast to the dtype, and
    yields after each step the arrays to compare by name: the loss, parameters, the optimiser's
    moments .. Both must see the same batches. It is called once a dtype, JAX's with 64 bits on or
    off as the dtype needs, and once more from a start moved by one rounding.

    Args:
      torch_run, jax_run: the runs.
      start: what they begin from, in float64.

    Raises:
      ValueError: the runs differ in their names, shapes or number of steps.
    """
    runs = {
        "torch": torch_run(start, "float64"),
        "jax": in_jax(jax_run, start, "float64"),
        "torch32": torch_run(start, "float32"),
        "jax32": in_jax(jax_run, start, "float32"),
        "moved": in_jax(jax_run, moved_by_one_rounding(start), "float64"),
    }
    names, single, rows, numbers, end = [], [], [], [], None
    for found in zip(*runs.values(), strict=True):
        step = dict(zip(runs, found, strict=True))
        if not rows:
            names = list(step["torch"])
            single = [n for n in names if np.ndim(step["torch"][n]) == 0]
        if end := not_finite(step, len(rows) + 1):
            break
        rows.append(norms(step, names))
        numbers.append([[float(step[run][n]) for n in single] for run in runs])
    if not rows:
        raise ValueError(end[1] if end else "the runs yield no step")
    by_run = dict(zip(runs, np.moveaxis(np.array(numbers), 1, 0), strict=True))
    pairs = {"float32": ("torch32", "jax32"), "float64": ("torch", "jax")}
    return judged(
        names,
        np.moveaxis(np.array(rows), 2, 0),
        {
            dtype: {n: tuple(by_run[run][:, i] for run in pair) for i, n in enumerate(single)}
            for dtype, pair in pairs.items()
        },
        end,
    )


def not_finite(step: Mapping[str, Arrays], number: int) -> tuple[Place | None, str] | None:
    """Return ((array, dtype), sentence) where a run is not finite; None and it where both are not."""
    odd = {
        run: [n for n, x in arrays.items() if not np.isfinite(x).all()]
        for run, arrays in step.items()
    }
    for in_t, in_j, dtype in (("torch", "jax", "float64"), ("torch32", "jax32", "float32")):
        if odd[in_t] and odd[in_j]:
            return None, f"at step {number} both runs stop being finite in {dtype}"
        if names := odd[in_t] or odd[in_j]:
            side = "torch" if odd[in_t] else "JAX"
            text = f"at step {number} {names[0]} is not finite in {dtype} in {side} only"
            return (names[0], dtype), text
    return None


def in_jax(run: Run, start: Arrays, dtype: str) -> Iterator[Arrays]:
    """Run with JAX's 64 bits on for float64 and off for float32, whatever runs in between."""
    wide = dtype == "float64"
    with jax.enable_x64(wide):
        steps = iter(run(start, dtype))
    while True:
        with jax.enable_x64(wide):
            step = next(steps, None)
        if step is None:
            return
        yield step


def moved_by_one_rounding(start: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays with one float64 rounding error in every number, of random sign."""
    draw = np.random.default_rng(0)
    return {
        name: x * (1 + EPS["float64"] * draw.choice([-1.0, 1.0], np.shape(x)))
        for name, x in start.items()
    }


def norms(step: Mapping[str, Arrays], names: Sequence[str]) -> np.ndarray:
    """Return per array [N, 6]: the float64 and float32 gap, what rounding does (3), the size."""
    sizes = [np.size(step["torch"][n]) for n in names]
    ends = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = {}
    for run, arrays in step.items():
        if set(arrays) != set(names):
            raise ValueError(f"only one run has {', '.join(sorted(set(arrays) ^ set(names)))}")
        for n in names:
            if np.shape(arrays[n]) != np.shape(step["torch"][n]):
                shapes = f"{np.shape(step['torch'][n])} and {np.shape(arrays[n])}"
                raise ValueError(f"{n} has the shapes {shapes}")
        flat[run] = np.concatenate([np.ravel(arrays[n]) for n in names], dtype=np.float64)
    pairs = [("torch", "jax"), ("torch32", "jax32"), ("torch32", "torch"), ("jax32", "jax")]
    apart = [flat[a] - flat[b] for a, b in (*pairs, ("moved", "jax"))]
    return np.sqrt([np.add.reduceat(x**2, ends) for x in (*apart, flat["torch"])]).T


def total(parts: np.ndarray) -> np.ndarray:
    """Return the norm of arrays end to end, from the norm of each: [S, N] -> [S]."""
    return np.sqrt((parts**2).sum(axis=1))


def ratio(gap: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return gap / size, 0 where the gap is 0."""
    return np.divide(gap, size, out=np.where(gap > 0, np.inf, 0.0), where=(size > 0) & (gap > 0))


def rate(relative: np.ndarray) -> float:
    """Return by what factor a difference grows at a step, fitted up to where it is `APART`."""
    end = int(np.argmax(relative > APART)) if (relative > APART).any() else len(relative)
    steps = np.flatnonzero(relative[:end] > 0)
    if len(steps) < 2:
        return float("nan")
    return float(np.exp(np.polyfit(steps, np.log(relative[steps]), 1)[0]))


def judged(
    names: Sequence[str],
    table: np.ndarray,
    numbers: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    end: tuple[Place | None, str] | None,
) -> Drift:
    """Find the verdict from the norms of all steps, [6, S, N], and why they end before the runs do."""
    gap, gap32, off_t, off_j, moved, size = table
    # Rounding errors of a single number may be small by chance, so an array is granted what it once
    # had, and as much, relatively, as all arrays together.
    so_far = np.maximum.accumulate
    least, moved = so_far(size), so_far(moved)
    off = so_far(np.maximum(off_t, off_j)) * SCALE
    # While float32 drifts in proportion it shows what all roundings of a run do; later, the start's
    # one rounding does, times what it fell short by then.
    nearly = total(off) <= SCALE * APART * total(least)
    until = int(np.flatnonzero(nearly).max(initial=0))
    # A start of zeros has no rounding to be moved by.
    short = max(1.0, total(off)[until] / total(moved)[until]) if total(moved)[until] else 1.0
    effect = np.maximum(np.maximum(short * moved, off), EPS["float64"] * least)
    effect = np.maximum(effect, least * ratio(total(effect), total(least))[:, None])
    bound = FACTOR * effect
    # In float32 each side is held to the other: rounding takes both about equally far.
    nearer = np.maximum(so_far(np.minimum(total(off_t), total(off_j))), total(moved) / SCALE)
    bound32 = FACTOR * np.maximum(nearer, EPS["float32"] * total(least))
    growth = {
        "float32": rate(ratio(total(gap32), total(size))),
        "float64": rate(ratio(total(gap), total(size))),
        "one rounding": rate(ratio(total(moved), total(size))),
    }
    wide = {"float32": bound32[:, None] * ratio(least, total(least)[:, None]), "float64": bound}
    beyond = {"float32": total(gap32) > bound32, "float64": (gap > bound).any(axis=1)}
    found = {
        "parted": {d: int(np.argmax(x)) + 1 if x.any() else None for d, x in beyond.items()},
        "names": names,
        "gaps": {"float32": gap32, "float64": gap},
        "bounds": wide,
        "sizes": size,
        "growth": growth,
        "numbers": numbers,
    }
    kind, sentence, *where = verdict(names, table, bound, bound32, growth)
    if end and kind != "bug":
        sentence = f"{sentence}; {end[1]}"
        if end[0]:
            kind, sentence, where = "bug", end[1], [len(size) + 1, *end[0]]
    return Drift(kind, sentence, *where, **found)


def verdict(
    names: Sequence[str],
    table: np.ndarray,
    bound: np.ndarray,
    bound32: np.ndarray,
    growth: Mapping[str, float],
) -> tuple[str, str, int | None, str | None, str | None]:
    """Return verdict, sentence, step, array and dtype."""
    gap, gap32, off_t, off_j, _, size = table
    over = gap > bound
    if over.any():
        s = int(np.argmax(over.any(axis=1)))
        excess = ratio(gap[s], bound[s])
        worst = int(np.argmax(excess))
        parted = [names[n] for n in np.argsort(-excess, kind="stable") if over[s, n]]
        agree = [name for name in names if name not in parted]
        seen, explained = (float(ratio(x[s, worst], size[s, worst])) for x in (gap, bound))
        text = f"at step {s + 1} {names[worst]} is {seen:.1e} off in float64, relative"
        text += f", of which rounding explains {explained:.1e}"
        if len(parted) > 1:
            text += f"; so are {listed(parted[1:])}"
        if agree:
            text += f"; still equal: {listed(agree)}"
        return "bug", text, s + 1, names[worst], "float64"
    over32 = total(gap32) > bound32
    if over32.any():
        s = int(np.argmax(over32))
        worst = int(np.argmax(ratio(gap32[s], size[s])))
        side = "JAX" if total(off_j)[s] > total(off_t)[s] else "torch"
        times = float(ratio(*sorted((total(off_t)[s], total(off_j)[s]))[::-1]))
        text = (
            f"float64 agrees, but at step {s + 1} {side}'s float32 run is {times:.0f} times as far "
        )
        text += f"from its float64 run as the other; most in {names[worst]}"
        return "precision", text, s + 1, names[worst], "float32"
    last, last32 = (float(ratio(total(x)[-1:], total(size)[-1:])[0]) for x in (gap, gap32))
    text = (
        f"after {len(gap)} steps the runs are {last:.1e} apart in float64, {last32:.1e} in float32"
    )
    most, most32 = (float(ratio(total(x), total(size)).max()) for x in (gap, gap32))
    if max(most32, most / SCALE) <= APART:
        return "same", text + ": rounding", None, None, None
    text += f": rounding, multiplied at each step by {growth['float64']:.3f} in float64"
    text += f" and {growth['float32']:.3f} in float32, one rounding of the start by "
    text += f"{growth['one rounding']:.3f}"
    blind = total(bound) > total(size)
    if blind.any():
        text += f"; from step {int(np.argmax(blind)) + 1} on a small bug could hide in it"
    return "chaos", text, None, None, None


def listed(names: Sequence[str], most: int = 3) -> str:
    """Name a few, and say how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def picked(steps: int, also: int | None) -> list[int]:
    """Return a few steps, denser at the start, from 0; the last one and `also` among them."""
    shown = {s - 1 for k in range(7) for s in (10**k, 2 * 10**k, 5 * 10**k) if s <= steps}
    return sorted(shown | {steps - 1} | ({also - 1} if also else set()))
