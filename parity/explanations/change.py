"""What a known explanation of a mismatch is: a change to one side that would remove it.

Each change says what the other side then does: a change to torch by which it equals JAX says what
JAX does differently.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parity import patches as p
from parity.patches import Patch

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Change:
    """One change to one side.

    Attributes:
      name: of the explanation; several changes share it.
      says: what differs, if this change removes the difference.
      fix: a line of code that mends it.
      side: which side is changed.
      slot: what is changed; two changes of one slot are not combined.
      patch, arrays, inputs, outputs, around: how: an alternative torch function, functions of the
        named parameters, of the named inputs, of the list of outputs, or a context to run in.
      literal: for JAX, (old, new) of a number written in the function; "stop_gradient" to leave
        that out.
    """

    name: str
    says: str
    fix: str
    side: Literal["torch", "jax"]
    slot: str
    patch: Patch | None = None
    arrays: Callable[[Arrays], Arrays] | None = None
    inputs: Callable[[Arrays], Arrays] | None = None
    outputs: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None
    around: Callable[[], contextlib.AbstractContextManager] | None = None
    literal: tuple[float, float] | str | None = None
    touched: frozenset[str] = frozenset()


def patched(
    name: str, says: str, fix: str, functions: str, answer: p.Answer, slot: str | None = None
) -> Change:
    """Make a change of torch functions, their names with spaces between."""
    names = tuple(functions.split())
    return Change(name, says, fix, "torch", slot or names[0], patch=Patch(names, answer))
