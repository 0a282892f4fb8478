"""Whole models: recurrent layers or a Transformer, attention where asked for, and a linear head.

Dimensions: B batch, T time, D input features, O outputs (targets or class logits), L layers x
directions, H hidden units, F features of an encoder output, G features that the head reads; of a
forecast step by step K steps, M targets of each.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jax_impl import encoder, fast, recurrent
from jax_impl.arrays import draw, to_tree
from jax_impl.attention import (
    additive_attention,
    additive_keys,
    additive_step,
    multi_head_attention,
    multiplicative_attention,
    multiplicative_keys,
    multiplicative_step,
)
from jax_impl.carry import dropout
from jax_impl.cells import LSTMState
from jax_impl.decoder import decode, decoder_cell
from jax_impl.recurrent import real_steps
from spec.config import ModelConfig
from spec.params import parameter_schema

State = Float[Array, "L B H"] | tuple[Float[Array, "L B H"], Float[Array, "L B H"]]


class Output(NamedTuple):
    predictions: Float[Array, "B O"] | Float[Array, "B T O"]
    attention: Float[Array, "B T"] | Float[Array, "B K T"] | None


def recurrent_layers(config: ModelConfig, layers: ModuleType) -> Callable:
    """Build the recurrent layers that a configuration names."""
    kind, own = {
        "rnn": (layers.rnn, {"nonlinearity": config.nonlinearity}),
        "gru": (layers.gru, {"reset_after": config.reset_after}),
        "lstm": (layers.lstm, {}),
    }[config.cell]
    return partial(kind, dropout=config.dropout, options=config, **own)


def attention_over_steps(config: ModelConfig) -> Callable:
    """Build the attention that a configuration names."""
    if config.score == "additive":
        return additive_attention
    return partial(multiplicative_attention, score=config.score)


def attention_step(config: ModelConfig) -> tuple[Callable, Callable]:
    """Return what prepares the keys of the attention that a configuration names, and its step."""
    if config.score == "additive":
        return additive_keys, additive_step
    return multiplicative_keys, partial(multiplicative_step, score=config.score)


def last_layer(
    config: ModelConfig,
    outputs: Float[Array, "B T F"],
    state: State,
    lengths: Int[Array, " B"] | None,
) -> Float[Array, "B F"]:
    """Put the last layer's last outputs side by side: forward at the end, reverse at step 0.

    They are its final hidden states, but for what residual layers add to them.
    """
    if config.residual:
        end = outputs[:, -1] if lengths is None else at_end(outputs, lengths)
        P = config.state_size
        return jnp.concatenate([end[:, :P], outputs[:, 0, P:]], axis=-1)
    return last_states(config, state)[0]


def last_states(config: ModelConfig, state: State) -> tuple[Float[Array, "B F"], ...]:
    """Return the last layer's final states, directions side by side: h, of an LSTM c too."""
    parts = state if isinstance(state, LSTMState) else (state,)
    return tuple(jnp.concatenate(list(part[-config.directions :]), axis=-1) for part in parts)


def at_end(outputs: Float[Array, "B T F"], lengths: Int[Array, " B"]) -> Float[Array, "B F"]:
    """Pick each sequence's last real step."""
    return outputs[jnp.arange(outputs.shape[0]), lengths - 1]


def read_out(
    config: ModelConfig,
    head: Mapping[str, Array],
    features: Float[Array, "B G"],
    keep: Mapping[str, Array] | None,
) -> Float[Array, "B O"]:
    """Apply the head, after dropout where a mask is given."""
    if keep and "head" in keep:
        features = dropout(features, keep["head"], config.dropout)
    return features @ head["weight"].T + head["bias"]


def read_steps(
    config: ModelConfig,
    head: Mapping[str, Array],
    outputs: Float[Array, "B T G"],
    lengths: Int[Array, " B"] | None,
    keep: Mapping[str, Array] | None,
) -> Float[Array, "B T O"]:
    """Apply the head at every step, zero past each end."""
    predictions = read_out(config, head, outputs, keep)
    if lengths is None:
        return predictions
    return jnp.where(real_steps(lengths, outputs.shape[1])[..., None], predictions, 0.0)


def recurrent_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: State | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    run = recurrent_layers(config, layers)
    outputs, state = run(params[config.cell], inputs, lengths, state, keep)
    if config.every_step:
        return Output(read_steps(config, params["head"], outputs, lengths, keep), None)
    features = last_layer(config, outputs, state, lengths)
    return Output(read_out(config, params["head"], features, keep), None)


