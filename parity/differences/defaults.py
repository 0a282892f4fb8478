"""What a layer or function does when nothing is said: its initial weights, axes and constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional

from parity.differences.entry import difference
from parity.differences.expect import Between, Raises, Warns


def gru_cell() -> nn.GRUCell:
    """A cell of 1 input and 2 units, each of its parameters from -1 to 1 in equal steps."""
    cell = nn.GRUCell(1, 2)
    for p in cell.parameters():
        p.data = torch.linspace(-1, 1, p.numel()).reshape(p.shape)
    return cell


def gru(cell: nn.GRUCell, x: jax.Array, h: jax.Array, reset_after: bool) -> jax.Array:
    """One step in JAX with the parameters of torch's cell; gates in torch's order r, z, n."""
    w_ih, w_hh, b_ih, b_hh = (p.detach().numpy() for p in cell.parameters())
    i_r, i_z, i_n = jnp.split(w_ih @ x + b_ih, 3)
    h_r, h_z, h_n = jnp.split(w_hh @ h + b_hh, 3)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    w_hn, b_hn = w_hh[2 * len(h) :], b_hh[2 * len(h) :]
    n = jnp.tanh(i_n + (r * h_n if reset_after else w_hn @ (r * h) + b_hn))
    return (1 - z) * n + z * h


SHARED = (gru_cell, gru)


@difference
class LstmCarryOrder:
    """The place of the output h in an LSTM's state.

    torch's state is (h, c), Flax's carry is (c, h). Both have the same shape, so a swap runs.
    """

    def in_torch():
        outputs, state = nn.LSTM(3, 4)(torch.ones(1, 3))
        return [torch.equal(part, outputs) for part in state]

    torch_gives = (True, False)

    def in_jax():
        cell, x = linen.LSTMCell(4), jnp.ones((1, 3))
        start = cell.initialize_carry(jax.random.key(0), x.shape)
        carry, output = cell.apply(cell.init(jax.random.key(0), start, x), start, x)
        return [bool((part == output).all()) for part in carry]

    jax_gives = (False, True)
    instead = "Unpack by name on both sides; convert with `(h, c) = (carry[1], carry[0])`."
    source = ("torch.nn.LSTM", "flax.linen.layers/LSTMCell", "flax#4124")


@difference
class LstmTwoBiases:
    """The biases of an LSTM at the start of training.

    torch has two, drawn from U(-1/√H, 1/√H), so the forget gate starts anywhere; Flax has one, 0.
    """

    def in_torch():
        cell = nn.LSTMCell(64, 256)
        bias = cell.bias_ih + cell.bias_hh
        return sum("bias" in name for name, _ in cell.named_parameters()), bias.std()

    torch_gives = (2, Between(0.0506, 0.048, 0.054))

    def in_jax():
        cell, x = linen.OptimizedLSTMCell(256), jnp.ones((1, 64))
        params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)[
            "params"
        ]
        biases = jnp.stack([gate["bias"] for gate in params.values() if "bias" in gate])
        return len(biases) // 4, biases.std()

    jax_gives = (1, 0.0)
    instead = "Write the start of the forget gate's bias yourself: 1 in one of them, 0 elsewhere."

    def same():
        ours = nn.LSTMCell(8, 4)
        ours.bias_ih.data = torch.eye(4)[1].repeat_interleave(4)  # gates i, f, g, o
        ours.bias_hh.data = torch.zeros(16)
        cell, x = linen.LSTMCell(4), jnp.ones((1, 8))
        start = cell.initialize_carry(jax.random.key(0), x.shape)
        params = cell.init(jax.random.key(0), start, x)["params"]
        params["hf"]["bias"] = jnp.ones(4)
        theirs = [params[f"h{gate}"]["bias"] for gate in "ifgo"]
        return ours.bias_ih + ours.bias_hh, jnp.concatenate(theirs)

    source = ("torch.nn.LSTMCell", "flax.linen.layers/LSTMCell", "flax#3746")


@difference
class LstmInitialWeights:
    """The spread of an LSTM's initial weights, H = D = 128.

    torch draws all from U(-1/√H, 1/√H), std 1/√(3H); Flax the input's from LeCun's normal,
    std 1/√D, and the recurrent ones as one orthogonal matrix a gate, std 1/√H.
    """

    def in_torch():
        cell = nn.LSTMCell(128, 128)
        return cell.weight_ih.std(), cell.weight_hh.std()

    torch_gives = (Between(0.051, 0.0504, 0.0516), Between(0.051, 0.0504, 0.0516))

    def in_jax():
        cell, x = linen.LSTMCell(128), jnp.ones((1, 128))
        params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)[
            "params"
        ]
        return params["ig"]["kernel"].std(), params["hg"]["kernel"].std()

    jax_gives = (Between(0.0887, 0.086, 0.091), Between(0.0884, 0.0878, 0.089))
    instead = "`variance_scaling(1 / 3, 'fan_in', 'uniform')` for both kernels when D = H."

    def same():
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        cell = linen.LSTMCell(128, kernel_init=uniform, recurrent_kernel_init=uniform)
        x = jnp.ones((1, 128))
        params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)[
            "params"
        ]
        theirs = [params[name]["kernel"].std() for name in ("ig", "hg")]
        ours = nn.LSTMCell(128, 128)
        return (ours.weight_ih.std(), ours.weight_hh.std()), theirs

    close = 0.02
    source = ("torch.nn.LSTMCell", "flax.linen.layers/LSTMCell", "jax#4862")


@difference
class FusedOrthogonalWeights:
    """The spread of the recurrent weights of a fused LSTM, H = 64.

    `nnx.OptimizedLSTMCell` draws one orthogonal H × 4H matrix, std 1/√(4H): half of what
    `linen.OptimizedLSTMCell` and `nnx.LSTMCell` have, which draw four of H × H. torch: 1/√(3H).
    """

    def in_torch():
        return nn.LSTMCell(32, 64).weight_hh.std()

    torch_gives = Between(0.0722, 0.07, 0.0745)

    def in_jax():
        return nnx.OptimizedLSTMCell(32, 64, rngs=nnx.Rngs(0)).dense_h.kernel[...].std()

    jax_gives = Between(0.0625, 0.0615, 0.0635)
    instead = "Draw the four gates apart and set the kernel."

    def same():
        cell = nnx.OptimizedLSTMCell(32, 64, rngs=nnx.Rngs(0))
        draw = jax.nn.initializers.orthogonal()
        gates = [draw(key, (64, 64)) for key in jax.random.split(jax.random.key(0), 4)]
        cell.dense_h.kernel[...] = jnp.concatenate(gates, axis=1)
        torch_gate = nn.init.orthogonal_(torch.empty(64, 64))
        return torch_gate.std(), cell.dense_h.kernel[...].std()

    close = 0.01
    source = ("torch.nn.init.orthogonal_", "flax.nnx.recurrent/OptimizedLSTMCell")


@difference
class LinearInitialWeights:
    """The initial weights and bias of a dense layer of 100 inputs.

    torch: both from U(-1/√in, 1/√in). Flax: LeCun's truncated normal, bias 0.
    """

    def in_torch():
        layer = nn.Linear(100, 1000)
        return layer.weight.std(), layer.weight.abs().max(), layer.bias.std()

    torch_gives = (
        Between(0.0577, 0.057, 0.0585),
        Between(0.1, 0.0999, 0.1),
        Between(0.0577, 0.053, 0.061),
    )

    def in_jax():
        layer = linen.Dense(1000).init(jax.random.key(0), jnp.ones((1, 100)))["params"]
        return layer["kernel"].std(), jnp.abs(layer["kernel"]).max(), layer["bias"].std()

    jax_gives = (Between(0.0999, 0.099, 0.101), Between(0.2274, 0.22, 0.2275), 0.0)
    instead = "`kernel_init=variance_scaling(1 / 3, 'fan_in', 'uniform')`, and a uniform bias."

    def same():
        kernel = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def bias(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -(100**-0.5), 100**-0.5)

        dense = linen.Dense(10_000, kernel_init=kernel, bias_init=bias)
        theirs = dense.init(jax.random.key(0), jnp.ones((1, 100)))["params"]
        ours = nn.Linear(100, 10_000)
        return (ours.weight.std(), ours.bias.std()), (theirs["kernel"].std(), theirs["bias"].std())

    close = 0.02
    source = ("torch.nn.Linear", "flax.linen.layers/Dense", "flax#3128", "jax#4862")


@difference
class LinearWeightLayout:
    """A dense layer's weight is [out, in] in torch and [in, out] in Flax."""

    def in_torch():
        return tuple(nn.Linear(3, 5).weight.shape)

    torch_gives = (5, 3)

    def in_jax():
        params = jax.eval_shape(linen.Dense(5).init, jax.random.key(0), jnp.ones((1, 3)))["params"]
        return params["kernel"].shape

    jax_gives = (3, 5)
    instead = "Transpose on the way. A square weight copied as it is gives no error."

    def same():
        layer, x = nn.Linear(4, 4), np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        params = {"params": {"kernel": weight.T, "bias": bias}}
        return layer(torch.tensor(x)), linen.Dense(4).apply(params, x)

    source = ("torch.nn.Linear", "flax.linen.layers/Dense")


