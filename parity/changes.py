"""The known explanations of a mismatch, as changes to one side that would remove it.

Each change says what the other side then does: a change to torch by which it equals JAX says what
JAX does differently. All are tried by `parity.diagnose`; none is believed unless both sides then agree
to rounding.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from parity import patches as p
from parity.patches import Patch

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Change:
    """One change to one side.

    Attributes:
      name: of the explanation; several changes share it.
      says: what differs, if this change removes the difference.
      fix: a line of code that mends it.
      side: which side is changed.
      slot: what is changed; two changes of one slot are not combined.
      patch, arrays, inputs, outputs, around: how: an alternative torch function, functions of the
        named parameters, of the named inputs, of the list of outputs, or a context to run in.
      literal: for JAX, (old, new) of a number written in the function; "stop_gradient" to leave
        that out.
    """

    name: str
    says: str
    fix: str
    side: Literal["torch", "jax"]
    slot: str
    patch: Patch | None = None
    arrays: Callable[[Arrays], Arrays] | None = None
    inputs: Callable[[Arrays], Arrays] | None = None
    outputs: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None
    around: Callable[[], contextlib.AbstractContextManager] | None = None
    literal: tuple[float, float] | str | None = None
    touched: frozenset[str] = frozenset()


def patched(
    name: str, says: str, fix: str, functions: str, answer: p.Answer, slot: str | None = None
) -> Change:
    """Make a change of torch functions, their names with spaces between."""
    names = tuple(functions.split())
    return Change(name, says, fix, "torch", slot or names[0], patch=Patch(names, answer))


ACTIVATIONS: dict[str, Callable] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
}


def of_functions() -> list[Change]:
    """List the alternatives of torch's functions."""
    found = [
        patched(
            "gelu_form",
            "GELU form: JAX takes the tanh approximation, torch the exact erf",
            "jax.nn.gelu(x, approximate=False)",
            "gelu",
            p.instead(lambda x: functional.gelu(x, approximate="tanh")),
        ),
        patched(
            "gelu_form",
            "GELU form: JAX takes the exact erf, torch the tanh approximation",
            "jax.nn.gelu(x, approximate=True)",
            "gelu",
            p.instead(functional.gelu),
        ),
        patched(
            "gelu_form",
            "GELU form: JAX takes x sigmoid(1.702 x)",
            "jax.nn.gelu(x, approximate=False)",
            "gelu",
            p.instead(lambda x: x * torch.sigmoid(1.702 * x)),
        ),
        patched(
            "layernorm_variance",
            "LayerNorm variance: JAX divides by n - 1, torch by n",
            "x.var(-1, ddof=0)",
            "layer_norm",
            p.layer_norm_with(ddof=1),
        ),
        patched(
            "variance_divisor",
            "std or var: JAX divides by n (ddof 0), torch by n - 1",
            "jnp.std(x, ddof=1)",
            "std var",
            p.set_argument(9, "correction", 0),
        ),
        patched(
            "variance_divisor",
            "std or var: JAX divides by n - 1, torch by n",
            "jnp.std(x, ddof=0)",
            "std var",
            p.set_argument(9, "correction", 1),
        ),
        patched(
            "batchnorm_mode",
            "BatchNorm mode: JAX takes the batch's own statistics, torch the running ones",
            "use_running_average=True",
            "batch_norm",
            p.set_argument(5, "training", True),
        ),
        patched(
            "batchnorm_mode",
            "BatchNorm mode: JAX takes the running statistics, torch the batch's own",
            "use_running_average=False",
            "batch_norm",
            p.set_argument(5, "training", False),
        ),
        patched(
            "batchnorm_momentum",
            "BatchNorm momentum: JAX keeps that part of the old statistics, torch takes it of the new",
            "momentum=1 - torch_momentum",
            "batch_norm",
            p.set_argument(6, "momentum", lambda m: 1 - (0.1 if m is None else m)),
        ),
        patched(
            "batchnorm_biased_running_var",
            "BatchNorm running variance: JAX's is biased, torch's unbiased",
            "multiply the batch variance by n / (n - 1)",
            "batch_norm",
            biased_running_variance,
        ),
        patched(
            "sigmoid_form",
            "activation: JAX has the hard sigmoid clip(0.2 x + 0.5)",
            "jax.nn.sigmoid(x)",
            "sigmoid",
            p.instead(p.hard_sigmoid),
        ),
        patched(
            "sigmoid_form",
            "activation: JAX has the hard sigmoid relu6(x + 3) / 6",
            "jax.nn.sigmoid(x)",
            "sigmoid",
            p.instead(functional.hardsigmoid),
        ),
        patched(
            "gru_reset",
            "GRU reset before/after: JAX resets h before the product with W_hn, torch after",
            "n = tanh(W_in x + b_in + r * (W_hn h + b_hn))",
            "gru",
            p.rnn_with(p.gru_step("before")),
        ),
        patched(
            "gru_reset",
            "GRU reset before/after: JAX resets h before the product with W_hn, torch after",
            "n = tanh(W_in x + b_in + r * (W_hn h + b_hn))",
            "gru_cell",
            p.cell_with(p.gru_step("before")),
        ),
        patched(
            "gru_update_complement",
            "GRU update gate: JAX has h' = (1 - z) h + z n, torch (1 - z) n + z h",
            "h = (1 - z) * n + z * h",
            "gru",
            p.rnn_with(p.gru_step(complement=True)),
        ),
        patched(
            "gru_update_complement",
            "GRU update gate: JAX has h' = (1 - z) h + z n, torch (1 - z) n + z h",
            "h = (1 - z) * n + z * h",
            "gru_cell",
            p.cell_with(p.gru_step(complement=True)),
        ),
        patched(
            "gru_variant",
            "GRU: JAX resets before the product and swaps z with 1 - z",
            "n = tanh(W_in x + b_in + r * (W_hn h + b_hn)); h = (1 - z) * n + z * h",
            "gru gru_cell",
            lambda f, a, k: (p.rnn_with if p.name_of(f) == "gru" else p.cell_with)(
                p.gru_step("before", True)
            )(f, a, k),
        ),
        patched(
            "forget_bias",
            "forget bias: JAX adds 1 to the forget gate in its step",
            "f = sigmoid(f)",
            "lstm",
            p.rnn_with(p.lstm_step(1.0)),
        ),
        patched(
            "forget_bias",
            "forget bias: JAX adds 1 to the forget gate in its step",
            "f = sigmoid(f)",
            "lstm_cell",
            p.cell_with(p.lstm_step(1.0)),
        ),
        patched(
            "lstm_output",
            "LSTM output: JAX leaves out the tanh of c",
            "h = sigmoid(o) * tanh(c)",
            "lstm",
            p.rnn_with(p.lstm_step(squash=lambda c: c)),
        ),
        patched(
            "sigmoid_form",
            "LSTM gates: JAX has the hard sigmoid",
            "jax.nn.sigmoid(x)",
            "lstm",
            p.rnn_with(p.lstm_step(gate=p.hard_sigmoid)),
        ),
        patched(
            "rnn_nonlinearity",
            "RNN: JAX has relu, torch tanh",
            "jnp.tanh(x)",
            "rnn_tanh",
            p.rnn_with(p.rnn_step(functional.relu)),
        ),
        patched(
            "rnn_nonlinearity",
            "RNN: JAX has tanh, torch relu",
            "jax.nn.relu(x)",
            "rnn_relu",
            p.rnn_with(p.rnn_step(torch.tanh)),
        ),
        patched(
            "reverse_end",
            "reversed direction read at the wrong end: JAX reads its state at the sequence's "
            "last step, torch where it ends, at the first",
            "h_reverse = outputs[:, 0, H:]",
            "lstm gru rnn_tanh rnn_relu",
            p.rnn_with(last_from_output=True),
            "rnn",
        ),
        patched(
            "reverse_flip",
            "reversed direction: JAX does not turn its outputs back",
            "outputs[:, ::-1]",
            "lstm gru rnn_tanh rnn_relu",
            p.rnn_with(unflipped=True),
            "rnn",
        ),
        patched(
            "direction_order",
            "directions: JAX puts the reverse one first",
            "concatenate([forward, reverse], -1)",
            "lstm gru rnn_tanh rnn_relu",
            p.rnn_with(swapped=True),
            "rnn",
        ),
        patched(
            "initial_state",
            "initial state: JAX starts from zeros, torch from the given state",
            "pass the initial state",
            "lstm gru rnn_tanh rnn_relu",
            p.rnn_with(zero_state=True),
            "rnn",
        ),
        patched(
            "reverse_end",
            "reversed direction read at the wrong end: JAX reads its half at the first step, "
            "torch at the last",
            "outputs[:, -1]",
            "__getitem__",
            p.index_with("both ends"),
        ),
        patched(
            "time_step",
            "time step: JAX reads the first one, torch the last",
            "outputs[:, -1]",
            "__getitem__",
            p.index_with("first"),
        ),
        patched(
            "time_step",
            "time step: JAX reads the last one, torch the first",
            "outputs[:, 0]",
            "__getitem__",
            p.index_with("last"),
        ),
        patched(
            "state_of_layer",
            "final state: JAX takes another layer's or direction's",
            "h_n[-1]",
            "__getitem__",
            p.index_with("other layer"),
        ),
        patched(
            "state_of_layer",
            "final state: JAX takes another layer's or direction's",
            "h_n[-1]",
            "__getitem__",
            p.index_with("second last"),
        ),
        patched(
            "concatenation_order",
            "concatenation: JAX joins the parts in the other order",
            "jnp.concatenate([a, b])",
            "cat concat concatenate",
            p.reversed_cat,
        ),
        patched(
            "mask_sense",
            "mask sense: True means ignore on one side and attend on the other",
            "mask=~mask",
            "multi_head_attention_forward scaled_dot_product_attention masked_fill where "
            "masked_fill_",
            p.invert_masks,
            "masks",
        ),
        patched(
            "mask_ignored",
            "mask: JAX ignores it",
            "pass the mask",
            "masked_fill masked_fill_",
            lambda f, a, k: a[0],
        ),
        patched(
            "mask_ignored",
            "mask: JAX ignores it",
            "pass the mask",
            "scaled_dot_product_attention",
            p.attention_with(mask=lambda mask: None),
        ),
        patched(
            "causal_mask",
            "causal mask: JAX sees only the past, torch all",
            "is_causal=False",
            "scaled_dot_product_attention",
            p.set_argument(5, "is_causal", True),
            "causal",
        ),
        patched(
            "causal_mask",
            "causal mask: JAX sees all, torch only the past",
            "is_causal=True",
            "scaled_dot_product_attention",
            p.set_argument(5, "is_causal", False),
            "causal",
        ),
        patched(
            "attention_scale",
            "attention scale: JAX does not divide by sqrt(d)",
            "scores / sqrt(d)",
            "scaled_dot_product_attention",
            p.attention_with(lambda d: 1.0),
        ),
        patched(
            "attention_scale",
            "attention scale: JAX divides by d, not by sqrt(d)",
            "scores / sqrt(d)",
            "scaled_dot_product_attention",
            p.attention_with(lambda d: 1.0 / d),
        ),
        patched(
            "padding_in_mean",
            "mean over padding: JAX divides by the padded length, torch by the real one",
            "x.sum(1) / lengths[:, None]",
            "div true_divide __truediv__",
            p.divide_by(lambda counts: float(counts.max())),
            "mean",
        ),
        patched(
            "padding_in_mean",
            "mean over padding: JAX does not mask the padding before it sums",
            "(x * mask).sum(1)",
            "mul __mul__ __rmul__ multiply",
            p.without_mask,
            "mask product",
        ),
        patched(
            "dropout_scaling",
            "dropout scaling: JAX does not divide by 1 - p what it keeps",
            "jnp.where(keep, x / (1 - p), 0)",
            "div true_divide __truediv__",
            lambda f, a, k: a[0] if isinstance(a[1], float) and 0 < a[1] < 1 else NotImplemented,
        ),
        patched(
            "dropout_scaling",
            "dropout scaling: JAX multiplies by 1 - p in eval mode, torch by 1 / (1 - p) "
            "in training",
            "nn.Dropout(rate, deterministic=True)",
            "dropout",
            dropout_in_eval,
        ),
        patched(
            "embedding_scale",
            "embedding: JAX multiplies by sqrt(d)",
            "embedding / sqrt(d)",
            "embedding",
            lambda f, a, k: f(*a, **k) * a[1].shape[-1] ** 0.5,
        ),
        patched(
            "flatten_order",
            "flatten: JAX keeps channels last, torch first",
            "x.transpose(0, 3, 1, 2)",
            "flatten reshape view",
            channels_last_flat,
        ),
        patched(
            "tie_relu",
            "gradient at a tie: JAX's maximum(x, 0) has one half at 0, torch's relu 0",
            "jax.nn.relu(x)",
            "relu",
            p.instead(p.tie_relu),
        ),
        patched(
            "tie_abs",
            "gradient at a tie: JAX's |x| has 1 at 0, torch's 0",
            "jnp.sign(x) * x",
            "abs absolute",
            p.instead(p.tie_abs),
        ),
        patched(
            "tie_clip",
            "gradient at a tie: JAX's clip has one half at a bound, torch's 1",
            "jnp.where(...)",
            "clamp clip hardtanh",
            p.tie_clamp,
        ),
        patched(
            "norm_at_zero",
            "gradient of a norm at 0: JAX's is NaN, torch's 0",
            "jnp.where(x == 0, 0, norm)",
            "norm linalg_norm vector_norm linalg_vector_norm",
            p.plain_norm,
        ),
        patched(
            "detach",
            "gradient: torch detaches what JAX does not",
            "jax.lax.stop_gradient(x)",
            "detach",
            p.instead(lambda x: x),
        ),
        patched(
            "dtype_truncation",
            "dtype truncation: torch rounds to a narrower float on the way",
            "x.to(other.dtype)",
            "to float half bfloat16 type",
            p.keep_dtype,
        ),
    ]
    for own in ACTIVATIONS:
        for other, function in ACTIVATIONS.items():
            if own != other:
                says = f"activation: JAX has {other}, torch {own}"
                found.append(
                    patched("activation", says, f"jax.nn.{own}(x)", own, p.instead(function))
                )
    for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0):
        found.append(
            patched(
                "layernorm_eps",
                f"LayerNorm eps: JAX has {eps:g}",
                "nn.LayerNorm(epsilon=1e-5)",
                "layer_norm",
                p.set_argument(4, "eps", eps),
            )
        )
        found.append(
            patched(
                "batchnorm_eps",
                f"BatchNorm eps: JAX has {eps:g}",
                "nn.BatchNorm(epsilon=1e-5)",
                "batch_norm",
                p.set_argument(7, "eps", eps),
                "batch_norm eps",
            )
        )
        found.append(
            patched(
                "eps",
                f"eps: JAX adds {eps:g}, torch another small number",
                "x + eps",
                "add __add__ __radd__",
                small_number(eps),
            )
        )
    for slope in (0.01, 0.2, 0.3):
        found.append(
            patched(
                "leaky_relu_slope",
                f"leaky_relu slope: JAX has {slope:g}",
                "negative_slope=0.01",
                "leaky_relu",
                p.set_argument(1, "negative_slope", slope),
            )
        )
    for axis in range(4):
        found.append(
            patched(
                "softmax_axis",
                f"softmax axis: JAX normalises over axis {axis}",
                "jax.nn.softmax(x, axis=-1)",
                "softmax log_softmax",
                p.softmax_over(axis),
            )
        )
    losses = (
        "mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy nll_loss binary_cross_entropy "
    )
    losses += "binary_cross_entropy_with_logits kl_div"
    for kind, factor, says in (
        ("mean", 1.0, "loss reduction: JAX takes the mean"),
        ("sum", 1.0, "loss reduction: JAX takes the sum"),
        ("rows", 1.0, "loss reduction: JAX sums over features and takes the mean over rows"),
        ("mean", 0.5, "l2_loss half: JAX takes half the mean square (optax.l2_loss)"),
        ("sum", 0.5, "l2_loss half: JAX takes half the sum of squares (optax.l2_loss)"),
        ("rows", 0.5, "l2_loss half: JAX takes half the squares, summed over features"),
    ):
        name = "loss_reduction" if factor == 1 else "l2_loss_half"
        found.append(
            patched(name, says, "jnp.mean((a - b) ** 2)", losses, p.reduction(kind, factor), "loss")
        )
    return found


