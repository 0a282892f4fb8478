"""Run a PyTorch callable and a JAX callable on the same numbers: outputs and gradients by name.

Inputs are NumPy: an array, a sequence of arrays, or a dictionary of keyword arguments. Floats are
cast to the dtype asked for; integers and booleans pass as they are.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from parity.truth import Observer, exactly, is_float, is_key
from parity.weights import Weights, convert, key_name, named

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]
Arrays = dict[str, np.ndarray]
EXACT_LIMIT = 200_000


def cast(array: Any, dtype: str) -> np.ndarray:
    """Return a copy: floats in a dtype, the rest as it is."""
    return np.array(array, dtype if is_float(array) else None)


def is_weight(x: Any) -> bool:
    """Tell numbers from what else a tree holds: JAX's random keys, Equinox's activations."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | float | int) and not is_key(x)


def by_name(inputs: Inputs) -> dict[str, np.ndarray]:
    """Name the inputs: their keys, or input, or input.0, input.1 .."""
    if isinstance(inputs, Mapping):
        return {name: np.asarray(x) for name, x in inputs.items()}
    if isinstance(inputs, tuple | list):
        return {f"input.{n}": np.asarray(x) for n, x in enumerate(inputs)}
    return {"input": np.asarray(inputs)}


def call(function: Callable, inputs: Inputs, values: Mapping[str, Any], *first: Any) -> Any:
    """Call with values in the places that the inputs had."""
    if isinstance(inputs, Mapping):
        return function(*first, **values)
    return function(*first, *values.values())


def flat(output: Any, name: str = "output") -> dict[str, Any]:
    """Name the arrays of an output: dictionaries and records by key, sequences by number."""
    if output is None:
        return {}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    elif isinstance(output, Mapping):
        parts = dict(output)
    elif hasattr(output, "_asdict"):
        parts = output._asdict()
    elif isinstance(output, tuple | list):
        parts = {str(n): part for n, part in enumerate(output)}
    elif hasattr(output, "shape") or np.isscalar(output):
        return {name: output}
    else:
        leaves = jax.tree_util.tree_leaves_with_path(output)
        parts = {".".join(map(key_name, path)): leaf for path, leaf in leaves}
    prefix = "" if name == "output" and not isinstance(output, tuple | list) else f"{name}."
    found: dict[str, Any] = {}
    for key, part in parts.items():
        found |= flat(part, f"{prefix}{key}")
    return found


def numpy_of(tensor: Any) -> np.ndarray:
    """Copy a tensor to NumPy; bfloat16, which NumPy lacks, as float32."""
    if not isinstance(tensor, Tensor):
        return np.array(tensor)
    tensor = tensor.detach().resolve_conj().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


