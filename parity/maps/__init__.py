"""Ready maps from torch.nn's layers to those of flax.linen, flax.nnx, Equinox, Haiku and Keras 3.

    from parity import compare, maps

    weights = maps.join({
        "Dense_0": maps.linen.linear("0."),
        "RNN_0.cell": maps.linen.lstm_cell("1."),
    })
    compare(torch_model, jax_fn, inputs, params=params, weights=weights)

Every maker takes `prefix`, what stands before the layer's own names in the torch model ("encoder.0.");
that of a recurrent cell also `layer`, a number or None for torch.nn.LSTMCell and its like, and
`reverse`. What torch has and a map does not read, what JAX has and a map does not give, and what has
another shape is listed by `parity.weights.convert`, given the tree of JAX parameters.

A bias that torch lacks is left out; a library that always has one then lists it as without value.
"""

from parity.maps import equinox, haiku, keras, linen, nnx
from parity.maps.layers import Map, join

__all__ = ["Map", "equinox", "haiku", "join", "keras", "linen", "nnx"]
