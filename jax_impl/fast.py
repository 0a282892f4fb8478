"""The layers of `recurrent.py` with a backward pass derived by hand.

The cell's gates are kept from the forward pass, and the weight gradients come from about sqrt(T)
products after the loop, where autodiff adds up one product a time step.

Dimensions: T time, B batch, D input features, H hidden units, G gates x H.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import rnn as cudnn
from jax.export import is_symbolic_dim
from jax.nn import relu
from jaxtyping import Float, Int

from jax_impl import encoder, recurrent
from jax_impl.arrays import sigmoid, tanh
from jax_impl.attention import dot_product_attention
from jax_impl.carry import AS_IT_IS, in_chunks, join_time, over_chunks, root, split_time
from jax_impl.carry import recomputed as again
from jax_impl.cells import lstm_cell

# Queries that attend at once; of four blocks on, no slower on two cores than all at once.
BLOCK = 64


class Cell(NamedTuple):
    """One step after the matrix products, and its derivative.

    advance(gates, state) -> next state, what to keep for the way back
    retreat(kept, state, next state, their cotangents) -> d_gates, d_state without d_h
    """

    advance: Callable
    retreat: Callable


def advance_lstm(gates, state):
    _, c = state
    i, f, g, o = jnp.split(gates.astype(c.dtype), 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return ((o * tanh(c)).astype(gates.dtype), c), (i, f, g, o)


def retreat_lstm(kept, before, after, d_after):
    i, f, g, o = kept
    d_h, d_c = d_after
    tanh_c = tanh(after[1])
    d_c = d_c + d_h * o * (1 - tanh_c**2)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * before[1] * f * (1 - f)
    d_g = d_c * i * (1 - g**2)
    d_o = d_h * tanh_c * o * (1 - o)
    return jnp.concatenate([d_i, d_f, d_g, d_o], axis=-1).astype(d_h.dtype), (d_c * f,)


LSTM_CELL = Cell(advance_lstm, retreat_lstm)
RNN_CELLS = {
    "tanh": Cell(
        lambda gates, state: ((tanh(gates),), ()),
        lambda kept, before, after, d_after: (d_after[0] * (1 - after[0] ** 2), ()),
    ),
    "relu": Cell(
        lambda gates, state: ((relu(gates),), ()),
        lambda kept, before, after, d_after: (jnp.where(after[0] > 0, d_after[0], 0.0), ()),
    ),
}


def hold(here, new, old):
    """Take the new arrays where a step is real, the old ones elsewhere."""
    if here is None:
        return new
    return tuple(jnp.where(here, n, o) for n, o in zip(new, old, strict=True))


def advance_all(cell, reverse, factor, weights, first, inputs, here):
    """Run a cell over time: final state, (states at every step, what to keep of each)."""
    weight_ih, weight_hh = weights["weight_ih"].T, weights["weight_hh"].T
    bias = weights["bias_ih"] + weights["bias_hh"]

    def advance(state, now):
        x, here = now
        after, kept = cell.advance(x @ weight_ih + state[0] @ weight_hh + bias, state)
        after = hold(here, after, state)
        return after, (after, kept)

    return lax.scan(advance, first, (inputs, here), reverse=reverse, unroll=factor)


def retreat_all(cell, reverse, factor, weights, first, here, passed, d_outputs, d_final):
    """Run a cell's derivative back over the steps passed: d_first, d_gates, h before each step."""
    states, kept = passed

    def shifted(start, states):
        parts = (states[1:], start[None]) if reverse else (start[None], states[:-1])
        return jnp.concatenate(parts)

    def retreat(d_after, now):
        d_output, before, after, kept, here = now
        d_after = (d_after[0] + d_output, *d_after[1:])
        d_gates, d_others = cell.retreat(kept, before, after, d_after)
        (d_gates,) = hold(here, (d_gates,), (jnp.zeros_like(d_gates),))
        d_before = hold(here, (d_gates @ weights["weight_hh"], *d_others), d_after)
        return d_before, d_gates

    befores = tuple(shifted(start, part) for start, part in zip(first, states, strict=True))
    back = (d_outputs, befores, states, kept, here)
    d_first, d_gates = lax.scan(retreat, d_final, back, reverse=not reverse, unroll=factor)
    return d_first, d_gates, befores[0]


