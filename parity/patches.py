"""Known alternatives to what torch computes, put in its place while a model runs.

A patch hears of every call of a torch function and may answer in its stead; so a model's code needs
no change, be it made of modules or written out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from parity.written_out import written_out

Call = Callable[..., Any]
# Answers a call of the original function, or gives NotImplemented.
Answer = Callable[[Call, tuple, dict], Any]


@dataclass(frozen=True)
class Patch:
    """One alternative.

    Attributes:
      functions: names of the torch functions it stands in for.
      answer: computes the alternative.
      call: of several calls of a function the one that it answers, from 0; None for all.
    """

    functions: tuple[str, ...]
    answer: Answer
    call: int | None = None


def name_of(function: Call) -> str:
    return getattr(function, "__name__", str(function))


class Patched(TorchFunctionMode):
    """Run torch with patches; count which functions are called."""

    def __init__(self, patches: Sequence[Patch] = ()):
        super().__init__()
        self.patches = patches
        self.calls: dict[str, list[tuple[tuple, dict]]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, name_of(function)
        earlier = self.calls.setdefault(name, [])
        place = len(earlier)
        earlier.append((args, kwargs))
        for patch in self.patches:
            if name in patch.functions and patch.call in (None, place):
                answer = patch.answer(function, args, kwargs)
                if answer is not NotImplemented:
                    return answer
        answer = written_out(name, self, args, kwargs)
        return function(*args, **kwargs) if answer is NotImplemented else answer


def set_argument(position: int, name: str, value: Any) -> Answer:
    """Call with one argument changed; a function of the old value, or the value itself."""

    def answer(function, args, kwargs):
        args, kwargs = list(args), dict(kwargs)
        change = value if callable(value) else lambda _: value
        if position < len(args):
            args[position] = change(args[position])
        else:
            kwargs[name] = change(kwargs.get(name))
        return function(*args, **kwargs)

    return answer


def instead(replacement: Call) -> Answer:
    """Compute something else of the first argument."""
    return lambda function, args, kwargs: replacement(args[0])


def scaled(factor: float) -> Answer:
    """Multiply the result."""
    return lambda function, args, kwargs: function(*args, **kwargs) * factor


def scaled_first(factor: float) -> Answer:
    """Multiply the first argument."""
    return lambda function, args, kwargs: function(args[0] * factor, *args[1:], **kwargs)


def axis_of(args: tuple, kwargs: dict, position: int = 1) -> Any:
    return args[position] if len(args) > position else kwargs.get("dim", kwargs.get("axis"))


def softmax_over(axis: int) -> Answer:
    """Normalise over another axis."""

    def answer(function, args, kwargs):
        x = args[0]
        given = axis_of(args, kwargs)
        if axis >= x.ndim or given is None or given % x.ndim == axis:
            return NotImplemented
        # Only what has this function's own choice of axis: another call keeps its own.
        return torch.log_softmax(x, axis) if "log" in name_of(function) else torch.softmax(x, axis)

    return answer


def reduction(kind: str, factor: float = 1.0) -> Answer:
    """Reduce a loss differently: mean, sum, rows (sum of features, mean of rows)."""

    def answer(function, args, kwargs):
        kwargs = {k: v for k, v in kwargs.items() if k not in ("size_average", "reduce")}
        every = function(*args, **{**kwargs, "reduction": "none"})
        if kind == "rows":
            every = every.reshape(every.shape[0], -1).sum(1)
        return factor * (every.sum() if kind == "sum" else every.mean())

    return answer


def counts(x: Any) -> bool:
    """Tell whether a tensor holds whole numbers >= 1, as the divisor of a masked mean does."""
    return isinstance(x, Tensor) and x.numel() > 0 and bool(((x == x.round()) & (x >= 1)).all())


def binary(x: Any) -> bool:
    """Tell whether a tensor is a mask: only 0 and 1."""
    return isinstance(x, Tensor) and x.numel() > 1 and bool(((x == 0) | (x == 1)).all())


def divide_by(size: Callable[[Tensor], float]) -> Answer:
    """Divide by one number in the place of counts."""

    def answer(function, args, kwargs):
        x, y = args[:2]
        return x / size(y) if counts(y) else NotImplemented

    return answer


def without_mask(function: Call, args: tuple, kwargs: dict) -> Any:
    """Leave out a product with a mask."""
    x, y = args[:2]
    if binary(y) and isinstance(x, Tensor):
        return x * torch.ones_like(y, dtype=x.dtype)
    return (
        y * torch.ones_like(x, dtype=y.dtype)
        if binary(x) and isinstance(y, Tensor)
        else NotImplemented
    )


def inverted(x: Any) -> Any:
    """Return a mask's opposite; what is no mask as it is."""
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return ~x
    return 1 - x if binary(x) and x.is_floating_point() else x


