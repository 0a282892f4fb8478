"""The exact answer: a JAX function evaluated once more, in NumPy's extended precision.

The function's jaxpr is walked operation by operation. Arithmetic is NumPy's in longdouble (64 bits
of mantissa on x86, 11 more than float64); operations that only move or add numbers go to JAX
itself, on the float64 parts high and low of each number apart, which loses nothing. A conversion
between float types is skipped, so what a model rounds in its midst shows as its error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Array = np.ndarray
# Hears of an operation, its operands, results and time steps; may give other results.
Observer = Callable[[core.JaxprEqn, Sequence[Any], Sequence[Any], tuple[int, ...]], Any]
LONG = np.longdouble


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def erf(x: Array) -> Array:
    """Return the error function to 30 digits, by mpmath."""
    import mpmath

    with mpmath.workdps(30):
        values = [LONG(mpmath.nstr(mpmath.erf(mpmath.mpf(repr_of(v))), 25)) for v in x.ravel()]
    return np.array(values, LONG).reshape(x.shape)


def repr_of(value: LONG) -> str:
    return np.format_float_scientific(value, precision=22, unique=False)


def matmul(x: Array, y: Array, *, dimension_numbers, **_) -> Array:
    """Multiply as lax.dot_general does."""
    (sum_x, sum_y), (batch_x, batch_y) = dimension_numbers
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    of_x = [next(letters) for _ in range(x.ndim)]
    of_y = [next(letters) for _ in range(y.ndim)]
    for i, j in zip((*sum_x, *batch_x), (*sum_y, *batch_y), strict=True):
        of_y[j] = of_x[i]
    batch = [of_x[i] for i in batch_x]
    free = [c for i, c in enumerate(of_x) if i not in (*sum_x, *batch_x)]
    free += [c for j, c in enumerate(of_y) if j not in (*sum_y, *batch_y)]
    return np.einsum(f"{''.join(of_x)},{''.join(of_y)}->{''.join(batch + free)}", x, y)


def integer_pow(x: Array, *, y: int, **_) -> Array:
    return x**y if y >= 0 else 1 / x**-y


def clamp(low: Array, x: Array, high: Array) -> Array:
    return np.minimum(np.maximum(x, low), high)


def broadcast(x: Array, *sizes, shape, broadcast_dimensions, **_) -> Array:
    placed = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        placed[axis] = size
    return np.broadcast_to(x.reshape(placed), shape)


def sliced(x: Array, *, start_indices, limit_indices, strides, **_) -> Array:
    steps = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def select(which: Array, *cases: Array) -> Array:
    return np.choose(np.asarray(which, int), cases)


ARITHMETIC: dict[str, Callable] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sign": np.sign,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "integer_pow": integer_pow,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "logistic": sigmoid,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "erf": erf,
    "erfc": lambda x: 1 - erf(x),
    "floor": np.floor,
    "ceil": np.ceil,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "clamp": clamp,
    "select_n": select,
    "dot_general": matmul,
    "copy": np.copy,
    "copy_p": np.copy,
    "is_finite": np.isfinite,
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axis=axes),
    "reduce_prod": lambda x, *, axes, **_: np.prod(x, axis=axes),
    "reduce_max": lambda x, *, axes, **_: np.max(x, axis=axes),
    "reduce_min": lambda x, *, axes, **_: np.min(x, axis=axes),
}
SHAPED = {"dot_general", "integer_pow", "reduce_sum", "reduce_prod", "reduce_max", "reduce_min"}
MOVES: dict[str, Callable] = {
    "broadcast_in_dim": broadcast,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "expand_dims": lambda x, *, dimensions, **_: np.expand_dims(x, dimensions),
    "transpose": lambda x, *, permutation, **_: x.transpose(permutation),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis, **_: np.stack(xs, axis),
    "rev": lambda x, *, dimensions, **_: np.flip(x, dimensions),
    "slice": sliced,
}
# Linear in every float operand together: the parts high and low go through apart.
LINEAR = {
    *("dynamic_slice", "dynamic_update_slice", "gather", "scatter", "scatter-add", "pad"),
    *("cumsum", "split", "unstack", "reduce_window_sum", "tile"),
}
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def is_float(x: Any) -> bool:
    return not is_key(x) and jnp.issubdtype(np.asarray(x).dtype, np.floating)


def is_key(x: Any) -> bool:
    """Tell whether this is a key of JAX's random numbers, which NumPy cannot hold."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def widen(x: Any) -> Any:
    """Return floats in extended precision, the rest as it is."""
    if is_key(x):
        return x
    x = np.asarray(x)
    return x.astype(LONG) if jnp.issubdtype(x.dtype, np.floating) else x


def bind(eqn: core.JaxprEqn, arguments: Sequence[Any]) -> list[Array]:
    """Apply an operation by JAX itself."""
    params = dict(eqn.params)
    found = eqn.primitive.bind(*arguments, **params)
    found = found if eqn.primitive.multiple_results else [found]
    return [x if is_key(x) else np.asarray(x) for x in found]


