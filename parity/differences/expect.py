"""What a snippet is expected to give, and whether what it gave is that.

A whole number, a truth value, a text, 0, an infinity and NaN must be met exactly, any other
number to 0.01 %: recorded numbers have six digits. What depends on the processor is a
`Between`: the number recorded, and bounds that hold on other processors too.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch

RELATIVE = 1e-4


@dataclass(frozen=True)
class Raises:
    """An error of this type name, with this text somewhere in its message."""

    type: str
    text: str = ""

    def __str__(self) -> str:
        return f"raises `{self.type}`" + (f": … {self.text} …" if self.text else "")


@dataclass(frozen=True)
class Warns:
    """A warning with this text, and then a value."""

    text: str
    value: Any

    def __str__(self) -> str:
        return f"{show(self.value)}, and warns: … {self.text} …"


@dataclass(frozen=True)
class Between:
    """A number from low to high; `recorded` is what the machine of the document gave."""

    recorded: float
    low: float
    high: float

    def __post_init__(self):
        if not self.low <= self.recorded <= self.high:
            raise ValueError(f"{self.recorded} is not between {self.low} and {self.high}")

    def __str__(self) -> str:
        return f"`{self.recorded:g}` (accepted: {self.low:g} to {self.high:g})"


@dataclass(frozen=True)
class Outcome:
    """What a snippet gave: a value or an error, and the warnings on the way."""

    value: Any = None
    error: BaseException | None = None
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        said = f", warnings {list(self.warnings)}" if self.warnings else ""
        if self.error is not None:
            first = (str(self.error).strip().splitlines() or [""])[0]
            return f"{type(self.error).__name__}: {first}{said}"
        return f"{self.value!r}{said}"


def show(expected: Any) -> str:
    """Write an expectation in Markdown."""
    return str(expected) if isinstance(expected, Raises | Warns | Between) else f"`{expected!r}`"


def plain(value: Any) -> Any:
    """Turn arrays to nested tuples, dtypes to names; the rest stays."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().resolve_conj().tolist())
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(value).tolist())
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    return value


def same_number(expected: complex, seen: complex, relative: float) -> bool:
    if isinstance(expected, complex) or isinstance(seen, complex):
        expected, seen = complex(expected), complex(seen)
        return all(
            same_number(a, b, relative)
            for a, b in ((expected.real, seen.real), (expected.imag, seen.imag))
        )
    if isinstance(expected, bool) or isinstance(seen, bool):
        return expected is seen
    if math.isnan(expected) or math.isnan(seen):
        return math.isnan(expected) and math.isnan(seen)
    if isinstance(expected, int) or expected == 0 or math.isinf(expected) or math.isinf(seen):
        return expected == seen
    return abs(seen - expected) <= relative * abs(expected)


def equal(expected: Any, seen: Any, relative: float = RELATIVE) -> bool:
    """Whether a value is the expected one; both without arrays (see `plain`)."""
    if isinstance(expected, Between):
        return isinstance(seen, int | float) and expected.low <= seen <= expected.high
    if isinstance(expected, tuple):
        return (
            isinstance(seen, tuple)
            and len(expected) == len(seen)
            and all(equal(a, b, relative) for a, b in zip(expected, seen, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(seen, dict)
            and expected.keys() == seen.keys()
            and all(equal(expected[key], seen[key], relative) for key in expected)
        )
    if isinstance(expected, int | float | complex) and isinstance(seen, int | float | complex):
        return same_number(expected, seen, relative)
    return type(expected) is type(seen) and expected == seen


def meets(expected: Any, seen: Outcome) -> bool:
    """Whether a snippet did what is expected of it; an unexpected warning is not."""
    if isinstance(expected, Raises):
        return (
            seen.error is not None
            and type(seen.error).__name__ == expected.type
            and re.search(re.escape(expected.text), str(seen.error)) is not None
        )
    if isinstance(expected, Warns):
        said = any(expected.text in text for text in seen.warnings)
        return said and seen.error is None and equal(plain(expected.value), seen.value)
    return seen.error is None and not seen.warnings and equal(plain(expected), seen.value)
