"""Gradients at kinks, ties, empty and padded input, and what lies outside of a range."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen
from jax import lax
from torch import nn
from torch.nn import functional

from parity.differences.entry import difference
from parity.differences.expect import Raises, Warns

NAN, INF = float("nan"), float("inf")


def torch_grad(function, values):
    """Return the gradient of the sum of a function's results."""
    x = torch.tensor(values, requires_grad=True)
    function(x).sum().backward()
    return x.grad


def jax_grad(function, values):
    """The same in JAX."""
    return jax.grad(lambda x: function(x).sum())(jnp.array(values))


SHARED = (torch_grad, jax_grad)


@difference
class AbsGradientAtZero:
    """The gradient of |x| at 0, and so of the L1 loss of a perfect prediction."""

    def in_torch():
        return torch_grad(torch.abs, [-2.0, 0.0])

    torch_gives = (-1.0, 0.0)

    def in_jax():
        return jax_grad(jnp.abs, [-2.0, 0.0])

    jax_gives = (-1.0, 1.0)
    instead = "In JAX, multiply by a sign held constant."

    def same():
        def absolute(x):
            return x * lax.stop_gradient(jnp.sign(x))

        values = [-2.0, 0.0, 3.0]
        return torch_grad(torch.abs, values), jax_grad(absolute, values)

    source = ("torch.abs", "jax.numpy.abs", "jax#37820")


@difference
class ClipGradientAtItsBounds:
    """The gradient of clipping at the bounds: 1 in torch, half in JAX."""

    def in_torch():
        return torch_grad(lambda x: x.clamp(-1.0, 1.0), [-1.0, 1.0])

    torch_gives = (1.0, 1.0)

    def in_jax():
        return jax_grad(lambda x: x.clip(-1.0, 1.0), [-1.0, 1.0])

    jax_gives = (0.5, 0.5)
    instead = "In JAX, choose with `jnp.where`: the side that is chosen has the gradient."

    def same():
        def clip(x):
            return jnp.where(x < -1.0, -1.0, jnp.where(x > 1.0, 1.0, x))

        values = [-2.0, -1.0, 0.0, 1.0, 2.0]
        return torch_grad(lambda x: x.clamp(-1.0, 1.0), values), jax_grad(clip, values)

    source = ("torch.clamp", "jax.numpy.clip", "jax#37821")


@difference
class HardtanhGradientAtItsBounds:
    """The gradient of hardtanh at -1 and 1: 0 in torch, 1 in JAX."""

    def in_torch():
        return torch_grad(functional.hardtanh, [-1.0, 1.0])

    torch_gives = (0.0, 0.0)

    def in_jax():
        return jax_grad(jax.nn.hard_tanh, [-1.0, 1.0])

    jax_gives = (1.0, 1.0)
    instead = "`jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))`."

    def same():
        def hardtanh(x):
            return jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))

        values = [-2.0, -1.0, 0.5, 1.0]
        return torch_grad(functional.hardtanh, values), jax_grad(hardtanh, values)

    source = ("torch.nn.functional.hardtanh", "jax.nn.hard_tanh")


@difference
class LeakyReluGradientAtZero:
    """The gradient of the leaky ReLU at 0: the slope of the left in torch, of the right in JAX."""

    def in_torch():
        return torch_grad(functional.leaky_relu, [0.0])

    torch_gives = (0.01,)

    def in_jax():
        return jax_grad(jax.nn.leaky_relu, [0.0])

    jax_gives = (1.0,)
    instead = "`jnp.where(x > 0, x, 0.01 * x)`."

    def same():
        def leaky_relu(x):
            return jnp.where(x > 0, x, 0.01 * x)

        values = [-1.0, 0.0, 1.0]
        return torch_grad(functional.leaky_relu, values), jax_grad(leaky_relu, values)

    source = ("torch.nn.functional.leaky_relu", "jax.nn.leaky_relu")


@difference
class ReluByMaximum:
    """The gradient at 0 of ReLU and of max(x, 0): 0 and, in JAX when so written, a half."""

    def in_torch():
        return torch_grad(functional.relu, [0.0])

    torch_gives = (0.0,)

    def in_jax():
        return jax_grad(lambda x: jnp.maximum(x, 0.0), [0.0])

    jax_gives = (0.5,)
    instead = "`jax.nn.relu`; torch's maximum gives a half too."

    def same():
        values = [-1.0, 0.0, 1.0]
        return torch_grad(functional.relu, values), jax_grad(jax.nn.relu, values)

    source = ("torch.nn.functional.relu", "jax.nn.relu")


