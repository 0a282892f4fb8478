"""The model as a program of its own, from readings to answers in the unit of the data.

Dimensions: B batch, T time, D input features, H hidden units, O outputs (targets or classes).
"""

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spec.config import Execution, ModelConfig
from spec.params import position_rates
from spec.units import Units
from torch_impl import fast, recurrent
from torch_impl.arrays import from_numpy, rounded, widened
from torch_impl.carry import AS_IT_IS, carried
from torch_impl.encoder import Embedding
from torch_impl.losses import mean_and_std
from torch_impl.models import sequence_model

RECORD = "seqduet.json"


def positions(time: int, size: int) -> Float[Tensor, "T H"]:
    """Return `sinusoidal_positions` of a time that is not known yet, float64 [time, size]."""
    angle = torch.arange(time, dtype=torch.float64)[:, None] / torch.tensor(position_rates(size))
    odd = torch.arange(size) % 2 == 1
    return torch.where(odd, torch.cos(angle), torch.sin(angle))


class OpenEmbedding(Embedding):
    """`Embedding` with places in time that are computed in the program, for any time."""

    def forward(self, inputs: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        x = inputs @ self.weight.T + self.bias
        return x + positions(x.shape[1], self.out_features).to(x.dtype)


class Answers(nn.Module):
    """Scale readings, run the model, answer in the unit of the data.

    Args:
      inputs: readings [B, T, D], float64, NaN where one is missing, which is taken for its
        feature's mean; what stands past a sequence's end is ignored.
      lengths: real steps of each sequence [B], 1 <= length <= T.

    Returns:
      float64 [B, O]: predictions, or the probabilities of the classes; or of each target side by
      side its quantiles in increasing order, or mean and standard deviation. Of every step
      [B, T, O], of which what stands past an end means nothing.
    """

    def __init__(self, config: ModelConfig, execution: Execution, model: nn.Module, units: Units):
        super().__init__()
        self.config, self.execution = config, execution
        self.model = model
        for name in ("input_mean", "input_std", "target_mean", "target_std"):
            self.register_buffer(name, torch.tensor(getattr(units, name)))

    def forward(
        self, inputs: Float[Tensor, "B T D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O"]:
        scaled = (inputs - self.input_mean) / self.input_std
        scaled = widened(torch.where(torch.isnan(scaled), 0.0, scaled), self.execution)
        output = self.model(rounded(scaled, self.execution), lengths)
        outputs = output.predictions.to(torch.float64)
        if self.config.criterion == "cross_entropy":
            return torch.softmax(outputs, dim=-1)
        mean, std = self.target_mean, self.target_std
        if self.config.criterion == "quantile":
            by_target = outputs.reshape(*outputs.shape[:-1], -1, len(self.config.levels))
            by_target = torch.sort(by_target, dim=-1).values
            return (by_target * std[:, None] + mean[:, None]).reshape(outputs.shape)
        if self.config.criterion == "gaussian_nll":
            center, spread = mean_and_std(outputs)
            pairs = torch.stack([center * std + mean, spread * std], dim=-1)
            return pairs.reshape(outputs.shape)
        return outputs * std + mean


def export(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    dtype: str,
    units: Units,
    format: str,
    record: str,
) -> bytes:
    """Write `Answers` as a program whose batch and length stay open.

    Args:
      config: of the model.
      arrays: its parameters by name.
      dtype: to compute in, as `spec.precision` says.
      units: of the readings and of the answers.
      format: one of `FORMATS`.
      record: text to travel in the file, where the format has room for it.
    """
    execution, (layers, write) = Execution(dtype=dtype), FORMATS[format]
    with torch.device("meta"):
        model = sequence_model(config, layers if config.recurrent else fast)
        if not config.recurrent and config.positions == "sinusoidal":
            model.embedding = OpenEmbedding(config.input_size, config.hidden_size)
    named = {n: rounded(from_numpy(a, execution), execution) for n, a in arrays.items()}
    model.load_state_dict(named, assign=True)
    program = Answers(config, execution, model, units).eval().requires_grad_(False)
    B, T = 3, min(5, config.longest or 5)  # of the example that is traced
    inputs = torch.zeros(B, T, config.input_size, dtype=torch.float64)
    example = {"inputs": inputs, "lengths": torch.full((B,), T)}
    file = io.BytesIO()
    with quiet():
        write(program, example, file, {RECORD: record})
    return file.getvalue()


def run(content: bytes, format: str, inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Read a program as a stranger would, who has nothing but the file, and run it."""
    file = io.BytesIO(content)
    with quiet(), torch.no_grad():
        program = torch.jit.load(file) if format == "torchscript" else torch.export.load(file)
        program = program if format == "torchscript" else program.module()
        return program(inputs=torch.tensor(inputs), lengths=torch.tensor(lengths)).numpy()


@contextmanager
def quiet():
    """Silence what torch says of TorchScript: that it is deprecated, and of ways to trace wrongly.

    Whether a trace is wrong is seen by running it at other sizes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def write_torchscript(program, example, file, extra):
    """Trace the kernels of `fast.py`; a trace has no loops, so none may run in Python."""
    program(**example)  # makes the loops, as one trace cannot begin within another
    traced = torch.jit.trace(program, example_kwarg_inputs=example, check_trace=False)
    torch.jit.save(traced, file, _extra_files=extra)


def write_torch_export(program, example, file, extra):
    """Export loops by `scan`; torch.export unrolls any other, that of the LSTM kernel included."""
    batch = torch.export.Dim("batch", min=1)
    time = torch.export.Dim("time", min=1, max=program.config.longest)
    shapes = {"inputs": {0: batch, 1: time}, "lengths": {0: batch}}
    exported = torch.export.export(program, (), example, dynamic_shapes=shapes)
    torch.export.save(exported, file, extra_files=extra)


def unroll_scan(cell_with, weights, inputs, valid, state, reverse, carry=AS_IT_IS, **options):
    """Unroll a cell as `recurrent.unroll` does, by a loop that stays one when exported."""
    from torch._higher_order_ops.scan import scan  # a prototype in torch 2.13

    once = cell_with(weights, **options)
    twice = options.get("reset_after") is False  # it reads weight_hh whole and in part

    def advance(state, now):
        x, here = now
        cell = once
        if twice:  # what a scan's step reads may not share memory
            cell = cell_with(weights | {"weight_hh": weights["weight_hh"].clone()}, **options)
        advanced = carried(cell, carry)({"x": x}, tuple(state))
        held = [torch.where(here, new, old) for new, old in zip(advanced, state, strict=True)]
        return held, torch.where(here, held[0], 0.0)

    time_first = [inputs.transpose(0, 1), valid.T[..., None]]
    state, outputs = scan(advance, [part.clone() for part in state], time_first, reverse=reverse)
    return (outputs.transpose(0, 1),), tuple(state)


@cache
def scripted(cell_with, sizes, carry, **options):
    """Script a time loop around one step, which is traced.

    Args:
      cell_with: `rnn_with`, `gru_with` or `lstm_with` of `recurrent.py`.
      sizes: shape and dtype of the step's readings, of its states, of its weights by their names.
      carry, options: what `carried` and `cell_with` take beside.
    """
    names = [name for name, _ in sizes[2]]

    def step(x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        own = dict(zip(names, weights, strict=True))
        return list(carried(cell_with(own, **options), carry)({"x": x}, tuple(state)))

    def zeros(shape, dtype):
        return torch.zeros(shape, dtype=dtype)

    weights = [zeros(*size) for _, size in sizes[2]]
    example = zeros(*sizes[0]), [zeros(*size) for size in sizes[1]], weights
    advance = torch.jit.trace(step, example, strict=False)

    def loop(
        inputs: Tensor, valid: Tensor, state: list[Tensor], weights: list[Tensor], reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        for n in range(inputs.shape[1]):
            t = inputs.shape[1] - 1 - n if reverse else n
            here = valid[:, t, None]
            held: list[Tensor] = []
            for new, old in zip(advance(inputs[:, t], state, weights), state):  # noqa: B905  TorchScript has no strict
                held.append(torch.where(here, new, old))
            state = held
            outputs.append(torch.where(here, state[0], 0.0))
        if reverse:
            outputs.reverse()
        return torch.stack(outputs, dim=1), state

    return torch.jit.script(loop)


def unroll_scripted(cell_with, weights, inputs, valid, state, reverse, carry, **options):
    """Unroll a cell by a script, as a trace has no loops."""
    x, *states = (((1, int(part.shape[-1])), part.dtype) for part in (inputs, *state))
    named = tuple((name, (tuple(map(int, w.shape)), w.dtype)) for name, w in weights.items())
    sizes = x, tuple(states), named  # whole numbers, also while a trace records them
    loop = scripted(cell_with, sizes, carry, **options)
    outputs, last = loop(inputs, valid, list(state), list(weights.values()), reverse)
    return (outputs,), tuple(last)


def scripting(kernel: Callable, cell_with: Callable) -> Callable:
    """Return a layer's unrolling by torch's kernel, and by a script where there is none.

    Nor is there one for a state that is wider than the readings: some processors' would round it.
    """
    slowly = partial(unroll_scripted, cell_with)

    def run(weights, inputs, valid, state, *others, **options):
        if state[-1].dtype != inputs.dtype:
            return slowly(weights, inputs, valid, state, *others, **options)
        return kernel(weights, inputs, valid, state, *others, slowly=slowly, **options)

    return run


SCRIPTED = recurrent.with_unroll(
    fast,
    RNN=scripting(fast.unroll_rnn, recurrent.rnn_with),
    GRU=scripting(fast.unroll_gru, recurrent.gru_with),
    LSTM=scripting(fast.unroll_lstm, recurrent.lstm_with),
)
SCANNED = recurrent.with_unroll(
    recurrent,
    RNN=partial(unroll_scan, recurrent.rnn_with),
    GRU=partial(unroll_scan, recurrent.gru_with),
    LSTM=partial(unroll_scan, recurrent.lstm_with),
)
FORMATS = {
    "torchscript": (SCRIPTED, write_torchscript),
    "torch_export": (SCANNED, write_torch_export),
}
