"""The parameters of each model: names, shapes and initial values.

A name is at once the torch `state_dict` key, the checkpoint key and, split at its dots, the path
in the JAX tree. Layout is torch's: weight [out, in], gates stacked on axis 0 in the order
i, f, g, o (GRU: r, z, n), two biases.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from spec.config import ModelConfig, Recurrence
from spec.errors import CheckpointError
from spec.random import normal, uniform

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
PLAIN = Recurrence()


class ParamSpec(NamedTuple):
    """Shape of a parameter and its initial values, even over center + [-bound, bound).

    A tuple has one number for each of as many blocks of axis 0, the gates. `orthogonal` counts
    blocks, each of which is one with orthonormal rows or columns instead.
    """

    shape: tuple[int, ...]
    bound: float | tuple[float, ...]
    center: float | tuple[float, ...] = 0.0
    orthogonal: int = 0

    def by_row(self, numbers: float | tuple[float, ...]) -> np.ndarray:
        """Spread the numbers of blocks over the rows of axis 0, [rows, 1 ..] or [1 ..]."""
        blocks = np.atleast_1d(numbers)
        rows = blocks if len(blocks) == 1 else np.repeat(blocks, self.shape[0] // len(blocks))
        return rows.reshape(-1, *(1,) * (len(self.shape) - 1))


def cell_schema(
    cell: str, input_size: int, hidden_size: int, options: Recurrence = PLAIN
) -> dict[str, ParamSpec]:
    """Return the parameters of one recurrent cell.

    Every cell has weight_ih, weight_hh, bias_ih and bias_hh. An LSTM may have weight_hr, as
    torch.nn.LSTM's proj_size; weight_ch, the peepholes of i, f, o; gain_ih, gain_hh, gain_c and
    bias_c of layer normalisation. With coupled gates there is no f anywhere.
    """
    H, P, bound = hidden_size, options.proj_size or hidden_size, hidden_size**-0.5
    gates = GATES[cell] - options.coupled_gates
    rows = gates * H
    schema = {
        "weight_ih": ParamSpec((rows, input_size), bound),
        "weight_hh": ParamSpec((rows, P), bound),
        "bias_ih": ParamSpec((rows,), bound),
        "bias_hh": ParamSpec((rows,), bound),
    }
    if options.recurrent_initializer == "orthogonal":
        schema["weight_hh"] = ParamSpec((rows, P), 0.0, 0.0, gates)
    if options.forget_bias is not None:  # the sum of both biases
        evenly = (bound, 0.0, bound, bound)
        schema["bias_ih"] = ParamSpec((rows,), evenly, (0.0, options.forget_bias, 0.0, 0.0))
        schema["bias_hh"] = ParamSpec((rows,), evenly)
    if options.proj_size is not None:
        schema["weight_hr"] = ParamSpec((P, H), bound)
    if options.peepholes:
        schema["weight_ch"] = ParamSpec(((gates - 1) * H,), bound)
    if options.layer_norm:
        schema["gain_ih"] = schema["gain_hh"] = ParamSpec((rows,), 0.0, 1.0)
        schema["gain_c"] = ParamSpec((H,), 0.0, 1.0)
        schema["bias_c"] = ParamSpec((H,), 0.0)
    return schema


def recurrent_schema(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool,
    options: Recurrence = PLAIN,
) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.RNN, GRU or LSTM, in its order and initialisation.

    What torch.nn.LSTM does not have stands behind what it has, see `cell_schema`.
    """
    directions = ("", "_reverse") if bidirectional else ("",)
    schema = {}
    for layer in range(num_layers):
        outputs = len(directions) * (options.proj_size or hidden_size)
        width = input_size if layer == 0 else outputs
        for direction in directions:
            for name, spec in cell_schema(cell, width, hidden_size, options).items():
                schema[f"{name}_l{layer}{direction}"] = spec
    return schema


def attention_schema(query_size: int, key_size: int, hidden_size: int) -> dict[str, ParamSpec]:
    """Return the parameters of additive attention."""
    return {
        "W_a": ParamSpec((hidden_size, query_size), query_size**-0.5),
        "U_a": ParamSpec((hidden_size, key_size), key_size**-0.5),
        "v_a": ParamSpec((hidden_size,), hidden_size**-0.5),
    }


def multiplicative_schema(query_size: int, key_size: int, score: str) -> dict[str, ParamSpec]:
    """Return the parameters of multiplicative attention: none but for the score "general"."""
    if score != "general":
        return {}
    return {"W_a": ParamSpec((key_size, query_size), query_size**-0.5)}


def linear_schema(inputs: int, outputs: int) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.Linear, in its initialisation."""
    return {
        "weight": ParamSpec((outputs, inputs), inputs**-0.5),
        "bias": ParamSpec((outputs,), inputs**-0.5),
    }


def layer_norm_schema(size: int) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.LayerNorm: ones and zeros."""
    return {"weight": ParamSpec((size,), 0.0, 1.0), "bias": ParamSpec((size,), 0.0)}


