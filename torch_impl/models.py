"""Whole models: recurrent layers or a Transformer, attention where asked for, and a linear head.

Dimensions: B batch, T time, D input features, O outputs (targets or class logits), L layers x
directions, H hidden units, F features of an encoder output, G features that the head reads; of a
forecast step by step K steps, M targets of each.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spec.config import ModelConfig
from torch_impl import encoder, fast, recurrent
from torch_impl.attention import AdditiveAttention, MultiHeadAttention, MultiplicativeAttention
from torch_impl.carry import dropout
from torch_impl.cells import LSTMState
from torch_impl.decoder import decode, decoder_cell
from torch_impl.recurrent import real_steps

State = Float[Tensor, "L B H"] | tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]


class Output(NamedTuple):
    predictions: Float[Tensor, "B O"] | Float[Tensor, "B T O"]
    attention: Float[Tensor, "B T"] | Float[Tensor, "B K T"] | None


def recurrent_layers(config: ModelConfig, layers: ModuleType) -> nn.Module:
    """Build the recurrent layers that a configuration names."""
    sizes = (
        config.input_size,
        config.hidden_size,
        config.num_layers,
        config.bidirectional,
        config.dropout,
    )
    kind, *own = {
        "rnn": (layers.RNN, config.nonlinearity),
        "gru": (layers.GRU, config.reset_after),
        "lstm": (layers.LSTM,),
    }[config.cell]
    return kind(*sizes, *own, config)


def attention_over_steps(config: ModelConfig) -> nn.Module:
    """Build the attention that a configuration names."""
    size = config.encoded_size
    if config.score == "additive":
        return AdditiveAttention(size, size, config.hidden_size)
    return MultiplicativeAttention(size, size, config.score)


def last_layer(
    config: ModelConfig,
    outputs: Float[Tensor, "B T F"],
    state: State,
    lengths: Int[Tensor, " B"] | None,
) -> Float[Tensor, "B F"]:
    """Put the last layer's last outputs side by side: forward at the end, reverse at step 0.

    They are its final hidden states, but for what residual layers add to them.
    """
    if config.residual:
        end = outputs[:, -1] if lengths is None else at_end(outputs, lengths)
        P = config.state_size
        return torch.cat([end[:, :P], outputs[:, 0, P:]], dim=-1)
    return last_states(config, state)[0]


def last_states(config: ModelConfig, state: State) -> tuple[Float[Tensor, "B F"], ...]:
    """Return the last layer's final states, directions side by side: h, of an LSTM c too."""
    parts = state if isinstance(state, LSTMState) else (state,)
    return tuple(torch.cat(list(part[-config.directions :]), dim=-1) for part in parts)