@difference
class MaximumGradientOfTies:
    """The gradient of a maximum over an axis with a tie: to one in torch, shared in JAX."""

    def in_torch():
        return torch_grad(lambda x: x.max(dim=0).values, [1.0, 1.0])

    torch_gives = (1.0, 0.0)

    def in_jax():
        return jax_grad(lambda x: x.max(axis=0), [1.0, 1.0])

    jax_gives = (0.5, 0.5)
    instead = "`x.amax(dim=0)` in torch, which shares."

    def same():
        values = [1.0, 3.0, 3.0]
        return torch_grad(lambda x: x.amax(dim=0), values), jax_grad(jnp.max, values)

    source = ("torch.max", "torch.amax", "jax.numpy.max")


@difference
class MedianGradientOfTies:
    """The gradient of a median with a tie: shared in torch, to one value in JAX."""

    def in_torch():
        return torch_grad(torch.median, [1.0, 1.0, 2.0])

    torch_gives = (0.5, 0.5, 0.0)

    def in_jax():
        return jax_grad(jnp.median, [1.0, 1.0, 2.0])

    jax_gives = (0.0, 1.0, 0.0)
    instead = "Write `torch.median(x, dim=0).values` on torch's side, which picks one too."

    def same():
        values = [3.0, 1.0, 2.0]
        return torch_grad(lambda x: x.median(dim=0).values, values), jax_grad(jnp.median, values)

    source = ("torch.median", "jax.numpy.median")


@difference
class NormGradientAtZero:
    """The gradient of a norm at 0: 0 in torch, NaN in JAX."""

    def in_torch():
        return torch_grad(torch.linalg.norm, [0.0, 0.0])

    torch_gives = (0.0, 0.0)

    def in_jax():
        return jax_grad(jnp.linalg.norm, [0.0, 0.0])

    jax_gives = (NAN, NAN)
    instead = "`optax.safe_norm(x, 0.0)`, or `jnp.where` on the input as well as on the result."

    def same():
        values = [[0.0, 0.0], [3.0, 4.0]]
        norms = jax.vmap(lambda x: optax.safe_norm(x, 0.0))
        return torch_grad(lambda x: x.norm(dim=-1), values), jax_grad(norms, values)

    source = ("torch.linalg.norm", "jax.numpy.linalg.norm")


@difference
class DeviationGradientOfConstants:
    """The gradient of the standard deviation of equal values: 0 in torch, NaN in JAX."""

    def in_torch():
        return torch_grad(torch.std, [1.0, 1.0])

    torch_gives = (0.0, 0.0)

    def in_jax():
        return jax_grad(jnp.std, [1.0, 1.0])

    jax_gives = (NAN, NAN)
    instead = "`jnp.sqrt(x.var() + eps)` on both sides."

    def same():
        values = [1.0, 1.0]
        ours = torch_grad(lambda x: (x.var(correction=0) + 1e-6).sqrt(), values)
        return ours, jax_grad(lambda x: jnp.sqrt(x.var() + 1e-6), values)

    source = ("torch.std", "jax.numpy.std")


@difference
class PowerGradientAtZero:
    """The gradient of x**x at 0: 0 in torch, NaN in JAX."""

    def in_torch():
        return torch_grad(lambda x: x**x, [0.0])

    torch_gives = (0.0,)

    def in_jax():
        return jax_grad(lambda x: x**x, [0.0])

    jax_gives = (NAN,)
    instead = "Keep x from 0 before the power, not after it."

    def same():
        values, least = [0.0, 0.5], 1e-3
        ours = torch_grad(lambda x: torch.where(x > least, x, least) ** x, values)
        return ours, jax_grad(lambda x: jnp.where(x > least, x, least) ** x, values)

    source = ("torch.pow", "jax.numpy.power")