def biased_running_variance(function: Any, args: tuple, kwargs: dict) -> Any:
    """Update BatchNorm's running variance by the biased one of the batch."""
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    x, variance = given["input"], given.get("running_var")
    if variance is None or not given.get("training"):
        return NotImplemented
    before, momentum = variance.clone(), given.get("momentum", 0.1)
    result = function(*args, **kwargs)
    axes = [n for n in range(x.ndim) if n != 1]
    with torch.no_grad():
        variance.copy_((1 - momentum) * before + momentum * x.var(axes, correction=0))
    return result


def dropout_in_eval(function: Any, args: tuple, kwargs: dict) -> Any:
    """Scale by 1 - p where torch leaves alone."""
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return (
        NotImplemented
        if given.get("training", True)
        else given["input"] * (1 - given.get("p", 0.5))
    )


def channels_last_flat(function: Any, args: tuple, kwargs: dict) -> Any:
    """Flatten [B, C, ...] with the channels last."""
    x = args[0]
    flattens = (
        p.name_of(function) == "flatten"
        or (len(args) == 3 and args[2] == -1)
        or args[1:] == ((-1,),)
    )
    if x.ndim < 3 or not flattens:
        return NotImplemented
    return x.movedim(1, -1).flatten(1)


def small_number(eps: float) -> p.Answer:
    """Add another number where a small one is added."""

    def answer(function, args, kwargs):
        x, y = args[:2]
        return x + eps if isinstance(y, float) and 0 < abs(y) < 1e-2 else NotImplemented

    return answer