def apply(eqn: core.JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """Apply one operation without inner jaxprs."""
    name, params = eqn.primitive.name, eqn.params
    if any(map(is_key, arguments)):
        return [widen(x) for x in bind(eqn, arguments)]
    if name == "convert_element_type":
        (x,) = arguments
        wanted = np.dtype(params["new_dtype"])
        floats = jnp.issubdtype(wanted, np.floating)
        return [widen(x) if floats else np.asarray(np.asarray(x), wanted)]
    if name in ("stop_gradient", "optimization_barrier", "name", "reduce_precision"):
        return list(arguments)
    if name in ARITHMETIC:
        options = params if name in SHAPED else {}
        with np.errstate(all="ignore"):
            return [np.asarray(ARITHMETIC[name](*arguments, **options))]
    if name in MOVES:
        return [np.asarray(MOVES[name](*arguments, **params))]
    if name not in LINEAR:
        return [widen(x) for x in bind(eqn, rounded(eqn, arguments))]
    # An operation that only moves and adds numbers: once for each part of them that it can hold.
    total = None
    rest = list(arguments)
    while True:
        part = rounded(eqn, rest)
        found = [widen(x) for x in bind(eqn, part)]
        total = found if total is None else [x + y for x, y in zip(total, found, strict=True)]
        rest = [
            np.where(np.isfinite(x), x - widen(y), 0) if is_float(x) else x
            for x, y in zip(rest, part, strict=True)
        ]
        if not any(is_float(x) and np.any(x) for x in rest):
            return total


def rounded(eqn: core.JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """Return operands in the dtypes that an operation takes."""
    return [
        np.asarray(x, v.aval.dtype) if isinstance(x, np.ndarray) and is_float(x) else x
        for x, v in zip(arguments, eqn.invars, strict=True)
    ]


def walk(
    jaxpr: core.Jaxpr,
    constants: Sequence[Any],
    arguments: Sequence[Any],
    observe: Observer | None = None,
    steps: tuple[int, ...] = (),
) -> list[Any]:
    """Evaluate a jaxpr, with an observer of every operation."""
    values: dict[Any, Any] = {}

    def read(variable):
        return widen(variable.val) if isinstance(variable, core.Literal) else values[variable]

    for variable, value in zip(
        (*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True
    ):
        values[variable] = value
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        inner = inner_of(eqn)
        if inner is not None:
            results = inner(operands, observe, steps)
        else:
            results = apply(eqn, operands)
            if observe:
                results = observe(eqn, operands, results, steps) or results
        for variable, value in zip(eqn.outvars, results, strict=True):
            values[variable] = value
    return [read(v) for v in jaxpr.outvars]


def inner_of(eqn: core.JaxprEqn) -> Callable | None:
    """Return the function that runs an operation made of others, None for a plain one."""
    params, name = eqn.params, eqn.primitive.name

    def closed(jaxpr):
        open_, constants = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())
        constants = [widen(c) for c in constants]
        return lambda args, observe, steps: walk(open_, constants, args, observe, steps)

    if name == "scan":
        return lambda args, observe, steps: scan(
            params, closed(params["jaxpr"]), args, observe, steps
        )
    if name == "while":
        return lambda args, observe, steps: loop(params, closed, args, observe, steps)
    if name == "cond":

        def branch(args, observe, steps):
            which = int(np.clip(args[0], 0, len(params["branches"]) - 1))
            return closed(params["branches"][which])(args[1:], observe, steps)

        return branch
    for key in INNER:
        if key in params:
            return closed(params[key])
    return None


def scan(params, body, args, observe, steps):
    """Run lax.scan step by step."""
    fixed, carried = params["num_consts"], params["num_carry"]
    constants, carry, rows = (
        args[:fixed],
        list(args[fixed : fixed + carried]),
        args[fixed + carried :],
    )
    order = range(params["length"])
    collected: dict[int, list[Any]] = {}
    for t in reversed(order) if params["reverse"] else order:
        found = body([*constants, *carry, *[row[t] for row in rows]], observe, (*steps, t))
        carry, collected[t] = list(found[:carried]), found[carried:]
    if not collected:
        avals = params["jaxpr"].out_avals[carried:]
        return carry + [np.zeros((0, *a.shape), a.dtype) for a in avals]
    return carry + [np.stack(column) for column in zip(*(collected[t] for t in order), strict=True)]


def loop(params, closed, args, observe, steps):
    """Run lax.while_loop step by step."""
    of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
    condition, body = closed(params["cond_jaxpr"]), closed(params["body_jaxpr"])
    fixed, state = args[: of_condition + of_body], list(args[of_condition + of_body :])
    t = 0
    while bool(condition([*fixed[:of_condition], *state], None, steps)[0]):
        state = body([*fixed[of_condition:], *state], observe, (*steps, t))
        t += 1
    return state


def exactly(
    function: Callable, *arguments: Any, observe: Observer | None = None, x64: bool = True
) -> Any:
    """Evaluate a JAX function of trees of arrays in extended precision; return the same tree.

    Args:
      x64: whether JAX reads the function in 64 bits; some models can be written in 32 only.
    """
    with jax.enable_x64(x64):
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = [widen(x) for x in jax.tree.leaves(arguments)]
        found = walk(jaxpr.jaxpr, [widen(c) for c in jaxpr.consts], leaves, observe)
    return jax.tree.unflatten(jax.tree.structure(shape), found)
