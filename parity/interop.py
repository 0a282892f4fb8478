"""Weights to and from torch.nn, flax.linen, flax.nnx, Equinox, Haiku and Keras 3, whole layers at a time.

    weights = maps.join(
        {
            **interop.cells(maps.linen.lstm_cell, ["RNN_0.cell", "RNN_1.cell"], "lstm."),
            "Dense_0": maps.linen.linear("head."),
        }
    )
    params = interop.from_library(weights, linen_params, like=parameter_schema(config))
    linen_params = interop.to_library(weights, params, like=linen_params)

What a library calls and how it lays out each array is said once, by `parity.maps`; the way back is read
off the same map. Where a library has one bias and torch.nn two, theirs is the sum of ours; on the
way back it becomes bias_ih, and bias_hh is 0. Both of ours have the gradient of theirs, so a step of
training moves their sum twice as far.

This is no part of a backend, which may import one framework only: a library's tree is JAX's, what
torch.nn gives is torch's, and a map's derivative is taken by JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.maps import Map, nnx
from parity.maps.layers import Cell, cell
from parity.weights import WeightsError, convert, named


def torch_nn(prefix: str = "") -> Map:
    """Our arrays of one part as torch.nn's RNN, LSTM, GRU, TransformerEncoder or Linear: equal names."""

    def part(arrays):
        return {n.removeprefix(prefix): arrays[n] for n in list(arrays) if n.startswith(prefix)}

    return part


@nnx.variables
@cell
def nnx_gru_cell(w: Cell):
    """torch.nn.GRU as nnx.GRUCell, which has no b_hn: from nnx it is 0, to nnx it must be 0.

    Both reset after the product: a GRU with reset_after=False has equal weights' names and shapes, but
    computes something else.
    """
    bias, _ = w.gru_biases
    return {
        "dense_i": {"kernel": w.weight_ih.T, "bias": bias},
        "dense_h": {"kernel": w.weight_hh.T},
    }


def cells(
    maker: Callable[..., Map], paths: Sequence[str | tuple[str, str]], prefix: str = ""
) -> dict[str, Map]:
    """Return the map of every layer and direction of a recurrent layer, for `maps.join`.

    Args:
      maker: of one cell, as `maps.linen.lstm_cell`.
      paths: where the library holds the cell of each layer, bottom up; of two directions the pair
        (forward, reverse).
      prefix: what stands before torch.nn's names, as "lstm.".
    """
    parts = {}
    for layer, own in enumerate(paths):
        for reverse, path in enumerate([own] if isinstance(own, str) else own):
            parts[path] = maker(prefix, layer, bool(reverse))
    return parts


def to_library(weights: Map, params: Mapping[str, Any], like: Any) -> Any:
    """Turn our parameters, or torch.nn's, into a library's.

    Args:
      weights: the map.
      params: arrays or tensors by name, all of one floating dtype, which is kept.
      like: the library's tree of parameters; its values are not used.

    Returns:
      A tree like `like` of NumPy arrays.

    Raises:
      WeightsError: lists what is missing, extra or misshapen; or numbers other than 0 for which the
        library has no place.
    """
    arrays = {name: to_numpy(x) for name, x in params.items()}
    dtype = the_dtype(arrays)
    unused = rearrangement(weights, arrays).unused
    with jax.enable_x64(True):  # else JAX would make float32 of float64
        tree = convert(weights, {name: jnp.asarray(x) for name, x in arrays.items()}, like)
    lost = [name for name, x in arrays.items() if np.any(x[unused[name]] != 0)]
    if lost:
        raise WeightsError(
            f"theirs has no place for a part of {', '.join(lost)}, which must be 0 and is not"
        )
    return jax.tree.map(lambda x: np.asarray(x, dtype), tree)