def of_softmax_scale(depths: set[int]) -> list[Change]:
    """List other temperatures of a softmax, from the sizes of products before it."""
    found = []
    for depth in sorted(depths):
        for factor, says in (
            (depth**-0.5, "divides by sqrt(d)"),
            (depth**0.5, "does not divide by sqrt(d)"),
        ):
            found.append(
                patched(
                    "attention_scale",
                    f"attention scale: JAX {says}, d = {depth}; torch does not so",
                    "scores / jnp.sqrt(d)",
                    "softmax",
                    p.scaled_first(factor),
                    "softmax scale",
                )
            )
    return found


def of_masks(inputs: Arrays) -> list[Change]:
    """List means over real steps only, from what among the inputs says which those are."""
    found = []
    for name, x in inputs.items():
        if x.ndim == 2 and x.dtype == bool:
            masks = [x, ~x]
        elif x.ndim == 1 and x.dtype.kind == "i":
            longest = {y.shape[1] for y in inputs.values() if y.ndim >= 3 and len(y) == len(x)}
            masks = [np.arange(steps) < x[:, None] for steps in longest]
        else:
            continue
        for mask in masks:
            found.append(
                patched(
                    "padding_in_mean",
                    f"mean over padding: JAX leaves the padding out by {name}, torch's "
                    "mean counts it",
                    "x.mean(1)",
                    "mean",
                    p.masked_mean(torch.tensor(mask)),
                )
            )
    return found


