"""Explanations by what goes in and out: order, axes, masks, lengths, factors, numbers in the code."""

import itertools

import numpy as np

from parity.explanations.change import Arrays, Change


def masks(inputs: Arrays) -> list[str]:
    """Name the masks among the inputs: booleans, or zeros and ones [B, T] beside what has more axes."""
    leading = {x.shape[:2] for x in inputs.values() if x.ndim > 2}
    return [
        name
        for name, x in inputs.items()
        if x.dtype == bool
        or (x.dtype.kind == "f" and x.shape in leading and set(np.unique(x)) == {0.0, 1.0})
    ]


def of_inputs(inputs: Arrays, called: set[str]) -> list[Change]:
    """List changes to the inputs: masks, lengths, axes, order in time.

    Which torch functions are called says what a mask is for.
    """
    found, told = [], masks(inputs)

    def change(name, says, fix, side, edit, slot):
        found.append(Change(name, says, fix, side, slot, inputs=edit))

    for name, x in inputs.items():

        def edit(function, name=name):
            return lambda arrays: {**arrays, name: function(arrays[name])}

        if name in told:
            says = f"mask sense: {name} is True for what one side ignores and the other attends to"
            fix = f"{name}=~{name}" if x.dtype == bool else f"{name}=1 - {name}"
            change(
                "mask_sense",
                says,
                fix,
                "torch",
                edit(lambda v: ~v if v.dtype == bool else 1 - v),
                name,
            )
            attends = called & {
                "softmax",
                "scaled_dot_product_attention",
                "multi_head_attention_forward",
            }
            what = "mask ignored" if attends else "mean over padding"
            says = f"{what}: JAX takes every step for real, whatever {name} says"
            cause = "mask_ignored" if attends else "padding_in_mean"
            change(
                cause, says, f"(x * {name}[..., None]).sum(1)", "torch", edit(np.ones_like), name
            )
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
    floats = [n for n, x in inputs.items() if x.dtype.kind == "f" and n not in told]
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
    """List changes to the outputs: order, axes, halves, a constant factor, probabilities."""
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
        for word, function in OUTPUT_FORMS.items() if x.ndim and x.dtype.kind == "f" else ():
            says = f"output {n}: JAX gives the {word} of what torch gives"
            edit = on(n, function)
            found.append(Change("output_form", says, word, "torch", "outputs", outputs=edit))
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


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


OUTPUT_FORMS = {
    "softmax": softmax,
    "log_softmax": lambda x: np.log(softmax(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "exp": np.exp,
    "log": lambda x: np.log(np.where(x > 0, x, np.nan)),
}


def flip_half(x: np.ndarray) -> np.ndarray:
    """Turn the second half of the features around in time, [B, T, F]."""
    forward, reverse = np.split(x, 2, -1)
    return np.concatenate([forward, np.flip(reverse, 1)], -1)


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
