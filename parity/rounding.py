"""How far rounding may carry a model, and what it would give without: measured on the JAX side."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from parity.measure import distance
from parity.sides import Arrays, JaxSide, by_name, call, flat, is_float

# A sum of n terms and a few library functions of up to 5 ULP stay well below this many times the
# effect of one rounding; a formula that differs by 1e-7 is 1e6 times above it in float64.
FACTOR = 64
MOVE = 2.0**-30  # relative; small enough to be linear, far above float64's rounding


def tolerance(responses: Iterable[float], dtype: str = "float64") -> float:
    """Return how far apart rounding may carry two sides with these responses."""
    return 2 * FACTOR * np.finfo(dtype).eps * max([1.0, *responses])


def shake(x: Any, draw: np.random.Generator) -> Any:
    """Move each float by `MOVE` of itself, up or down."""
    return x * (1 + MOVE * draw.choice([-1.0, 1.0], np.shape(x))) if is_float(x) else x


def responses(
    side: JaxSide, cotangents: Arrays | None = None, inputs: Arrays | None = None
) -> tuple[Arrays, Arrays]:
    """Return how many times its size each array moves when all numbers move by a relative 1.

    Measured with random signs on every number, twice; the larger counts.
    """
    inputs = inputs or by_name(side.inputs)
    still = side.run("float64", cotangents, inputs=inputs)
    worst = tuple(dict.fromkeys(part, 0.0) for part in still)
    for seed in (1, 2):
        draw = np.random.default_rng(seed)

        def move(arrays, draw=draw):
            return {n: shake(x, draw) for n, x in arrays.items()}

        moved = side.run("float64", cotangents, move(side.leaves), move(inputs))
        for largest, now, before in zip(worst, moved, still, strict=True):
            for n in largest:
                largest[n] = max(largest[n], distance(now[n], before[n]) / MOVE)
    return worst


def responses_everywhere(side: JaxSide, cotangents: Arrays | None = None) -> tuple[Arrays, Arrays]:
    """Return how far each array moves when every operation's result moves by a relative 1.

    As `responses`, but with the roundings inside counted: also of a formula that loses digits.
    Source: Monte Carlo arithmetic (Parker, 1997), in extended precision.
    """
    draw = np.random.default_rng(1)

    def jitter(eqn, operands, results, steps):
        return [shake(x, draw) for x in results]

    still, moved = side.exact(cotangents), side.exact(cotangents, observe=jitter)
    return tuple(
        {n: distance(after[n], before[n]) / MOVE for n in before}
        for before, after in zip(still, moved, strict=True)
    )


def exact_values(
    side: JaxSide, cotangents: Arrays | None, shared: Mapping[str, str], truth: Callable | None
) -> dict[str, np.ndarray]:
    """Return the truth of what can be known: the user's, or JAX's in extended precision."""
    if truth is not None:
        values = {
            n: x.astype(np.longdouble) if is_float(x) else x
            for n, x in by_name(side.inputs).items()
        }
        found = flat(call(truth, side.inputs, values))
        return dict(zip(shared, found.values(), strict=True))
    if not side.is_small:
        return {}
    try:
        found = side.exact(cotangents)
    except (NotImplementedError, TypeError, ValueError):
        return {}  # an operation that has no form in extended precision
    return merged(found, {j: t for t, j in shared.items()})


def merged(found: tuple[Arrays, Arrays], names: Mapping[str, str]) -> Arrays:
    """Put outputs, renamed, and gradients, as "d NAME", into one dictionary."""
    outputs = {names[n]: found[0][n] for n in found[0] if n in names}
    return outputs | {f"d {n}": x for n, x in found[1].items()}
