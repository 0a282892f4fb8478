"""The table of models, options and sizes that every suite walks.

All sizes differ, weights and biases are random and alike in scale, time is longer than one step,
padding holds NaN: an error in a transpose, a gate, a bias, a carry or a mask has nowhere to hide.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from spec.batch import keep_masks
from spec.config import ModelConfig, Recurrence
from spec.params import PLAIN, parameter_schema

B, T, H = 3, 6, 4


@dataclass(frozen=True)
class Case:
    """One model on one batch.

    Attributes:
      ragged: lengths differ, from 1 to T; what stands past an end is NaN.
      state: initial states are given, else they are 0.
      steps: of a forecast step by step, where `teacher` is how often the true value is told.
      every_step: it predicts at every step, not once a sequence.
    """

    model: str
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    features: int = 3
    state: bool = False
    task: str = "regression"
    dropout: float = 0.0
    nonlinearity: str = "tanh"
    reset_after: bool = True
    positions: str = "sinusoidal"
    norm_first: bool = False
    activation: str = "gelu"
    causal: bool = False
    pooling: str = "mean"
    score: str = "additive"
    self_attention: bool = False
    options: Recurrence = PLAIN
    steps: int = 1
    teacher: float = 0.0
    every_step: bool = False

    def __str__(self) -> str:
        words = [self.model if self.nonlinearity == "tanh" else f"{self.model}_relu"]
        words += ["reset-before"] * (not self.reset_after)
        words += ["learned"] * (self.positions == "learned") + ["pre-norm"] * self.norm_first
        words += [self.activation] * (self.activation != "gelu") + ["causal"] * self.causal
        words += [self.pooling] * (self.pooling != "mean")
        words += [self.score] * (self.score != "additive") + ["self"] * self.self_attention
        words += self.option_words
        words += [f"{self.steps}steps"] * (self.steps > 1)
        words += [f"{self.layers}layers"] * (self.layers > 1)
        words += ["bidirectional"] * self.bidirectional + ["ragged"] * self.ragged
        words += ["univariate"] * (self.features == 1) + ["state"] * self.state
        words += ["every-step"] * self.every_step
        words += ["classes"] * (self.task == "classification") + ["dropout"] * (self.dropout > 0)
        words += ["taught"] * (self.teacher == 1) + ["half-taught"] * (0 < self.teacher < 1)
        return "-".join(words)

    @property
    def option_words(self) -> list[str]:
        """Say which options of the recurrent layers are set."""
        found = {f.name: getattr(self.options, f.name) for f in fields(Recurrence)}
        return [
            name if value is True else f"{name}={value}"
            for name, value in found.items()
            if value != getattr(Recurrence, name)
        ]

    @property
    def config(self) -> ModelConfig:
        own = {"hidden_size": H}
        if self.model == "transformer":
            own = {
                "hidden_size": 10,
                "feedforward_size": 7,
                "positions": self.positions,
                "norm_first": self.norm_first,
                "activation": self.activation,
                "causal": self.causal,
                "pooling": self.pooling,
            }
        if self.positions == "learned":
            own["max_length"] = 9
        if self.self_attention or self.model == "transformer":
            own["num_heads"] = 2
        if self.model.endswith("_seq2seq"):
            own["teacher_forcing"] = self.teacher
        return ModelConfig(
            model=self.model,
            num_layers=self.layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            nonlinearity=self.nonlinearity,
            reset_after=self.reset_after,
            score=self.score,
            self_attention=self.self_attention,
            **own,
            **{f.name: getattr(self.options, f.name) for f in fields(Recurrence)},
            every_step=self.every_step,
            task=self.task,
            input_size=self.features,
            output_size=5 if self.task == "classification" else self.steps * self.targets_of_a_step,
            forecast_steps=self.steps,
            feedback="2,0" if self.features > 1 else "0",
        )

    @property
    def targets_of_a_step(self) -> int:
        return 1 if self.model.endswith("_seq2seq") and self.features == 1 else 2

    @property
    def lengths(self) -> np.ndarray | None:
        return np.array([T - 1, 1, T]) if self.ragged else None

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """Draw everything once, from a stream of the case's own."""
        draw = np.random.default_rng(list(str(self).encode())).normal
        schema = parameter_schema(self.config)
        # Wide enough to bend the nonlinearities, and never near the kink of relu at 0.
        arrays = {name: draw(scale=0.6, size=spec.shape) for name, spec in schema.items()}
        arrays["inputs"] = draw(size=(B, T, self.features))
        if self.ragged:
            arrays["inputs"][np.arange(T) >= self.lengths[:, None]] = np.nan
        sizes = {"h": self.config.state_size, "c": H}
        path = (self.steps,) if self.config.decodes else ()
        for name in {"lstm": ("h", "c"), "transformer": ()}.get(self.config.cell, ("h",)):
            arrays[name] = draw(size=(self.layers * self.config.directions, B, sizes[name]))
        steps = (T,) if self.every_step else ()
        arrays["d predictions"] = draw(size=(B, *steps, self.config.output_size))
        arrays["d attention"] = draw(size=(B, *path, T))
        arrays["targets"] = draw(size=(B, *steps, self.config.output_size))
        return arrays

    @property
    def params(self) -> dict[str, np.ndarray]:
        return {name: self._arrays[name] for name in parameter_schema(self.config)}

    @property
    def first_state(self) -> dict[str, np.ndarray]:
        return {n: self._arrays[n] for n in ("h", "c") if n in self._arrays and self.state}

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """Everything that has a gradient: parameters, input, initial states, targets if told."""
        told = {"targets": self._arrays["targets"]} if self.teacher else {}
        return {**self.params, "inputs": self._arrays["inputs"], **self.first_state, **told}

    @property
    def cotangents(self) -> dict[str, np.ndarray]:
        names = ["predictions"] + ["attention"] * self.config.attends
        return {name: self._arrays[f"d {name}"] for name in names}

    @property
    def keep(self) -> dict[str, np.ndarray]:
        return keep_masks(self.config, 7, 1, B, T)

    @property
    def targets(self) -> np.ndarray:
        if self.task == "classification":
            labels = np.array([4, 0, 2])
            return (labels[:, None] + np.arange(T)) % 5 if self.every_step else labels
        return self._arrays["targets"]