@difference
class EmbeddingInitialWeights:
    """The spread of an embedding of width 64: 1 in torch, 1/√width in Flax."""

    def in_torch():
        return nn.Embedding(1000, 64).weight.std()

    torch_gives = Between(1.0, 0.985, 1.015)

    def in_jax():
        params = linen.Embed(1000, 64).init(jax.random.key(0), jnp.array([0]))["params"]
        return params["embedding"].std()

    jax_gives = Between(0.1256, 0.123, 0.127)
    instead = "`linen.Embed(..., embedding_init=jax.nn.initializers.normal(1.0))`."

    def same():
        draw = jax.nn.initializers.normal(1.0)
        params = linen.Embed(1000, 64, embedding_init=draw).init(jax.random.key(0), jnp.array([0]))[
            "params"
        ]
        return nn.Embedding(1000, 64).weight.std(), params["embedding"].std()

    close = 0.02
    source = ("torch.nn.Embedding", "flax.linen.layers/Embed")


@difference
class TruncatedNormalBounds:
    """A truncated normal of std 0.02: where it is cut.

    torch's a and b are values, so at -2 and 2 nothing is cut; JAX's are standard deviations,
    and the std that remains is 0.88 of the one asked for.
    """

    def in_torch():
        return nn.init.trunc_normal_(torch.empty(300, 300), std=0.02).std()

    torch_gives = Between(0.02, 0.0198, 0.0202)

    def in_jax():
        return jax.nn.initializers.truncated_normal(0.02)(jax.random.key(0), (300, 300)).std()

    jax_gives = Between(0.0176, 0.0174, 0.0178)
    instead = "In torch, `trunc_normal_(weight, std=s, a=-2 * s, b=2 * s)`."

    def same():
        weight = nn.init.trunc_normal_(torch.empty(300, 300), std=0.02, a=-0.04, b=0.04)
        return weight.std(), jax.nn.initializers.truncated_normal(0.02)(
            jax.random.key(0), (300, 300)
        ).std()

    close = 0.02
    source = ("torch.nn.init.trunc_normal_", "jax.nn.initializers.truncated_normal")