def of_inputs(inputs: Arrays) -> list[Change]:
    """List changes to the inputs: masks, lengths, axes, order in time."""
    found = []

    def change(name, says, fix, side, edit, slot):
        found.append(Change(name, says, fix, side, slot, inputs=edit))

    for name, x in inputs.items():

        def edit(function, name=name):
            return lambda arrays: {**arrays, name: function(arrays[name])}

        if x.dtype == bool:
            says = f"mask sense: {name} is True for what one side ignores and the other attends to"
            change("mask_sense", says, f"{name}=~{name}", "torch", edit(np.logical_not), name)
        elif x.dtype.kind == "i" and x.ndim == 1:
            for by in (-1, 1):
                says = f"off by one: JAX takes {name} for {abs(by)} {'more' if by > 0 else 'fewer'}"
                change(
                    "length_off_by_one", says, name, "torch", edit(lambda v, by=by: v + by), name
                )
        elif x.dtype.kind == "f" and x.ndim >= 2:
            for axis in range(1, min(x.ndim, 3)):
                says = f"order: JAX reads {name} backwards along axis {axis}"
                change(
                    "time_reversed",
                    says,
                    f"{name}[:, ::-1]",
                    "torch",
                    edit(lambda v, axis=axis: np.flip(v, axis)),
                    name,
                )
            says = (
                f"time/batch axes swapped: JAX takes {name}, and gives its outputs, as [T, B, ...]"
            )
            found.append(
                Change(
                    *("axes_swapped", says, "jnp.swapaxes(x, 0, 1)", "jax", "axes"),
                    inputs=edit(lambda v: v.swapaxes(0, 1)),
                    outputs=lambda found: [y.swapaxes(0, 1) if y.ndim > 2 else y for y in found],
                )
            )
            says = f"time/batch axes swapped: JAX takes {name} as [T, B, ...], torch as [B, T, ...]"
            change(
                "axes_swapped",
                says,
                "jnp.swapaxes(x, 0, 1)",
                "jax",
                edit(lambda v: v.swapaxes(0, 1)),
                name,
            )
            if x.ndim >= 3:
                says = f"axes swapped: JAX takes {name} with its last two axes the other way round"
                change(
                    "axes_swapped",
                    says,
                    "jnp.swapaxes(x, 1, 2)",
                    "jax",
                    edit(lambda v: v.swapaxes(1, 2)),
                    name,
                )
    floats = [n for n, x in inputs.items() if x.dtype.kind == "f"]
    for one, two in itertools.combinations(floats, 2):
        if inputs[one].shape == inputs[two].shape:
            says = f"carry order: JAX takes {one} and {two} the other way round, (c, h) for (h, c)"
            change(
                "carry_order",
                says,
                f"{two}, {one}",
                "jax",
                lambda a, one=one, two=two: {**a, one: a[two], two: a[one]},
                "carry",
            )
    together = [n for n in floats if inputs[n].ndim >= 2]
    if len(together) > 1:

        def swap(arrays):
            return arrays | {n: arrays[n].swapaxes(0, 1) for n in together}

        change(
            "axes_swapped",
            "time/batch axes swapped: JAX takes every input as [T, B, ...]",
            "jnp.swapaxes(x, 0, 1)",
            "jax",
            swap,
            "axes",
        )
    return found