CASES = [
    Case("rnn"),
    Case("rnn", nonlinearity="relu", state=True),
    Case("rnn", features=1, ragged=True, task="classification"),
    Case("rnn", layers=2, bidirectional=True, ragged=True, state=True, dropout=0.4),
    Case("rnn", layers=2, bidirectional=True, ragged=True, state=True, nonlinearity="relu"),
    Case("gru"),
    Case("gru", features=1, ragged=True, task="classification"),
    Case("gru", reset_after=False, state=True),
    Case("gru", layers=2, bidirectional=True, ragged=True, state=True, dropout=0.4),
    Case("gru", reset_after=False, layers=2, bidirectional=True, ragged=True, state=True),
    Case("gru", layers=2, bidirectional=True, options=Recurrence(residual=True)),
    Case("lstm"),
    Case("lstm", features=1, task="classification"),
    Case("lstm", state=True),
    Case("lstm", ragged=True),
    Case("lstm", bidirectional=True),
    Case("lstm", layers=3, dropout=0.4),
    Case("lstm", layers=2, dropout=0.4, task="classification"),
    Case("lstm", bidirectional=True, ragged=True, state=True),
    Case("lstm", layers=2, bidirectional=True, ragged=True, state=True, dropout=0.4),
    Case("rnn_attention", ragged=True, nonlinearity="relu"),
    Case("gru_attention", reset_after=False),
    Case("gru_attention", layers=2, bidirectional=True, ragged=True, state=True, dropout=0.4),
    Case("lstm_attention"),
    Case("lstm_attention", features=1, state=True),
    Case("lstm_attention", ragged=True, task="classification"),
    Case("lstm_attention", bidirectional=True),
    Case("lstm_attention", bidirectional=True, ragged=True, dropout=0.4),
    Case("lstm_attention", layers=2, ragged=True, state=True),
    Case(
        "lstm_attention",
        layers=2,
        bidirectional=True,
        ragged=True,
        state=True,
        dropout=0.4,
        task="classification",
    ),
    Case("lstm_attention", ragged=True, options=Recurrence(layer_norm=True, proj_size=3)),
    Case(
        "gru_attention",
        layers=2,
        bidirectional=True,
        ragged=True,
        dropout=0.4,
        options=Recurrence(residual=True, zoneout=0.3),
    ),
    Case("gru_attention", ragged=True, score="dot"),
    Case("gru_attention", bidirectional=True, score="general", dropout=0.4),
    Case("lstm_attention", ragged=True, score="scaled_dot", self_attention=True),
    Case("lstm_attention", bidirectional=True, self_attention=True, state=True),
    Case("transformer", ragged=True, pooling="attention", score="general", activation="relu"),
    Case("transformer"),
    Case("transformer", ragged=True, norm_first=True, task="classification"),
    Case("transformer", features=1, activation="gelu_tanh", causal=True, pooling="last"),
    Case("transformer", ragged=True, positions="learned", activation="relu", pooling="attention"),
    Case("transformer", layers=2, ragged=True, causal=True, pooling="last", dropout=0.4),
    Case("transformer", positions="learned", norm_first=True, pooling="attention", dropout=0.4),
    Case("rnn", ragged=True, every_step=True, dropout=0.4, state=True),
    Case("gru", features=1, ragged=True, every_step=True, task="classification"),
    Case("lstm", layers=2, bidirectional=True, ragged=True, every_step=True),
    Case("transformer", every_step=True, dropout=0.4, task="classification"),
    Case("transformer", ragged=True, every_step=True, causal=True, norm_first=True),
    Case("rnn_seq2seq", ragged=True, steps=3, nonlinearity="relu", teacher=0.5),
    Case(
        "gru_seq2seq", steps=2, bidirectional=True, reset_after=False, score="general", teacher=1.0
    ),
    Case("gru_seq2seq", steps=4, ragged=True, features=1, dropout=0.4),
    Case("lstm_seq2seq", steps=3),
    Case("lstm_seq2seq", steps=2, ragged=True, bidirectional=True, state=True, teacher=1.0),
    Case("lstm_seq2seq", steps=3, options=Recurrence(peepholes=True, coupled_gates=True)),
    Case(
        "lstm_seq2seq",
        steps=3,
        layers=2,
        ragged=True,
        state=True,
        score="scaled_dot",
        dropout=0.4,
        teacher=0.5,
    ),
]