@difference
class EncoderLayersStartEqual:
    """Whether the layers of a Transformer encoder start with the same weights.

    `nn.TransformerEncoder` deep-copies the one layer it is given; Flax draws each.
    """

    def in_torch():
        first, second = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, batch_first=True), 2
        ).layers
        return torch.equal(first.linear1.weight, second.linear1.weight)

    torch_gives = True

    def in_jax():
        model = linen.Sequential([linen.Dense(4), linen.Dense(4)])
        first, second = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"].values()
        return bool((first["kernel"] == second["kernel"]).all())

    jax_gives = False
    instead = "Draw each layer of torch's encoder anew."

    def same():
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 2)
        for weight in encoder.parameters():
            nn.init.normal_(weight)
        ours = [layer.linear1.weight for layer in encoder.layers]
        model = linen.Sequential([linen.Dense(4), linen.Dense(4)])
        params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
        first, second = (layer["kernel"] for layer in params.values())
        return torch.equal(*ours), bool((first == second).all())

    source = ("torch.nn.TransformerEncoder", "flax.linen.layers/Sequential")


@difference
class LayerNormEps:
    """LayerNorm's eps: 1e-5 in torch, 1e-6 in Flax; here a row of standard deviation 0.01."""

    def in_torch():
        return nn.LayerNorm(2)(torch.tensor([-0.01, 0.01]))

    torch_gives = (-0.95346, 0.95346)

    def in_jax():
        return linen.LayerNorm().init_with_output(jax.random.key(0), jnp.array([-0.01, 0.01]))[0]

    jax_gives = (-0.99504, 0.99504)
    instead = "Write eps on both sides."

    def same():
        x = [-0.01, 0.01]
        theirs = linen.LayerNorm(epsilon=1e-5).init_with_output(jax.random.key(0), jnp.array(x))[0]
        return nn.LayerNorm(2, eps=1e-5)(torch.tensor(x)), theirs

    source = ("torch.nn.LayerNorm", "flax.linen.layers/LayerNorm")
    inject = "layernorm_eps"


@difference
class LayerNormFastVariance:
    """LayerNorm of rows with a large mean: Flax takes E[x²] - E[x]², which cancels.

    The largest error on a row around 1000, as raw measurements have.
    """

    def in_torch():
        x = np.linspace(999, 1001, 64, dtype=np.float32)
        exact = (x - x.mean(dtype=float)) / x.std(dtype=float)
        return abs(nn.LayerNorm(64)(torch.tensor(x)).detach().numpy() - exact).max()

    torch_gives = Between(9.5e-7, 0.0, 1e-3)

    def in_jax():
        x = np.linspace(999, 1001, 64, dtype=np.float32)
        exact = (x - x.mean(dtype=float)) / x.std(dtype=float)
        return abs(linen.LayerNorm().init_with_output(jax.random.key(0), x)[0] - exact).max()

    jax_gives = Between(0.0722, 4e-3, 2000.0)
    instead = "`linen.LayerNorm(use_fast_variance=False)`, and inputs standardised beforehand."

    def same():
        x = np.linspace(999, 1001, 64, dtype=np.float32)
        norm = linen.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        return nn.LayerNorm(64)(torch.tensor(x)), norm.init_with_output(jax.random.key(0), x)[0]

    close = 5e-4
    source = ("torch.nn.LayerNorm", "flax.linen.layers/LayerNorm")
    inject = "layernorm_fast_variance"