def of_outputs(outputs: list[np.ndarray], inputs: Arrays) -> list[Change]:
    """List changes to JAX's outputs: order, axes, halves, a constant factor."""
    found = []

    def change(name, says, fix, edit, slot="outputs"):
        found.append(Change(name, says, fix, "jax", slot, outputs=edit))

    def on(n, function):
        return lambda found: [function(x) if k == n else x for k, x in enumerate(found)]

    for one, two in itertools.combinations(range(len(outputs)), 2):
        if outputs[one].shape == outputs[two].shape:

            def swap(found, one=one, two=two):
                found = list(found)
                found[one], found[two] = found[two], found[one]
                return found

            says = f"carry order: outputs {one} and {two} are swapped, (c, h) for (h, c)"
            change("carry_order", says, "c, h = carry", swap)
    for n, x in enumerate(outputs):
        if x.ndim >= 2:
            change(
                "axes_swapped",
                f"time/batch axes swapped in output {n}",
                "jnp.swapaxes(y, 0, 1)",
                on(n, lambda v: v.swapaxes(0, 1)),
            )
            change(
                "time_reversed",
                f"order: output {n} is backwards along axis 1",
                "y[:, ::-1]",
                on(n, lambda v: np.flip(v, 1)),
            )
            change(
                "direction_order",
                f"directions: the halves of output {n}'s last axis are swapped",
                "jnp.concatenate([forward, reverse], -1)",
                on(n, lambda v: np.concatenate(np.split(v, 2, -1)[::-1], -1)),
            )
        if x.ndim >= 3:
            change(
                "axes_swapped",
                f"axes swapped in output {n}: the last two",
                "jnp.swapaxes(y, 1, 2)",
                on(n, lambda v: v.swapaxes(1, 2)),
            )
            change(
                "reverse_flip",
                f"reversed direction: its half of output {n} is backwards in time",
                "outputs[:, ::-1]",
                on(n, flip_half),
            )
    if len(outputs) > 1:

        def swap_all(found):
            return [x.swapaxes(0, 1) if x.ndim >= 2 else x for x in found]

        change(
            "axes_swapped",
            "time/batch axes swapped in every output",
            "jnp.swapaxes(y, 0, 1)",
            swap_all,
        )
    sizes = {size for x in inputs.values() for size in (*x.shape, x.size) if size > 1}
    if len(outputs) == 1 and outputs[0].ndim == 0:
        factors = {
            2.0: "l2_loss half: JAX's loss is half of torch's (optax.l2_loss)",
            0.5: "l2_loss half: JAX's loss is twice torch's",
        }
        for size in sorted(sizes):
            for half in (1.0, 0.5, 2.0):
                factors.setdefault(
                    size * half, f"loss reduction: JAX takes the mean over {size}, torch the sum"
                )
                factors.setdefault(
                    half / size, f"loss reduction: JAX takes the sum over {size}, torch the mean"
                )
        for factor, says in factors.items():
            name = "l2_loss_half" if says.startswith("l2") else "loss_reduction"
            change(
                name,
                says,
                "jnp.mean((a - b) ** 2)",
                on(0, lambda v, factor=factor: v * factor),
                "scale",
            )
    return found