@difference
class AngleGradientAtZero:
    """The gradient of atan2(x, x) at the origin: 0 in torch, NaN in JAX."""

    def in_torch():
        return torch_grad(lambda x: torch.atan2(x, x), [0.0])

    torch_gives = (0.0,)

    def in_jax():
        return jax_grad(lambda x: jnp.arctan2(x, x), [0.0])

    jax_gives = (NAN,)
    instead = "Replace the argument where both are 0, before the call."

    def same():
        def angle(x):
            return jnp.where(x == 0, 0.0, jnp.arctan2(x, jnp.where(x == 0, 1.0, x)))

        values = [0.0, 2.0]
        return torch_grad(lambda x: torch.atan2(x, x), values), jax_grad(angle, values)

    source = ("torch.atan2", "jax.numpy.arctan2")


@difference
class SignOfNan:
    """The sign of NaN: 0 in torch, NaN in JAX."""

    def in_torch():
        return torch.sign(torch.tensor(NAN))

    torch_gives = 0.0

    def in_jax():
        return jnp.sign(NAN)

    jax_gives = NAN
    instead = "`torch.where(x.isnan(), x, x.sign())`."

    def same():
        x = torch.tensor([NAN, -2.0])
        return torch.where(x.isnan(), x, x.sign()), jnp.sign(jnp.array([NAN, -2.0]))

    source = ("torch.sign", "jax.numpy.sign")


@difference
class UniqueNans:
    """Whether two NaNs are one unique value: no in torch, yes in JAX."""

    def in_torch():
        return torch.tensor([NAN, NAN, 1.0]).unique().numel()

    torch_gives = 3

    def in_jax():
        return jnp.unique(jnp.array([NAN, NAN, 1.0])).size

    jax_gives = 2
    instead = "`jnp.unique(x, equal_nan=False)`."

    def same():
        theirs = jnp.unique(jnp.array([NAN, NAN, 1.0]), equal_nan=False)
        return torch.tensor([NAN, NAN, 1.0]).unique(), theirs

    source = ("torch.unique", "jax.numpy.unique")


@difference
class DeviationOfOneValue:
    """The standard deviation of a single value: NaN in torch, 0 in JAX."""

    def in_torch():
        return torch.tensor([1.0]).std()

    torch_gives = Warns("degrees of freedom is <= 0", NAN)

    def in_jax():
        return jnp.array([1.0]).std()

    jax_gives = 0.0
    instead = "`correction=0` in torch."

    def same():
        return torch.tensor([1.0]).std(correction=0), jnp.array([1.0]).std()

    source = ("torch.std", "jax.numpy.std")


@difference
class CosineOfZero:
    """The cosine similarity with a zero vector: 0 in torch, NaN in optax."""

    def in_torch():
        return functional.cosine_similarity(torch.zeros(3), torch.ones(3), dim=0)

    torch_gives = 0.0

    def in_jax():
        return optax.cosine_similarity(jnp.zeros(3), jnp.ones(3))

    jax_gives = NAN
    instead = "`optax.cosine_similarity(a, b, epsilon=1e-8)`."

    def same():
        ours = functional.cosine_similarity(torch.zeros(3), torch.ones(3), dim=0)
        return ours, optax.cosine_similarity(jnp.zeros(3), jnp.ones(3), epsilon=1e-8)

    source = ("torch.nn.functional.cosine_similarity", "losses#optax.losses.cosine_similarity")