def invert_masks(function: Call, args: tuple, kwargs: dict) -> Any:
    """Take every mask among the arguments the other way round."""
    return function(*map(inverted, args), **{k: inverted(v) for k, v in kwargs.items()})


def layer_norm_with(eps: float | None = None, ddof: int = 0, fast: bool = False) -> Answer:
    """Normalise with another eps, divisor or formula of the variance."""

    def answer(function, args, kwargs):
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        x, shape = given["input"], given["normalized_shape"]
        axes = tuple(range(-len(shape), 0))
        mean = x.mean(axes, keepdim=True)
        if fast:
            variance = (x * x).mean(axes, keepdim=True) - mean * mean
        else:
            variance = x.var(axes, correction=ddof, keepdim=True)
        y = (x - mean) / torch.sqrt(variance + (given.get("eps", 1e-5) if eps is None else eps))
        y = y if given.get("weight") is None else y * given["weight"]
        return y if given.get("bias") is None else y + given["bias"]

    return answer


def unpack_rnn(args: tuple) -> tuple:
    """Return (input [B, T, D], states, weights by cell, layers, bidirectional, batch first)."""
    x, state, flat, biases, layers, _, _, bidirectional, batch_first = args
    states = state if isinstance(state, tuple | list) else (state,)
    cells = layers * (2 if bidirectional else 1)
    size = len(flat) // cells
    weights = [list(flat[n * size : (n + 1) * size]) for n in range(cells)]
    if not biases:
        for cell in weights:
            cell += [cell[0].new_zeros(cell[0].shape[0])] * 2
    return (
        x if batch_first else x.transpose(0, 1),
        states,
        weights,
        layers,
        bidirectional,
        batch_first,
    )


def run_rnn(step: Call, args: tuple, **options: Any) -> Any:
    """Run a cell over layers, directions and time, as torch's fused layers do.

    Options:
      last_from_output: the reverse direction's last state is read at the sequence's end.
      unflipped: the reverse direction's outputs keep the order in which they were made.
      forward_only: the reverse direction runs forward.
      swapped: the reverse direction comes first.
      zero_state: the given first state is ignored.
    """
    x, states, weights, layers, bidirectional, batch_first = unpack_rnn(args)
    finals = [[] for _ in states]
    for layer in range(layers):
        sides = []
        for direction in range(2 if bidirectional else 1):
            n = layer * (2 if bidirectional else 1) + direction
            state = tuple(s[n] * 0 if options.get("zero_state") else s[n] for s in states)
            order = range(x.shape[1])
            backwards = direction and not options.get("forward_only")
            outputs = []
            for t in reversed(order) if backwards else order:
                state = step(x[:, t], state, *weights[n])
                outputs.append(state[0])
            if backwards and not options.get("unflipped"):
                outputs.reverse()
            if direction and options.get("last_from_output"):
                state = (outputs[-1], *state[1:])
            sides.append(torch.stack(outputs, 1))
            for final, part in zip(finals, state, strict=True):
                final.append(part)
        x = torch.cat(sides[::-1] if options.get("swapped") else sides, -1)
    stacked = tuple(torch.stack(final) for final in finals)
    return (x if batch_first else x.transpose(0, 1)), *stacked