def flip_half(x: np.ndarray) -> np.ndarray:
    """Turn the second half of the features around in time, [B, T, F]."""
    forward, reverse = np.split(x, 2, -1)
    return np.concatenate([forward, np.flip(reverse, 1)], -1)


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


def of_literals(literals: set[float], called: set[str], masked: bool) -> list[Change]:
    """List other values of numbers written in the JAX function.

    Which torch functions are called, and whether an input is a mask, says what such a number is.
    """
    names = {"layer_norm": "layernorm_eps", "batch_norm": "batchnorm_eps"}
    name = next((names[c] for c in names if c in called), "eps")
    found = []

    def change(name, says, fix, old, new):
        found.append(Change(name, says, fix, "jax", f"literal {old}", literal=(old, new)))

    for old in sorted(literals):
        for new in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0):
            if 0 < old < 1e-2 and new != old:
                says = f"{name.replace('_', ' ')}: JAX has {old:g}, torch {new:g}"
                change(name, says, f"eps={new:g}", old, new)
        if 0.01 <= old < 100 and old != round(old):
            if masked or "dropout" in called:
                says = f"dropout scaling: JAX scales by {old:g} what it keeps, torch does not"
                change("dropout_scaling", says, "jnp.where(keep, x, 0)", old, 1.0)
            else:
                change(
                    "scale", f"scale: JAX has a factor {old:g} that torch lacks", "1.0", old, 1.0
                )
    return found


