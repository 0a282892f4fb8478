"""How far each float32 LSTM is from the float64 truth, beside the frameworks' own layers.

    python -m parity_tests.float32

prints, for every case, the normwise relative error of the outputs and the largest one of the
gradients, and its ratio to torch.nn.LSTM's (torch side) or flax.linen.RNN's (JAX side).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jax_impl
import torch_impl
from parity_tests.compare import in_jax, in_torch, relative_error
from spec.params import recurrent_schema


@dataclass(frozen=True)
class Case:
    """Sizes, and how far the weights are scaled up from torch's initial ones."""

    T: int
    B: int
    D: int
    H: int
    scale: float = 1.0
    ragged: bool = False

    def __str__(self) -> str:
        words = f"T{self.T}-B{self.B}-D{self.D}-H{self.H}-x{self.scale:g}"
        return words + "-ragged" * self.ragged

    @property
    def lengths(self) -> np.ndarray:
        draw = np.random.default_rng(6).integers(1, self.T, self.B) if self.ragged else self.T
        return np.broadcast_to(draw, self.B).copy()

    @property
    def mask(self) -> np.ndarray:
        return (np.arange(self.T) < self.lengths[:, None])[..., None]

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(7)
        schema = recurrent_schema("lstm", self.D, self.H, 1, False)
        leaves = {
            name: draw.uniform(-spec.bound, spec.bound, spec.shape) * self.scale
            for name, spec in schema.items()
        }
        leaves["inputs"] = np.where(self.mask, draw.normal(size=(self.B, self.T, self.D)), 0)
        # Rounded once, so that float32 and the truth start from the same numbers.
        return {n: a.astype(np.float32).astype(np.float64) for n, a in leaves.items()}

    @property
    def cotangents(self) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(8).normal(size=(self.B, self.T, self.H))
        return {"outputs": np.where(self.mask, draw, 0)}


CASES = [
    Case(50, 16, 8, 32),
    Case(200, 8, 1, 16),
    Case(100, 4, 12, 64, scale=3.0),
    Case(60, 16, 5, 24, ragged=True),
]


def weights(leaves):
    return {name: array for name, array in leaves.items() if name != "inputs"}


def ours_in_torch(layers, case, leaves):
    module = layers.LSTM(case.D, case.H)
    lengths = torch.tensor(case.lengths) if case.ragged else None
    arguments = (leaves["inputs"], lengths)
    return {"outputs": torch.func.functional_call(module, weights(leaves), arguments)[0]}


def torch_nn(case, leaves):
    module, inputs = torch.nn.LSTM(case.D, case.H, batch_first=True), leaves["inputs"]
    if case.ragged:
        lengths = torch.tensor(case.lengths)
        inputs = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs = torch.func.functional_call(module, weights(leaves), (inputs,))[0]
    if case.ragged:
        outputs = pad_packed_sequence(outputs, batch_first=True, total_length=case.T)[0]
    return {"outputs": outputs}


def ours_in_jax(layers, case, leaves):
    lengths = jnp.asarray(case.lengths) if case.ragged else None
    return {"outputs": layers.lstm(weights(leaves), leaves["inputs"], lengths)[0]}


def flax_linen(cell, case, leaves):
    """The same weights as flax's cells name them: a kernel [in, out] a gate, one bias."""
    own: dict[str, dict] = {}
    bias = leaves["bias_ih_l0"] + leaves["bias_hh_l0"]
    for gate, part in zip("ifgo", jnp.split(bias, 4), strict=True):
        own[f"h{gate}"] = {"bias": part}
    for source, letter in (("weight_ih_l0", "i"), ("weight_hh_l0", "h")):
        for gate, part in zip("ifgo", jnp.split(leaves[source], 4), strict=True):
            own.setdefault(f"{letter}{gate}", {})["kernel"] = part.T
    rnn = flax.linen.RNN(cell(case.H, parent=None))
    lengths = jnp.asarray(case.lengths)
    outputs = rnn.apply({"params": {"cell": own}}, leaves["inputs"], seq_lengths=lengths)
    return {"outputs": jnp.where(case.mask, outputs, 0)}


JAX_CELLS = {"LSTMCell": flax.linen.LSTMCell, "OptimizedLSTMCell": flax.linen.OptimizedLSTMCell}
IN_TORCH: dict[str, Callable] = {
    "torch.nn.LSTM": torch_nn,
    "torch loop": partial(ours_in_torch, torch_impl.recurrent),
    "torch fast": partial(ours_in_torch, torch_impl.fast),
}
IN_JAX: dict[str, Callable] = {
    "flax.linen.RNN": partial(flax_linen, JAX_CELLS["OptimizedLSTMCell"]),
    "JAX scan": partial(ours_in_jax, jax_impl.recurrent),
    "JAX fast": partial(ours_in_jax, jax_impl.fast),
}


def errors(case: Case) -> dict[str, tuple[float, float]]:
    """Return (error of the outputs, largest error of a gradient) of each implementation."""
    function = partial(ours_in_torch, torch_impl.recurrent, case)
    truth = in_torch(function, case.leaves, case.cotangents)
    found = {}
    for run, functions in ((in_torch, IN_TORCH), (in_jax, IN_JAX)):
        for name, function in functions.items():
            arrays = run(partial(function, case), case.leaves, case.cotangents, dtype="float32")
            off = {n: relative_error(a.astype(np.float64), truth[n]) for n, a in arrays.items()}
            found[name] = off.pop("outputs"), max(off.values())
    return found


def ratios(found: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Divide the errors of our implementations by those of the framework's own layer."""
    own = {"torch": found["torch.nn.LSTM"], "JAX": found["flax.linen.RNN"]}
    return {
        name: tuple(np.divide(error, own[name.split()[0]]).tolist())
        for name, error in found.items()
        if name.split()[0] in own
    }


def main() -> None:
    head = ("case", "implementation", "outputs", "ratio", "gradients", "ratio")
    print("{:<26}{:<18}{:>10}{:>7}{:>11}{:>7}".format(*head))
    for case in CASES:
        found = errors(case)
        factors = ratios(found)
        for name, (outputs, gradients) in found.items():
            a, b = (f"{x:.2f}" for x in factors[name]) if name in factors else ("", "")
            print(f"{case!s:<26}{name:<18}{outputs:>10.1e}{a:>7}{gradients:>11.1e}{b:>7}")


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    main()
