"""What is saved, and what an exported program still accepts."""

import io
import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, serialization
from jax import lax
from torch import nn

from parity.differences.entry import difference
from parity.differences.expect import Raises, Warns


class Loop(nn.Module):
    """h = tanh(h + x[t]) for each t, by a Python loop."""

    def forward(self, x):
        h = torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            h = torch.tanh(h + x[t])
        return h


def scanned(x):
    """The same by `lax.scan`."""
    return lax.scan(lambda h, x: (jnp.tanh(h + x), None), jnp.zeros(x.shape[1:]), x)[0]


SHARED = (Loop, scanned)


@difference
class ExportedLoop:
    """A program exported with the number of time steps left open.

    A Python loop, and in torch 2.13 also `nn.LSTM`, is refused; JAX's scan is not.
    """

    def in_torch():
        length = torch.export.Dim("T")
        return torch.export.export(Loop(), (torch.ones(5, 2),), dynamic_shapes=({0: length},))

    torch_gives = Raises("UserError", "specialized it to be a constant (5)")

    def in_jax():
        shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("T, 2"), jnp.float32)
        program = jax.export.export(jax.jit(scanned))(shape)
        return program.call(jnp.ones((7, 2))).shape

    jax_gives = (2,)
    instead = "`lax.scan` in JAX; in torch export one program a length, and test a second length."

    def same():
        x = np.linspace(-1, 1, 14, dtype=np.float32).reshape(7, 2)
        ours = torch.export.export(Loop(), (torch.tensor(x),)).module()(torch.tensor(x))
        shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("T, 2"), jnp.float32)
        return ours, jax.export.export(jax.jit(scanned))(shape).call(x)

    source = (
        "https://docs.pytorch.org/docs/stable/export.html",
        "jax.export.export",
        "torch#191855",
    )


@difference
class ExportedDtype:
    """An exported program of float32, called with float64: torch computes on, JAX refuses."""

    def in_torch():
        program = torch.export.export(Loop(), (torch.ones(5, 2),)).module()
        return program(torch.ones(5, 2, dtype=torch.float64)).dtype

    torch_gives = "float64"

    def in_jax():
        shape = jax.ShapeDtypeStruct((5, 2), jnp.float32)
        with jax.enable_x64(True):
            return jax.export.export(jax.jit(jnp.tanh))(shape).call(jnp.ones((5, 2), jnp.float64))

    jax_gives = Raises("ValueError", "Dtype mismatch")
    instead = "Convert inputs before the call."

    def same():
        x = np.linspace(-1, 1, 10).reshape(5, 2).astype(np.float32)
        ours = torch.export.export(Loop(), (torch.tensor(x),)).module()(torch.tensor(x))
        shape = jax.ShapeDtypeStruct((5, 2), jnp.float32)
        return ours, jax.export.export(jax.jit(scanned))(shape).call(x)

    source = ("https://docs.pytorch.org/docs/stable/export.html", "jax.export.export")


@difference
class ExportedDropout:
    """A model exported while it trains: torch's program drops for ever, JAX has to be given a key."""

    def in_torch():
        layer = nn.Sequential(nn.Dropout(0.5))
        return (torch.export.export(layer, (torch.ones(99),)).module()(torch.ones(99)) == 0).any()

    torch_gives = True

    def in_jax():
        layer = linen.Dropout(0.5, deterministic=False)
        shape = jax.ShapeDtypeStruct((99,), jnp.float32)
        return jax.export.export(jax.jit(lambda x: layer.apply({}, x)))(shape)

    jax_gives = Raises("InvalidRngError", 'needs PRNG for "dropout"')
    instead = "`.eval()` before `torch.export.export`."

    def same():
        layer = nn.Sequential(nn.Dropout(0.5)).eval()
        ours = torch.export.export(layer, (torch.ones(99),)).module()(torch.ones(99))
        flax = linen.Dropout(0.5, deterministic=True)
        shape = jax.ShapeDtypeStruct((99,), jnp.float32)
        program = jax.export.export(jax.jit(lambda x: flax.apply({}, x)))(shape)
        return ours, program.call(jnp.ones(99))

    source = ("https://docs.pytorch.org/docs/stable/export.html", "jax.export.export")


@difference
class TorchScript:
    """Compiling a loop of open length: `torch.jit.script` still does, and is deprecated."""

    def in_torch():
        return torch.jit.script(Loop())(torch.ones(7, 2)).shape[0]

    torch_gives = Warns("`torch.jit.script` is deprecated", 2)

    def in_jax():
        return jax.jit(scanned)(jnp.ones((7, 2))).shape[0]

    jax_gives = 2
    instead = "Nothing in torch 2.13 replaces it for a loop; use `nn.LSTM`, or fix the length."
    source = ("torch.jit.script", "jax.jit")
    since = "deprecated as of torch 2.13"