def of_optimisers() -> list[Change]:
    """List other defaults and formulas of torch's optimisers and of its clipping."""
    found = []

    def change(name, says, fix, around, slot):
        found.append(Change(name, says, fix, "torch", slot, around=around))

    for kind in ("Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad"):
        for key, values in {
            "eps": (1e-8, 1e-7, 1e-6, 1e-10, 1e-5, 1e-3, 0.0),
            "weight_decay": (0.0, 1e-4, 1e-2),
            "betas": ((0.9, 0.999), (0.9, 0.99), (0.9, 0.95)),
            "dampening": (0.0, 0.9),
            "nesterov": (True, False),
            "alpha": (0.9, 0.99),
            "initial_accumulator_value": (0.0, 0.1),
            "amsgrad": (True, False),
        }.items():
            for value in values:
                says = f"{kind} {key}: JAX has {value}"
                word = {"weight_decay": "decay"}.get(key, key)
                change(
                    f"optimizer_{word}",
                    says,
                    f"{key}={value}",
                    lambda kind=kind, key=key, value=value: default(kind, key, value),
                    f"{kind} {key}",
                )
    change(
        "optimizer_decoupled_decay",
        "weight decay: JAX adds it to the gradient (L2), torch's AdamW takes it off the weights",
        "optax.adamw",
        lambda: replaced("AdamW", "Adam"),
        "decay form",
    )
    change(
        "optimizer_decoupled_decay",
        "weight decay: JAX takes it off the weights (AdamW), torch adds it to the gradient",
        "optax.chain(optax.add_decayed_weights(w), optax.adam(lr))",
        lambda: replaced("Adam", "AdamW"),
        "decay form",
    )
    change(
        "clip_formula",
        "clip formula: JAX divides by the norm, torch by the norm + 1e-6",
        "max_norm / (norm + 1e-6)",
        plain_clip,
        "clip",
    )
    change("clip_formula", "clip: JAX does not clip", "optax.clip_by_global_norm", no_clip, "clip")
    return found