@difference
class DivisionOfIntegersByZero:
    """Integer division by zero raises in torch and gives a number in JAX."""

    def in_torch():
        return torch.tensor(7) // torch.tensor(0)

    torch_gives = Raises("RuntimeError", "ZeroDivisionError")

    def in_jax():
        return jnp.array(7) // jnp.array(0), jnp.array(7) % jnp.array(0)

    jax_gives = (-2, 0)
    instead = "Divide by a divisor that is never 0, and choose the result there yourself."

    def same():
        a, b, x, y = (library([7, n]) for library in (torch.tensor, jnp.array) for n in (7, 0))
        ours = torch.where(b != 0, a // torch.where(b != 0, b, 1), -1)
        return ours, jnp.where(y != 0, x // jnp.where(y != 0, y, 1), -1)

    source = ("torch.floor_divide", "jax.numpy.floor_divide")


@difference
class FloatToInteger:
    """Floats that do not fit an integer type: torch does as the processor, JAX saturates; NaN is 0."""

    def in_torch():
        x = torch.tensor([NAN, 3e9, -3e9])
        return x.to(torch.int32), torch.tensor([-1.5, 300.0]).to(torch.uint8)

    torch_gives = ((-2147483648, -2147483648, -2147483648), (255, 44))

    def in_jax():
        x = jnp.array([NAN, 3e9, -3e9])
        return x.astype(jnp.int32), jnp.array([-1.5, 300.0]).astype(jnp.uint8)

    jax_gives = ((0, 2147483647, -2147483648), (0, 255))
    instead = "Clip and replace NaN in floating point first."

    def same():
        x = np.array([NAN, 300.0, -1.5], np.float32)
        ours = torch.tensor(x).nan_to_num(0.0).clamp(0, 255).to(torch.uint8)
        return ours, jnp.nan_to_num(jnp.array(x), nan=0.0).clip(0, 255).astype(jnp.uint8)

    source = ("torch.Tensor.to", "jax.numpy.astype")
    since = "torch's side on x86 processors"


@difference
class TopKOfTies:
    """The places of the two largest of four equal values: JAX takes the first ones."""

    def in_torch():
        return torch.ones(4).topk(2).indices

    torch_gives = (2, 3)

    def in_jax():
        return lax.top_k(jnp.ones(4), 2)[1]

    jax_gives = (0, 1)
    instead = "A stable sort: `x.sort(descending=True, stable=True).indices[:k]`."

    def same():
        x = [1.0, 2.0, 2.0, 0.0, 2.0]
        ours = torch.tensor(x).sort(descending=True, stable=True).indices[:2]
        return ours, lax.top_k(jnp.array(x), 2)[1]

    source = ("torch.topk", "jax.lax.top_k")


@difference
class ArgsortOfTies:
    """Sorting keeps the order of equal values in JAX; in torch only if asked to.

    Whether the places of twenty equal values among forty rise.
    """

    def in_torch():
        places = torch.tensor([1.0, 0.0] * 20).argsort()[:20]
        return bool((places.diff() > 0).all())

    torch_gives = False

    def in_jax():
        places = jnp.argsort(jnp.array([1.0, 0.0] * 20))[:20]
        return bool((jnp.diff(places) > 0).all())

    jax_gives = True
    instead = "`x.argsort(stable=True)`."

    def same():
        ours = torch.tensor([1.0, 0.0] * 20).argsort(stable=True)
        return ours, jnp.argsort(jnp.array([1.0, 0.0] * 20))

    source = ("torch.argsort", "jax.numpy.argsort")


@difference
class AttentionOverNothing:
    """Attention of a query whose keys are all masked: 0 in torch's function, a mean in JAX.

    Flax, like JAX, fills in the lowest float, not -inf. `nn.MultiheadAttention` gives NaN.
    """

    def in_torch():
        q, k = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
        mask = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
        return functional.scaled_dot_product_attention(q, k, k, attn_mask=mask).ravel()

    torch_gives = (0.0, 0.0)

    def in_jax():
        q, k = jnp.ones((1, 1, 1, 2)), jnp.array([[[[1.0, 0.0]], [[0.0, 2.0]]]])
        mask = jnp.zeros((1, 1, 1, 2), bool)
        return jax.nn.dot_product_attention(q, k, k, mask=mask).ravel()

    jax_gives = (0.5, 1.0)
    instead = "Choose the result where no key is valid: `jnp.where(mask.any(-1), output, 0)`."

    def same():
        q, k = jnp.ones((1, 1, 1, 2)), jnp.array([[[[1.0, 0.0]], [[0.0, 2.0]]]])
        mask = jnp.zeros((1, 1, 1, 2), bool)
        theirs = jax.nn.dot_product_attention(q, k, k, mask=mask)
        q, k = (torch.tensor(np.array(x)).transpose(1, 2) for x in (q, k))
        keep = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
        ours = functional.scaled_dot_product_attention(q, k, k, attn_mask=keep)
        return ours.ravel(), jnp.where(mask.any(-1), theirs, 0.0).ravel()

    source = ("torch.nn.functional.scaled_dot_product_attention", "jax.nn.dot_product_attention")


@difference
class AttentionLayerOverNothing:
    """The same by the layers: NaN in torch, a mean in Flax."""

    def in_torch():
        attention, x = nn.MultiheadAttention(2, 1, batch_first=True), torch.ones(1, 2, 2)
        mask = torch.ones(1, 2, dtype=torch.bool)
        return attention(x, x, x, key_padding_mask=mask)[1][0, 0]

    torch_gives = (NAN, NAN)

    def in_jax():
        x, mask = jnp.ones((1, 2, 1, 2)), jnp.zeros((1, 1, 2, 2), bool)
        return linen.dot_product_attention_weights(x, x, mask=mask)[0, 0, 0]

    jax_gives = (0.5, 0.5)
    instead = "Softmax over the valid keys, then 0 where there are none."

    def same():
        scores, valid = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[True, True], [False, False]])
        ours, keep = torch.tensor(scores).float(), torch.tensor(valid)
        ours = torch.where(keep, torch.where(keep, ours, -1e30).softmax(-1), 0.0)
        return ours, jax.nn.softmax(jnp.array(scores), where=valid)

    source = ("torch.nn.MultiheadAttention", "flax.linen.layers/MultiHeadDotProductAttention")