def gru_step(reset: str = "after", complement: bool = False) -> Call:
    """Return a GRU's step; `reset` before or after the product with W_hn."""

    def step(x, state, w_ih, w_hh, b_ih, b_hh):
        (h,) = state
        ir, iz, in_ = (x @ w_ih.T + b_ih).chunk(3, -1)
        hr, hz, hn = (h @ w_hh.T + b_hh).chunk(3, -1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        if reset == "before":
            H = h.shape[-1]
            hn = (r * h) @ w_hh[2 * H :].T + b_hh[2 * H :]
            n = torch.tanh(in_ + hn)
        else:
            n = torch.tanh(in_ + r * hn)
        return ((z * n + (1 - z) * h) if complement else ((1 - z) * n + z * h),)

    return step


def lstm_step(forget: float = 0.0, squash: Call = torch.tanh, gate: Call = torch.sigmoid) -> Call:
    """Return an LSTM's step, with a number added to the forget gate."""

    def step(x, state, w_ih, w_hh, b_ih, b_hh):
        h, c = state
        i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        c = gate(f + forget) * c + gate(i) * torch.tanh(g)
        return gate(o) * squash(c), c

    return step


def rnn_step(activation: Call = torch.tanh) -> Call:
    """Return a plain recurrent step."""
    return lambda x, state, w_ih, w_hh, b_ih, b_hh: (
        activation(x @ w_ih.T + b_ih + state[0] @ w_hh.T + b_hh),
    )


def hard_sigmoid(x: Tensor) -> Tensor:
    """Return clip(0.2 x + 0.5, 0, 1), Keras's older form."""
    return (0.2 * x + 0.5).clamp(0, 1)


STEPS = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_step,
    "rnn_relu": lambda: rnn_step(functional.relu),
}


def rnn_with(step: Call | None = None, **options: Any) -> Answer:
    """Run torch's fused recurrent layers step by step, with something changed."""

    def answer(function, args, kwargs):
        if len(args) != 9 or kwargs:
            return NotImplemented  # packed sequences
        return run_rnn(step or STEPS[name_of(function)](), args, **options)

    return answer


def cell_with(step: Call) -> Answer:
    """Run torch's fused cells with another step."""

    def answer(function, args, kwargs):
        x, state, *weights = args
        states = state if isinstance(state, tuple | list) else (state,)
        after = step(x, tuple(states), *weights)
        return after if len(after) > 1 else after[0]

    return answer


def index_with(kind: str) -> Answer:
    """Read another time step than [:, -1]: first, or the reverse half at the first."""

    def answer(function, args, kwargs):
        x, index = args
        if isinstance(index, tuple) and len(index) >= 2 and index[0] == slice(None):
            rest = index[2:]
            half = x.shape[-1] // 2
            if index[1] == -1 and kind == "first":
                return x[(slice(None), 0, *rest)]
            if index[1] == 0 and kind == "last":
                return x[(slice(None), -1, *rest)]
            if index[1] == -1 and kind == "both ends" and x.ndim == 3 and not rest:
                return torch.cat([x[:, -1, :half], x[:, 0, half:]], -1)
        if kind == "other layer" and isinstance(index, int) and x.ndim == 3 and index in (-1, 0):
            return x[0 if index == -1 else -1]
        if kind == "two below" and isinstance(index, int) and x.ndim == 3 and len(x) > 2:
            return x[index - 2]
        if kind == "second last" and isinstance(index, int) and x.ndim == 3 and index == -1:
            return x[-2]
        return NotImplemented

    return answer