# What the models above do not try: options of the recurrent layers, on layers alone.
LAYERS = [
    Case(
        "rnn",
        layers=2,
        ragged=True,
        options=Recurrence(zoneout=0.3, recurrent_dropout=0.4, residual=True),
    ),
    Case("gru", bidirectional=True, ragged=True, options=Recurrence(zoneout=0.3)),
    Case("gru", options=Recurrence(recurrent_dropout=0.4, input_dropout=0.2)),
    Case("gru", reset_after=False, state=True, options=Recurrence(recurrent_dropout=0.4)),
    Case("lstm", bidirectional=True, ragged=True, state=True, options=Recurrence(proj_size=3)),
    Case(
        "lstm",
        ragged=True,
        state=True,
        options=Recurrence(zoneout=0.3, recurrent_dropout=0.4, proj_size=3),
    ),
    Case("lstm", ragged=True, state=True, options=Recurrence(peepholes=True)),
    Case("lstm", state=True, options=Recurrence(coupled_gates=True)),
    Case("lstm", bidirectional=True, options=Recurrence(peepholes=True, coupled_gates=True)),
    Case("lstm", ragged=True, state=True, options=Recurrence(layer_norm=True)),
    Case(
        "lstm",
        layers=2,
        bidirectional=True,
        ragged=True,
        options=Recurrence(layer_norm=True, peepholes=True, proj_size=2, residual=True),
    ),
]
