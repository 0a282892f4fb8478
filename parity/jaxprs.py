"""Read and rewrite a JAX function's jaxpr: where an operation comes from, the numbers written in it."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def place(eqn: core.JaxprEqn) -> str:
    """Return file and line of the user's code that an operation comes from."""
    from jax._src import source_info_util

    frame = source_info_util.user_frame(eqn.source_info.traceback)
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


def rewrite(jaxpr: Any, literal: tuple[float, float] | str) -> Any:
    """Replace a number, or leave out stop_gradient, in a jaxpr and all inside it."""

    def inner(value):
        if isinstance(value, core.ClosedJaxpr):
            return value.replace(jaxpr=rewrite(value.jaxpr, literal))
        if isinstance(value, core.Jaxpr):
            return rewrite(value, literal)
        return type(value)(map(inner, value)) if type(value) in (tuple, list) else value

    equations = []
    for eqn in jaxpr.eqns:
        params = {name: inner(value) for name, value in eqn.params.items()}
        operands = list(eqn.invars)
        if literal == "stop_gradient":
            if eqn.primitive.name == "stop_gradient":
                eqn = eqn.replace(primitive=jax.lax.copy_p)
                params = {}
        else:
            old, new = literal
            operands = [
                core.Literal(np.asarray(new, v.aval.dtype), v.aval)
                if isinstance(v, core.Literal) and np.ndim(v.val) == 0 and float(v.val) == old
                else v
                for v in operands
            ]
        equations.append(eqn.replace(invars=operands, params=params))
    return jaxpr.replace(eqns=equations)