@dataclasses.dataclass
class TorchSide:
    """A torch callable with its inputs.

    Attributes:
      model: an nn.Module, or a function of tensors.
      inputs: see the module.
      arrays: parameters and buffers of the model by name; empty for a function.
    """

    model: Callable
    inputs: Inputs
    arrays: Arrays = dataclasses.field(init=False)
    parameters: set[str] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        module = isinstance(self.model, nn.Module)
        self.parameters = {n for n, _ in self.model.named_parameters()} if module else set()
        buffers = {n for n, _ in self.model.named_buffers()} if module else set()
        state = (
            {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            if module
            else {}
        )
        self.arrays = {n: numpy_of(t) for n, t in state.items() if n in self.parameters | buffers}

    def cotangents(self, seed: int = 0) -> Arrays:
        """Draw a random array for each float output with a gradient, so that none is missed."""
        draw = np.random.default_rng(seed)
        model, values = self.built("float64")
        with torch.enable_grad():
            found = flat(call(model, self.inputs, values))
        return {
            n: draw.normal(size=tuple(x.shape))
            for n, x in found.items()
            if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad
        }

    def built(
        self,
        dtype: str,
        arrays: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
        layout: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> tuple[Callable, dict[str, Tensor]]:
        """Return the model and its inputs in a dtype, as fresh leaves."""
        model = self.model
        if isinstance(model, nn.Module):
            model = copy.deepcopy(model).to(getattr(torch, dtype))
            with torch.no_grad():
                for name, value in (arrays or {}).items():
                    model.get_parameter(name).copy_(torch.from_numpy(cast(value, dtype)))
        values = {}
        for name, array in (inputs or by_name(self.inputs)).items():
            values[name] = layout(torch.from_numpy(cast(array, dtype))).requires_grad_(
                is_float(array)
            )
        return model, values

    def run(
        self,
        dtype: str,
        cotangents: Arrays | None = None,
        arrays: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
        layout: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> tuple[Arrays, Arrays]:
        """Return outputs and gradients by name; without cotangents no gradients."""
        model, values = self.built(dtype, arrays, inputs, layout)
        leaves = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
        leaves |= {n: x for n, x in values.items() if x.requires_grad}
        with torch.set_grad_enabled(cotangents is not None):
            found = flat(call(model, self.inputs, values))
        outputs = {name: numpy_of(tensor) for name, tensor in found.items()}
        if cotangents is None:
            return outputs, {}
        tensors = [found[n] for n in cotangents]
        pulled = [torch.from_numpy(c).to(found[n].dtype) for n, c in cotangents.items()]
        wanted = {n: leaf for n, leaf in leaves.items() if leaf.requires_grad}
        gradients = {}
        if tensors and wanted:  # else what torch returns has none, as after an optimiser's step
            gradients = {n: np.zeros(leaf.shape) for n, leaf in wanted.items()}
            grads = torch.autograd.grad(tensors, list(wanted.values()), pulled, allow_unused=True)
            gradients |= {
                n: numpy_of(g) for n, g in zip(wanted, grads, strict=True) if g is not None
            }
        return outputs, gradients


def split_module(function: Callable, params: Any) -> tuple[Callable, Any]:
    """Turn an nnx module into a function of its parameters, and these; leave anything else.

    Its random state stays inside: jax refuses to change what belongs to the caller.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(function, nnx.Module):
        return function, params
    graph, own, rest = nnx.split(function, nnx.Param, ...)

    def run(params, *inputs, **named):
        state = jax.tree.map(lambda x: x, own)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, rest, copy=True)(*inputs, **named)

    return run, nnx.to_pure_dict(own) if params is None else params


@dataclasses.dataclass
class JaxSide:
    """A JAX callable with its inputs and parameters.

    Attributes:
      function: of the inputs, after the parameters if there are any.
      inputs: see the module.
      params: tree of parameters; None for a function without.
      weights: map from torch's arrays to the parameters; None takes `params` as they are.
      optional: torch's buffers, which a map may leave out.
    """

    function: Callable
    inputs: Inputs
    params: Any = None
    weights: Weights | str | None = None
    arrays: Arrays = dataclasses.field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    names: list[str] = dataclasses.field(default_factory=list, init=False)
    compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict, init=False)
    x64: bool = dataclasses.field(default=True, init=False)  # False once JAX refuses float64

    @property
    def is_small(self) -> bool:
        """Whether extended precision takes seconds, by the numbers in weights and inputs."""
        parts = (self.leaves, by_name(self.inputs))
        return sum(np.size(x) for part in parts for x in part.values()) <= EXACT_LIMIT

    @property
    def leaves(self) -> Arrays:
        """The arrays that gradients are taken for: torch's, where a map leads to the parameters."""
        if self.weights is not None:
            return dict(self.arrays)
        return {n: np.asarray(x) for n, x in named(self.params).items() if is_weight(x)}

    def output(self, leaves: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Call the function; traceable."""
        first = ()
        if self.weights is not None:
            weights = None if isinstance(self.weights, str) else self.weights
            first = (convert(weights, leaves, self.params, self.optional),)
        elif self.params is not None:
            structure = jax.tree.structure(self.params)
            parts = [leaves.get(n, x) for n, x in named(self.params).items()]
            first = (jax.tree.unflatten(structure, parts),)
        try:
            return flat(call(self.function, self.inputs, values, *first))
        except Exception as error:
            if type(error).__name__ != "TraceContextError":
                raise
            raise TypeError(
                "an nnx module inside jax_fn changes its random state, which JAX forbids: pass the "
                "module itself as jax_fn, or what nnx.split gives"
            ) from error

    def split(
        self,
        dtype: str,
        leaves: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[tuple[dict, dict], tuple[dict, dict]]:
        """Cast everything; return (float leaves, float inputs) and (the other leaves, inputs)."""
        both = (leaves or self.leaves, inputs or by_name(self.inputs))
        floats = tuple({n: cast(x, dtype) for n, x in part.items() if is_float(x)} for part in both)
        rest = tuple(
            {n: cast(x, dtype) for n, x in part.items() if not is_float(x)} for part in both
        )
        return floats, rest

    def function_of(self, rest: tuple[dict, dict], order: Sequence[Sequence[str]]) -> Callable:
        """Return the output as a function of the float leaves and the float inputs."""

        def run(leaves, values):
            merged = [{**part, **other} for part, other in zip((leaves, values), rest, strict=True)]
            ordered = [{n: m[n] for n in names} for m, names in zip(merged, order, strict=True)]
            outputs = self.output(*ordered)
            self.names = list(outputs)  # jit sorts a dictionary
            return outputs

        return run

    def prepare(
        self,
        dtype: str,
        leaves: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Callable, tuple[dict, dict]]:
        """Return the function of the float leaves and inputs, and these."""
        floats, rest = self.split(dtype, leaves, inputs)
        order = (list(leaves or self.leaves), list(inputs or by_name(self.inputs)))
        return self.function_of(rest, order), floats

    def run(
        self,
        dtype: str,
        cotangents: Arrays | None = None,
        leaves: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Return outputs and gradients by name; without cotangents no gradients.

        A model that cannot take float64, as its states are float32, is evaluated in extended
        precision instead, and rounded to float64.
        """
        if dtype == "float64" and self.x64:
            try:
                return self.compute(dtype, cotangents, leaves, inputs)
            except TypeError as error:
                if "float32" not in str(error):
                    raise
                self.x64 = False
        if dtype == "float64":
            found = self.exact(cotangents, leaves, inputs)
            return tuple({n: cast(x, dtype) for n, x in part.items()} for part in found)
        return self.compute(dtype, cotangents, leaves, inputs)

    def exact(
        self,
        cotangents: Arrays | None = None,
        leaves: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
        observe: Observer | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Return outputs and gradients by name in extended precision; see `parity.truth`."""
        function, arguments = self.pulled(cotangents, leaves, inputs)
        found = exactly(function, *arguments, observe=observe, x64=self.x64)
        outputs, grads = found if cotangents is not None else (found, ({}, {}))
        return {n: np.asarray(outputs[n]) for n in self.names}, {**grads[0], **grads[1]}

    def pulled(
        self,
        cotangents: Arrays | None = None,
        leaves: Arrays | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Callable, tuple]:
        """Return the function that gives outputs (and gradients) in float64, and its arguments."""
        function, floats = self.prepare("float64", leaves, inputs)
        if cotangents is None:
            return function, floats
        return self.pull(function), (cotangents, *floats)

    def compute(
        self,
        dtype: str,
        cotangents: Arrays | None,
        leaves: Arrays | None,
        inputs: Mapping[str, np.ndarray] | None,
    ) -> tuple[Arrays, Arrays]:
        """Return outputs and gradients as JAX computes them."""
        with jax.enable_x64(dtype == "float64"):
            function, floats = self.prepare(dtype, leaves, inputs)
            _, rest = self.split(dtype, leaves, inputs)
            fixed = tuple((n, x.shape, x.tobytes()) for part in rest for n, x in part.items())
            key = (dtype, cotangents is None, fixed)
            if key not in self.compiled:
                self.compiled[key] = jax.jit(
                    function if cotangents is None else self.pull(function)
                )
            if cotangents is None:
                outputs, gradients = self.compiled[key](*floats), {}
            else:
                outputs, grads = self.compiled[key](cotangents, *floats)
                gradients = {**grads[0], **grads[1]}
            return (
                {n: np.array(outputs[n]) for n in self.names},
                {n: np.array(x) for n, x in gradients.items()},
            )

    @staticmethod
    def pull(function: Callable) -> Callable:
        """Return the function of (cotangents, leaves, inputs) that gives outputs and gradients."""

        def both(cotangents, *floats):
            def chosen(*arguments):
                outputs = function(*arguments)
                return {n: outputs[n] for n in cotangents}, outputs

            _, pullback, outputs = jax.vjp(chosen, *floats, has_aux=True)
            typed = {n: jnp.asarray(c).astype(outputs[n].dtype) for n, c in cotangents.items()}
            return outputs, pullback(typed)

        return both