@difference
class RmsNormEps:
    """RMSNorm's eps: the dtype's machine epsilon in torch, 1e-6 in Flax; here of rows of 0.001."""

    def in_torch():
        return nn.RMSNorm(2)(torch.tensor([0.001, -0.001]))

    torch_gives = (0.94521, -0.94521)

    def in_jax():
        return linen.RMSNorm().init_with_output(jax.random.key(0), jnp.array([0.001, -0.001]))[0]

    jax_gives = (0.70711, -0.70711)
    instead = "Write eps on both sides; torch's default also changes with the dtype."

    def same():
        x = [0.001, -0.001]
        theirs = linen.RMSNorm(epsilon=1e-6).init_with_output(jax.random.key(0), jnp.array(x))[0]
        return nn.RMSNorm(2, eps=1e-6)(torch.tensor(x)), theirs

    source = ("torch.nn.RMSNorm", "flax.linen.layers/RMSNorm")


@difference
class GeluForm:
    """GELU: torch's default uses erf, JAX's the tanh approximation."""

    def in_torch():
        return functional.gelu(torch.tensor(2.2))

    torch_gives = Between(2.169413, 2.16940, 2.16943)

    def in_jax():
        return jax.nn.gelu(2.2)

    jax_gives = Between(2.169678, 2.16966, 2.16969)
    instead = "`jax.nn.gelu(x, approximate=False)` or `functional.gelu(x, approximate='tanh')`."

    def same():
        x = [-2.2, 0.5, 2.2]
        exact = (
            functional.gelu(torch.tensor(x)),
            functional.gelu(torch.tensor(x), approximate="tanh"),
        )
        theirs = jax.nn.gelu(jnp.array(x), approximate=False), jax.nn.gelu(jnp.array(x))
        return exact, theirs

    source = ("torch.nn.functional.gelu", "jax.nn.gelu")
    inject = "gelu_tanh"


@difference
class BatchNormMomentum:
    """BatchNorm's momentum weighs the new batch in torch, the old mean in Flax (default 0.99)."""

    def in_torch():
        norm = nn.BatchNorm1d(1)
        norm(torch.tensor([[1.0], [2.0], [6.0]]))
        return norm.momentum, norm.running_mean

    torch_gives = (0.1, (0.3,))

    def in_jax():
        norm, x = linen.BatchNorm(use_running_average=False), jnp.array([[1.0], [2.0], [6.0]])
        state = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")[1]
        return norm.momentum, state["batch_stats"]["mean"]

    jax_gives = (0.99, (0.03,))
    instead = "Flax's momentum is 1 - torch's: `linen.BatchNorm(momentum=0.9)`."

    def same():
        ours, x = nn.BatchNorm1d(1), [[1.0], [2.0], [6.0]]
        ours(torch.tensor(x))
        norm = linen.BatchNorm(use_running_average=False, momentum=0.9)
        state = norm.apply(
            norm.init(jax.random.key(0), jnp.array(x)), jnp.array(x), mutable="batch_stats"
        )[1]
        return ours.running_mean, state["batch_stats"]["mean"]

    source = ("torch.nn.BatchNorm1d", "flax.linen.layers/BatchNorm")


@difference
class BatchNormRunningVariance:
    """BatchNorm's running variance divides by N - 1 in torch and by N in Flax."""

    def in_torch():
        norm = nn.BatchNorm1d(1, momentum=1.0)
        norm(torch.tensor([[1.0], [2.0], [6.0]]))
        return norm.running_var

    torch_gives = (7.0,)

    def in_jax():
        norm, x = linen.BatchNorm(False, momentum=0.0), jnp.array([[1.0], [2.0], [6.0]])
        state = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")[1]
        return state["batch_stats"]["var"]

    jax_gives = (4.66667,)
    instead = "Multiply Flax's running variance by N / (N - 1) before it is used in evaluation."

    def same():
        ours, x = nn.BatchNorm1d(1, momentum=1.0), [[1.0], [2.0], [6.0]]
        ours(torch.tensor(x))
        norm = linen.BatchNorm(False, momentum=0.0)
        state = norm.apply(
            norm.init(jax.random.key(0), jnp.array(x)), jnp.array(x), mutable="batch_stats"
        )[1]
        return ours.running_var, state["batch_stats"]["var"] * 3 / 2

    source = ("torch.nn.BatchNorm1d", "flax.linen.layers/BatchNorm")


@difference
class StandardDeviationDivisor:
    """The standard deviation divides by N - 1 in torch and by N in JAX and NumPy."""

    def in_torch():
        return torch.tensor([1.0, 2.0, 4.0]).std(), torch.tensor([1.0, 2.0, 4.0]).var()

    torch_gives = (1.52753, 2.33333)

    def in_jax():
        return jnp.array([1.0, 2.0, 4.0]).std(), jnp.array([1.0, 2.0, 4.0]).var()

    jax_gives = (1.24722, 1.55556)
    instead = "Write `correction=0` in torch, or `ddof=1` in JAX."

    def same():
        x = [1.0, 2.0, 4.0]
        return torch.tensor(x).std(correction=0), jnp.array(x).std()

    source = ("torch.std", "jax.numpy.std")


