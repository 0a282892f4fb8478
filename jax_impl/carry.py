"""What happens to a recurrent state between two steps: dropout, zoneout, resets, chunks.

Dimensions: B batch, T time, D input features, H hidden units.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, PyTree, Shaped

from jax_impl.arrays import in_float32


@in_float32
def dropout(x: Float[Array, "..."], keep: Bool[Array, "..."], rate: float) -> Float[Array, "..."]:
    """Zero what a mask does not keep and scale the rest by 1 / (1 - rate).

    Source: Srivastava et al. (2014), in its "inverted" form.
    """
    return jnp.where(keep, x / (1 - rate), 0.0)


@in_float32
def zone_out(
    new: Float[Array, "B H"],
    old: Float[Array, "B H"],
    advances: Bool[Array, "B H"] | None,
    rate: float,
) -> Float[Array, "B H"]:
    """Hold the units of a state that do not advance; without a mask take the expected value.

    Source: Krueger et al. (2017), "Zoneout".
    """
    if advances is None:
        return rate * old + (1 - rate) * new
    return jnp.where(advances, new, old)


class Carry(NamedTuple):
    """How one layer and direction carries its state from step to step; by default as it is.

    Attributes:
      resets: steps [B, T] before which, in the order they are run, the state becomes 0.
      read: recurrent dropout, a mask [B, H] of what the gates see of h, alike at every step.
      read_rate: fraction that `read` drops.
      advances: zoneout, masks [B, T, H], one for each part of the state; None for expected values.
      zoneout: fraction that a step leaves as it was.
    """

    resets: Bool[Array, "B T"] | None = None
    read: Bool[Array, "B H"] | None = None
    read_rate: float = 0.0
    advances: tuple[Bool[Array, "B T H"], ...] | None = None
    zoneout: float = 0.0

    @property
    def plain(self) -> bool:
        return self.resets is None and self.read is None and not self.zoneout


AS_IT_IS = Carry()


def over_time(inputs: Float[Array, "B T D"], carry: Carry) -> dict[str, Array]:
    """Name what `carried` reads at each step, [B, T, ..] each."""
    parts = {"x": inputs, "resets": carry.resets}
    parts |= {f"advances{n}": mask for n, mask in enumerate(carry.advances or ())}
    return {name: part for name, part in parts.items() if part is not None}


def carried(cell: Callable, carry: Carry) -> Callable:
    """Turn a cell (x, state, what the gates see of h) -> state into a step (now, state) -> state."""

    def step(now: Mapping[str, Array], state: tuple[Array, ...]) -> tuple[Array, ...]:
        if "resets" in now:
            state = tuple(jnp.where(now["resets"][:, None], 0.0, part) for part in state)
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

    def run(weights, inputs, valid, state, reverse, carry=AS_IT_IS, **options):
        def piece(state, now):
            inputs, valid, resets, advances, goes_on = other_axis_first(now)
            if cut:
                first = goes_on[:, -1 if reverse else 0, None]
                state = tuple(jnp.where(first, lax.stop_gradient(s), s) for s in state)
            own = carry._replace(resets=resets, advances=advances)
            outputs, state = unroll_cell(weights, inputs, valid, state, reverse, own, **options)
            return tuple(state), other_axis_first(tuple(outputs))

        goes_on = None
        if cut:  # at each step, whether a sequence has run before and runs on
            after = jnp.ones(inputs.shape[:2], bool) if valid is None else valid
            after, ends = after[:, 1:], jnp.zeros((len(inputs), 1), bool)
            goes_on = jnp.concatenate([after, ends] if reverse else [ends, after], axis=1)
        given = inputs, valid, carry.resets, carry.advances, goes_on
        chunks = split_time(other_axis_first(given), steps)
        piece = jax.checkpoint(piece) if recompute else piece
        state, outputs = over_chunks(piece, tuple(state), chunks, reverse)
        return other_axis_first(join_time(outputs)), state

    return run


def other_axis_first(parts: PyTree[Shaped[Array, "B T ..."]]) -> PyTree[Shaped[Array, "T B ..."]]:
    """Exchange the first two axes of each array."""
    return jax.tree.map(lambda part: part.swapaxes(0, 1), parts)


def split_time(parts: PyTree[Shaped[Array, "T ..."]], steps: int) -> tuple[PyTree, PyTree]:
    """Cut time into N chunks of so many steps and the R steps that are left: [N, S, ..], [R, ..]."""
    count = jax.tree.leaves(parts)[0].shape[0] // steps
    whole = jax.tree.map(
        lambda part: part[: count * steps].reshape(count, steps, *part.shape[1:]), parts
    )
    return whole, jax.tree.map(lambda part: part[count * steps :], parts)


def over_chunks(
    piece: Callable, state: PyTree, chunks: tuple[PyTree, PyTree], reverse: bool
) -> tuple[PyTree, list[PyTree | None]]:
    """Run `piece`, (state, chunk) -> (state, outputs), over what `split_time` made: state, outputs.

    All chunks of full size are one loop: more of them take no longer to compile. Of a size that
    there is none of, the outputs are None.
    """

    found = [None, None]
    for size in (1, 0) if reverse else (0, 1):
        if jax.tree.leaves(chunks[size])[0].shape[0]:
            run = piece if size else partial(lax.scan, piece, reverse=reverse)
            state, found[size] = run(state, chunks[size])
    return state, found


def join_time(outputs: list[PyTree | None]) -> PyTree[Shaped[Array, "T ..."]]:
    """Undo `split_time`."""
    whole, rest = outputs
    whole = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), whole)
    found = [part for part in (whole, rest) if part is not None]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def root(time: int) -> int:
    """Return the steps of a chunk of which there are about as many: ceil(sqrt(time))."""
    return isqrt(time - 1) + 1


def recomputed(unroll_cell: Callable) -> Callable:
    """Keep the states of a layer at about sqrt(T) steps and compute the others again.

    Source: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost".
    """

    def run(weights, inputs, valid, state, *others, **options):
        chunk = in_chunks(step_by_step(unroll_cell), root(inputs.shape[1]), False, True)
        start = (tuple(state), weights)
        outputs, (last, _) = chunk(weights, inputs, valid, start, *others, **options)
        return outputs, last

    return run


@jax.custom_vjp
def read_from(weights: Mapping[str, Array], sums: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the weights; their gradient is that of the sums."""
    return weights


read_from.defvjp(lambda weights, sums: (weights, None), lambda _, gradient: (None, gradient))


def step_by_step(unroll_cell: Callable) -> Callable:
    """Add each step's gradient of the weights to that of all the steps after it.

    That is the order of a loop over all steps. A loop over chunks alone would sum each of them first
    and then the sums, which rounds otherwise. So the sum is carried, beside the state.
    """

    def run(weights, inputs, valid, state, reverse, carry=AS_IT_IS, factor=1, **options):
        def step(state, now):
            state, sums = state
            sums = lax.optimization_barrier(sums)  # or JAX takes it out of the loop
            inputs, valid, resets, advances = jax.tree.map(lambda part: part[:, None], now)
            own, read = carry._replace(resets=resets, advances=advances), read_from(weights, sums)
            outputs, state = unroll_cell(read, inputs, valid, state, reverse, own, **options)
            return (tuple(state), sums), tuple(part[:, 0] for part in outputs)

        given = other_axis_first((inputs, valid, carry.resets, carry.advances))
        state, outputs = lax.scan(step, state, given, reverse=reverse, unroll=factor)
        return other_axis_first(outputs), state

    return run