def from_library(weights: Map, tree: Any, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn a library's parameters into ours, or torch.nn's.

    Args:
      weights: the same map as of `to_library`.
      tree: the library's parameters, all of one floating dtype, which is kept.
      like: our names, and arrays or anything else with a shape, as `parameter_schema(config)` or a
        state_dict; its values are not used.

    Returns:
      NumPy arrays by name, in the order of `like`.

    Raises:
      WeightsError: lists what is missing, extra or misshapen; or the map does not rearrange numbers.
    """
    given = {name: to_numpy(x) for name, x in named(tree).items()}
    found = rearrangement(weights, like)
    faults = [f"theirs has no {name}" for name in found.added if name not in given]
    faults += [f"theirs has {name}, which is not used" for name in given if name not in found.added]
    faults += [f"nothing gives our {name} a value" for name, x in found.unused.items() if x.all()]
    for name in given.keys() & found.added.keys():
        if given[name].shape != found.added[name].shape:
            shapes = f"{given[name].shape}, expected {found.added[name].shape}"
            faults.append(f"theirs has {name} of the shape {shapes}")
    if faults:
        raise WeightsError("weights do not fit: " + "; ".join(sorted(faults)))
    dtype = the_dtype(given)
    numbers = [given[name] - added.astype(dtype) for name, added in found.added.items()]
    flat = np.concatenate([np.zeros(1, dtype), *map(np.ravel, numbers)])
    return {name: flat[found.places[name]] for name in like}


class Rearrangement(NamedTuple):
    """What a map does: it moves numbers, adds two of them up, and adds constants.

    Attributes:
      places: for each of our names, where in theirs, laid end to end and counted from 1, its numbers
        stand on the way back; 0 for those that become 0.
      unused: for each of our names, which of its numbers the map leaves out.
      added: for each of their names, in order, the constants that the map adds.
    """

    places: dict[str, np.ndarray]
    unused: dict[str, np.ndarray]
    added: dict[str, np.ndarray]


def rearrangement(weights: Map, like: Mapping[str, Any]) -> Rearrangement:
    """Find what a map does to arrays of these shapes.

    It is affine: its value at 0 is what it adds, and its transpose leads from each of ours to where it
    goes, so a map of numbered places is pulled back and read.

    Raises:
      WeightsError: an array is missing or does not fit the others, or the map does something else.
    """
    shapes = {name: tuple(x.shape) for name, x in like.items()}
    with jax.enable_x64(True):  # float64 counts to 2**53
        try:
            zeros = {name: jnp.zeros(shape) for name, shape in shapes.items()}
            added, pullback = jax.vjp(weights, zeros)
        except WeightsError:
            raise
        except (TypeError, ValueError) as error:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise WeightsError(f"shapes do not fit each other: {listed}") from error

        def move(arrays):  # the map without what it adds
            moved = weights(jax.tree.map(jnp.asarray, arrays))
            return jax.tree.map(lambda x, constant: np.asarray(x) - constant, moved, added)

        def pull(tree):
            return jax.tree.map(np.asarray, pullback(jax.tree.map(jnp.asarray, tree))[0])

        added = jax.tree.map(np.asarray, added)
        # Numbers in the order of the names: bias_ih has higher ones than bias_hh, and keeps the sum.
        numbers, theirs = numbered(zeros), numbered(added)
        uses = pull(jax.tree.map(np.ones_like, added))
        together, total = pull(move(jax.tree.map(np.ones_like, zeros))), pull(move(numbers))
        places = {
            name: np.where((together[name] == 1) | (total[name] < 2 * numbers[name]), place, 0)
            for name, place in pull(theirs).items()
        }
        again = move(places)
    wrong = [name for name in shapes if not np.isin(uses[name], (0, 1)).all()]
    if wrong or not all(map(np.array_equal, *map(jax.tree.leaves, (again, theirs)))):
        several = f": {', '.join(wrong)} is used more than once" if wrong else ""
        raise WeightsError(f"the map does not only move numbers and add up two{several}")
    return Rearrangement(
        {name: places[name].astype(np.int64) for name in shapes},
        {name: uses[name] == 0 for name in shapes},
        named(added),
    )


def numbered(tree: Any) -> Any:
    """Return a tree whose elements are 1, 2, .. through all of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    counts = [
        np.arange(end - leaf.size + 1.0, end + 1.0).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, counts)


def to_numpy(array: Any) -> np.ndarray:
    """Take an array of any of the libraries."""
    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    if array.dtype == torch.bfloat16:  # NumPy's is an extension that torch does not know
        return array.view(torch.int16).numpy().view(jnp.bfloat16)
    return array.numpy()


def the_dtype(arrays: Mapping[str, np.ndarray]) -> np.dtype:
    """Return the dtype of all arrays.

    Raises:
      WeightsError: they have several, or none that JAX has and that is of floats.
    """
    dtypes = {array.dtype: name for name, array in arrays.items()}
    if len(dtypes) == 1:
        [dtype] = dtypes
        if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 8:
            return dtype
    found = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items()) or "none"
    raise WeightsError(f"weights must be floats of one dtype, at most float64; found {found}")
