"""Whole models: a recurrent encoder, attention where asked for, and a linear head.

Dimensions: B batch, T time, D input features, O outputs (targets or class logits), L layers x
directions, H hidden units, F features of an encoder output, G features that the head reads.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spec.config import ModelConfig
from torch_impl import fast, recurrent
from torch_impl.attention import AdditiveAttention
from torch_impl.recurrent import dropout, real_steps


class Output(NamedTuple):
    predictions: Float[Tensor, "B O"]
    attention: Float[Tensor, "B T"] | None


def masks_between_layers(config: ModelConfig, keep: Mapping[str, Tensor] | None) -> list[Tensor]:
    """Pick the dropout masks that belong between recurrent layers."""
    return [keep[f"layer{n}"] for n in range(config.num_layers - 1)] if keep else []


def last_layer(config: ModelConfig, h: Float[Tensor, "L B H"]) -> Float[Tensor, "B F"]:
    """Put the last layer's final hidden states side by side, forward then reverse."""
    return torch.cat(list(h[-config.directions :]), dim=-1)


def read_out(
    config: ModelConfig,
    head: nn.Linear,
    features: Float[Tensor, "B G"],
    keep: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B O"]:
    """Apply the head, after dropout where a mask is given."""
    if keep:
        features = dropout(features, keep["head"], config.dropout)
    return features @ head.weight.T + head.bias


def attend_and_read_out(
    model: nn.Module,
    outputs: Float[Tensor, "B T F"],
    h: Float[Tensor, "L B H"],
    lengths: Int[Tensor, " B"] | None,
    keep: Mapping[str, Tensor] | None,
) -> Output:
    """Let the last layer's final state attend to all outputs, and apply the head to both."""
    valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
    query = last_layer(model.config, h)
    context, weights = model.attention(query, outputs, valid)
    features = torch.cat([context, query], dim=-1)
    return Output(read_out(model.config, model.head, features, keep), weights)


class RNNModel(nn.Module):
    """Predict from the final hidden state of a plain recurrent network.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      h: first hidden state [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.rnn = layers.RNN(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
            config.dropout,
            config.nonlinearity,
        )
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        masks = masks_between_layers(self.config, keep)
        _, h = self.rnn(inputs, lengths, h, masks)
        features = last_layer(self.config, h)
        return Output(read_out(self.config, self.head, features, keep), None)


class GRUModel(nn.Module):
    """Predict from the final hidden state of a gated recurrent network.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      h: first hidden state [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.gru = layers.GRU(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
            config.dropout,
            config.reset_after,
        )
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        masks = masks_between_layers(self.config, keep)
        _, h = self.gru(inputs, lengths, h, masks)
        features = last_layer(self.config, h)
        return Output(read_out(self.config, self.head, features, keep), None)


class LSTMModel(nn.Module):
    """Predict from the final hidden state of an LSTM.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: first (h, c), each [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.lstm = layers.LSTM(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
            config.dropout,
        )
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        masks = masks_between_layers(self.config, keep)
        _, (h, _) = self.lstm(inputs, lengths, state, masks)
        features = last_layer(self.config, h)
        return Output(read_out(self.config, self.head, features, keep), None)


class GRUAttention(nn.Module):
    """Predict from a GRU's final hidden state and what it attends to among all its outputs.

        query = final hidden state of the last layer
        context = additive attention of the query over the last layer's outputs
        predictions = W [context; query] + b

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      h: first hidden state [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], attention weights [B, T], zero past each end.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.gru = layers.GRU(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
            config.dropout,
            config.reset_after,
        )
        self.attention = AdditiveAttention(
            config.encoded_size, config.encoded_size, config.hidden_size
        )
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        h: Float[Tensor, "L B H"] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        masks = masks_between_layers(self.config, keep)
        outputs, h = self.gru(inputs, lengths, h, masks)
        return attend_and_read_out(self, outputs, h, lengths, keep)


class LSTMAttention(nn.Module):
    """Predict from an LSTM's final hidden state and what it attends to among all its outputs.

        query = final hidden state of the last layer
        context = additive attention of the query over the last layer's outputs
        predictions = W [context; query] + b

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: first (h, c), each [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], attention weights [B, T], zero past each end.
    """

    def __init__(self, config: ModelConfig, layers: ModuleType = recurrent):
        super().__init__()
        self.config = config
        self.lstm = layers.LSTM(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            config.bidirectional,
            config.dropout,
        )
        self.attention = AdditiveAttention(
            config.encoded_size, config.encoded_size, config.hidden_size
        )
        self.head = nn.Linear(config.head_size, config.output_size)

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"] | None = None,
        state: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Output:
        masks = masks_between_layers(self.config, keep)
        outputs, (h, _) = self.lstm(inputs, lengths, state, masks)
        return attend_and_read_out(self, outputs, h, lengths, keep)


MODELS = {
    "rnn": RNNModel,
    "gru": GRUModel,
    "lstm": LSTMModel,
    "gru_attention": GRUAttention,
    "lstm_attention": LSTMAttention,
}


def sequence_model(config: ModelConfig, layers: ModuleType = fast) -> nn.Module:
    """Build the model that a configuration describes, on fast or on readable layers."""
    return MODELS[config.model](config, layers)
