"""The models in JAX: pure functions, and the functions of `spec.backend.Backend`."""

from jax_impl.attention import additive_attention, multi_head_attention, multiplicative_attention
from jax_impl.cells import LSTMState, gru_cell, lstm_cell, rnn_cell
from jax_impl.encoder import encoder_layer, transformer_encoder
from jax_impl.models import (
    SequenceModel,
    attention_model,
    recurrent_model,
    seq2seq_model,
    transformer_model,
)
from jax_impl.recurrent import gru, lstm, rnn
from jax_impl.training import export_arrays, init_state, predict, train_step

__all__ = [
    "LSTMState",
    "SequenceModel",
    "additive_attention",
    "attention_model",
    "encoder_layer",
    "export_arrays",
    "gru",
    "gru_cell",
    "init_state",
    "lstm",
    "lstm_cell",
    "multi_head_attention",
    "multiplicative_attention",
    "predict",
    "recurrent_model",
    "rnn",
    "rnn_cell",
    "seq2seq_model",
    "train_step",
    "transformer_encoder",
    "transformer_model",
]