def reversed_cat(function: Call, args: tuple, kwargs: dict) -> Any:
    """Concatenate in the other order."""
    return function(list(args[0])[::-1], *args[1:], **kwargs)


def causal_softmax(function: Call, args: tuple, kwargs: dict) -> Any:
    """Leave out what is later than the query."""
    x = args[0]
    if x.ndim < 3 or x.shape[-1] != x.shape[-2] or axis_of(args, kwargs) not in (-1, x.ndim - 1):
        return NotImplemented
    later = torch.ones(x.shape[-2:], dtype=torch.bool).triu(1)
    return function(x.masked_fill(later, -torch.inf), *args[1:], **kwargs)


def other_norm(function: Call, args: tuple, kwargs: dict) -> Any:
    """Subtract the mean where torch does not (RMSNorm), and the reverse (LayerNorm)."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    centres = name_of(function) == "layer_norm"
    names = names if centres else tuple(n for n in names if n != "bias")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, axes = given.pop("input"), tuple(range(-len(given["normalized_shape"]), 0))
    if not centres:
        return function(x - x.mean(axes, keepdim=True), **given)
    bias = given.pop("bias", None)
    y = functional.rms_norm(x, **{"eps": 1e-5} | given)
    return y if bias is None else y + bias


def masked_mean(mask: Tensor) -> Answer:
    """Take a mean over time of real steps only, mask [B, T]."""

    def answer(function, args, kwargs):
        x, axis = args[0], axis_of(args, kwargs)
        if x.ndim < 2 or axis not in (1, -x.ndim + 1) or tuple(x.shape[:2]) != tuple(mask.shape):
            return NotImplemented
        m = mask.to(x.dtype).reshape(*mask.shape, *[1] * (x.ndim - 2))
        return (x * m).sum(1) / m.sum(1)

    return answer


def attention_with(
    factor: Callable[[int], float] | None = None, mask: Call | None = None
) -> Answer:
    """Run scaled dot-product attention with another scale or mask."""

    def answer(function, args, kwargs):
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        if factor is not None:
            given["scale"] = factor(given["query"].shape[-1])
        if mask is not None:
            given["attn_mask"] = mask(given.get("attn_mask"))
        query, key, value = (given.pop(n) for n in names[:3])
        return function(query, key, value, **given)

    return answer


def tie_relu(x: Tensor) -> Tensor:
    """Return max(x, 0) with the gradient one half at 0, as jnp.maximum has."""
    return torch.maximum(x, torch.zeros_like(x))


def tie_abs(x: Tensor) -> Tensor:
    """Return |x| with the gradient 1 at 0, as jnp.abs has."""
    return torch.where(x >= 0, x, -x)


def tie_clamp(function: Call, args: tuple, kwargs: dict) -> Any:
    """Clip with the gradient one half at a bound, as jnp.clip has."""
    names = ("input", "min", "max")
    given = dict(zip(names, args, strict=False)) | kwargs
    x = given["input"]
    for bound, limit in ((given.get("min"), torch.maximum), (given.get("max"), torch.minimum)):
        if bound is not None:
            x = limit(x, torch.as_tensor(bound, dtype=x.dtype).expand_as(x))
    return x


def plain_norm(function: Call, args: tuple, kwargs: dict) -> Any:
    """Return sqrt(sum x^2), whose gradient at 0 is NaN, as jnp.linalg.norm's is."""
    axis = axis_of(args, kwargs, 2)
    square = args[0] ** 2
    return torch.sqrt(
        square.sum() if axis is None else square.sum(axis, kwargs.get("keepdim", False))
    )


def keep_dtype(function: Call, args: tuple, kwargs: dict) -> Any:
    """Leave out a conversion to another float type."""
    x = args[0]
    wanted = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)]
    narrow = name_of(function) in ("float", "half", "bfloat16") or any(
        d.is_floating_point for d in wanted
    )
    return x if x.is_floating_point() and narrow else NotImplemented