@difference
class MedianOfAnEvenNumber:
    """The median of an even number of values.

    torch takes the lower of the two middle values, JAX their mean.
    """

    def in_torch():
        return torch.tensor([1.0, 2.0, 3.0, 4.0]).median()

    torch_gives = 2.0

    def in_jax():
        return jnp.median(jnp.array([1.0, 2.0, 3.0, 4.0]))

    jax_gives = 2.5
    instead = "`torch.quantile(x, 0.5)`."

    def same():
        x = [1.0, 2.0, 3.0, 4.0]
        return torch.tensor(x).quantile(0.5), jnp.median(jnp.array(x))

    source = ("torch.median", "jax.numpy.median")


@difference
class MaskSense:
    """What True means in an attention mask.

    `nn.MultiheadAttention` ignores what is True; Flax attends to it, and so does torch's own
    `scaled_dot_product_attention`.
    """

    def in_torch():
        attention, x = nn.MultiheadAttention(2, 1, batch_first=True), torch.ones(1, 3, 2)
        return attention(x, x, x, key_padding_mask=torch.tensor([[True, False, False]]))[1][0, 0]

    torch_gives = (0.0, 0.5, 0.5)

    def in_jax():
        x, mask = jnp.ones((1, 3, 1, 2)), jnp.array([True, False, False])
        return linen.dot_product_attention_weights(x, x, mask=mask)[0, 0, 0]

    jax_gives = (1.0, 0.0, 0.0)
    instead = "Name the mask by what True means (`valid`), and pass `~valid` to torch's layer."

    def same():
        valid, x = np.array([True, True, False]), torch.ones(1, 3, 2)
        attention = nn.MultiheadAttention(2, 1, batch_first=True)
        ours = attention(x, x, x, key_padding_mask=torch.tensor(~valid)[None])[1][0, 0]
        y = jnp.ones((1, 3, 1, 2))
        return ours, linen.dot_product_attention_weights(y, y, mask=jnp.array(valid))[0, 0, 0]

    source = ("torch.nn.MultiheadAttention", "flax.linen.layers/MultiHeadDotProductAttention")
    inject = "mask_sense"


@difference
class AttentionWeightsOfHeads:
    """The attention weights a layer hands out: a mean over heads in torch, each head's in Flax."""

    def in_torch():
        attention, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.ones(1, 3, 4)
        return tuple(attention(x, x, x)[1].shape)

    torch_gives = (1, 3, 3)

    def in_jax():
        x = jnp.ones((1, 3, 2, 2))
        return linen.dot_product_attention_weights(x, x).shape

    jax_gives = (1, 2, 3, 3)
    instead = "`attention(x, x, x, average_attn_weights=False)`."

    def same():
        attention, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.ones(1, 3, 4)
        y = jnp.ones((1, 3, 2, 2))
        weights = attention(x, x, x, average_attn_weights=False)[1]
        return weights, linen.dot_product_attention_weights(y, y)

    source = ("torch.nn.MultiheadAttention", "flax.linen.layers/MultiHeadDotProductAttention")


@difference
class DropoutOfOneLayer:
    """`dropout` of a recurrent layer acts between layers only; Flax's `RNN` has none at all."""

    def in_torch():
        model = nn.LSTM(3, 4, num_layers=1, dropout=0.9)
        return torch.equal(model(torch.ones(5, 3))[0], model.eval()(torch.ones(5, 3))[0])

    torch_gives = Warns("dropout option adds dropout after all but last recurrent layer", True)

    def in_jax():
        return linen.RNN(linen.LSTMCell(4), dropout=0.9)

    jax_gives = Raises("TypeError", "unexpected keyword argument 'dropout'")
    instead = "Write the dropout between layers yourself, in both, with one mask for both."

    def same():
        x, keep = np.ones((2, 4), np.float32), np.array([[1, 0, 1, 1], [0, 0, 1, 0]], bool)
        ours = torch.where(torch.tensor(keep), torch.tensor(x) / (1 - 0.4), 0.0)
        return ours, jnp.where(keep, x / (1 - 0.4), 0.0)

    source = ("torch.nn.LSTM", "flax.linen.layers/RNN")


@difference
class DropoutByHand:
    """torch's dropout scales what it keeps by 1/(1 - rate); a mask drawn by hand does not.

    JAX has no dropout function, only random masks, and so it is written by hand.
    """

    def in_torch():
        return functional.dropout(torch.ones(1000), 0.75).unique()

    torch_gives = (0.0, 4.0)

    def in_jax():
        return jnp.unique(jnp.ones(1000) * jax.random.bernoulli(jax.random.key(0), 0.25, (1000,)))

    jax_gives = (0.0, 1.0)
    instead = "`jnp.where(keep, x / (1 - rate), 0)`, or `linen.Dropout`, which scales too."

    def same():
        keep = jax.random.bernoulli(jax.random.key(0), 0.25, (1000,))
        theirs = jnp.where(keep, jnp.ones(1000) / (1 - 0.75), 0.0)
        return functional.dropout(torch.ones(1000), 0.75).unique(), jnp.unique(theirs)

    source = ("torch.nn.functional.dropout", "jax.random.bernoulli", "flax.linen.layers/Dropout")
    inject = "dropout_unscaled"


