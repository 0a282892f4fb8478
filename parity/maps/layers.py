"""What torch.nn's layers hold, read by name, and how maps are put together.

Dimensions: D input features, H hidden units, G gates x H, E features of attention's input.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from parity.weights import WeightsError

Arrays = Mapping[str, Any]
Map = Callable[[Arrays], Any]


class Linear(NamedTuple):
    """weight [out, in], bias [out] or None."""

    weight: Any
    bias: Any


class Cell(NamedTuple):
    """weight_ih [G, D], weight_hh [G, H], biases [G] or None."""

    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any

    @property
    def bias(self) -> Any:
        """Both biases as one: the same function, but one parameter to train where torch has two."""
        return None if self.bias_ih is None else self.bias_ih + self.bias_hh

    @property
    def gru_biases(self) -> tuple[Any, Any]:
        """b_ir + b_hr, b_iz + b_hz, b_in as one [3H]; and b_hn [H], which the reset gate scales."""
        if self.bias_ih is None:
            return None, None
        H = self.bias_hh.shape[0] // 3
        return self.bias_ih + self.bias_hh.at[2 * H :].set(0), self.bias_hh[2 * H :]


def blocks(stacked: Any, count: int) -> list[Any]:
    """Split along axis 0, gate by gate; None gives Nones."""
    return [None] * count if stacked is None else jnp.split(stacked, count)


def reorder(stacked: Any, have: str, want: str) -> Any:
    """Put the gates along axis 0 in another order."""
    parts = dict(zip(have, blocks(stacked, len(have)), strict=True))
    return None if stacked is None else jnp.concatenate([parts[gate] for gate in want])


def take(arrays: Arrays, prefix: str, *names: str) -> list[Any]:
    """Return torch's arrays of these names; of a name that ends in "?", None where torch has none.

    Raises:
      WeightsError: lists all names that are missing.
    """
    have = list(arrays)
    missing = [prefix + n for n in names if not n.endswith("?") and prefix + n not in have]
    if missing:
        raise WeightsError(f"torch has no {', '.join(missing)}; it has {', '.join(have)}")
    wanted = [prefix + name.removesuffix("?") for name in names]
    return [arrays[name] if name in have else None for name in wanted]


def layer(*names: str) -> Callable[[Callable], Callable[..., Map]]:
    """Make the maker of a map from a function of these arrays (and of options by keyword)."""

    def decorate(function):
        def maker(prefix: str = "", **options: Any) -> Map:
            return lambda arrays: function(*take(arrays, prefix, *names), **options)

        return named_as(function, maker)

    return decorate


def cell(function: Callable[[Cell], Any]) -> Callable[..., Map]:
    """Make the maker of a map from a function of one layer and direction's `Cell`."""

    def maker(prefix: str = "", layer: int | None = 0, reverse: bool = False) -> Map:
        end = "" if layer is None else f"_l{layer}" + "_reverse" * reverse
        names = (f"weight_ih{end}", f"weight_hh{end}", f"bias_ih{end}?", f"bias_hh{end}?")
        return lambda arrays: function(Cell(*take(arrays, prefix, *names)))

    return named_as(function, maker)


def attention(function: Callable) -> Callable[..., Map]:
    """Make the maker of a map from a function of MultiheadAttention's query, key, value and out."""

    def maker(prefix: str = "", **options: Any) -> Map:
        def convert(arrays):
            if f"{prefix}q_proj_weight" in list(arrays):  # key or value of another size
                names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
                weights = take(arrays, prefix, *names)
            else:
                weights = blocks(*take(arrays, prefix, "in_proj_weight"), 3)
            biases = blocks(*take(arrays, prefix, "in_proj_bias?"), 3)
            out = Linear(*take(arrays, prefix, "out_proj.weight", "out_proj.bias?"))
            return function(*map(Linear, weights, biases), out, **options)

        return convert

    return named_as(function, maker)


def named_as(function: Callable, maker: Callable) -> Callable:
    """Give a maker the name and docstring of its function, but not its signature."""
    maker.__name__ = maker.__qualname__ = function.__name__
    maker.__module__, maker.__doc__ = function.__module__, function.__doc__
    return maker


def join(parts: Mapping[str, Map]) -> Map:
    """Put the trees of several maps into one, each at its path, as "encoder.RNN_0.cell".

    Raises, when the map is applied:
      WeightsError: lists what every part misses.
    """

    def convert(arrays):
        tree, faults = {}, []
        for path, part in parts.items():
            *above, last = path.split(".")
            branch = tree
            for key in above:
                branch = branch.setdefault(key, {})
            try:
                branch[last] = part(arrays)
            except WeightsError as error:
                faults.append(f"{path}: {error}")
        if faults:
            raise WeightsError("; ".join(faults))
        return tree

    return convert