def at_end(outputs: Float[Tensor, "B T F"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B F"]:
    """Pick each sequence's last real step."""
    return outputs[torch.arange(outputs.shape[0], device=outputs.device), lengths - 1]


def read_out(
    config: ModelConfig,
    head: nn.Linear,
    features: Float[Tensor, "B G"],
    keep: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B O"]:
    """Apply the head, after dropout where a mask is given."""
    if keep and "head" in keep:
        features = dropout(features, keep["head"], config.dropout)
    return features @ head.weight.T + head.bias


def read_steps(
    config: ModelConfig,
    head: nn.Linear,
    outputs: Float[Tensor, "B T G"],
    lengths: Int[Tensor, " B"] | None,
    keep: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B T O"]:
    """Apply the head at every step, zero past each end."""
    predictions = read_out(config, head, outputs, keep)
    if lengths is None:
        return predictions
    return torch.where(real_steps(lengths, outputs.shape[1])[..., None], predictions, 0.0)


class RecurrentModel(nn.Module):
    """Predict from the final hidden state of recurrent layers, the part "rnn", "gru" or "lstm".

    With `config.every_step` at every step, from that step's output.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: first hidden state [L, B, H], of an LSTM the pair (h, c); None for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.

    Returns:
      predictions [B, O], or of every step [B, T, O], zero past each end; no attention.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.add_module(config.cell, recurrent_layers(config, layers))
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: State | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        outputs, state = getattr(self, self.config.cell)(inputs, lengths, state, keep)
        if self.config.every_step:
            return Output(read_steps(self.config, self.head, outputs, lengths, keep), None)
        features = last_layer(self.config, outputs, state, lengths)
        return Output(read_out(self.config, self.head, features, keep), None)


class AttentionModel(nn.Module):
    """Predict from recurrent layers' final hidden state and what it attends to among all outputs.

        query = final hidden state of the last layer
        keys = the last layer's outputs [, each attending to all in several heads]
        context = attention of the query over the keys
        predictions = W [context; query] + b

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: first hidden state [L, B, H], of an LSTM the pair (h, c); None for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.

    Returns:
      predictions [B, O], attention weights [B, T], zero past each end.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.add_module(config.cell, recurrent_layers(config, layers))
        if config.self_attention:
            self.self_attention = MultiHeadAttention(config.encoded_size, config.num_heads)
        self.attention = attention_over_steps(config)
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: State | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        outputs, state = getattr(self, self.config.cell)(inputs, lengths, state, keep)
        valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
        query = last_layer(self.config, outputs, state, lengths)
        if self.config.self_attention:
            mask = None if valid is None else valid[:, None, None]
            outputs = self.self_attention(outputs, mask)
        context, weights = self.attention(query, outputs, valid)
        features = torch.cat([context, query], dim=-1)
        return Output(read_out(self.config, self.head, features, keep), weights)


def encode(
    model: nn.Module,
    inputs: Float[Tensor, "B T D"],
    lengths: Int[Tensor, " B"] | None = None,
    keep: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B T F"]:
    """Run a Transformer model's embedding and encoder: outputs [B, T, F], zero past each end."""
    if lengths is not None:
        inputs = torch.where(real_steps(lengths, inputs.shape[1])[..., None], inputs, 0.0)
    x = model.embedding(inputs)
    x = dropout(x, keep["embedding"], model.config.dropout) if keep else x
    return model.transformer(x, lengths, keep)


class TransformerModel(nn.Module):
    """Predict from a Transformer's encoder, pooled over time.

        y = encoder(W_e readings + b_e + positions)
        pooled = mean of y, y at the last step, or what that attends to among all
        predictions = W pooled + b

    With `config.every_step` at every step, W y + b.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: None, as it has none; the other models have.
      keep: dropout masks as `spec.batch.keep_masks` names them; None drops nothing.

    Returns:
      predictions [B, O], or of every step [B, T, O], zero past each end; with pooling "attention"
      its weights [B, T], zero past each end.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.embedding = encoder.Embedding(config.input_size, config.hidden_size, config.longest)
        kind = (fast if layers is fast else encoder).TransformerEncoder
        self.transformer = kind(
            config.hidden_size,
            config.num_heads,
            config.units,
            config.num_layers,
            config.activation,
            config.norm_first,
            config.causal,
            config.dropout,
        )
        if config.attends:
            self.attention = attention_over_steps(config)
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        y, weights = encode(self, inputs, lengths, keep), None
        if self.config.every_step:
            return Output(read_steps(self.config, self.head, y, lengths, keep), None)
        pooled = y[:, -1] if lengths is None else at_end(y, lengths)
        if self.config.pooling == "attention":
            valid = None if lengths is None else real_steps(lengths, y.shape[1])
            pooled, weights = self.attention(pooled, y, valid)
        elif self.config.pooling == "mean":
            pooled = y.mean(dim=1) if lengths is None else y.sum(dim=1) / lengths[:, None]
        return Output(read_out(self.config, self.head, pooled, keep), weights)


class Seq2SeqModel(nn.Module):
    """Forecast a path by a decoder that starts where the encoder ends and attends to its outputs.

        h, [c] = final states of the encoder's last layer, directions side by side
        value = last reading of the targets
        K times: context = attention of h over the encoder's outputs
                 h, [c] = cell([value; context], h, [c])
                 value = W [context; h] + b

    The cell, the part "decoder", is of the encoder's kind and form, with F units: what the
    directions have together. What an option drops, holds or cuts over time is the encoder's alone.
    The attention prepares its keys once.

    Args:
      inputs: readings [B, T, D]; those of the targets stand at `config.fed_back`, scaled alike.
      lengths: real steps of each sequence [B]; None when all have T.
      state: first hidden state [L, B, H], of an LSTM the pair (h, c); None for zeros.
      keep: dropout masks as `spec.batch.keep_masks` names them, and "teacher" [B, K], which is True
        where the next step is told the target; None drops nothing and tells nothing.
      targets: what "teacher" tells, [B, O]; of no use without.

    Returns:
      predictions [B, O], O = K x M, step by step; attention weights [B, K, T], zero past each end.

    Source: Bahdanau, Cho & Bengio (2015); the directions side by side as in OpenNMT (Klein et al.,
    2017).
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.add_module(config.cell, recurrent_layers(config, layers))
        self.attention = attention_over_steps(config)
        self.decoder = decoder_cell(config)
        self.head = nn.Linear(config.head_size, len(config.fed_back))

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: State | None = None,
        keep: Mapping[str, Tensor] | None = None,
        targets: Float[Tensor, "B O"] | None = None,
    ) -> Output:
        config = self.config
        outputs, state = getattr(self, config.cell)(inputs, lengths, state, keep)
        valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
        keys = self.attention.keys(outputs, valid)
        last = inputs[:, -1] if lengths is None else at_end(inputs, lengths)
        path = config.forecast_steps, len(config.fed_back)

        def advance(x, state):
            if config.cell == "lstm":
                return tuple(self.decoder(x, LSTMState(*state)))
            return (self.decoder(x, *state),)

        def read(features, mask):
            mask = None if mask is None else {"head": mask}
            return read_out(config, self.head, features, mask)

        values, weights = decode(
            lambda query: self.attention.step(query, keys),
            advance,
            read,
            config.forecast_steps,
            last_states(config, state),
            last[:, config.fed_back],
            keep.get("head") if keep else None,
            None if targets is None else targets.unflatten(1, path),
            keep.get("teacher") if keep else None,
        )
        return Output(values.flatten(1), weights)


MODELS = {
    "rnn": RecurrentModel,
    "gru": RecurrentModel,
    "lstm": RecurrentModel,
    "rnn_attention": AttentionModel,
    "gru_attention": AttentionModel,
    "lstm_attention": AttentionModel,
    "rnn_seq2seq": Seq2SeqModel,
    "gru_seq2seq": Seq2SeqModel,
    "lstm_seq2seq": Seq2SeqModel,
    "transformer": TransformerModel,
}


def sequence_model(config: ModelConfig, layers: ModuleType = fast) -> nn.Module:
    """Build the model that a configuration describes, on fast or on readable layers."""
    return MODELS[config.model](config, layers)
