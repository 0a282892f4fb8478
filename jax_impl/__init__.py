"""The models in JAX: pure functions, and the functions of `spec.backend.Backend`."""

from jax_impl.attention import additive_attention
from jax_impl.cells import LSTMState, gru_cell, lstm_cell, rnn_cell
from jax_impl.models import (
    SequenceModel,
    gru_attention,
    gru_model,
    lstm_attention,
    lstm_model,
    rnn_model,
)
from jax_impl.recurrent import gru, lstm, rnn
from jax_impl.training import export_arrays, init_state, predict, train_step

__all__ = [
    "LSTMState",
    "SequenceModel",
    "additive_attention",
    "export_arrays",
    "gru",
    "gru_attention",
    "gru_cell",
    "gru_model",
    "init_state",
    "lstm",
    "lstm_attention",
    "lstm_cell",
    "lstm_model",
    "predict",
    "rnn",
    "rnn_cell",
    "rnn_model",
    "train_step",
]
