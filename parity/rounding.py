"""How far rounding may carry a model, and what it would give without: measured on the JAX side."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from parity.jaxprs import constants, literals
from parity.measure import distance
from parity.sides import Arrays, JaxSide, TorchSide, by_name, call, flat, is_float

# A sum of n terms and a few library functions of up to 5 ULP stay well below this many times the
# effect of one rounding; a formula that differs by 1e-7 is 1e6 times above it in float64.
FACTOR = 64
MOVE = 2.0**-30  # relative; small enough to be linear, far above float64's rounding
INSIDE = "what the JAX function has inside"
WEIGHT = 4 * 2.0**-24  # what rounding to float32 moves a weight by, and some room


def tolerance(responses: Iterable[float], dtype: str = "float64") -> float:
    """Return how far apart rounding may carry two sides with these responses."""
    return 2 * FACTOR * np.finfo(dtype).eps * max([1.0, *responses])


def shake(x: Any, draw: np.random.Generator) -> Any:
    """Move each float by `MOVE` of itself, up or down."""
    return x * (1 + MOVE * draw.choice([-1.0, 1.0], np.shape(x))) if is_float(x) else x


def responses(
    side: JaxSide,
    cotangents: Arrays | None = None,
    inputs: Arrays | None = None,
    only: Collection[str] | None = None,
) -> tuple[Arrays, Arrays]:
    """Return how many times its size each array moves when all numbers move by a relative 1.

    Measured with random signs on every number, or on the leaves that `only` names, twice; the larger
    counts.
    """
    inputs = inputs or by_name(side.inputs)
    still = side.run("float64", cotangents, inputs=inputs)
    worst = tuple(dict.fromkeys(part, 0.0) for part in still)
    for seed in (1, 2):
        draw = np.random.default_rng(seed)

        def move(arrays, draw=draw):
            return {n: x if only and n not in only else shake(x, draw) for n, x in arrays.items()}

        moved = side.run("float64", cotangents, move(side.leaves), move(inputs))
        for largest, now, before in zip(worst, moved, still, strict=True):
            for n in largest:
                largest[n] = max(largest[n], distance(now[n], before[n]) / MOVE)
    return worst


def computed_weights(torch_side: TorchSide, jax_side: JaxSide) -> list[str]:
    """Name JAX's weights that were computed from torch's in float32, as a sum of two biases is.

    They are float32 and hold numbers that torch does not, or that it hides in a plain function. Of a
    function that takes no float64, so do the numbers written in it, unless they are short.
    """
    if jax_side.weights is not None:
        return []
    given = np.concatenate([x.ravel() for x in torch_side.arrays.values()] + [[0.0, 1.0]])
    given = np.unique(given.astype(np.float32))

    def computed(x: Any) -> bool:
        return x.dtype == np.float32 and not np.isin(x, given).all()

    names = [n for n, x in jax_side.leaves.items() if computed(x)]
    with jax.enable_x64(jax_side.x64):
        function, floats = jax_side.prepare("float64")
        closed = jax.make_jaxpr(function)(*floats)
    inside = any(computed(x) for x in constants(closed))
    if not jax_side.x64:  # numbers written in the function, too, were rounded as it was read
        inside |= any(x * 2**10 % 1 for x in literals(closed.jaxpr) if np.isfinite(x))
    return names + [INSIDE] * inside


def of_weights(
    torch_side: TorchSide,
    jax_side: JaxSide,
    cotangents: Arrays | None = None,
    inputs: Arrays | None = None,
) -> tuple[Arrays, Arrays]:
    """Return how far each array may move by `computed_weights`; empty where there are none.

    Those inside the function cannot be moved: they count as all that can, and as 1 at least.
    """
    names = computed_weights(torch_side, jax_side)
    if not names:
        return {}, {}
    inside = INSIDE in names
    moved = responses(jax_side, cotangents, inputs, None if inside else names)
    least = 1.0 if inside else 0.0
    return tuple({n: WEIGHT * max(least, r) for n, r in part.items()} for part in moved)


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
