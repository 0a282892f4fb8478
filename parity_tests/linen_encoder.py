"""A Transformer's layer of flax's own parts, as it has none, and the map of torch's weights to it."""

import flax.linen as linen

from parity import maps

ACTIVATIONS = {
    "gelu": lambda x: linen.gelu(x, approximate=False),
    "gelu_tanh": lambda x: linen.gelu(x, approximate=True),
    "relu": linen.relu,
}


def norm(name: str | None = None) -> linen.LayerNorm:
    """LayerNorm with both defaults on which flax differs from torch written."""
    return linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


class EncoderLayer(linen.Module):
    """torch.nn.TransformerEncoderLayer; a mask says which to keep."""

    heads: int
    units: int
    activation: str = "gelu"
    norm_first: bool = False

    @linen.compact
    def __call__(self, x, mask):
        attention = linen.MultiHeadDotProductAttention(self.heads, name="self_attn")
        first, second = norm("norm1"), norm("norm2")
        linear1 = linen.Dense(self.units, name="linear1")
        linear2 = linen.Dense(x.shape[-1], name="linear2")

        def feed(x):
            return linear2(ACTIVATIONS[self.activation](linear1(x)))

        if self.norm_first:
            x = x + attention(first(x), mask=mask)
            return x + feed(second(x))
        x = first(x + attention(x, mask=mask))
        return second(x + feed(x))


def weights(prefix: str, heads: int, path: str = "") -> dict[str, maps.Map]:
    """Map the weights of torch's layer under `prefix` to those of `EncoderLayer` under `path`."""
    found = {
        f"{path}self_attn": maps.linen.multi_head_attention(f"{prefix}self_attn.", heads=heads)
    }
    found |= {f"{path}{n}": maps.linen.linear(f"{prefix}{n}.") for n in ("linear1", "linear2")}
    return found | {
        f"{path}{n}": maps.linen.layer_norm(f"{prefix}{n}.") for n in ("norm1", "norm2")
    }
