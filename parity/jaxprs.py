"""Read and rewrite a JAX function's jaxpr: where an operation comes from, the numbers written in it."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def user_frame(eqn: core.JaxprEqn) -> Any:
    """Return the line of the user's code that an operation comes from; None for JAX's own."""
    from jax._src import source_info_util

    return source_info_util.user_frame(eqn.source_info.traceback)


def place(eqn: core.JaxprEqn) -> str:
    """Return file and line of the user's code that an operation comes from."""
    frame = user_frame(eqn)
    return located(frame.file_name, frame.start_line) if frame else "inside JAX"


def located(file: str, line: int) -> str:
    """Return file:line; of a notebook's cell, whose file is temporary, In[number]:line."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cell = shell.compile.format_code_name(file) if shell else None
    return f"{cell[1] if cell else Path(file).name}:{line}"


def inner_jaxprs(eqn: core.JaxprEqn) -> Iterable[Any]:
    """Yield the jaxprs inside an operation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def constants(closed: core.ClosedJaxpr) -> Iterable[Any]:
    """Yield the arrays that a function did not get but has inside."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if isinstance(part, core.ClosedJaxpr):
                    yield from constants(part)
                elif isinstance(part, core.Jaxpr):
                    yield from constants(core.ClosedJaxpr(part, ()))


def literals(jaxpr: Any) -> set[float]:
    """Return the sizes of the numbers written in a jaxpr and all inside it."""
    found = {
        abs(float(v.val))
        for eqn in jaxpr.eqns
        for v in eqn.invars
        if isinstance(v, core.Literal)
        and np.ndim(v.val) == 0
        and jnp.issubdtype(v.aval.dtype, np.floating)
    }
    return found.union(*(literals(x) for eqn in jaxpr.eqns for x in inner_jaxprs(eqn)))


def rewrite(
    jaxpr: Any, literal: tuple[float, float] | str | None = None, caller: Any = None
) -> Any:
    """Replace a number, or leave out stop_gradient, in a jaxpr and all inside it.

    What is called in several places gets operations of its own in each, and where it has no line
    of the user's, that of its `caller`.
    """

    def inner(value, eqn):
        if isinstance(value, core.ClosedJaxpr):
            return value.replace(jaxpr=rewrite(value.jaxpr, literal, eqn))
        if isinstance(value, core.Jaxpr):
            return rewrite(value, literal, eqn)
        many = type(value) in (tuple, list)
        return type(value)(inner(part, eqn) for part in value) if many else value

    equations = []
    for eqn in jaxpr.eqns:
        if caller is not None and user_frame(eqn) is None:
            eqn = eqn.replace(source_info=caller.source_info)
        params = {name: inner(value, eqn) for name, value in eqn.params.items()}
        operands = list(eqn.invars)
        if literal == "stop_gradient":
            if eqn.primitive.name == "stop_gradient":
                eqn = eqn.replace(primitive=jax.lax.copy_p)
                params = {}
        elif literal is not None:
            old, new = literal
            operands = [
                core.Literal(np.asarray(new, v.aval.dtype), v.aval)
                if isinstance(v, core.Literal) and np.ndim(v.val) == 0 and float(v.val) == old
                else v
                for v in operands
            ]
        equations.append(eqn.replace(invars=operands, params=params))
    return jaxpr.replace(eqns=equations)
