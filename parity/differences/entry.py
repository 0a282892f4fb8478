"""An entry of the atlas: two snippets that should do the same and do not, and one that does."""

import contextlib
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import torch

from parity.differences.expect import Outcome, meets, plain

GROUPS = {
    "defaults": "Layers and their defaults",
    "optimizers": "Optimisers and schedules",
    "edges": "Ties and edges",
    "indexing": "Indexing and dtypes",
    "numerics": "Numerics",
    "randomness": "Randomness",
    "execution": "Execution model",
    "export": "Export and checkpoints",
}

DIFFERENCES: dict[str, "Difference"] = {}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference; `difference` makes it from a class.

    Args:
      name: in snake case, for the command line and for links.
      group: a key of GROUPS, the module the entry stands in.
      title, text: first line and rest of the docstring.
      in_torch, in_jax: the snippets; the source of their bodies is what the document shows.
      torch_gives, jax_gives: what they are expected to give (see `expect`).
      instead: what to write instead, in words.
      same: returns both sides' values after that advice; they must be equal. None: the advice
        is no code.
      close: the largest difference allowed between them, relative to the larger.
      portable: False where another processor may show no difference; only bounds are held then.
      source: documentation pages or threads, for `render.link`.
      since: versions from which, or until which, this holds, where that is known.
      inject: what `--inject` calls the fault in a training study, if it can occur in one.
    """

    name: str
    group: str
    title: str
    text: str
    in_torch: Callable[[], Any]
    torch_gives: Any
    in_jax: Callable[[], Any]
    jax_gives: Any
    instead: str
    same: Callable[[], tuple[Any, Any]] | None = None
    close: float = 2e-6
    portable: bool = True
    source: tuple[str, ...]
    since: str | None = None
    inject: str | None = None

    def problems(self) -> list[str]:
        """Run the entry and say what is not as recorded."""
        sides = {
            "torch": (self.torch_gives, run(self.in_torch)),
            "jax": (self.jax_gives, run(self.in_jax)),
        }
        found = [
            f"{self.name}: {side} changed.\n  expected {expected}\n  seen     {seen}"
            for side, (expected, seen) in sides.items()
            if not meets(expected, seen)
        ]
        crossed = zip(("torch", "jax"), (self.jax_gives, self.torch_gives), strict=True)
        if self.portable and any(meets(other, sides[side][1]) for side, other in crossed):
            seen = "\n".join(f"  {side} gave {seen}" for side, (_, seen) in sides.items())
            found.append(f"{self.name}: the two sides no longer differ.\n{seen}")
        if self.same is not None:
            seen = run(self.same)
            if seen.error is not None or seen.warnings or not close(*seen.value, self.close):
                found.append(f"{self.name}: what to write instead is not the same.\n  seen {seen}")
        return [f"{problem}\n  with {versions()}" for problem in found]


def difference(cls: type) -> type:
    """Register the difference that a class describes."""
    title, _, text = inspect.cleandoc(cls.__doc__).partition("\n")
    given = {key: value for key, value in vars(cls).items() if not key.startswith("__")}
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    if name in DIFFERENCES:
        raise ValueError(f"two differences are called {name!r}")
    group = cls.__module__.rpartition(".")[2]
    DIFFERENCES[name] = Difference(
        name=name, group=group, title=title.strip().rstrip("."), text=text.strip(), **given
    )
    return cls


@contextlib.contextmanager
def as_pasted() -> Iterator[None]:
    """Let a snippet run as in a fresh process on the CPU; leave everything as it was.

    That is 32 bits in JAX, torch's default dtype, seed 0 and one thread, however this process
    is set. torch gives each warning every time, not only the first.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    warn_always = torch.is_warn_always_enabled()
    cpu = jax.default_device(jax.devices("cpu")[0])
    with jax.enable_x64(False), cpu, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        torch.set_warn_always(True)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.set_warn_always(warn_always)


@cache
def warm_up() -> None:
    """Let torch warn of itself, which it does when forward-mode differentiation is first used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.tanh, (torch.ones(1),), (torch.ones(1),))


def run(snippet: Callable[[], Any]) -> Outcome:
    """Run a snippet and keep what it gives: value, error, warnings."""
    warm_up()
    with as_pasted(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value, error = None, None
        try:
            value = plain(snippet())
        except Exception as raised:  # an error is a result here
            error = raised
    return Outcome(value, error, tuple(str(warning.message) for warning in caught))


def close(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Whether two results agree, to this part of the largest number of a row; NaN with NaN only."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    if isinstance(ours, tuple) and any(isinstance(item, tuple | str) for item in ours):
        return (
            isinstance(theirs, tuple)
            and len(ours) == len(theirs)
            and all(close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
        )
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape:
        return False
    largest = np.abs(np.where(np.isfinite(a), a, 0)).max(initial=0.0)
    return np.allclose(a, b, rtol=0, atol=tolerance * largest, equal_nan=True)


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "jax", "flax", "optax"))


def body(function: Callable) -> str:
    """Return the source of a function's body as it would stand in a notebook."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    text = textwrap.dedent("\n".join(lines[1:]))
    text = re.sub(r"  # noqa: \w+$", "", text, flags=re.MULTILINE)
    return re.sub(r"^return ", "", text, flags=re.MULTILINE)
