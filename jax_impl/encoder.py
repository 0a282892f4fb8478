"""A Transformer's encoder: layers of self-attention and a feed-forward network.

Dimensions: B batch, T time, D input features, H features of a step, N heads, U units of the
feed-forward network.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jax.scipy.special import erfc
from jaxtyping import Bool, Float, Int

from jax_impl.arrays import in_float32, tanh
from jax_impl.attention import dot_product_attention, multi_head_attention
from jax_impl.carry import dropout
from jax_impl.cells import standardize
from jax_impl.recurrent import real_steps
from spec.params import sinusoidal_positions


def embedding(params: Mapping[str, Array], inputs: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
    """Turn each reading into H features and add its place in time.

        x_t = W reading_t + b + position_t

    Positions are sines and cosines, or learned: a parameter "positions" [max_length, H].

    Args:
      inputs: readings [B, T, D], T at most max_length where positions are learned.

    Returns:
      x [B, T, H].

    Source: Vaswani et al. (2017), section 3.5; Gehring et al. (2017) for learned positions.
    """
    x = inputs @ params["weight"].T + params["bias"]
    T, H = x.shape[1:]
    if "positions" not in params:
        return x + jnp.asarray(sinusoidal_positions(T, H), x.dtype)
    return x + params["positions"][:T]


@in_float32
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x times the normal distribution function of x.

    By erfc, as 1 + erf is 0 too soon for x < 0.

    Source: Hendrycks & Gimpel (2016).
    """
    return x * 0.5 * erfc(-x * 0.5**0.5)


@in_float32
def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the approximation of `gelu` by tanh, which JAX takes by default and torch does not.

    Source: Hendrycks & Gimpel (2016).
    """
    return x * 0.5 * (1 + tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3)))


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def layer_norm(params: Mapping[str, Array], x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Shift and scale each row of [.., H] to mean 0 and variance 1, then by a weight and a bias.

    Source: Ba, Kiros & Hinton (2016).
    """
    return standardize(x) * params["weight"] + params["bias"]


def encoder_layer(
    params: Mapping[str, Mapping[str, Any]],
    x: Float[Array, "B T H"],
    mask: Bool[Array, "#B 1 #T T"] | None = None,
    keep: Mapping[str, Array] | None = None,
    *,
    num_heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    rate: float = 0.0,
    attend: Callable = dot_product_attention,
) -> Float[Array, "B T H"]:
    """Let steps attend to each other, then pass each through a feed-forward network.

        post-norm:  x = norm1(x + attention(x)),  y = norm2(x + W_2 f(W_1 x + b_1) + b_2)
        pre-norm:   x = x + attention(norm1(x)),  y = x + W_2 f(W_1 norm2(x) + b_1) + b_2

    Parameters have the names, shapes and order of torch.nn.TransformerEncoderLayer.

    Args:
      x: steps [B, T, H].
      mask: which steps each may attend to, [B or 1, 1, T or 1, T]; None for all.
      keep: dropout masks "weights" [B, N, T, T], "attention" and "feedforward" [B, T, H] and
        "units" [B, T, U]; None drops nothing.
      attend: `dot_product_attention`, or a kernel that does the same.

    Returns:
      y [B, T, H].

    Source: Vaswani et al. (2017), section 3.1; Xiong et al. (2020) for pre-norm.
    """

    def drop(name, x):
        return dropout(x, keep[name], rate) if keep else x

    def attention(x):
        weights = keep["weights"] if keep else None
        own = params["self_attn"]
        return drop(
            "attention", multi_head_attention(own, x, num_heads, mask, weights, rate, attend)
        )

    def feedforward(x):
        first, second = params["linear1"], params["linear2"]
        units = ACTIVATIONS[activation](x @ first["weight"].T + first["bias"])
        y = drop("units", units) @ second["weight"].T + second["bias"]
        return drop("feedforward", y)

    if norm_first:
        x = x + attention(layer_norm(params["norm1"], x))
        return x + feedforward(layer_norm(params["norm2"], x))
    x = layer_norm(params["norm1"], x + attention(x))
    return layer_norm(params["norm2"], x + feedforward(x))


def layer_masks(keep: Mapping[str, Array] | None, layer: int) -> dict[str, Array]:
    """Pick the dropout masks of one layer."""
    start = f"layer{layer}."
    return {n.removeprefix(start): m for n, m in (keep or {}).items() if n.startswith(start)}


def attention_mask(
    x: Float[Array, "B T H"], lengths: Int[Array, " B"] | None, causal: bool
) -> Bool[Array, "#B 1 #T T"] | None:
    """Tell which steps each may attend to: real ones, if `causal` none after it; None for all."""
    T = x.shape[1]
    if causal:  # what follows a sequence's end is after all its real steps
        return jnp.tri(T, dtype=bool)[None, None]
    return None if lengths is None else real_steps(lengths, T)[:, None, None]


def transformer_encoder(
    params: Mapping[str, Mapping[str, Any]],
    x: Float[Array, "B T H"],
    lengths: Int[Array, " B"] | None = None,
    keep: Mapping[str, Array] | None = None,
    *,
    num_heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    causal: bool = False,
    rate: float = 0.0,
    attend: Callable = dot_product_attention,
) -> Float[Array, "B T H"]:
    """Run encoder layers on top of each other, over sequences of unequal length.

    Parameters have the names, shapes and order of torch.nn.TransformerEncoder; with `norm_first`
    it ends in a norm.

    Args:
      x: steps [B, T, H]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      keep: dropout masks "layer0.weights" .., as `encoder_layer` takes them; None drops nothing.

    Returns:
      outputs [B, T, H], zero past each end.

    Source: Vaswani et al. (2017), section 3.1.
    """
    mask = attention_mask(x, lengths, causal)
    if lengths is not None:
        valid = real_steps(lengths, x.shape[1])
        # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
        x = jnp.where(valid[..., None], x, 0.0)
    for n in range(len(params["layers"])):
        x = encoder_layer(
            params["layers"][str(n)],
            x,
            mask,
            layer_masks(keep, n),
            num_heads=num_heads,
            activation=activation,
            norm_first=norm_first,
            rate=rate,
            attend=attend,
        )
    x = layer_norm(params["norm"], x) if norm_first else x
    return x if lengths is None else jnp.where(valid[..., None], x, 0.0)
