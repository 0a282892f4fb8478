"""The layers of `recurrent.py` and `encoder.py` on torch's fused kernels, where they apply.

Dimensions: B batch, T time, D input features, H hidden units, N heads, K features of a head.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from torch_impl import encoder, recurrent
from torch_impl.attention import dot_product_attention
from torch_impl.carry import AS_IT_IS


def reverse_in_time(
    x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B T D"]:
    """Turn each sequence around within its own length; the padding stays behind it."""
    if valid is None:
        return x.flip(1)
    T = x.shape[1]
    source = (valid.sum(dim=1, keepdim=True) - 1 - torch.arange(T, device=x.device)) % T
    return x.take_along_dim(source[..., None], dim=1)


def last_valid(
    outputs: Float[Tensor, "B T H"], valid: Bool[Tensor, "B T"], first: Float[Tensor, "B H"]
) -> Float[Tensor, "B H"]:
    """Return each sequence's output at its last real step, `first` where it has none."""
    length = valid.sum(dim=1)[:, None, None]
    last = outputs.take_along_dim((length - 1).clamp(min=0), dim=1)
    return torch.where(length > 0, last, first[:, None])[:, 0]


def unroll_rnn(
    weights,
    inputs,
    valid,
    state,
    reverse,
    carry=AS_IT_IS,
    nonlinearity="tanh",
    slowly=recurrent.unroll_rnn,
):
    """Unroll `RNNCell` with the weights of one layer and direction; `slowly` what no kernel does."""
    if not carry.plain:
        given = weights, inputs, valid, state, reverse, carry
        return slowly(*given, nonlinearity=nonlinearity)
    kernel = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}[nonlinearity]
    return unroll_kernel(kernel, weights, inputs, valid, state, reverse)


def unroll_kernel(kernel, weights, inputs, valid, state, reverse):
    """Run a kernel that knows no lengths; each last state is picked from the outputs."""
    (first,) = state
    inputs = reverse_in_time(inputs, valid) if reverse else inputs
    train = torch.is_grad_enabled()  # which cuDNN demands for a way back
    outputs, last = kernel(
        inputs, first[None], list(weights.values()), True, 1, 0.0, train, False, True
    )
    last = last[0]
    if valid is not None:
        last = last_valid(outputs, valid, first)
        outputs = torch.where(valid[..., None], outputs, 0.0)
    return (reverse_in_time(outputs, valid) if reverse else outputs,), (last,)


def unroll_gru(
    weights,
    inputs,
    valid,
    state,
    reverse,
    carry=AS_IT_IS,
    reset_after=True,
    slowly=recurrent.unroll_gru,
):
    """Unroll `GRUCell` with the weights of one layer and direction; `slowly` what no kernel does."""
    if not (carry.plain and reset_after):
        given = weights, inputs, valid, state, reverse, carry
        return slowly(*given, reset_after=reset_after)
    return unroll_kernel(torch.gru, weights, inputs, valid, state, reverse)


def unroll_lstm(
    weights, inputs, valid, state, reverse, carry=AS_IT_IS, slowly=recurrent.unroll_lstm
):
    """Unroll `LSTMCell` with the weights of one layer and direction; `slowly` what no kernel does.

    The kernel knows no lengths. A further input, 1 in the padding, shuts the input gate and opens
    the forget gate until they are 0 and 1 exactly, which carries c past the end without rounding
    and lets no gradient in.
    """
    four = len(weights["weight_ih"]) == 4 * state[1].shape[1]
    fits = carry.plain and four and len(weights) == 4 + ("weight_hr" in weights)
    if not (fits and keeps_its_cell_state(inputs)):
        return slowly(weights, inputs, valid, state, reverse, carry)
    h, c = state
    weight_ih, *others = weights.values()
    inputs = reverse_in_time(inputs, valid) if reverse else inputs
    if valid is not None:
        inputs = torch.cat([inputs, (~valid)[..., None].to(inputs.dtype)], dim=-1)
        far = torch.finfo(weight_ih.dtype).max / 2  # float16 has no 1e30
        shut = weight_ih.new_tensor([-1e30, 1e30, 0.0, 0.0]).clamp(-far, far)
        shut = shut.repeat_interleave(c.shape[1])
        weight_ih = torch.cat([weight_ih, shut[:, None]], dim=1)
    train = torch.is_grad_enabled()  # which cuDNN demands for a way back
    first = h[None], c[None].to(h.dtype)
    outputs, last, c = torch.lstm(
        inputs, first, [weight_ih, *others], True, 1, 0.0, train, False, True
    )
    c = c.to(state[1].dtype)
    last = last[0]
    if valid is not None:
        last = last_valid(outputs, valid, h)
        outputs = torch.where(valid[..., None], outputs, 0.0)
    return (reverse_in_time(outputs, valid) if reverse else outputs,), (last, c[0])


def keeps_its_cell_state(inputs: Float[Tensor, "B T D"]) -> bool:
    """Tell whether the LSTM kernel for these inputs computes gates and c in float32 or more.

    On a CPU that is oneDNN's for bfloat16 and float16, which not every processor has; torch's own
    rounds c at each step.
    """
    known = torch.ops.mkldnn
    of_cpu = {
        torch.bfloat16: known._is_mkldnn_bf16_supported,
        torch.float16: known._is_mkldnn_fp16_supported,
    }
    return inputs.device.type != "cpu" or of_cpu.get(inputs.dtype, lambda: True)()


class RNN(recurrent.RNN):
    """`recurrent.RNN`, fast."""

    unroll = staticmethod(unroll_rnn)


class GRU(recurrent.GRU):
    """`recurrent.GRU`, fast."""

    unroll = staticmethod(unroll_gru)


class LSTM(recurrent.LSTM):
    """`recurrent.LSTM`, fast."""

    unroll = staticmethod(unroll_lstm)


def attend(query, key, value, mask=None, keep=None, rate=0.0):
    """Do what `dot_product_attention` does, by torch's kernel where no weight is dropped."""
    if keep is not None:  # the kernel draws masks of its own
        return dot_product_attention(query, key, value, mask, keep, rate)
    return scaled_dot_product_attention(query, key, value, mask)


class LayerNorm(encoder.LayerNorm):
    """`encoder.LayerNorm`, fast."""

    def forward(self, x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        return layer_norm(x, x.shape[-1:], self.weight, self.bias)


class EncoderLayer(encoder.EncoderLayer):
    """`encoder.EncoderLayer`, fast."""

    norm = LayerNorm
    activations = encoder.ACTIVATIONS | {
        "gelu": gelu,
        "gelu_tanh": partial(gelu, approximate="tanh"),
    }


class TransformerEncoder(encoder.TransformerEncoder):
    """`encoder.TransformerEncoder`, fast."""

    attend, layer = staticmethod(attend), EncoderLayer