@difference
class IgnoredLabel:
    """The label -100: torch leaves the row out, optax gives NaN."""

    def in_torch():
        logits, labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, -100])
        return functional.cross_entropy(logits, labels)

    torch_gives = 1.313262

    def in_jax():
        logits, labels = jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([0, -100])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    jax_gives = NAN
    instead = "A mask, and labels that exist under it: `rows.mean(where=labels >= 0)`."

    def same():
        logits, labels = [[0.0, 1.0], [0.0, 1.0]], [0, -100]
        ours = functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
        y = jnp.array(labels)
        loss = optax.softmax_cross_entropy_with_integer_labels
        return ours, loss(jnp.array(logits), y.clip(0)).mean(where=y >= 0)

    source = (
        "torch.nn.functional.cross_entropy",
        "losses#optax.losses.softmax_cross_entropy_with_integer_labels",
    )


@difference
class NegativeLabel:
    """The label -1: an error in torch, the last class in optax."""

    def in_torch():
        return functional.cross_entropy(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([-1]))

    torch_gives = Raises("IndexError", "Target -1 is out of bounds")

    def in_jax():
        logits, label = jnp.array([0.0, 1.0, 2.0]), jnp.array(-1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    jax_gives = 0.407606
    instead = "Check labels where they are read, in NumPy."
    source = (
        "torch.nn.functional.cross_entropy",
        "losses#optax.losses.softmax_cross_entropy_with_integer_labels",
    )


@difference
class LossOfOtherShape:
    """Predictions [3, 1] and targets [3]: torch warns and compares all pairs, optax raises."""

    def in_torch():
        return functional.mse_loss(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))

    torch_gives = Warns("Using a target size", 4.666667)

    def in_jax():
        return optax.squared_error(jnp.zeros((3, 1)), jnp.array([1.0, 2.0, 3.0]))

    jax_gives = Raises("ValueError", "Shape mismatch")
    instead = "Give both the same shape, and let warnings be errors in tests."

    def same():
        ours = functional.mse_loss(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]]))
        theirs = optax.squared_error(jnp.zeros((3, 1)), jnp.array([[1.0], [2.0], [3.0]]))
        return ours, theirs.mean()

    source = ("torch.nn.functional.mse_loss", "losses#optax.losses.squared_error")


@difference
class CertainAndWrong:
    """The binary cross-entropy of probability 0 for what happened: 100 in torch, inf by formula."""

    def in_torch():
        return functional.binary_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0]))

    torch_gives = 100.0

    def in_jax():
        return -jnp.log(jnp.array(0.0))

    jax_gives = INF
    instead = "Losses of logits on both sides, which need no bound."

    def same():
        logits, labels = [-200.0, 3.0], [1.0, 0.0]
        ours = functional.binary_cross_entropy_with_logits(
            torch.tensor(logits), torch.tensor(labels)
        )
        return ours, optax.sigmoid_binary_cross_entropy(jnp.array(logits), jnp.array(labels)).mean()

    source = (
        "torch.nn.functional.binary_cross_entropy",
        "losses#optax.losses.sigmoid_binary_cross_entropy",
    )


