"""Explanations by the parameters: transposes, biases, the order of gates."""

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np

from parity.explanations.change import Arrays, Change


def of_arrays(arrays: Arrays, side: Literal["torch", "jax"]) -> list[Change]:
    """List changes to the parameters: transposes, biases, gates."""
    found = []
    who, other = ("torch", "JAX") if side == "torch" else ("JAX", "torch")

    def change(name, says, fix, names, function):
        names = frozenset(names)

        def edit(arrays):
            return {n: function(n, x) if n in names else x for n, x in arrays.items()}

        slot = "arrays " + " ".join(sorted(names))
        found.append(Change(name, says, fix, side, slot, arrays=edit, touched=names))

    matrices = [n for n, x in arrays.items() if x.ndim == 2]
    square = [n for n in matrices if arrays[n].shape[0] == arrays[n].shape[1] > 1]
    for n in square if side == "torch" else matrices:
        change("transposed_weight", f"transposed weight: {n}", f"{n}.T", [n], lambda n, x: x.T)
    shapes = {arrays[n].shape for n in (square if side == "torch" else matrices)}
    for group in [[n for n in matrices if arrays[n].shape == shape] for shape in sorted(shapes)]:
        if len(group) > 1:
            names = ", ".join(group)
            change(
                "transposed_weight", f"transposed weight: {names}", "w.T", group, lambda n, x: x.T
            )
    if side == "jax" and len(matrices) > 1:
        change(
            "transposed_weight",
            "transposed weight: every matrix",
            "w.T",
            matrices,
            lambda n, x: x.T,
        )
    for n in matrices:
        short, long = sorted(arrays[n].shape)
        if long in (3 * short, 4 * short):
            change(
                "transposed_weight",
                f"transposed weight: {n}, each gate's block",
                "each block.T",
                [n],
                transpose_blocks,
            )
    for n, x in arrays.items():
        if x.ndim in (3, 4):
            change(
                "convolution_flip",
                f"convolution: {n} is turned around along its last axis",
                "w[..., ::-1]",
                [n],
                lambda n, x: x[..., ::-1].copy(),
            )
        if x.ndim != 1:
            continue
        change(
            "missing_bias",
            f"missing bias: {other} leaves out {n}",
            f"+ {n}",
            [n],
            lambda n, x: x * 0,
        )
        change(
            "doubled_bias",
            f"doubled bias: {other} adds {n} twice",
            f"+ {n}",
            [n],
            lambda n, x: x * 2,
        )
    groups = {
        e: [n for n in arrays if e in n and arrays[n].ndim == 1]
        for e in ("bias_hh", "bias_ih", "bias")
    }
    for ending, group in groups.items():
        if len(group) > 1:
            change(
                "missing_bias",
                f"missing bias: {other} leaves out every {ending}",
                f"+ {ending}",
                group,
                lambda n, x: x * 0,
            )
            change(
                "doubled_bias",
                f"doubled bias: {other} adds every {ending} twice",
                f"+ {ending}",
                group,
                lambda n, x: x * 2,
            )
    for letters in ("ifgo", "rzn"):
        for order in itertools.permutations(letters):
            renamed = renaming(arrays, dict(zip(letters, order, strict=True)))
            if any(n != m for n, m in renamed.items()):
                says = (
                    f"gate order: {who}'s gates {', '.join(letters)} are read as {', '.join(order)}"
                )
                found.append(
                    Change(
                        *("gate_order", says, "name each gate's arrays right", side, "gates"),
                        arrays=lambda arrays, renamed=renamed: {
                            n: arrays[renamed[n]] for n in arrays
                        },
                        touched=frozenset(n for n in renamed if renamed[n] != n),
                    )
                )
    for count, letters in ((4, "ifgo"), (3, "rzn")):
        for hidden in {
            min(arrays[n].shape)
            for n in matrices
            if sorted(arrays[n].shape)[1] == count * min(arrays[n].shape)
        }:
            group = gate_group(arrays, count, hidden)
            for order in itertools.permutations(range(count)):
                if order == tuple(range(count)):
                    continue
                word = "".join(letters[k] for k in order)
                says = (
                    f"gate order: {who}'s blocks {', '.join(letters)} are read as {', '.join(word)}"
                )
                fix = f'parity.weights.gates(name, "{letters}", "{word}")'
                change(
                    "gate_order",
                    says,
                    fix,
                    group,
                    lambda n, x, order=order, count=count: permute(x, order, count),
                )
            for ending in ("bias_hh", "bias_ih"):
                several = [n for n in group if ending in n and arrays[n].ndim == 1]
                for k in range(count) if len(several) > 1 else ():
                    change(
                        "missing_bias",
                        f"missing bias: {other} lacks every {ending} of gate {letters[k]}",
                        f"+ {ending}",
                        several,
                        lambda n, x, k=k, count=count: block(x, k, count, lambda b: b * 0),
                    )
            for n in group:
                if arrays[n].ndim == 1:
                    for k in range(count):
                        change(
                            "missing_bias",
                            f"missing bias: {other} lacks {n} of gate {letters[k]}",
                            f"+ {n}",
                            [n],
                            lambda n, x, k=k, count=count: block(x, k, count, lambda b: b * 0),
                        )
                    for by in (1.0, -1.0):
                        if count == 4:
                            change(
                                "forget_bias",
                                f"forget bias: {other} adds {by:g} to the forget gate",
                                "f = sigmoid(f)",
                                [n],
                                lambda n, x, by=by: block(x, 1, 4, lambda b: b + by),
                            )
    return found


def renaming(arrays: Arrays, letters: dict[str, str]) -> dict[str, str]:
    """Say which array stands for which when the gates' letters at the ends of names are exchanged.

    As in flax: hi.kernel, hf.kernel, ..; {} where the names are not of that kind.
    """
    found = {}
    for name, array in arrays.items():
        *front, layer, last = ("", *name.rpartition(".")[0].split("."), name.rpartition(".")[2])
        other = ".".join([*front, layer[:-1] + letters.get(layer[-1:], ""), last]).lstrip(".")
        fits = layer[-1:] in letters and other in arrays and arrays[other].shape == array.shape
        found[name] = other if fits else name
    return found if len(set(found.values())) == len(found) else {}


def transpose_blocks(name: str, x: np.ndarray) -> np.ndarray:
    """Transpose each square block of a matrix of stacked gates."""
    axis = int(np.argmax(x.shape))
    blocks = np.split(x, max(x.shape) // min(x.shape), axis)
    return np.concatenate([b.T for b in blocks], axis)


def gate_group(arrays: Arrays, count: int, hidden: int) -> list[str]:
    """Name the parameters that stack `count` gates of `hidden` units along some axis."""
    return [n for n, x in arrays.items() if x.ndim in (1, 2) and count * hidden in x.shape]


def permute(x: np.ndarray, order: tuple[int, ...], count: int) -> np.ndarray:
    """Reorder equal blocks along the axis that stacks the gates: the longest."""
    axis = int(np.argmax(x.shape))
    blocks = np.split(x, count, axis)
    return np.concatenate([blocks[k] for k in order], axis)


def block(x: np.ndarray, index: int, count: int, function: Callable) -> np.ndarray:
    """Apply a function to one of equal blocks."""
    blocks = list(np.split(x, count))
    blocks[index] = function(blocks[index])
    return np.concatenate(blocks)
