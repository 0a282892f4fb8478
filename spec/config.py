"""What a model, an optimiser and a place to run are, as frozen dataclasses.

A configuration checks itself when it is made: an instance that exists is valid.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal

from spec.errors import ConfigError
from spec.options import option, validate

Task = Literal["regression", "classification"]
TASK_OF = {
    "squared_error": "regression",
    "quantile": "regression",
    "gaussian_nll": "regression",
    "cross_entropy": "classification",
}


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """Recurrent layers"""

    proj_size: int | None = option(
        None,
        "lstm: size of the hidden state, a product of the cell's output; none: hidden_size",
        "a whole number, 1 <= proj_size < hidden_size",
        lambda n: n >= 1,
    )
    peepholes: bool = option(False, "lstm: the gates see the cell state")
    coupled_gates: bool = option(False, "lstm: forget as much as comes in, f = 1 - i")
    layer_norm: bool = option(False, "lstm: normalise both products of the gates, and the state")
    forget_bias: float | None = option(
        None,
        "lstm: first bias of the forget gate; none: drawn as the others",
        "a finite number",
        lambda x: abs(x) < float("inf"),
    )
    recurrent_initializer: Literal["uniform", "orthogonal"] = option(
        "uniform", "first weights from state to gates: as torch, or each gate's orthogonal"
    )
    input_dropout: float = option(
        0.0,
        "recurrent: fraction of the readings dropped",
        "a number, 0 <= input_dropout < 1",
        lambda p: 0 <= p < 1,
    )
    recurrent_dropout: float = option(
        0.0,
        "recurrent: fraction of the state that a sequence's gates do not see, alike at every step",
        "a number, 0 <= recurrent_dropout < 1",
        lambda p: 0 <= p < 1,
    )
    zoneout: float = option(
        0.0,
        "recurrent: fraction of the state that a step leaves as it was",
        "a number, 0 <= zoneout < 1",
        lambda p: 0 <= p < 1,
    )
    residual: bool = option(False, "recurrent: layers after the first add what they read")
    truncated_bptt_steps: int | None = option(
        None,
        "recurrent: steps of a chunk, over whose start no gradient flows back; none: the sequence",
        "a whole number >= 1",
        lambda n: n >= 1,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.coupled_gates and self.forget_bias is not None:
            raise ConfigError("--forget_bias: --coupled_gates have no forget gate of their own")


# Options that are not for every model; see `Architecture.misses`.
ONLY_LSTM = ("proj_size", "peepholes", "coupled_gates", "layer_norm", "forget_bias")
ONLY_RECURRENT = tuple(item.name for item in fields(Recurrence))
ONLY_TRANSFORMER = (
    "feedforward_size",
    "positions",
    "max_length",
    "norm_first",
    "activation",
    "causal",
    "pooling",
)


@dataclass(frozen=True, kw_only=True)
class Architecture(Recurrence):
    """Model"""

    model: Literal[
        "rnn",
        "gru",
        "lstm",
        "rnn_attention",
        "gru_attention",
        "lstm_attention",
        "rnn_seq2seq",
        "gru_seq2seq",
        "lstm_seq2seq",
        "transformer",
    ] = option("lstm_attention", "which model")
    hidden_size: int = option(
        64, "hidden units of each layer and direction", "a whole number >= 1", lambda n: n >= 1
    )
    num_layers: int = option(
        1,
        "layers on top of each other",
        "a whole number from 1 to 1000",
        lambda n: 1 <= n <= 1000,
    )
    bidirectional: bool = option(False, "read each sequence in both directions")
    dropout: float = option(
        0.0,
        "fraction dropped between layers and before the head; transformer: also in its layers",
        "a number, 0 <= dropout < 1",
        lambda p: 0 <= p < 1,
    )
    nonlinearity: Literal["tanh", "relu"] = option("tanh", "of the rnn model")
    reset_after: bool = option(
        True,
        "gru: reset after the matrix product, as torch; --no-reset_after: before, as the paper",
    )
    score: Literal["additive", "dot", "general", "scaled_dot"] = option(
        "additive",
        "how attention over the steps compares: additive (Bahdanau) or a product (Luong)",
    )
    self_attention: bool = option(
        False,
        "models that end in _attention: the outputs first attend to each other, in --num_heads",
    )
    num_heads: int = option(
        4,
        "heads of a transformer or of --self_attention, which share the features evenly",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    feedforward_size: int | None = option(
        None,
        "transformer: units between a layer's two matrix products; none for 4 x hidden_size",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    positions: Literal["sinusoidal", "learned"] = option(
        "sinusoidal", "transformer: how a step's place in time is told"
    )
    max_length: int = option(
        512, "transformer: most steps of learned positions", "a whole number >= 1", lambda n: n >= 1
    )
    norm_first: bool = option(
        False, "transformer: normalise before each part of a layer (pre-norm), not after it"
    )
    activation: Literal["gelu", "gelu_tanh", "relu"] = option(
        "gelu", "transformer: between the two products; gelu_tanh is the approximation"
    )
    causal: bool = option(False, "transformer: a step attends to none after it")
    pooling: Literal["mean", "last", "attention"] = option(
        "mean", "transformer: what the head reads of all steps; attention: as seen from the last"
    )
    teacher_forcing: float = option(
        0.5,
        "seq2seq: how often a step of training is told the true value before it, not its forecast",
        "a number, 0 <= teacher_forcing <= 1",
        lambda p: 0 <= p <= 1,
    )

    @property
    def recurrent(self) -> bool:
        """Whether the encoder is recurrent layers."""
        return self.model != "transformer"

    @property
    def cell(self) -> str:
        """Name of the encoder, which is the recurrent cell's: rnn, gru or lstm; or transformer."""
        return self.model.removesuffix("_attention").removesuffix("_seq2seq")

    @property
    def decodes(self) -> bool:
        """Whether a decoder forecasts step by step, each step from the one before."""
        return self.model.endswith("_seq2seq")

    @property
    def attends(self) -> bool:
        """Whether attention over the encoder's outputs stands before the head."""
        return self.pooling == "attention" if not self.recurrent else self.model != self.cell

    @property
    def has_heads(self) -> bool:
        """Whether there is attention in several heads."""
        return self.self_attention or not self.recurrent

    @property
    def sees_ahead(self) -> bool:
        """Whether what is said at a step depends on the readings after it."""
        return self.bidirectional or not (self.recurrent or self.causal)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state_size(self) -> int:
        """Features of a hidden state."""
        return self.proj_size or self.hidden_size

    @property
    def encoded_size(self) -> int:
        """Features of one encoder output: the directions side by side."""
        return self.directions * self.state_size

    @property
    def longest(self) -> int | None:
        """Most steps of a sequence that the model can read; None for any number."""
        learned = not self.recurrent and self.positions == "learned"
        return self.max_length if learned else None

    def misses(self, name: str) -> str | None:
        """Say what an option is for that this architecture has not; None where it has that."""
        for names, what, has in (
            (("nonlinearity",), "the rnn cell", self.cell == "rnn"),
            (("reset_after",), "the gru cell", self.cell == "gru"),
            (ONLY_LSTM, "LSTM layers", self.cell == "lstm"),
            (ONLY_RECURRENT, "recurrent layers", self.recurrent),
            (("residual",), "a layer on top of another, --num_layers 2", self.num_layers > 1),
            (ONLY_TRANSFORMER, "the layers of a transformer", not self.recurrent),
            (("max_length",), "learned positions, --positions", self.positions == "learned"),
            (("score",), "attention over the steps", self.attends),
            (("num_heads",), "attention in heads, --self_attention", self.has_heads),
            (("teacher_forcing",), "a decoder, as _seq2seq", self.decodes),
        ):
            if name in names and not has:
                return what
        return None

    def check_every_step(self) -> None:
        """Raise ConfigError where the model answers but once a sequence."""
        if self.recurrent and self.model != self.cell:
            raise ConfigError(
                f"--every_step: --model {self.model} answers once a sequence; choose {self.cell} "
                "or transformer"
            )
        if not self.recurrent and self.pooling != "mean":
            raise ConfigError(
                f"--pooling {self.pooling}: --every_step pools no steps; leave it out"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(Architecture):
            what = self.misses(item.name)
            if what is not None and getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"--{item.name}: is for {what}, which --model {self.model} has not; leave it "
                    "out, or choose another"
                )
        if self.decodes and self.proj_size is not None:
            raise ConfigError(
                "--proj_size: a decoder starts from hidden and cell states of one size; leave it out"
            )
        if self.decodes and self.residual:
            raise ConfigError(
                "--residual: a decoder starts from the last layer's states, to which a residual "
                "layer adds nothing; leave it out"
            )
        if self.proj_size is not None and self.proj_size >= self.hidden_size:
            raise ConfigError(
                f"--proj_size {self.proj_size}: must be smaller than --hidden_size "
                f"{self.hidden_size}"
            )
        if self.self_attention and not self.model.endswith("_attention"):
            raise ConfigError(
                "--self_attention: is for the models that end in _attention; a transformer "
                "has it, the others have not"
            )
        if self.has_heads and self.encoded_size % self.num_heads:
            size = "hidden_size" if self.proj_size is None else "proj_size"
            raise ConfigError(
                f"--num_heads {self.num_heads}: must divide --{size} {self.state_size}"
                f"{' of two directions' * self.bidirectional}"
            )
        if self.bidirectional and not self.recurrent:
            raise ConfigError(
                "--bidirectional: is for recurrent layers; a transformer sees both directions "
                "unless --causal"
            )