@difference
class DropoutMode:
    """A dropout layer that nobody told whether it trains.

    A new torch module trains until `.eval()`; Flax's raises until told.
    """

    def in_torch():
        return (nn.Dropout(0.5)(torch.ones(1000)) == 0).any()

    torch_gives = True

    def in_jax():
        return linen.Dropout(0.5).apply({}, jnp.ones(1000))

    jax_gives = Raises("ValueError", '"deterministic" must be passed')
    instead = "`.eval()` in torch, `deterministic=True` in Flax."

    def same():
        ours = nn.Dropout(0.5).eval()(torch.ones(3))
        return ours, linen.Dropout(0.5, deterministic=True).apply({}, jnp.ones(3))

    source = ("torch.nn.Dropout", "flax.linen.layers/Dropout")


@difference
class GruReset:
    """Where a GRU's reset gate acts.

    torch, Flax and cuDNN multiply after the matrix, r * (W h + b); Cho et al. (2014), and with
    them Haiku and much code by hand, before it, W (r * h) + b. The weights do not carry over.
    """

    def in_torch():
        return gru_cell()(torch.tensor([[0.3]]), torch.tensor([[0.5, -0.2]]))[0]

    torch_gives = (0.61451, 0.23019)

    def in_jax():
        return gru(gru_cell(), jnp.array([0.3]), jnp.array([0.5, -0.2]), reset_after=False)

    jax_gives = (0.74318, 0.25913)
    instead = "Reset after the matrix, with a bias of its own inside the product."

    def same():
        ours = gru_cell()(torch.tensor([[0.3]]), torch.tensor([[0.5, -0.2]]))[0]
        return ours, gru(gru_cell(), jnp.array([0.3]), jnp.array([0.5, -0.2]), reset_after=True)

    source = ("torch.nn.GRU", "flax.linen.layers/GRUCell", "https://arxiv.org/abs/1406.1078")
    inject = "gru_reset_before"


@difference
class NnxGruBias:
    """A GRU of `flax.nnx` has no bias inside the reset product; torch and `flax.linen` have.

    Its docstring shows one. Biases start at 0, so the difference appears with training.
    """

    def in_torch():
        return nn.GRUCell(3, 4).bias_hh is not None

    torch_gives = True

    def in_jax():
        return nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)).dense_h.bias is not None

    jax_gives = False
    instead = "`linen.GRUCell`, whose `hn` has a bias."

    def same():
        cell, x = linen.GRUCell(4), jnp.ones((1, 3))
        params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)[
            "params"
        ]
        return nn.GRUCell(3, 4).bias_hh is not None, "bias" in params["hn"]

    source = ("torch.nn.GRUCell", "flax.nnx.recurrent/GRUCell", "flax#5594")
    since = "an open report as of flax 0.12.8"


@difference
class RecurrentAxes:
    """The axes and results of a recurrent layer.

    torch: time first unless `batch_first`, outputs and last state. Flax: batch first unless
    `time_major`, outputs alone unless `return_carry`.
    """

    def in_torch():
        out = nn.RNN(3, 4)(torch.ones(7, 2, 3))
        return len(out), tuple(out[1].shape)

    torch_gives = (2, (1, 2, 4))

    def in_jax():
        rnn, x = linen.RNN(linen.SimpleCell(4), return_carry=True), jnp.ones((7, 2, 3))
        carry, outputs = jax.eval_shape(rnn.init_with_output, jax.random.key(0), x)[0]
        return carry.shape, outputs.shape

    jax_gives = ((7, 4), (7, 2, 4))
    instead = (
        "`batch_first=True` in torch, `return_carry=True` in Flax, which puts the carry first."
    )

    def same():
        out, h = nn.RNN(3, 4, batch_first=True)(torch.ones(7, 2, 3))
        rnn = linen.RNN(linen.SimpleCell(4), return_carry=True)
        x = jnp.ones((7, 2, 3))
        carry, outputs = jax.eval_shape(rnn.init_with_output, jax.random.key(0), x)[0]
        return (*out.shape, *h[0].shape), (*outputs.shape, *carry.shape)

    source = ("torch.nn.RNN", "flax.linen.layers/RNN")