@contextlib.contextmanager
def default(kind: str, key: str, value: Any) -> Iterator[None]:
    """Make every optimiser of a kind with one option changed."""
    owner = getattr(torch.optim, kind)
    original = owner.__init__

    def init(self, params, *args, **kwargs):
        original(self, params, *args, **kwargs)
        for group in self.param_groups:
            if key not in group:
                raise ValueError(f"{kind} has no {key}")
            group[key] = value

    owner.__init__ = init
    try:
        yield
    finally:
        owner.__init__ = original


@contextlib.contextmanager
def replaced(kind: str, other: str) -> Iterator[None]:
    """Make another optimiser in a kind's place, with its options."""
    owner = getattr(torch.optim, kind)
    step = owner.__init__

    def init(self, params, *args, **kwargs):
        step(self, params, *args, **kwargs)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = other == "AdamW"

    owner.__init__ = init
    try:
        yield
    finally:
        owner.__init__ = step


@contextlib.contextmanager
def clipping(factor: Callable[[Any, float], Any]) -> Iterator[None]:
    """Run with another clip_grad_norm_."""
    original = torch.nn.utils.clip_grad_norm_

    def clip(parameters, max_norm, *args, **kwargs):
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        grads = [q.grad for q in parameters if q.grad is not None]
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        for g in grads:
            g.mul_(factor(norm, max_norm))
        return norm

    torch.nn.utils.clip_grad_norm_ = clip
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = original


def plain_clip() -> contextlib.AbstractContextManager:
    return clipping(lambda norm, most: torch.clamp(most / norm, max=1.0))


def no_clip() -> contextlib.AbstractContextManager:
    return clipping(lambda norm, most: 1.0)
