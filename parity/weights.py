"""How a PyTorch model's parameters become those of a JAX model.

A map is a function from torch's arrays by name to a tree of JAX parameters, written in array
operations (`.T`, slices, sums, jnp.stack): its own derivative then carries JAX's gradients back to
torch's names. Or it is a dictionary from the JAX parameters' names to torch's names or to rules.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jax_impl.arrays import to_tree

Arrays = Mapping[str, Any]
Rule = Callable[[Arrays], Any]
Weights = Callable[[Arrays], Any] | Mapping[str, str | Rule]


class WeightsError(ValueError):
    """The parameters of the two models do not fit together; the message lists all that do not."""


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by name, the keys on the way joined by dots."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(map(key_name, path)): leaf for path, leaf in leaves}


def key_name(key: Any) -> str:
    """Return what a step into a tree is called."""
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case GetAttrKey():
            return key.name
        case SequenceKey():
            return str(key.idx)
    return str(key)


class Read(Mapping):
    """Torch's arrays, and which of them were asked for."""

    def __init__(self, arrays: Arrays):
        self.arrays, self.names = arrays, set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.arrays:
            raise WeightsError(f"torch has no {name!r}; it has {', '.join(self.arrays)}")
        self.names.add(name)
        return self.arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.arrays else default

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def convert(
    weights: Weights | None, arrays: Arrays, template: Any = None, optional: Collection[str] = ()
) -> Any:
    """Apply a map.

    Args:
      weights: a map; None for equal names.
      arrays: torch's parameters and buffers by name.
      template: tree of the JAX parameters, to whose names and shapes the result must conform; None
        accepts what the map makes.
      optional: names, of buffers, that the map may leave out.

    Raises:
      WeightsError: a name is missing or extra, or a shape is wrong.
    """
    read = Read(arrays)
    if callable(weights):
        tree = weights(read)
        made = named(tree)
    else:
        rules = (
            dict(weights)
            if weights is not None
            else {name: name for name in arrays if name not in optional}
        )
        made = {name: read[r] if isinstance(r, str) else r(read) for name, r in rules.items()}
        tree = made
    faults = [f"torch's {name} is not used" for name in set(arrays) - read.names - set(optional)]
    if template is not None:
        wanted = named(template)
        faults += [f"JAX's {name} gets no value" for name in wanted if name not in made]
        faults += [f"JAX has no {name}" for name in made if name not in wanted]
        for name in made.keys() & wanted.keys():
            if np.shape(made[name]) != np.shape(wanted[name]):
                shapes = f"{np.shape(made[name])}, expected {np.shape(wanted[name])}"
                faults.append(f"JAX's {name} has the shape {shapes}")
    if faults:
        raise WeightsError("weights do not fit: " + "; ".join(sorted(faults)))
    if template is not None:
        structure = jax.tree.structure(template)
        return jax.tree.unflatten(structure, [made[name] for name in named(template)])
    return tree if callable(weights) else to_tree(made)


def transpose(name: str) -> Rule:
    """Swap the two axes: torch's Linear.weight [out, in] as a kernel [in, out]."""
    return lambda arrays: arrays[name].T


def total(*names: str) -> Rule:
    """Add several arrays: torch's two biases as one."""
    return lambda arrays: sum(arrays[name] for name in names)


def stack(*names: str) -> Rule:
    """Put several arrays side by side along a new first axis."""
    return lambda arrays: jnp.stack([arrays[name] for name in names])


def gates(name: str, have: str, want: str) -> Rule:
    """Reorder the blocks of axis 0: gates(name, "ifgo", "igfo")."""
    if sorted(have) != sorted(want):
        raise WeightsError(f"gates {have!r} and {want!r} are not the same letters")

    def reorder(arrays: Arrays) -> Any:
        blocks = dict(zip(have, jnp.split(arrays[name], len(have)), strict=True))
        return jnp.concatenate([blocks[gate] for gate in want])

    return reorder


def part(name: str, index: int, of: int) -> Rule:
    """Take one of several equal blocks of axis 0: a gate."""
    return lambda arrays: jnp.split(arrays[name], of)[index]


def then(rule: Rule, change: Callable[[Any], Any]) -> Rule:
    """Apply a function to what a rule gives: then(part(name, 0, 4), jnp.transpose)."""
    return lambda arrays: change(rule(arrays))