@difference
class NoTimeSteps:
    """A sequence of no steps: an error in torch, no outputs in Flax."""

    def in_torch():
        return nn.LSTM(2, 3)(torch.zeros(0, 1, 2))

    torch_gives = Raises("RuntimeError", "Expected sequence length to be larger than 0")

    def in_jax():
        rnn = linen.RNN(linen.SimpleCell(3))
        x = jnp.zeros((1, 0, 2))
        return jax.eval_shape(rnn.init_with_output, jax.random.key(0), x)[0].shape

    jax_gives = (1, 0, 3)
    instead = "Reject empty sequences where they are read."
    source = ("torch.nn.LSTM", "jax.lax.scan")


@difference
class LengthZero:
    """A sequence of length 0 in a padded batch: an error in torch, the state of the padding in Flax."""

    def in_torch():
        return nn.utils.rnn.pack_padded_sequence(torch.ones(2, 3, 1), [3, 0], batch_first=True)

    torch_gives = Raises("RuntimeError", "greater than 0")

    def in_jax():
        rnn = linen.RNN(linen.SimpleCell(2), return_carry=True)
        x, lengths = jnp.ones((2, 3, 1)), jnp.array([3, 0])
        (carry, _), _ = rnn.init_with_output(jax.random.key(0), x, seq_lengths=lengths)
        return bool((carry[0] == carry[1]).all())

    jax_gives = True
    instead = "Reject it where sequences are read, or hold the first state by a mask in the scan."
    source = ("torch.nn.utils.rnn.pack_padded_sequence", "flax.linen.layers/RNN")