def loop_forward(cell, reverse, factor, recompute, weights, inputs, here, first):
    """Return (h [T, B, H], final state) and what `loop_backward` needs."""
    run = partial(advance_all, cell, reverse, factor, weights)

    def piece(state, now):
        final, (states, _) = run(state, *now)
        return final, (states[0], state)

    if recompute:
        chunks = split_time((inputs, here), root(len(inputs)))
        final, found = over_chunks(piece, first, chunks, reverse)
        outputs = join_time([part and part[0] for part in found])
        passed = [part and part[1] for part in found]  # of each chunk no more than its first state
    else:
        final, passed = run(first, inputs, here)
        outputs = passed[0][0]
    return (outputs, final), (weights, inputs, here, first, passed)


def loop_backward(cell, reverse, factor, recompute, residuals, cotangents):
    """Return the cotangents of `loop`'s weights, inputs, mask and first state.

    The weights' are added up chunk by chunk, whether states are recomputed or not: the same bits.
    """
    weights, inputs, here, first, passed = residuals
    d_outputs, d_final = cotangents
    H, D, steps = first[0].shape[-1], inputs.shape[-1], root(len(inputs))
    total = jnp.promote_types(inputs.dtype, jnp.float32)

    def add(sums, now):
        inputs, d_gates, h = now
        # One product for all weights: the bias is the weight of an input that is always 1.
        read = jnp.concatenate([h, inputs, jnp.ones_like(inputs[..., :1])], axis=-1)
        rows = read.reshape(-1, H + D + 1).T, d_gates.reshape(-1, d_gates.shape[-1])
        product = jnp.matmul(*rows, preferred_element_type=total)
        # The barrier keeps XLA from turning the product around, which takes twice the time.
        return sums + lax.optimization_barrier(product), d_gates @ weights["weight_ih"]

    def piece(carry, now):
        (d_after, sums), (start, inputs, here, d_outputs) = carry, now
        _, passed = advance_all(cell, reverse, factor, weights, start, inputs, here)
        back = passed, d_outputs, d_after
        d_start, d_gates, h = retreat_all(cell, reverse, factor, weights, start, here, *back)
        sums, d_inputs = add(sums, (inputs, d_gates, h))
        return (d_start, sums), d_inputs

    sums = jnp.zeros((H + D + 1, len(weights["weight_ih"])), total)
    if recompute:
        chunks = split_time((inputs, here, d_outputs), steps)
        chunks = [(start, *part) for start, part in zip(passed, chunks, strict=True)]
        (d_first, sums), d_inputs = over_chunks(piece, (d_final, sums), chunks, not reverse)
    else:
        back = passed, d_outputs, d_final
        d_first, d_gates, h = retreat_all(cell, reverse, factor, weights, first, here, *back)
        chunks = split_time((inputs, d_gates, h), steps)
        sums, d_inputs = over_chunks(add, sums, chunks, not reverse)
    sums = sums.T.astype(inputs.dtype)
    d_weights = {
        "weight_ih": sums[:, H : H + D],
        "weight_hh": sums[:, :H],
        "bias_ih": sums[:, -1],
        "bias_hh": sums[:, -1],
    }
    return d_weights, join_time(d_inputs), None, d_first


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def loop(cell, reverse, factor, recompute, weights, inputs, here, first):
    """Run a cell over time; time comes first: inputs [T, B, D], here [T, B, 1] or None."""
    return loop_forward(cell, reverse, factor, recompute, weights, inputs, here, first)[0]


loop.defvjp(loop_forward, loop_backward)


def unroll_cell(cell, weights, inputs, valid, state, reverse, *options):
    here = None if valid is None else valid.T[..., None]
    time_first = inputs.swapaxes(0, 1)
    outputs, state = loop(cell, reverse, *options, weights, time_first, here, tuple(state))
    outputs = outputs.swapaxes(0, 1)
    return (outputs if valid is None else jnp.where(valid[..., None], outputs, 0.0),), state


def unroll_rnn(
    weights,
    inputs,
    valid,
    state,
    reverse,
    carry=AS_IT_IS,
    nonlinearity="tanh",
    factor=1,
    recompute=False,
):
    """Unroll `rnn_cell` with the weights of one layer and direction."""
    given = weights, inputs, valid, state, reverse
    if not carry.plain:
        readable = again(recurrent.unroll_rnn) if recompute else recurrent.unroll_rnn
        return readable(*given, carry, nonlinearity=nonlinearity, factor=factor)
    return unroll_cell(RNN_CELLS[nonlinearity], *given, factor, recompute)


