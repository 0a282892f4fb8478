"""A Transformer's encoder: layers of self-attention and a feed-forward network.

Dimensions: B batch, T time, D input features, H features of a step, N heads, U units of the
feed-forward network.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn, relu, tanh
from torch.special import erfc

from spec.params import layer_norm_schema, positions_schema, sinusoidal_positions
from torch_impl.arrays import add_parameters, in_float32
from torch_impl.attention import MultiHeadAttention, dot_product_attention
from torch_impl.carry import dropout
from torch_impl.cells import standardize
from torch_impl.recurrent import real_steps


class Embedding(nn.Linear):
    """Turn each reading into H features and add its place in time.

        x_t = W reading_t + b + position_t

    Positions are sines and cosines, or learned: a parameter "positions" [max_length, H].

    Args:
      inputs: readings [B, T, D], T at most max_length where positions are learned.

    Returns:
      x [B, T, H].

    Source: Vaswani et al. (2017), section 3.5; Gehring et al. (2017) for learned positions.
    """

    def __init__(self, input_size: int, size: int, max_length: int | None = None):
        super().__init__(input_size, size)
        self.register_parameter("positions", None)
        if max_length is not None:
            add_parameters(self, positions_schema(max_length, size))

    def forward(self, inputs: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        x = inputs @ self.weight.T + self.bias
        T, H = x.shape[1:]
        if self.positions is None:
            return x + torch.tensor(sinusoidal_positions(T, H), dtype=x.dtype, device=x.device)
        return x + self.positions[:T]


@in_float32
def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return x times the normal distribution function of x.

    By erfc, as 1 + erf is 0 too soon for x < 0.

    Source: Hendrycks & Gimpel (2016).
    """
    return x * 0.5 * erfc(-x * 0.5**0.5)


@in_float32
def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the approximation of `gelu` by tanh, which JAX takes by default and torch does not.

    Source: Hendrycks & Gimpel (2016).
    """
    return x * 0.5 * (1 + tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


class LayerNorm(nn.Module):
    """Shift and scale each row of [.., H] to mean 0 and variance 1, then by a weight and a bias.

    Source: Ba, Kiros & Hinton (2016).
    """

    def __init__(self, size: int):
        super().__init__()
        add_parameters(self, layer_norm_schema(size))

    def forward(self, x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        return standardize(x) * self.weight + self.bias


class EncoderLayer(nn.Module):
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

    norm, activations = LayerNorm, ACTIVATIONS

    def __init__(
        self,
        size: int,
        num_heads: int,
        units: int,
        activation: str = "gelu",
        norm_first: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation, self.norm_first, self.dropout = activation, norm_first, dropout
        self.self_attn = MultiHeadAttention(size, num_heads)
        self.linear1, self.linear2 = nn.Linear(size, units), nn.Linear(units, size)
        self.norm1, self.norm2 = self.norm(size), self.norm(size)

    def forward(
        self,
        x: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "#B 1 #T T"] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        attend: Callable = dot_product_attention,
    ) -> Float[Tensor, "B T H"]:
        def drop(name, x):
            return dropout(x, keep[name], self.dropout) if keep else x

        def attention(x):
            weights = keep["weights"] if keep else None
            return drop("attention", self.self_attn(x, mask, weights, self.dropout, attend))

        def feedforward(x):
            units = self.activations[self.activation](x @ self.linear1.weight.T + self.linear1.bias)
            y = drop("units", units) @ self.linear2.weight.T + self.linear2.bias
            return drop("feedforward", y)

        if self.norm_first:
            x = x + attention(self.norm1(x))
            return x + feedforward(self.norm2(x))
        x = self.norm1(x + attention(x))
        return self.norm2(x + feedforward(x))


def layer_masks(keep: Mapping[str, Tensor] | None, layer: int) -> dict[str, Tensor]:
    """Pick the dropout masks of one layer."""
    start = f"layer{layer}."
    return {n.removeprefix(start): m for n, m in (keep or {}).items() if n.startswith(start)}


def attention_mask(
    x: Float[Tensor, "B T H"], lengths: Int[Tensor, " B"] | None, causal: bool
) -> Bool[Tensor, "#B 1 #T T"] | None:
    """Tell which steps each may attend to: real ones, if `causal` none after it; None for all."""
    T = x.shape[1]
    if causal:  # what follows a sequence's end is after all its real steps
        return torch.ones(T, T, dtype=torch.bool, device=x.device).tril()[None, None]
    return None if lengths is None else real_steps(lengths, T)[:, None, None]


class TransformerEncoder(nn.Module):
    """Run encoder layers on top of each other, over sequences of unequal length.

    Parameters have the names, shapes and order of torch.nn.TransformerEncoder; with `norm_first`
    it ends in a norm.

    Args:
      x: steps [B, T, H]; what stands past a sequence's end is ignored, NaN included.
      lengths: real steps of each sequence [B]; None when all have T.
      keep: dropout masks "layer0.weights" .., as `EncoderLayer` takes them; None drops nothing.

    Returns:
      outputs [B, T, H], zero past each end.

    Source: Vaswani et al. (2017), section 3.1.
    """

    attend, layer = staticmethod(dot_product_attention), EncoderLayer

    def __init__(
        self,
        size: int,
        num_heads: int,
        units: int,
        num_layers: int = 1,
        activation: str = "gelu",
        norm_first: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.causal = causal
        self.layers = nn.ModuleList(
            self.layer(size, num_heads, units, activation, norm_first, dropout)
            for _ in range(num_layers)
        )
        self.norm = self.layer.norm(size) if norm_first else None

    def forward(
        self,
        x: Float[Tensor, "B T H"],
        lengths: Int[Tensor, " B"] | None = None,
        keep: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B T H"]:
        mask = attention_mask(x, lengths, self.causal)
        if lengths is not None:
            valid = real_steps(lengths, x.shape[1])
            # Zeros in the padding: a NaN there would reach the gradients as 0 * NaN.
            x = torch.where(valid[..., None], x, 0.0)
        for n, layer in enumerate(self.layers):
            x = layer(x, mask, layer_masks(keep, n), self.attend)
        x = x if self.norm is None else self.norm(x)
        return x if lengths is None else torch.where(valid[..., None], x, 0.0)
