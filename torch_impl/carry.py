"""What happens to a recurrent state between two steps: dropout, zoneout, resets, chunks.

Dimensions: B batch, T time, D input features, H hidden units.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_impl.arrays import in_float32


@in_float32
def dropout(
    x: Float[Tensor, "..."], keep: Bool[Tensor, "..."], rate: float
) -> Float[Tensor, "..."]:
    """Zero what a mask does not keep and scale the rest by 1 / (1 - rate).

    Source: Srivastava et al. (2014), in its "inverted" form.
    """
    return torch.where(keep, x / (1 - rate), 0.0)


@in_float32
def zone_out(
    new: Float[Tensor, "B H"],
    old: Float[Tensor, "B H"],
    advances: Bool[Tensor, "B H"] | None,
    rate: float,
) -> Float[Tensor, "B H"]:
    """Hold the units of a state that do not advance; without a mask take the expected value.

    Source: Krueger et al. (2017), "Zoneout".
    """
    if advances is None:
        return rate * old + (1 - rate) * new
    return torch.where(advances, new, old)


class Carry(NamedTuple):
    """How one layer and direction carries its state from step to step; by default as it is.

    Attributes:
      resets: steps [B, T] before which, in the order they are run, the state becomes 0.
      read: recurrent dropout, a mask [B, H] of what the gates see of h, alike at every step.
      read_rate: fraction that `read` drops.
      advances: zoneout, masks [B, T, H], one for each part of the state; None for expected values.
      zoneout: fraction that a step leaves as it was.
    """

    resets: Bool[Tensor, "B T"] | None = None
    read: Bool[Tensor, "B H"] | None = None
    read_rate: float = 0.0
    advances: tuple[Bool[Tensor, "B T H"], ...] | None = None
    zoneout: float = 0.0

    @property
    def plain(self) -> bool:
        return self.resets is None and self.read is None and not self.zoneout


AS_IT_IS = Carry()


def over_time(inputs: Float[Tensor, "B T D"], carry: Carry) -> dict[str, Tensor]:
    """Name what `carried` reads at each step, [B, T, ..] each."""
    parts = {"x": inputs, "resets": carry.resets}
    parts |= {f"advances{n}": mask for n, mask in enumerate(carry.advances or ())}
    return {name: part for name, part in parts.items() if part is not None}


def carried(cell: Callable, carry: Carry) -> Callable:
    """Turn a cell (x, state, what the gates see of h) -> state into a step (now, state) -> state."""

    def step(now: Mapping[str, Tensor], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if "resets" in now:
            state = tuple(torch.where(now["resets"][:, None], 0.0, part) for part in state)
        read = state[0]
        if carry.read is not None:
            read = dropout(read, carry.read, carry.read_rate)
        after = cell(now["x"], state, read)
        if carry.zoneout:
            after = tuple(
                zone_out(new, old, now.get(f"advances{n}"), carry.zoneout)
                for n, (new, old) in enumerate(zip(after, state, strict=True))
            )
        return after

    return step


def in_chunks(unroll_cell: Callable, steps: int, cut: bool, recompute: bool) -> Callable:
    """Run a layer's unrolling chunk by chunk, each of so many steps but the last in time.

    The numbers stay the same. With `cut` no gradient flows from a chunk into the one before it, but
    for the state that a sequence begins or has ended with, which padding carries on; with
    `recompute` a chunk's own states are computed again on the way back instead of being kept.

    Source: Williams & Peng (1990) for truncated backpropagation through time.
    """

    again = unroll_cell
    if recompute:  # nothing is drawn at random in there
        again = partial(checkpoint, unroll_cell, use_reentrant=False, preserve_rng_state=False)

    def run(weights, inputs, valid, state, reverse, carry=AS_IT_IS, **options):
        def detached(start, state):
            if valid is None:
                return tuple(part.detach() for part in state)
            goes_on = valid[:, start + steps if reverse else start, None]
            return tuple(torch.where(goes_on, part.detach(), part) for part in state)

        def piece(start, state):
            here = slice(start, start + steps)
            own = carry._replace(
                resets=None if carry.resets is None else carry.resets[:, here],
                advances=carry.advances and tuple(mask[:, here] for mask in carry.advances),
            )
            now = None if valid is None else valid[:, here]
            given = weights, inputs[:, here], now, state, reverse, own
            return again(*given, **options)

        found = []
        starts = range(0, inputs.shape[1], steps)
        for start in reversed(starts) if reverse else starts:
            state = detached(start, state) if cut and found else state
            outputs, state = piece(start, state)
            found.append(outputs)
        found = reversed(found) if reverse else found
        return tuple(torch.cat(part, dim=1) for part in zip(*found, strict=True)), state

    return run


def recomputed(unroll_cell: Callable) -> Callable:
    """Keep the states of a layer at about sqrt(T) steps and compute the others again.

    Source: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost".
    """

    def run(weights, inputs, *others, **options):
        steps = isqrt(inputs.shape[1] - 1) + 1
        return in_chunks(unroll_cell, steps, False, True)(weights, inputs, *others, **options)

    return run