@difference
class StateIsLive:
    """Weights taken before training, looked at after it: torch's `state_dict` has moved along."""

    def in_torch():
        layer = nn.Linear(1, 1)
        state = layer.state_dict()
        nn.init.constant_(layer.weight, 7.0)
        return state["weight"]

    torch_gives = ((7.0,),)

    def in_jax():
        params = {"weight": jnp.zeros((1, 1))}
        state = params
        params = jax.tree.map(lambda p: p + 7.0, params)
        return state["weight"]

    jax_gives = ((0.0,),)
    instead = "`copy.deepcopy(layer.state_dict())` for the best weights so far."

    def same():
        layer = nn.Linear(1, 1)
        nn.init.zeros_(layer.weight)
        state = {name: p.clone() for name, p in layer.state_dict().items()}
        nn.init.constant_(layer.weight, 7.0)
        return state["weight"], jnp.zeros((1, 1))

    source = ("torch.nn.Module", "jax.tree.map")


@difference
class ParameterTooMany:
    """A parameter that the model does not have: an error in torch, ignored in Flax."""

    def in_torch():
        layer = nn.Linear(2, 3)
        return layer.load_state_dict(layer.state_dict() | {"extra": torch.zeros(1)})

    torch_gives = Raises("RuntimeError", 'Unexpected key(s) in state_dict: "extra"')

    def in_jax():
        params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "extra": jnp.zeros(1)}
        return linen.Dense(3).apply({"params": params}, jnp.ones((1, 2))).shape

    jax_gives = (1, 3)
    instead = "Compare the trees: `jax.tree.structure(params) == jax.tree.structure(expected)`."

    def same():
        extra = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "extra": jnp.zeros(1)}
        expected = linen.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
        refused = jax.tree.structure(extra) != jax.tree.structure(expected)
        missing = nn.Linear(2, 3).load_state_dict({"extra": torch.zeros(1)}, strict=False)
        return bool(missing.unexpected_keys), refused

    source = (
        "torch.nn.Module",
        "https://flax.readthedocs.io/en/stable/api_reference/flax.linen/module.html",
    )


@difference
class LoadedDtype:
    """Loading float64 weights: torch converts them to the layer's float32; Flax keeps them."""

    def in_torch():
        layer = nn.Linear(2, 3)
        layer.load_state_dict(nn.Linear(2, 3).double().state_dict())
        return layer.weight.dtype

    torch_gives = "float32"

    def in_jax():
        target, saved = {"weight": np.zeros(2, np.float32)}, {"weight": np.zeros(2)}
        return serialization.from_bytes(target, serialization.to_bytes(saved))["weight"].dtype

    jax_gives = "float64"
    instead = "Convert to the dtype of the target."

    def same():
        layer, target = nn.Linear(1, 1), {"weight": np.zeros((1, 1), np.float32)}
        layer.load_state_dict({"weight": torch.ones(1, 1).double()}, strict=False)
        saved = serialization.to_bytes({"weight": np.ones((1, 1))})
        loaded = serialization.from_bytes(target, saved)
        loaded = jax.tree.map(lambda old, new: new.astype(old.dtype), target, loaded)
        ours = layer.weight.detach().numpy()
        return (str(ours.dtype), ours), (str(loaded["weight"].dtype), loaded["weight"])

    source = (
        "torch.nn.Module",
        "https://flax.readthedocs.io/en/stable/api_reference/flax.serialization.html",
    )


@difference
class LoadedShape:
    """Loading three weights where there are two: an error in torch, three in Flax."""

    def in_torch():
        layer = nn.Linear(2, 1, bias=False)
        return layer.load_state_dict({"weight": torch.zeros(1, 3)})

    torch_gives = Raises("RuntimeError", "size mismatch for weight")

    def in_jax():
        target, saved = {"weight": np.zeros((1, 2))}, {"weight": np.zeros((1, 3))}
        return serialization.from_bytes(target, serialization.to_bytes(saved))["weight"].shape

    jax_gives = (1, 3)
    instead = "Compare shapes after loading; a Flax layer does when it is applied."
    source = (
        "torch.nn.Module",
        "https://flax.readthedocs.io/en/stable/api_reference/flax.serialization.html",
    )


@difference
class SavedSlice:
    """Saving one number of a thousand: torch saves all thousand, JAX one."""

    def in_torch():
        file = io.BytesIO()
        torch.save(torch.zeros(1000)[:1], file)
        return len(file.getvalue()) > 4000

    torch_gives = True

    def in_jax():
        return len(pickle.dumps(jnp.zeros(1000)[:1])) > 4000

    jax_gives = False
    instead = "`x[:1].clone()` before saving."

    def same():
        file = io.BytesIO()
        torch.save(torch.zeros(1000)[:1].clone(), file)
        return len(file.getvalue()) > 4000, len(pickle.dumps(jnp.zeros(1000)[:1])) > 4000

    source = ("torch.save", "https://docs.pytorch.org/docs/stable/notes/serialization.html")


@difference
class LoadingObjects:
    """Loading what is no array: an error in torch since 2.6, objects and their code by pickle.

    Nobody should unpickle a file of unknown origin.
    """

    def in_torch():
        file = io.BytesIO()
        torch.save({"rule": torch.optim.SGD}, file)
        file.seek(0)
        return torch.load(file)

    torch_gives = Raises("UnpicklingError", "Weights only load failed")

    def in_jax():
        params = {"rule": np.mean, "weight": jnp.ones(1)}
        return list(pickle.loads(pickle.dumps(params)))  # noqa: S301

    jax_gives = ("rule", "weight")
    instead = "Save arrays only, in safetensors or npz."
    source = ("torch.load", "https://docs.jax.dev/en/latest/pytrees.html")
    since = "torch 2.6 (`weights_only=True`)"