def multi_head_schema(size: int) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.MultiheadAttention, in its initialisation.

    Source: Glorot & Bengio (2010), equation 16, for the first weight, which counts as one.
    """
    return {
        "in_proj_weight": ParamSpec((3 * size, size), (6 / (4 * size)) ** 0.5),
        "in_proj_bias": ParamSpec((3 * size,), 0.0),
        "out_proj.weight": ParamSpec((size, size), size**-0.5),
        "out_proj.bias": ParamSpec((size,), 0.0),
    }


def nested(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put each part's names behind its own."""
    return {f"{part}.{name}": spec for part, own in parts.items() for name, spec in own.items()}


def encoder_layer_schema(size: int, units: int) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.TransformerEncoderLayer, in its order."""
    return nested(
        {
            "self_attn": multi_head_schema(size),
            "linear1": linear_schema(size, units),
            "linear2": linear_schema(units, size),
            "norm1": layer_norm_schema(size),
            "norm2": layer_norm_schema(size),
        }
    )


def encoder_schema(
    size: int, units: int, num_layers: int, norm_first: bool
) -> dict[str, ParamSpec]:
    """Return the parameters of torch.nn.TransformerEncoder; with a last norm if `norm_first`.

    Torch copies one layer: its layers start alike. Here each has initial values of its own.
    """
    layers = {f"layers.{n}": encoder_layer_schema(size, units) for n in range(num_layers)}
    return nested(layers | ({"norm": layer_norm_schema(size)} if norm_first else {}))


@lru_cache(maxsize=64)  # a step of training asks for them anew
def sinusoidal_positions(time: int, size: int) -> np.ndarray:
    """Return the places of steps 0 .. time - 1 as sines and cosines, [time, size].

    Column 2i holds sin(t / 10000**(2i / size)), column 2i + 1 its cosine.

    Source: Vaswani et al. (2017), section 3.5.
    """
    angle = np.arange(time)[:, None] / position_rates(size)
    found = np.where(np.arange(size) % 2, np.cos(angle), np.sin(angle))
    found.flags.writeable = False
    return found


def positions_schema(max_length: int, size: int) -> dict[str, ParamSpec]:
    """Return the learned places in time, [max_length, size].

    Source: as wide as those of BERT, Devlin et al. (2019): a standard deviation of 0.02.
    """
    return {"positions": ParamSpec((max_length, size), 0.02 * 3**0.5)}


def position_rates(size: int) -> np.ndarray:
    """Return what a step is divided by in each column of `sinusoidal_positions`, [size]."""
    column = np.arange(size)
    return 10000.0 ** ((column - column % 2) / size)


# In the order of torch.nn.LSTM's.
CELL_NAMES = tuple(
    cell_schema("lstm", 1, 2, Recurrence(proj_size=1, peepholes=True, layer_norm=True))
)


def split_layers(params: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Group a recurrent layer's parameters as [layer][direction] -> a cell's parameters.

    The names of torch.nn.LSTM say how many layers and directions there are.
    """
    ends = [name.removeprefix("weight_ih") for name in params if name.startswith("weight_ih")]
    cells = {
        end: {name: params[name + end] for name in CELL_NAMES if name + end in params}
        for end in ends
    }
    forward = [f"_l{layer}" for layer in range(len(ends)) if f"_l{layer}" in cells]
    return [
        [cells[end]] + ([cells[f"{end}_reverse"]] if f"{end}_reverse" in cells else [])
        for end in forward
    ]


def parameter_schema(config: ModelConfig) -> dict[str, ParamSpec]:
    """Return every parameter of a model, in a fixed order."""
    encoded, parts = config.encoded_size, {}
    if config.recurrent:
        sizes = config.input_size, config.hidden_size, config.num_layers, config.bidirectional
        parts[config.cell] = recurrent_schema(config.cell, *sizes, config)
    else:
        parts["embedding"] = linear_schema(config.input_size, encoded)
        if config.positions == "learned":
            parts["embedding"] |= positions_schema(config.max_length, encoded)
        parts["transformer"] = encoder_schema(
            encoded, config.units, config.num_layers, config.norm_first
        )
    if config.self_attention:
        parts["self_attention"] = multi_head_schema(encoded)
    if config.attends and config.score == "additive":
        parts["attention"] = attention_schema(encoded, encoded, config.hidden_size)
    elif config.attends:
        parts["attention"] = multiplicative_schema(encoded, encoded, config.score)
    if config.decodes:
        width = len(config.fed_back) + encoded
        parts["decoder"] = cell_schema(config.cell, width, encoded, config)
    parts["head"] = linear_schema(config.head_size, config.output_size // config.forecast_steps)
    return nested(parts)


def init_params(schema: Mapping[str, ParamSpec], seed: int) -> dict[str, np.ndarray]:
    """Draw initial values, float64; a parameter's numbers depend on the seed and its name only."""
    return {name: draw(spec, seed, "parameter", name) for name, spec in schema.items()}


def draw(spec: ParamSpec, *key: int | str) -> np.ndarray:
    """Draw the initial values of one parameter, float64.

    Source: Saxe, McClelland & Ganguli (2014) for the orthogonal ones, by QR of normal numbers.
    """
    if spec.orthogonal:
        rows, columns = spec.shape[0] // spec.orthogonal, spec.shape[1]
        size = spec.orthogonal, max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(normal(size, *key))
        q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]  # else not evenly spread
        return (q if rows >= columns else q.swapaxes(1, 2)).reshape(spec.shape)
    return spec.by_row(spec.center) + spec.by_row(spec.bound) * uniform(spec.shape, 1.0, *key)


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
