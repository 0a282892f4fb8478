"""The parameters of each model: names, shapes and initial values.

A name is at once the torch `state_dict` key, the checkpoint key and, split at its dots, the path
in the JAX tree. Layout is torch's: weight [out, in], gates stacked on axis 0 in the order
i, f, g, o (GRU: r, z, n), two biases.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from spec.config import ModelConfig
from spec.errors import CheckpointError
from spec.random import uniform

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class ParamSpec(NamedTuple):
    """Shape of a parameter; its initial values are even over [-bound, bound)."""

    shape: tuple[int, ...]
    bound: float


def cell_schema(cell: str, input_size: int, hidden_size: int) -> dict[str, ParamSpec]:
    """Return the parameters of one recurrent cell."""
    rows, bound = GATES[cell] * hidden_size, hidden_size**-0.5
    return {
        "weight_ih": ParamSpec((rows, input_size), bound),
        "weight_hh": ParamSpec((rows, hidden_size), bound),
        "bias_ih": ParamSpec((rows,), bound),
        "bias_hh": ParamSpec((rows,), bound),
    }


def recurrent_schema(
    cell: str, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.RNN, GRU or LSTM, in its order and initialisation."""
    directions = ("", "_reverse") if bidirectional else ("",)
    schema = {}
    for layer in range(num_layers):
        width = input_size if layer == 0 else len(directions) * hidden_size
        for direction in directions:
            for name, spec in cell_schema(cell, width, hidden_size).items():
                schema[f"{name}_l{layer}{direction}"] = spec
    return schema


def attention_schema(query_size: int, key_size: int, hidden_size: int) -> dict[str, ParamSpec]:
    """Return the parameters of additive attention."""
    return {
        "W_a": ParamSpec((hidden_size, query_size), query_size**-0.5),
        "U_a": ParamSpec((hidden_size, key_size), key_size**-0.5),
        "v_a": ParamSpec((hidden_size,), hidden_size**-0.5),
    }


def split_layers(params: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Group a recurrent layer's parameters as [layer][direction] -> a cell's parameters.

    The names of torch.nn.LSTM say how many layers and directions there are.
    """
    names = cell_schema("rnn", 1, 1)
    ends = [name.removeprefix("weight_ih") for name in params if name.startswith("weight_ih")]
    cells = {end: {name: params[name + end] for name in names} for end in ends}
    forward = [f"_l{layer}" for layer in range(len(ends)) if f"_l{layer}" in cells]
    return [
        [cells[end]] + ([cells[f"{end}_reverse"]] if f"{end}_reverse" in cells else [])
        for end in forward
    ]


def parameter_schema(config: ModelConfig) -> dict[str, ParamSpec]:
    """Return every parameter of a model, in a fixed order."""
    encoded, bound = config.encoded_size, config.head_size**-0.5
    parts = {
        config.cell: recurrent_schema(
            config.cell,
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
        )
    }
    if config.attends:
        parts["attention"] = attention_schema(encoded, encoded, config.hidden_size)
    parts["head"] = {
        "weight": ParamSpec((config.output_size, config.head_size), bound),
        "bias": ParamSpec((config.output_size,), bound),
    }
    return {f"{part}.{name}": spec for part, own in parts.items() for name, spec in own.items()}


def init_params(schema: Mapping[str, ParamSpec], seed: int) -> dict[str, np.ndarray]:
    """Draw initial values, float64; a parameter's numbers depend on the seed and its name only."""
    return {
        name: uniform(spec.shape, spec.bound, seed, "parameter", name)
        for name, spec in schema.items()
    }


def select_arrays(
    schema: Mapping[str, ParamSpec], arrays: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Pick the array of each parameter, stored under `prefix` and its name.

    Raises:
      CheckpointError: lists every array that is missing, misshapen or not of a floating type.
    """
    faults, selected = [], {}
    for name, spec in schema.items():
        array = arrays.get(prefix + name)
        if array is None:
            faults.append(f"{prefix}{name} is missing")
        elif array.shape != spec.shape:
            found, expected = list(array.shape), list(spec.shape)
            faults.append(f"{prefix}{name} has shape {found}, expected {expected}")
        elif array.dtype.kind != "f":
            faults.append(f"{prefix}{name} has dtype {array.dtype}, expected a floating type")
        else:
            selected[name] = array
    if faults:
        raise CheckpointError("the arrays do not fit the model: " + "; ".join(faults))
    return selected