@difference
class ReverseOrder:
    """The outputs of a reversed recurrent layer: in torch in the input's order, in Flax as computed.

    Each snippet says at which place the input's last step, which is read first, is found.
    """

    def in_torch():
        out = nn.RNN(1, 1, bias=False, bidirectional=True)(torch.tensor([[0.0], [0.0], [1.0]]))[0]
        return (out[:, 1].abs() > 0).tolist()

    torch_gives = (True, True, True)

    def in_jax():
        x = jnp.array([[[0.0], [1.0], [0.0]]])
        rnn = linen.RNN(linen.SimpleCell(1), reverse=True)
        return (jnp.abs(rnn.init_with_output(jax.random.key(0), x)[0][0, :, 0]) > 0).tolist()

    jax_gives = (False, True, True)
    instead = "`linen.RNN(cell, reverse=True, keep_order=True)`."

    def same():
        ours = nn.RNN(1, 1, bidirectional=True, bias=False)
        x = torch.tensor([[0.0], [0.0], [1.0]])
        cell = {"i": {"kernel": ours.weight_ih_l0_reverse, "bias": torch.zeros(1)}}
        cell["h"] = {"kernel": ours.weight_hh_l0_reverse}
        params = {"params": {"cell": jax.tree.map(lambda p: p.detach().numpy(), cell)}}
        rnn = linen.RNN(linen.SimpleCell(1), reverse=True, keep_order=True)
        return ours(x)[0][:, 1], rnn.apply(params, x.numpy()[None])[0, :, 0]

    source = ("torch.nn.RNN", "flax.linen.layers/RNN")


@difference
class ConvolutionPadding:
    """A convolution of width 3 shortens the sequence in torch and keeps its length in Flax.

    torch pads 0 by default and wants [B, C, T]; Flax pads "SAME" and wants [B, T, C].
    """

    def in_torch():
        return tuple(nn.Conv1d(2, 5, 3)(torch.ones(1, 2, 8)).shape)

    torch_gives = (1, 5, 6)

    def in_jax():
        conv, x = linen.Conv(5, (3,)), jnp.ones((1, 8, 2))
        return jax.eval_shape(conv.init_with_output, jax.random.key(0), x)[0].shape

    jax_gives = (1, 8, 5)
    instead = "Say the padding, and transpose: kernel [out, in, width] to [width, in, out]."

    def same():
        layer, x = nn.Conv1d(2, 5, 3), torch.linspace(-1, 1, 16).reshape(1, 2, 8)
        kernel, bias = (p.detach().numpy() for p in (layer.weight.permute(2, 1, 0), layer.bias))
        conv = linen.Conv(5, (3,), padding="VALID")
        theirs = conv.apply({"params": {"kernel": kernel, "bias": bias}}, x.mT.numpy())
        return layer(x).mT, theirs

    close = 1e-5
    source = ("torch.nn.Conv1d", "flax.linen.layers/Conv")


@difference
class TransposedConvolution:
    """A transposed convolution of a unit impulse: torch flips the kernel against Flax."""

    def in_torch():
        x, kernel = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]])
        return functional.conv_transpose1d(x, kernel).ravel()

    torch_gives = (1.0, 2.0, 3.0, 0.0)

    def in_jax():
        layer = linen.ConvTranspose(1, (3,), padding="VALID", use_bias=False)
        params = {"params": {"kernel": jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)}}
        return layer.apply(params, jnp.array([[[1.0], [0.0]]])).ravel()

    jax_gives = (3.0, 2.0, 1.0, 0.0)
    instead = "`linen.ConvTranspose(..., transpose_kernel=True)`."

    def same():
        x, kernel = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]])
        options = {"padding": "VALID", "use_bias": False, "transpose_kernel": True}
        layer = linen.ConvTranspose(1, (3,), **options)
        params = {"params": {"kernel": kernel.numpy().reshape(3, 1, 1)}}
        theirs = layer.apply(params, jnp.array([[[1.0], [0.0]]])).ravel()
        return functional.conv_transpose1d(x, kernel).ravel(), theirs

    source = ("torch.nn.ConvTranspose1d", "flax.linen.layers/ConvTranspose")


@difference
class PoolingStride:
    """A pooling window moves by its own width in torch, by 1 in Flax."""

    def in_torch():
        return functional.max_pool1d(torch.arange(6.0).reshape(1, 1, 6), 2).ravel()

    torch_gives = (1.0, 3.0, 5.0)

    def in_jax():
        return linen.max_pool(jnp.arange(6.0).reshape(1, 6, 1), (2,)).ravel()

    jax_gives = (1.0, 2.0, 3.0, 4.0, 5.0)
    instead = "Say the stride: `linen.max_pool(x, (2,), strides=(2,))`."

    def same():
        ours = functional.max_pool1d(torch.arange(6.0).reshape(1, 1, 6), 2, stride=2).ravel()
        return ours, linen.max_pool(jnp.arange(6.0).reshape(1, 6, 1), (2,), strides=(2,)).ravel()

    source = ("torch.nn.functional.max_pool1d", "flax.linen.layers/max_pool")