def read_levels(text: str) -> tuple[float, ...]:
    """Read quantiles; raise ValueError where one is no number."""
    return tuple(map(float, text.split(",")))


def are_levels(text: str) -> bool:
    """Tell whether a text names quantiles: numbers that increase within 0 and 1."""
    try:
        levels = (0.0, *read_levels(text), 1.0)
    except ValueError:
        return False
    return all(low < high for low, high in pairwise(levels))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Loss"""

    loss: Literal["auto", "squared_error", "quantile", "gaussian_nll", "cross_entropy"] = option(
        "auto",
        "what training minimises; auto: squared_error for numbers, cross_entropy for classes",
    )
    quantiles: str | None = option(
        None,
        "of the quantile loss; none: 0.1,0.5,0.9",
        "increasing numbers between 0 and 1, such as 0.1,0.5,0.9",
        are_levels,
    )
    label_smoothing: float = option(
        0.0,
        "cross_entropy: share of a target that is spread evenly over all classes",
        "a number, 0 <= label_smoothing < 1",
        lambda x: 0 <= x < 1,
    )
    class_weights: Literal["balanced"] | None = option(
        None,
        "cross_entropy: balanced weighs a class by rows / (classes x its rows), of the training rows",
    )

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles, as numbers; none of another loss."""
        return read_levels(self.quantiles or "0.1,0.5,0.9") if self.loss == "quantile" else ()

    @property
    def outputs_per_target(self) -> int:
        """Numbers that the model says of one target."""
        return {"quantile": len(self.levels), "gaussian_nll": 2}.get(self.loss, 1)

    def __post_init__(self) -> None:
        validate(self)
        if self.quantiles is not None and self.loss != "quantile":
            raise ConfigError(
                f"--quantiles {self.quantiles}: is for --loss quantile; say that too, or leave it out"
            )
        if self.loss != "auto":
            self.check_task(TASK_OF[self.loss])

    def check_task(self, task: str) -> None:
        """Raise ConfigError where the loss or one of its options is for another task."""
        if self.loss != "auto" and TASK_OF[self.loss] != task:
            raise ConfigError(
                f"--loss {self.loss}: is for {TASK_OF[self.loss]}, and the task is {task}; "
                "choose another, or leave it out"
            )
        for name in ("label_smoothing", "class_weights"):
            if getattr(self, name) and task == "regression":
                raise ConfigError(
                    f"--{name} {getattr(self, name)}: is for classification, and the task is "
                    "regression; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Objective, Architecture):
    """An architecture with the sizes that the data decide, and what it is trained to minimise."""

    task: Task = option("regression", "what the outputs are")
    input_size: int = option(
        1, "features of each time step", "a whole number >= 1", lambda n: n >= 1
    )
    output_size: int = option(
        1,
        "classes, or targets times the outputs that the loss takes of each",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    every_step: bool = option(False, "predict at every step, not once a sequence")
    forecast_steps: int = option(
        1, "seq2seq: steps that share the outputs evenly", "a whole number >= 1", lambda n: n >= 1
    )
    feedback: str = option(
        "0",
        "seq2seq: positions of the targets among the features, as 2,0",
        "different whole numbers below input_size, one for each target of a step",
    )

    def __post_init__(self) -> None:
        Architecture.__post_init__(self)
        Objective.__post_init__(self)
        if self.decodes and self.task != "regression":
            raise ConfigError(
                f"--model {self.model}: forecasts numbers, the targets are labels; choose another"
            )
        self.check_task(self.task)
        if self.every_step:
            self.check_every_step()
        if self.output_size % self.outputs_per_target:
            raise ConfigError(
                f"output_size {self.output_size}: --loss {self.loss} takes "
                f"{self.outputs_per_target} outputs of each target"
            )
        self.check_forecast()

    def check_forecast(self) -> None:
        """Raise ConfigError where the sizes of a forecast step by step do not fit each other."""
        if not self.decodes:
            if self.forecast_steps != 1:
                raise ConfigError(
                    f"forecast_steps {self.forecast_steps}: --model {self.model} has 1"
                )
            return
        known, size = set(map(str, range(self.input_size))), len(self.feedback.split(","))
        distinct = len(known.intersection(self.feedback.split(","))) == size
        if not distinct or size * self.forecast_steps != self.output_size:
            raise ConfigError(
                f"feedback {self.feedback!r}: expected different positions among {self.input_size} "
                f"features, of {self.output_size} outputs in {self.forecast_steps} steps"
            )

    @property
    def fed_back(self) -> list[int]:
        """Positions of the targets among the features, in the order of the targets."""
        return list(map(int, self.feedback.split(",")))

    @property
    def criterion(self) -> str:
        """The loss, where `auto` is decided by the task."""
        of_task = {"regression": "squared_error", "classification": "cross_entropy"}
        return of_task[self.task] if self.loss == "auto" else self.loss

    @property
    def head_size(self) -> int:
        """Features that the head reads."""
        return self.encoded_size * (2 if self.attends and self.recurrent else 1)

    def check_length(self, steps: int) -> None:
        """Raise ConfigError where sequences have more steps than there are learned positions."""
        if self.longest is not None and steps > self.longest:
            raise ConfigError(
                f"--max_length {self.max_length}: there are sequences of {steps} steps; train with "
                "more learned positions, or with --positions sinusoidal"
            )

    @property
    def units(self) -> int:
        """Units between the two matrix products of a transformer's layer."""
        return self.feedforward_size or 4 * self.hidden_size


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """Optimiser"""

    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = option("adam", "update rule")
    lr: float = option(1e-3, "learning rate", "a finite number > 0", lambda x: 0 < x < float("inf"))
    beta1: float = option(
        0.9, "decay of Adam's mean of gradients", "a number, 0 <= beta1 < 1", lambda x: 0 <= x < 1
    )
    beta2: float = option(
        0.999,
        "decay of Adam's and rmsprop's mean of squares",
        "a number, 0 <= beta2 < 1",
        lambda x: 0 <= x < 1,
    )
    eps: float = option(
        1e-8,
        "added to Adam's and rmsprop's root, outside it",
        "a finite number > 0",
        lambda x: 0 < x < float("inf"),
    )
    momentum: float = option(
        0.9, "of sgd and rmsprop; 0 for none", "a number, 0 <= momentum < 1", lambda x: 0 <= x < 1
    )
    weight_decay: float = option(
        0.0,
        "adamw: times lr off the weights; else: times the weights onto the gradient",
        "a finite number >= 0",
        lambda x: 0 <= x < float("inf"),
    )
    clip_norm: float | None = option(
        1.0, "largest global gradient norm", "a number > 0", lambda x: x > 0
    )
    schedule: Literal["constant", "cosine"] = option(
        "constant", "learning rate over the run; cosine falls to 0 at its end"
    )
    warmup_steps: int = option(
        0,
        "steps over which the rate rises to --lr",
        "a whole number, 0 <= warmup_steps < 2**31",
        lambda n: 0 <= n < 2**31,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(UpdateRule):
    """An update rule with the length of the run, which its schedule spans."""

    total_steps: int = option(
        1,
        "steps that a cosine spans, warm-up included",
        "a whole number, 1 <= total_steps < 2**31",
        lambda n: 1 <= n < 2**31,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "cosine" and self.warmup_steps >= self.total_steps:
            raise ConfigError(
                f"--warmup_steps {self.warmup_steps}: a cosine over {self.total_steps} steps "
                "leaves no room for it; warm up for less or train for longer"
            )


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Execution"""

    dtype: Literal["float32", "float64", "bfloat16", "float16"] = option(
        "float32", "of the model's arithmetic; of bfloat16 and float16 weights are float32"
    )
    device: str = option("cpu", "cpu, or cuda / gpu with an index after a colon: cuda:1")
    threads: int | None = option(
        None,
        "CPU threads of the framework",
        "a whole number from 1 to 1024",
        lambda n: 1 <= n <= 1024,
    )
    fast: bool = option(True, "fused kernels; --no-fast runs the readable time loop")
    remat: bool = option(
        False,
        "recurrent: compute states again on the way back; memory for sqrt(steps) of them; torch's "
        "kernels then round gradients otherwise, with --no-fast nothing does",
    )
    unroll: int = option(
        1,
        "recurrent: steps that JAX compiles as one iteration of its loop; torch has no such loop",
        "a whole number from 1 to 1024",
        lambda n: 1 <= n <= 1024,
    )
    cudnn: bool = option(
        False,
        "lstm: JAX's layers by cuDNN, in float32 on a GPU; torch's kernels are, there, anyway",
    )

    def __post_init__(self) -> None:
        validate(self)
        on_gpu = self.device.partition(":")[0] in ("cuda", "gpu")
        if self.cudnn and not (on_gpu and self.fast and self.dtype == "float32"):
            raise ConfigError(
                "--cudnn: is for float32 and fast layers on a GPU: --device cuda --dtype float32"
            )

    @property
    def master_dtype(self) -> str:
        """Of weights, optimiser, data and loss; see `spec.precision`."""
        return "float64" if self.dtype == "float64" else "float32"
