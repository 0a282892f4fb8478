"""The models in PyTorch: modules, and the functions of `spec.backend.Backend`."""

from torch_impl.attention import AdditiveAttention, MultiHeadAttention, MultiplicativeAttention
from torch_impl.cells import GRUCell, LSTMCell, LSTMState, RNNCell
from torch_impl.encoder import EncoderLayer, TransformerEncoder
from torch_impl.models import (
    AttentionModel,
    RecurrentModel,
    Seq2SeqModel,
    TransformerModel,
    sequence_model,
)
from torch_impl.recurrent import GRU, LSTM, RNN
from torch_impl.training import export_arrays, init_state, predict, train_step

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdditiveAttention",
    "AttentionModel",
    "EncoderLayer",
    "GRUCell",
    "LSTMCell",
    "LSTMState",
    "MultiHeadAttention",
    "MultiplicativeAttention",
    "RNNCell",
    "RecurrentModel",
    "Seq2SeqModel",
    "TransformerEncoder",
    "TransformerModel",
    "export_arrays",
    "init_state",
    "predict",
    "sequence_model",
    "train_step",
]
