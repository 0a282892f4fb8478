"""How far each float32 layer is from the float64 truth, beside the frameworks' own layers.

    python -m parity_tests.float32

prints, for every case, the normwise relative error of the outputs and the largest one of the
gradients, and its ratio to torch.nn's layer (torch side) or flax.linen's (JAX side).
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
from jax_impl.arrays import to_tree
from parity import maps
from parity_tests import linen_encoder
from parity_tests.compare import in_jax, in_torch, relative_error
from spec.params import encoder_schema, recurrent_schema

HEADS = 4


@dataclass(frozen=True)
class Case:
    """A layer, its sizes, and how far the weights are scaled up from torch's initial ones."""

    layer: str
    T: int
    B: int
    D: int
    H: int
    scale: float = 1.0
    ragged: bool = False

    def __str__(self) -> str:
        words = f"{self.layer}-T{self.T}-B{self.B}-D{self.D}-H{self.H}-x{self.scale:g}"
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
        if self.layer == "transformer":
            schema = encoder_schema(self.H, 4 * self.H, 1, norm_first=False)
        else:
            schema = recurrent_schema(self.layer, self.D, self.H, 1, False)
        leaves = {
            name: spec.center + draw.uniform(-spec.bound, spec.bound, spec.shape) * self.scale
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
    Case("lstm", 50, 16, 8, 32),
    Case("lstm", 200, 8, 1, 16),
    Case("lstm", 100, 4, 12, 64, scale=3.0),
    Case("lstm", 60, 16, 5, 24, ragged=True),
    Case("gru", 50, 16, 8, 32),
    Case("gru", 100, 4, 12, 64, scale=3.0),
    Case("gru", 60, 16, 5, 24, ragged=True),
    Case("transformer", 50, 16, 32, 32),
    Case("transformer", 60, 16, 24, 24, scale=3.0, ragged=True),
]


def weights(leaves):
    return {name: array for name, array in leaves.items() if name != "inputs"}


def ours_in_torch(layers, case, leaves):
    lengths = torch.tensor(case.lengths) if case.ragged else None
    if case.layer == "transformer":
        layers = torch_impl.fast if layers is torch_impl.fast else torch_impl.encoder
        module = layers.TransformerEncoder(case.H, HEADS, 4 * case.H)
        given = weights(leaves), (leaves["inputs"], lengths)
        return {"outputs": torch.func.functional_call(module, *given)}
    module = {"lstm": layers.LSTM, "gru": layers.GRU}[case.layer](case.D, case.H)
    given = weights(leaves), (leaves["inputs"], lengths)
    return {"outputs": torch.func.functional_call(module, *given)[0]}


def torch_nn(case, leaves):
    if case.layer == "transformer":
        layer = torch.nn.TransformerEncoderLayer(
            case.H, HEADS, 4 * case.H, 0.0, "gelu", batch_first=True
        )
        module = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        padding = {"src_key_padding_mask": torch.tensor(~case.mask[..., 0])} if case.ragged else {}
        given = weights(leaves), (leaves["inputs"],), padding
        outputs = torch.func.functional_call(module, *given)
        return {"outputs": torch.where(torch.tensor(case.mask), outputs, 0)}
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.layer]
    module, inputs = module(case.D, case.H, batch_first=True), leaves["inputs"]
    if case.ragged:
        lengths = torch.tensor(case.lengths)
        inputs = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs = torch.func.functional_call(module, weights(leaves), (inputs,))[0]
    if case.ragged:
        outputs = pad_packed_sequence(outputs, batch_first=True, total_length=case.T)[0]
    return {"outputs": outputs}


def ours_in_jax(layers, case, leaves):
    lengths = jnp.asarray(case.lengths) if case.ragged else None
    given = leaves["inputs"], lengths
    if case.layer == "transformer":
        encoder = jax_impl.encoder.transformer_encoder
        return {"outputs": encoder(to_tree(weights(leaves)), *given, num_heads=HEADS)}
    run = {"lstm": layers.lstm, "gru": layers.gru}[case.layer]
    return {"outputs": run(weights(leaves), *given)[0]}


def flax_linen(case, leaves):
    """The same weights as flax's layers name them."""
    if case.layer == "transformer":
        params = maps.join(linen_encoder.weights("layers.0.", HEADS))(leaves)
        layer = linen_encoder.EncoderLayer(HEADS, 4 * case.H)
        outputs = layer.apply({"params": params}, leaves["inputs"], case.mask[:, None, None, :, 0])
        return {"outputs": jnp.where(case.mask, outputs, 0)}
    cell, maker = {
        "lstm": (flax.linen.OptimizedLSTMCell, maps.linen.lstm_cell),
        "gru": (flax.linen.GRUCell, maps.linen.gru_cell),
    }[case.layer]
    rnn = flax.linen.RNN(cell(case.H, parent=None))
    given = leaves["inputs"], jnp.asarray(case.lengths)
    outputs = rnn.apply({"params": {"cell": maker()(leaves)}}, given[0], seq_lengths=given[1])
    return {"outputs": jnp.where(case.mask, outputs, 0)}


IN_TORCH: dict[str, Callable] = {
    "torch.nn": torch_nn,
    "torch loop": partial(ours_in_torch, torch_impl.recurrent),
    "torch fast": partial(ours_in_torch, torch_impl.fast),
}
IN_JAX: dict[str, Callable] = {
    "flax.linen": flax_linen,
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
    own = {"torch": found["torch.nn"], "JAX": found["flax.linen"]}
    return {
        name: tuple(np.divide(error, own[name.split()[0]]).tolist())
        for name, error in found.items()
        if name.split()[0] in own
    }


def main() -> None:
    head = ("case", "implementation", "outputs", "ratio", "gradients", "ratio")
    print("{:<40}{:<16}{:>8}{:>7}{:>11}{:>7}".format(*head))
    for case in CASES:
        found = errors(case)
        factors = ratios(found)
        for name, (outputs, gradients) in found.items():
            a, b = (f"{x:.2f}" for x in factors[name]) if name in factors else ("", "")
            print(f"{case!s:<40}{name:<16}{outputs:>8.1e}{a:>7}{gradients:>11.1e}{b:>7}")


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    main()