@difference
class SoftmaxAxis:
    """The axis of a softmax when none is given: the first for [B, T, C] in torch, the last in JAX."""

    def in_torch():
        return functional.softmax(torch.zeros(2, 4, 5))[0, 0, 0]

    torch_gives = Warns("Implicit dimension choice for softmax", 0.5)

    def in_jax():
        return jax.nn.softmax(jnp.zeros((2, 4, 5)))[0, 0, 0]

    jax_gives = 0.2
    instead = "Say the axis."

    def same():
        ours = functional.softmax(torch.zeros(2, 4, 5), dim=-1)
        return ours, jax.nn.softmax(jnp.zeros((2, 4, 5)), axis=-1)

    source = ("torch.nn.functional.softmax", "jax.nn.softmax")


@difference
class LossReduction:
    """torch's losses are means over the batch, optax's are one number a row."""

    def in_torch():
        return tuple(functional.cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).shape)

    torch_gives = ()

    def in_jax():
        labels = jnp.array([0, 1, 2])
        return optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((3, 4)), labels).shape

    jax_gives = (3,)
    instead = "`.mean()` in JAX, or `reduction='none'` in torch."

    def same():
        ours = functional.cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        rows = optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((3, 4)), jnp.arange(3))
        return ours, rows.mean()

    source = (
        "torch.nn.functional.cross_entropy",
        "losses#optax.losses.softmax_cross_entropy_with_integer_labels",
    )


@difference
class L2Loss:
    """`optax.l2_loss` is half the squared error; torch's MSE is the whole."""

    def in_torch():
        return functional.mse_loss(torch.tensor(3.0), torch.tensor(0.0))

    torch_gives = 9.0

    def in_jax():
        return optax.l2_loss(jnp.array(3.0), jnp.array(0.0))

    jax_gives = 4.5
    instead = "`optax.squared_error(...).mean()`."

    def same():
        ours = functional.mse_loss(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.0]))
        return ours, optax.squared_error(jnp.array([3.0, 1.0]), jnp.zeros(2)).mean()

    source = ("torch.nn.functional.mse_loss", "losses#optax.losses.l2_loss")
    inject = "l2_loss_half"


@difference
class KlReduction:
    """The Kullback-Leibler loss: torch divides by every element, optax sums a row."""

    def in_torch():
        p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.5, 0.5]])
        return functional.kl_div(q.log(), p)

    torch_gives = Warns(
        "divides the total loss by both the batch size and the support size", 0.09637
    )

    def in_jax():
        p, q = jnp.array([[0.2, 0.8]]), jnp.array([[0.5, 0.5]])
        return optax.losses.kl_divergence(jnp.log(q), p).mean()

    jax_gives = 0.19274
    instead = "`functional.kl_div(log_q, p, reduction='batchmean')`."

    def same():
        p, q = [[0.2, 0.8], [0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]]
        theirs = optax.losses.kl_divergence(jnp.log(jnp.array(q)), jnp.array(p)).mean()
        return functional.kl_div(
            torch.tensor(q).log(), torch.tensor(p), reduction="batchmean"
        ), theirs

    source = ("torch.nn.functional.kl_div", "losses#optax.losses.kl_divergence")


@difference
class PaddingInTheMean:
    """The mean loss of a padded batch: torch divides by the rows kept, a masked mean by all."""

    def in_torch():
        return functional.cross_entropy(torch.zeros(4, 2), torch.tensor([0, 1, -100, -100]))

    torch_gives = 0.69315

    def in_jax():
        labels, valid = jnp.array([0, 1, 0, 0]), jnp.array([True, True, False, False])
        rows = optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((4, 2)), labels)
        return jnp.where(valid, rows, 0.0).mean()

    jax_gives = 0.34657
    instead = "`.mean(where=valid)`, or a sum divided by `valid.sum()`."

    def same():
        labels, valid = jnp.array([0, 1, 0, 0]), jnp.array([True, True, False, False])
        rows = optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((4, 2)), labels)
        ours = functional.cross_entropy(torch.zeros(4, 2), torch.tensor([0, 1, -100, -100]))
        return ours, rows.mean(where=valid)

    source = ("torch.nn.functional.cross_entropy", "jax.numpy.mean")
    inject = "padding_in_mean"


@difference
class CrossEntropyWeights:
    """Cross-entropy with class weights: torch divides by the sum of the weights used."""

    def in_torch():
        weight, labels = torch.tensor([1.0, 3.0]), torch.tensor([0, 1])
        return functional.cross_entropy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), labels, weight)

    torch_gives = 1.06326

    def in_jax():
        weight, labels = jnp.array([1.0, 3.0]), jnp.array([0, 1])
        logits = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (weight[labels] * rows).mean()

    jax_gives = 2.12652
    instead = "`jnp.average(rows, weights=weight[labels])`."

    def same():
        weight, labels, logits = [1.0, 3.0], [0, 1], [[1.0, 0.0], [1.0, 0.0]]
        ours = functional.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), torch.tensor(weight)
        )
        rows = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(labels))
        return ours, jnp.average(rows, weights=jnp.array(weight)[jnp.array(labels)])

    source = ("torch.nn.functional.cross_entropy", "jax.numpy.average")
