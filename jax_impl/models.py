"""Whole models: a recurrent encoder, attention where asked for, and a linear head.

Dimensions: B batch, T time, D input features, O outputs (targets or class logits), L layers x
directions, H hidden units, F features of an encoder output, G features that the head reads.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jax_impl import fast, recurrent
from jax_impl.arrays import to_tree
from jax_impl.attention import additive_attention
from jax_impl.recurrent import dropout, real_steps
from spec.config import ModelConfig
from spec.params import parameter_schema


class Output(NamedTuple):
    predictions: Float[Array, "B O"]
    attention: Float[Array, "B T"] | None


def masks_between_layers(config: ModelConfig, keep: Mapping[str, Array] | None) -> list[Array]:
    """Pick the dropout masks that belong between recurrent layers."""
    return [keep[f"layer{n}"] for n in range(config.num_layers - 1)] if keep else []


def last_layer(config: ModelConfig, h: Float[Array, "L B H"]) -> Float[Array, "B F"]:
    """Put the last layer's final hidden states side by side, forward then reverse."""
    return jnp.concatenate(list(h[-config.directions :]), axis=-1)


def read_out(
    config: ModelConfig,
    head: Mapping[str, Array],
    features: Float[Array, "B G"],
    keep: Mapping[str, Array] | None,
) -> Float[Array, "B O"]:
    """Apply the head, after dropout where a mask is given."""
    if keep:
        features = dropout(features, keep["head"], config.dropout)
    return features @ head["weight"].T + head["bias"]


def attend_and_read_out(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    outputs: Float[Array, "B T F"],
    h: Float[Array, "L B H"],
    lengths: Int[Array, " B"] | None,
    keep: Mapping[str, Array] | None,
) -> Output:
    """Let the last layer's final state attend to all outputs, and apply the head to both."""
    valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
    query = last_layer(config, h)
    context, weights = additive_attention(params["attention"], query, outputs, valid)
    features = jnp.concatenate([context, query], axis=-1)
    return Output(read_out(config, params["head"], features, keep), weights)


def rnn_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
    """Predict from the final hidden state of a plain recurrent network.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      h: first hidden state [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """
    masks = masks_between_layers(config, keep)
    _, h = layers.rnn(params["rnn"], inputs, lengths, h, masks, config.dropout, config.nonlinearity)
    features = last_layer(config, h)
    return Output(read_out(config, params["head"], features, keep), None)


def gru_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
    """Predict from the final hidden state of a gated recurrent network.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      h: first hidden state [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """
    masks = masks_between_layers(config, keep)
    _, h = layers.gru(params["gru"], inputs, lengths, h, masks, config.dropout, config.reset_after)
    features = last_layer(config, h)
    return Output(read_out(config, params["head"], features, keep), None)


def lstm_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: tuple[Float[Array, "L B H"], Float[Array, "L B H"]] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
    """Predict from the final hidden state of an LSTM.

    Args:
      inputs: readings [B, T, D].
      lengths: real steps of each sequence [B]; None when all have T.
      state: first (h, c), each [L, B, H]; None for zeros.
      keep: dropout masks "layer0" .. [B, T, F] and "head" [B, G]; None drops nothing.

    Returns:
      predictions [B, O], no attention.
    """
    masks = masks_between_layers(config, keep)
    _, (h, _) = layers.lstm(params["lstm"], inputs, lengths, state, masks, config.dropout)
    features = last_layer(config, h)
    return Output(read_out(config, params["head"], features, keep), None)


def gru_attention(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    h: Float[Array, "L B H"] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    masks = masks_between_layers(config, keep)
    rest = masks, config.dropout, config.reset_after
    outputs, h = layers.gru(params["gru"], inputs, lengths, h, *rest)
    return attend_and_read_out(config, params, outputs, h, lengths, keep)


def lstm_attention(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: tuple[Float[Array, "L B H"], Float[Array, "L B H"]] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    masks = masks_between_layers(config, keep)
    outputs, (h, _) = layers.lstm(params["lstm"], inputs, lengths, state, masks, config.dropout)
    return attend_and_read_out(config, params, outputs, h, lengths, keep)


MODELS = {
    "rnn": rnn_model,
    "gru": gru_model,
    "lstm": lstm_model,
    "gru_attention": gru_attention,
    "lstm_attention": lstm_attention,
}


class SequenceModel(nn.Module):
    """Build the model that a configuration describes, on fast or on readable layers."""

    config: ModelConfig
    layers: ModuleType = fast

    @nn.compact
    def __call__(self, inputs, lengths=None, state=None, keep=None):
        def even(rng, schema):
            return {
                name: jax.random.uniform(jax.random.fold_in(rng, n), shape, inputs.dtype, -b, b)
                for n, (name, (shape, b)) in enumerate(schema.items())
            }

        schema = to_tree(parameter_schema(self.config))
        params = {part: self.param(part, even, own) for part, own in schema.items()}
        model = MODELS[self.config.model]
        return model(self.config, params, inputs, lengths, state, keep, self.layers)