# XLA's own derivative: the gates of a GRU are no function of one sum, as `loop` has it.
unroll_gru = recurrent.unroll_gru


def unroll_lstm(weights, inputs, valid, state, reverse, carry=AS_IT_IS, factor=1, recompute=False):
    """Unroll `lstm_cell` with the weights of one layer and direction."""
    given = weights, inputs, valid, state, reverse
    if not carry.plain or recurrent.cell_of(weights) is not lstm_cell:
        readable = again(recurrent.unroll_lstm) if recompute else recurrent.unroll_lstm
        return readable(*given, carry, factor=factor)
    return unroll_cell(LSTM_CELL, *given, factor, recompute)


def reverse_in_time(x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
    """Turn each sequence around within its own length; the padding stays behind it."""
    source = (lengths[:, None] - 1 - jnp.arange(x.shape[1])) % x.shape[1]
    return jnp.take_along_axis(x, source[..., None], axis=1)


def unroll_lstm_by_cudnn(
    weights, inputs, valid, state, reverse, carry=AS_IT_IS, factor=1, kernel=cudnn.lstm
):
    """Unroll `lstm_cell` by cuDNN's kernel, which computes float32 on a GPU; the rest as above."""
    if not carry.plain or recurrent.cell_of(weights) is not lstm_cell:
        return unroll_lstm(weights, inputs, valid, state, reverse, carry, factor)
    B, T, D = inputs.shape
    count = jnp.full(B, T) if valid is None else valid.sum(axis=1)
    # Where there is no step it takes one, whose states are not taken.
    lengths = jnp.maximum(count, 1).astype(jnp.int32)
    inputs = reverse_in_time(inputs, lengths) if reverse else inputs
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    stacked = jnp.concatenate([weights[name].ravel() for name in names])
    sizes = D, weights["weight_hh"].shape[1], 1
    first = (part[None] for part in state)
    exact = lax.Precision.HIGHEST  # no TF32
    outputs, *last = kernel(inputs, *first, stacked, lengths, *sizes, 0.0, False, exact)
    last = hold((count > 0)[:, None], [part[0] for part in last], state)
    outputs = reverse_in_time(outputs, lengths) if reverse else outputs
    return (outputs if valid is None else jnp.where(valid[..., None], outputs, 0.0),), last


def recomputed(unroll_cell: Callable) -> Callable:
    """Compute the states of one of these layers again, as in `carry.py`, with its sums unchanged.

    cuDNN adds up over time itself: its gradients are those of chunks, added up.
    """
    if unroll_cell in (unroll_rnn, unroll_lstm):
        return partial(unroll_cell, recompute=True)
    if unroll_cell is unroll_lstm_by_cudnn:
        return lambda weights, inputs, *others, **options: in_chunks(
            unroll_cell, root(inputs.shape[1]), False, True
        )(weights, inputs, *others, **options)
    return again(unroll_cell)


rnn = partial(recurrent.rnn, unroll=unroll_rnn)
gru = recurrent.gru
lstm = partial(recurrent.lstm, unroll=unroll_lstm)


def attend(query, key, value, mask=None, keep=None, rate=0.0):
    """Do what `dot_product_attention` does, for a block of queries at a time where there are many.

    No weights but a block's are ever there; on the way back they are computed again. Masks of
    dropped weights are as large as those, so there is nothing to gain with them.

    Source: Rabe & Staats (2021), "Self-attention Does Not Need O(n^2) Memory".
    """
    T = query.shape[2]
    if keep is not None or is_symbolic_dim(T) or T <= 4 * BLOCK:
        return dot_product_attention(query, key, value, mask, keep, rate)
    by_query = mask is not None and mask.shape[2] > 1

    @jax.checkpoint
    def context(query, own):
        query, own = jnp.moveaxis(query, 0, 2), jnp.moveaxis(own, 0, 2) if by_query else mask
        return jnp.moveaxis(dot_product_attention(query, key, value, own), 2, 0)

    time_first = jnp.moveaxis(query, 2, 0), jnp.moveaxis(mask, 2, 0) if by_query else None
    blocks = split_time(time_first, BLOCK)
    _, found = over_chunks(lambda _, now: (None, context(*now)), None, blocks, False)
    return jnp.moveaxis(join_time(found), 0, 2)


# jax.nn.dot_product_attention takes its softmax in float32, of float64 too.
transformer_encoder = partial(encoder.transformer_encoder, attend=attend)