@difference
class OutputsPastTheLength:
    """Outputs of a recurrent layer after a sequence's end: 0 in torch, of the padding in Flax."""

    def in_torch():
        x = nn.utils.rnn.pack_padded_sequence(torch.ones(1, 3, 1), [2], batch_first=True)
        rnn = nn.RNN(1, 2, batch_first=True)
        padded, _ = nn.utils.rnn.pad_packed_sequence(rnn(x)[0], batch_first=True, total_length=3)
        return (padded[0, 2] != 0).any()

    torch_gives = False

    def in_jax():
        rnn, x = linen.RNN(linen.SimpleCell(2)), jnp.ones((1, 3, 1))
        outputs, _ = rnn.init_with_output(jax.random.key(0), x, seq_lengths=jnp.array([2]))
        return (outputs[0, 2] != 0).any()

    jax_gives = True
    instead = "Zero them yourself, `jnp.where(steps < lengths[:, None], outputs, 0)`."

    def same():
        ours, x = nn.RNN(1, 2, batch_first=True), torch.ones(1, 3, 1)
        packed = nn.utils.rnn.pack_padded_sequence(x, [2], batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(ours(packed)[0], True, total_length=3)
        w_ih, w_hh, b_ih, b_hh = (p.detach().numpy() for p in ours.parameters())
        cell = {"i": {"kernel": w_ih.T, "bias": b_ih + b_hh}, "h": {"kernel": w_hh.T}}
        rnn, lengths = linen.RNN(linen.SimpleCell(2)), jnp.array([2])
        theirs = rnn.apply({"params": {"cell": cell}}, x.numpy(), seq_lengths=lengths)
        return out, jnp.where(jnp.arange(3)[:, None] < lengths[:, None, None], theirs, 0.0)

    source = ("torch.nn.utils.rnn.pad_packed_sequence", "flax.linen.layers/RNN", "flax#3208")


@difference
class ShortenedBatch:
    """A padded batch [2, 5] of which no sequence is longer than 3: torch returns [2, 3]."""

    def in_torch():
        x = nn.utils.rnn.pack_padded_sequence(torch.ones(2, 5, 1), [3, 2], batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(nn.RNN(1, 4)(x)[0], batch_first=True)
        return tuple(out.shape)

    torch_gives = (2, 3, 4)

    def in_jax():
        rnn, x = linen.RNN(linen.SimpleCell(4)), jnp.ones((2, 5, 1))
        run = jax.eval_shape(
            rnn.init_with_output, jax.random.key(0), x, seq_lengths=jnp.array([3, 2])
        )
        return run[0].shape

    jax_gives = (2, 5, 4)
    instead = "`pad_packed_sequence(..., total_length=5)`."

    def same():
        x = nn.utils.rnn.pack_padded_sequence(torch.ones(2, 5, 1), [3, 2], batch_first=True)
        out = nn.utils.rnn.pad_packed_sequence(nn.RNN(1, 4)(x)[0], True, total_length=5)[0]
        rnn, lengths = linen.RNN(linen.SimpleCell(4)), jnp.array([3, 2])
        key, y = jax.random.key(0), jnp.ones((2, 5, 1))
        theirs = jax.eval_shape(rnn.init_with_output, key, y, seq_lengths=lengths)[0]
        return tuple(out.shape), theirs.shape

    source = ("torch.nn.utils.rnn.pad_packed_sequence", "flax.linen.layers/RNN")


@difference
class NanInPadding:
    """NaN in the padding: torch's packed layer never sees it; a masked scan's gradient is NaN.

    The loss is finite: `where` chooses the value, and 0 * NaN flows back through the other side.
    """

    def in_torch():
        x, rnn = torch.tensor([[[1.0], [NAN]]]), nn.RNN(1, 1, batch_first=True)
        packed = nn.utils.rnn.pack_padded_sequence(x, [1], batch_first=True)
        rnn(packed)[1].sum().backward()
        return rnn.weight_ih_l0.grad.isfinite().all()

    torch_gives = True

    def in_jax():
        def last(w, x, valid):
            def step(h, xv):
                return jnp.where(xv[1], jnp.tanh(w * xv[0] + h), h), None

            return lax.scan(step, 0.0, (x, valid))[0]

        x, valid = jnp.array([1.0, NAN]), jnp.array([True, False])
        return jnp.isfinite(jnp.stack(jax.value_and_grad(last)(0.5, x, valid))).all()

    jax_gives = False
    instead = "Replace the padding before the scan: `jnp.where(valid, x, 0)`."

    def same():
        def last(w, x, valid):
            def step(h, xv):
                return jnp.where(xv[1], jnp.tanh(w * xv[0] + h), h), None

            return lax.scan(step, 0.0, (jnp.where(valid, x, 0.0), valid))[0]

        x, valid, w = jnp.array([1.0, NAN]), jnp.array([True, False]), torch.tensor([0.5])
        ours = torch_grad(torch.tanh, w.tolist())[0]
        return ours, jax.grad(last)(0.5, x, valid)

    source = ("torch.nn.utils.rnn.pack_padded_sequence", "jax.numpy.where")


@difference
class SingularMatrix:
    """The inverse of a singular matrix: an error in torch, infinities in JAX."""

    def in_torch():
        return torch.linalg.inv(torch.ones(2, 2))

    torch_gives = Raises("_LinAlgError", "singular")

    def in_jax():
        return jnp.isfinite(jnp.linalg.inv(jnp.ones((2, 2)))).any()

    jax_gives = False
    instead = "`torch.linalg.inv_ex(x)` does not raise; in JAX test the result with `isfinite`."

    def same():
        matrix = [[2.0, 1.0], [1.0, 3.0]]
        inverse, failed = torch.linalg.inv_ex(torch.tensor(matrix))
        theirs = jnp.linalg.inv(jnp.array(matrix))
        return (inverse, failed != 0), (theirs, ~jnp.isfinite(theirs).all())

    source = ("torch.linalg.inv", "jax.numpy.linalg.inv")


@difference
class CholeskyOfIndefinite:
    """The Cholesky factor of an indefinite matrix: an error in torch, NaN in JAX."""

    def in_torch():
        return torch.linalg.cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))

    torch_gives = Raises("_LinAlgError", "not positive-definite")

    def in_jax():
        return jnp.linalg.cholesky(jnp.array([[1.0, 2.0], [2.0, 1.0]]))

    jax_gives = ((NAN, 0.0), (NAN, NAN))
    instead = (
        "`torch.linalg.cholesky_ex(x)` does not raise; in JAX test the result with `isfinite`."
    )

    def same():
        matrix = [[2.0, 1.0], [1.0, 3.0]]
        factor, _ = torch.linalg.cholesky_ex(torch.tensor(matrix))
        return factor, jnp.linalg.cholesky(jnp.array(matrix))

    source = ("torch.linalg.cholesky", "jax.numpy.linalg.cholesky")
