"""Explanations by what a torch function computes: activations, norms, masks, cells, losses."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from parity import patches as p
from parity.explanations.change import Arrays, Change, patched
from parity.explanations.data import masks

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
            "reverse_runs_forward",
            "reversed direction: JAX runs it forward",
            "jax.lax.scan(..., reverse=True)",
            "lstm gru rnn_tanh rnn_relu",
            p.rnn_with(forward_only=True),
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
            "state_of_layer",
            "final state: JAX takes another layer's or direction's",
            "h_n[-1]",
            "__getitem__",
            p.index_with("two below"),
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
            "causal_mask",
            "causal mask: JAX sees only the past, torch all",
            "is_causal=False",
            "softmax",
            p.causal_softmax,
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
            "class_weights",
            "class weights: JAX leaves them out",
            "weight[target]",
            "cross_entropy nll_loss",
            p.set_argument(2, "weight", None),
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
    for smoothing in (0.0, 0.05, 0.1, 0.2):
        found.append(
            patched(
                "label_smoothing",
                f"label smoothing: JAX has {smoothing:g}, torch another",
                "optax.smooth_labels(labels, alpha)",
                "cross_entropy",
                p.set_argument(7, "label_smoothing", smoothing),
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
        found.append(
            patched(
                "attention_scale",
                f"attention scale: JAX divides by sqrt({depth})",
                "scores / jnp.sqrt(d), d the features of a head",
                "scaled_dot_product_attention",
                p.attention_with(lambda d, depth=depth: depth**-0.5),
            )
        )
    for right, wrong in itertools.permutations(sorted(depths), 2):
        found.append(
            patched(
                "attention_scale",
                f"attention scale: JAX divides by sqrt({wrong}), torch by sqrt({right})",
                "scores / jnp.sqrt(d), d the features of a head",
                "softmax",
                p.scaled_first((right / wrong) ** 0.5),
                "softmax scale",
            )
        )
    return found


def of_masks(inputs: Arrays) -> list[Change]:
    """List means over real steps only, from what among the inputs says which those are."""
    found = []
    for name, x in inputs.items():
        if x.ndim == 2 and name in masks(inputs):
            told = [x != 0, x == 0]
        elif x.ndim == 1 and x.dtype.kind == "i":
            longest = {y.shape[1] for y in inputs.values() if y.ndim >= 3 and len(y) == len(x)}
            told = [np.arange(steps) < x[:, None] for steps in longest]
        else:
            continue
        for mask in told:
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
