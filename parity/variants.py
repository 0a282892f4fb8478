"""Further inputs and modes to compare in, beside those that were given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.measure import distance, same_pattern
from parity.rounding import FACTOR, of_weights, responses, tolerance
from parity.sides import Arrays, JaxSide, TorchSide, by_name, is_float


def variants(torch_side: TorchSide, jax_side: JaxSide, dtype: str, seed: int) -> dict[str, str]:
    """Compare on further inputs, outputs only; say what came out of each."""
    inputs = by_name(torch_side.inputs)
    rows = {x.shape[0] for x in inputs.values() if x.ndim}
    steps = {x.shape[1] for x in inputs.values() if x.ndim > 2 and is_float(x)}
    cut: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    if len(rows) == 1:
        size = rows.pop()
        cut = {"a batch of 1": lambda x: x[:1], "no rows": lambda x: x[:0]}
        cut = {n: c for n, c in cut.items() if size > 1}
    if len(steps) == 1 and all(is_float(x) for x in inputs.values()):
        (T,) = steps
        cut["one step"] = lambda x: x[:, :1] if x.ndim > 2 and x.shape[1] == T else x
    found = {}
    for name, change in cut.items():
        changed = {n: change(x) if x.ndim else x for n, x in inputs.items()}
        found[name] = attempt(torch_side, jax_side, dtype, changed)
    found["memory that is not contiguous"] = attempt(
        torch_side, jax_side, dtype, inputs, layout=scattered
    )
    if isinstance(torch_side.model, nn.Module):
        found |= other_mode(torch_side, dtype)
    return found


def scattered(tensor: Any) -> Any:
    """Return an equal tensor whose elements do not lie side by side."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.ndim else tensor


def attempt(
    torch_side: TorchSide,
    jax_side: JaxSide,
    dtype: str,
    inputs: Arrays,
    layout: Callable = lambda t: t,
) -> str:
    """Compare outputs on some inputs, and say what came out."""
    results: list[Any] = []
    for run in (
        lambda: torch_side.run(dtype, inputs=inputs, layout=layout)[0],
        lambda: jax_side.run(dtype, inputs=inputs)[0],
    ):
        try:
            results.append(run())
        except Exception as error:
            results.append(f"{type(error).__name__}: {str(error).splitlines()[0]:.80}")
    in_t, in_j = results
    refused = [
        f"{side} refuses ({r})"
        for side, r in (("torch", in_t), ("JAX", in_j))
        if isinstance(r, str)
    ]
    if refused:
        return "; ".join(refused)
    worst = 0.0
    same_names = set(in_t) == set(in_j)
    for n, (name, x) in enumerate(in_t.items()):
        y = in_j[name] if same_names else list(in_j.values())[n]
        if x.shape != y.shape:
            return f"differs: torch {x.shape}, JAX {y.shape}"
        if not same_pattern(x.astype(float), y.astype(float)):
            return "differs: NaN or inf on one side"
        worst = max(worst, distance(x, y))
    bound = tolerance(responses(jax_side, inputs=inputs)[0].values(), dtype)
    bound = max(bound, *of_weights(torch_side, jax_side, inputs=inputs)[0].values(), 0.0)
    return f"same, rel {worst:.1e}" if worst <= bound else f"differs: {worst:.1e} > {bound:.1e}"


def other_mode(side: TorchSide, dtype: str) -> dict[str, str]:
    """Say what torch's own output does in the mode, train or eval, that was not compared."""
    model = side.model
    given, other = ("train", "eval") if model.training else ("eval", "train")
    state = torch.get_rng_state()
    before = side.run(dtype)[0]
    model.train(not model.training)
    try:
        after = side.run(dtype)[0]
    finally:
        model.train(not model.training)
        torch.set_rng_state(state)
    gap = max([distance(after[n], before[n]) for n in before] + [0.0])
    text = f"torch differs by {gap:.1e} from its {given} mode, which is the one compared"
    return {f"{other} mode": text if gap > np.finfo(dtype).eps * FACTOR else "same as in the other"}