def attention_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: State | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    run = recurrent_layers(config, layers)
    outputs, state = run(params[config.cell], inputs, lengths, state, keep)
    valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
    query = last_layer(config, outputs, state, lengths)
    if config.self_attention:
        mask = None if valid is None else valid[:, None, None]
        own = params["self_attention"]
        outputs = multi_head_attention(own, outputs, config.num_heads, mask)
    attend = attention_over_steps(config)
    context, weights = attend(params.get("attention", {}), query, outputs, valid)
    features = jnp.concatenate([context, query], axis=-1)
    return Output(read_out(config, params["head"], features, keep), weights)


def encode(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Float[Array, "B T F"]:
    """Run a Transformer model's embedding and encoder: outputs [B, T, F], zero past each end."""
    if lengths is not None:
        inputs = jnp.where(real_steps(lengths, inputs.shape[1])[..., None], inputs, 0.0)
    x = encoder.embedding(params["embedding"], inputs)
    x = dropout(x, keep["embedding"], config.dropout) if keep else x
    return (fast if layers is fast else encoder).transformer_encoder(
        params["transformer"],
        x,
        lengths,
        keep,
        num_heads=config.num_heads,
        activation=config.activation,
        norm_first=config.norm_first,
        causal=config.causal,
        rate=config.dropout,
    )


def transformer_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: None = None,
    keep: Mapping[str, Array] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    y, weights = encode(config, params, inputs, lengths, keep, layers), None
    if config.every_step:
        return Output(read_steps(config, params["head"], y, lengths, keep), None)
    pooled = y[:, -1] if lengths is None else at_end(y, lengths)
    if config.pooling == "attention":
        valid = None if lengths is None else real_steps(lengths, y.shape[1])
        attend = attention_over_steps(config)
        pooled, weights = attend(params.get("attention", {}), pooled, y, valid)
    elif config.pooling == "mean":
        pooled = y.mean(axis=1) if lengths is None else y.sum(axis=1) / lengths[:, None]
    return Output(read_out(config, params["head"], pooled, keep), weights)


def seq2seq_model(
    config: ModelConfig,
    params: Mapping[str, Mapping[str, Array]],
    inputs: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    state: State | None = None,
    keep: Mapping[str, Array] | None = None,
    targets: Float[Array, "B O"] | None = None,
    layers: ModuleType = recurrent,
) -> Output:
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
    run = recurrent_layers(config, layers)
    outputs, state = run(params[config.cell], inputs, lengths, state, keep)
    valid = None if lengths is None else real_steps(lengths, outputs.shape[1])
    prepare, attend = attention_step(config)
    own = params.get("attention", {})
    keys = prepare(own, outputs, valid)
    last = inputs[:, -1] if lengths is None else at_end(inputs, lengths)
    path = -1, config.forecast_steps, len(config.fed_back)
    advance = decoder_cell(config)

    def read(features, mask):
        mask = None if mask is None else {"head": mask}
        return read_out(config, params["head"], features, mask)

    values, weights = decode(
        lambda query: attend(own, query, keys),
        partial(advance, params["decoder"]),
        read,
        config.forecast_steps,
        last_states(config, state),
        last[:, jnp.array(config.fed_back)],
        keep.get("head") if keep else None,
        None if targets is None else targets.reshape(path),
        keep.get("teacher") if keep else None,
    )
    return Output(values.reshape(-1, config.output_size), weights)


MODELS = {
    "rnn": recurrent_model,
    "gru": recurrent_model,
    "lstm": recurrent_model,
    "rnn_attention": attention_model,
    "gru_attention": attention_model,
    "lstm_attention": attention_model,
    "rnn_seq2seq": seq2seq_model,
    "gru_seq2seq": seq2seq_model,
    "lstm_seq2seq": seq2seq_model,
    "transformer": transformer_model,
}


class SequenceModel(nn.Module):
    """Build the model that a configuration describes, on fast or on readable layers."""

    config: ModelConfig
    layers: ModuleType = fast

    @nn.compact
    def __call__(self, inputs, lengths=None, state=None, keep=None, targets=None):
        def first(rng, own):
            keys = jax.random.split(rng, len(own))
            both = zip(own.items(), keys, strict=True)
            return to_tree({n: draw(key, spec, inputs.dtype) for (n, spec), key in both})

        parts: dict[str, dict] = {}
        for name, spec in parameter_schema(self.config).items():
            part, _, own = name.partition(".")
            parts.setdefault(part, {})[own] = spec
        params = {part: self.param(part, first, own) for part, own in parts.items()}
        model = MODELS[self.config.model]
        told = {"targets": targets} if self.config.decodes else {}
        return model(self.config, params, inputs, lengths, state, keep, layers=self.layers, **told)
