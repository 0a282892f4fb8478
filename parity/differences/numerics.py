"""The same formula, other bits. Here float64 settles what is rounding and what is a fault."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax
from torch import nn
from torch.nn import functional

from parity.differences import ulp
from parity.differences.entry import difference
from parity.differences.expect import Between

# Largest errors in ULP as measured by `python -m parity.differences.ulp` with torch 2.13.0 and
# JAX 0.10.2 on an x86 processor with AVX-512: torch and JAX in float32, torch and JAX in float64.
ULP = {
    "tanh": (0.507, 3.7, 0.538, 3.02),
    "sigmoid": (1.87, 1.87, 1.87, 1.87),
    "exp": (0.551, 0.784, 0.655, 1.19),
    "expm1": (0.501, 3.67, 0.5, 2.9),
    "log": (0.498, 0.79, 0.495, 0.495),
    "log1p": (0.516, 2.18, 0.631, 127),
    "erf": (0.942, 2.59, 0.594, 0.813),
    "sqrt": (0.504, 0.499, 0.506, 0.5),
    "rsqrt": (1.28, 0.743, 1.3, 0.81),
    "sin": (0.585, 0.522, 0.5, 0.502),
    "cos": (0.586, 0.516, 0.499, 0.499),
    "gelu": (3.53e4, 13.1, 3.98e3, 18.8),
    "softplus": (1.17, 2.18, 1.23, 1.68),
}


def ulp_bound(recorded: float) -> float:
    """Four times what was recorded, and at least 4: other processors take other kernels."""
    return max(4.0, 4 * recorded)


def appendix() -> str:
    """Render the table of elementary functions."""
    rows = [
        f"| {name} | {ulp.FUNCTIONS[name].lowest:g} to {ulp.FUNCTIONS[name].largest:g} | "
        + " | ".join(f"{value:g}" for value in values)
        + " |"
        for name, values in ULP.items()
    ]
    return "\n".join(
        [
            "### Elementary functions in ULP\n",
            "The largest error over a grid against mpmath's truth, of torch 2.13.0 and JAX 0.10.2 on an",
            "x86 processor with AVX-512 (`python -m parity.differences.ulp` measures yours). 0.5 is",
            "correct rounding. The test accepts up to four times these, and at least 4.\n",
            "| function | range | torch, float32 | JAX, float32 | torch, float64 | JAX, float64 |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def rnn_state(scale: float, dtype: str, side: str) -> np.ndarray:
    """Return h after 60 steps of h = tanh(W h), W [64, 64] normal with std scale / 8."""
    w = np.random.default_rng(0).normal(scale=scale / 8, size=(64, 64)).astype(dtype)
    h = np.full(64, 0.5, dtype)
    if side == "torch":
        w, h = torch.tensor(w), torch.tensor(h)
        for _ in range(60):
            h = torch.tanh(w @ h)
        return h.numpy()
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(lax.fori_loop(0, 60, lambda _, h: jnp.tanh(w @ h), jnp.array(h)))


SHARED = (rnn_state,)


@difference
class TanhAccuracy:
    """The largest error of tanh in float32, in ULP: JAX's is a rational approximation."""

    def in_torch():
        return ulp.most("tanh", "float32", "torch")

    torch_gives = Between(0.507, 0.5, 1.6)

    def in_jax():
        return ulp.most("tanh", "float32", "jax")

    jax_gives = Between(3.7, 1.7, 12.0)
    instead = "Compare in float64, where both are within 4 ULP of 1e-16."

    def same():
        x = np.linspace(-3, 3, 101)
        with jax.enable_x64(True):
            return torch.tanh(torch.tensor(x)), jnp.tanh(x)

    close = 1e-15
    source = ("torch.tanh", "jax.numpy.tanh")


@difference
class Expm1Accuracy:
    """The largest error of exp(x) - 1 in float32, in ULP."""

    def in_torch():
        return ulp.most("expm1", "float32", "torch")

    torch_gives = Between(0.501, 0.4, 1.6)

    def in_jax():
        return ulp.most("expm1", "float32", "jax")

    jax_gives = Between(3.67, 1.7, 12.0)
    instead = "Compare in float64."

    def same():
        x = np.linspace(-3, 3, 101)
        with jax.enable_x64(True):
            return torch.expm1(torch.tensor(x)), jnp.expm1(x)

    close = 1e-15
    source = ("torch.expm1", "jax.numpy.expm1")


@difference
class Log1pAccuracy:
    """log(1 + x) in float64 near x = -0.414: JAX on the CPU is off by more than 100 ULP."""

    def in_torch():
        return ulp.most("log1p", "float64", "torch")

    torch_gives = Between(0.631, 0.4, 4.0)

    def in_jax():
        return ulp.most("log1p", "float64", "jax")

    jax_gives = Between(127.0, 20.0, 200.0)
    instead = "`jnp.log(1 + x)` between -0.53 and -0.28."

    def same():
        x = np.linspace(-0.53, -0.28, 101)
        with jax.enable_x64(True):
            return torch.log1p(torch.tensor(x)), jnp.log(1 + jnp.array(x))

    close = 1e-15
    source = ("torch.log1p", "jax.numpy.log1p", "jax#39707")
    since = "an open report as of JAX 0.10.2"


@difference
class AttentionSoftmaxDtype:
    """Attention of float64: jax.nn takes the softmax in float32; scores 0 and 1, values 0 and 1.

    The result is float64 and right to 8 digits.
    """

    def in_torch():
        score, value = torch.tensor([[[0.0], [1.0]]]).double(), torch.tensor([[[0.0], [1.0]]])
        found = functional.scaled_dot_product_attention(score[:, 1:], score, value.double())
        return abs(found - 1 / (1 + math.exp(-1))).max()

    torch_gives = Between(0.0, 0.0, 2e-16)

    def in_jax():
        with jax.enable_x64(True):
            score = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
            found = jax.nn.dot_product_attention(score[:, 1:], score, score)
            return abs(found - 1 / (1 + math.exp(-1))).max()

    jax_gives = Between(1.89e-8, 1e-10, 1e-7)
    instead = "Write it: `jax.nn.softmax(query @ key.mT / K**0.5) @ value`."

    def same():
        draw = np.random.default_rng(0).normal
        query, key, value = draw(size=(3, 1, 5, 4))
        ours = functional.scaled_dot_product_attention(*map(torch.tensor, (query, key, value)))
        with jax.enable_x64(True):
            return ours, jax.nn.softmax(query @ key.mT / 4**0.5) @ value

    close = 1e-15
    source = ("torch.nn.functional.scaled_dot_product_attention", "jax.nn.dot_product_attention")


@difference
class GeluTail:
    """GELU of -5.2: torch computes x (1 + erf) / 2, which cancels; JAX uses erfc.

    The relative error of the exact form. JAX's default, by tanh, gives -0.
    """

    def in_torch():
        return abs(functional.gelu(torch.tensor(-5.2)) / -5.1815e-7 - 1)

    torch_gives = Between(0.103, 0.01, 1.0)

    def in_jax():
        return abs(jax.nn.gelu(-5.2, approximate=False) / -5.1815e-7 - 1)

    jax_gives = Between(2.7e-6, 0.0, 1e-4)
    instead = "`x * torch.erfc(-x / 2**0.5) / 2`."

    def same():
        x = torch.tensor([-5.2, -1.0, 2.0])
        return x * torch.erfc(-x / 2**0.5) / 2, jax.nn.gelu(x.numpy(), approximate=False)

    source = ("torch.nn.functional.gelu", "jax.nn.gelu")


@difference
class SoftplusThreshold:
    """softplus(x) - x at 20.5 in float64: torch is linear above 20, JAX never."""

    def in_torch():
        return functional.softplus(torch.tensor(20.5, dtype=torch.float64)) - 20.5

    torch_gives = 0.0

    def in_jax():
        with jax.enable_x64(True):
            return jax.nn.softplus(jnp.array(20.5)) - 20.5

    jax_gives = 1.250154e-9
    instead = "`functional.softplus(x, threshold=40)`; beyond it float64 cannot tell."

    def same():
        x = np.array([0.0, 20.5, 50.0])
        with jax.enable_x64(True):
            return functional.softplus(torch.tensor(x), threshold=40), jax.nn.softplus(x)

    close = 1e-15
    source = ("torch.nn.functional.softplus", "jax.nn.softplus")


@difference
class SquareRootRounding:
    """The share of float32 square roots that are rounded correctly, as IEEE 754 demands."""

    def in_torch():
        x = np.random.default_rng(0).random(10_000, np.float32)
        return (torch.tensor(x).sqrt().numpy() == np.sqrt(x)).mean()

    torch_gives = Between(0.993, 0.5, 1.0)

    def in_jax():
        x = np.random.default_rng(0).random(10_000, np.float32)
        return (np.asarray(jnp.sqrt(x)) == np.sqrt(x)).mean()

    jax_gives = 1.0
    instead = "Do not expect equal bits of Adam, which takes a root; float64 tells more."

    def same():
        x = np.random.default_rng(0).random(100)
        with jax.enable_x64(True):
            return torch.tensor(x).sqrt(), jnp.sqrt(x)

    close = 1e-15
    portable = False
    source = ("torch.sqrt", "jax.numpy.sqrt")


@difference
class LengthOfTheArray:
    """Whether GELU of a number depends on how many stand beside it.

    torch has a vectorised kernel and another for what remains: the share of equal results.
    """

    def in_torch():
        x = torch.tensor(np.random.default_rng(0).normal(size=200), dtype=torch.float32)
        alone = torch.stack([functional.gelu(one) for one in x])
        return (functional.gelu(x) == alone).float().mean()

    torch_gives = Between(0.765, 0.0, 1.0)

    def in_jax():
        x = jnp.array(np.random.default_rng(0).normal(size=200), jnp.float32)
        alone = jnp.stack([jax.nn.gelu(one, approximate=False) for one in x])
        return (jax.nn.gelu(x, approximate=False) == alone).mean()

    jax_gives = 1.0
    instead = "Compare with a tolerance of a few ULP, also within one framework."
    portable = False
    source = ("torch.nn.functional.gelu", "jax.nn.gelu")


@difference
class DivisionByAConstant:
    """The share of x / 3 in float32 that are rounded correctly: JAX multiplies by 1/3."""

    def in_torch():
        x = np.random.default_rng(0).random(10_000, np.float32)
        return ((torch.tensor(x) / 3).numpy() == x / np.float32(3)).mean()

    torch_gives = 1.0

    def in_jax():
        x = np.random.default_rng(0).random(10_000, np.float32)
        return (np.asarray(jnp.array(x) / 3) == x / np.float32(3)).mean()

    jax_gives = Between(0.667, 0.4, 0.95)
    instead = "Standardise data once, in NumPy, for both."

    def same():
        x = np.random.default_rng(0).random(100, np.float32) / np.float32(3)
        return torch.tensor(x), jnp.array(x)

    close = 0.0
    source = ("torch.div", "jax.numpy.divide")


@difference
class FusedMultiplyAdd:
    """a * a - (a * a rounded): 0 step by step, the rounding error under jit, which fuses."""

    def in_torch():
        a = torch.tensor(1 + 2**-12)
        return a * a + torch.tensor(-((1 + 2**-12) ** 2))

    torch_gives = 0.0

    def in_jax():
        a = jnp.float32(1 + 2**-12)
        return jax.jit(lambda a, c: a * a + c)(a, -(a * a))

    jax_gives = 2.0**-24
    instead = "Do not compare the bits of eager and compiled code; a product that leaves `jit` is rounded."

    def same():
        a, b = jnp.float32(1 + 2**-12), torch.tensor(1 + 2**-12)
        square = jax.jit(lambda a: a * a)
        return b * b + -(b * b), jax.jit(lambda square, c: square + c)(square(a), -(a * a))

    source = ("torch.addcmul", "jax.jit")
    since = "processors with FMA instructions"


@difference
class SubnormalNumbers:
    """Numbers below 1.2e-38: kept in torch, 0 in JAX on the CPU; so log(softmax) can be -inf."""

    def in_torch():
        return torch.tensor(1e-40) * 1 > 0, torch.tensor([0.0, -95.0]).softmax(0).log()[1]

    torch_gives = (True, -95.0)

    def in_jax():
        return jnp.array(1e-40) * 1 > 0, jnp.log(jax.nn.softmax(jnp.array([0.0, -95.0])))[1]

    jax_gives = (False, -float("inf"))
    instead = "`log_softmax`."

    def same():
        x = [0.0, -95.0]
        return torch.tensor(x).log_softmax(0), jax.nn.log_softmax(jnp.array(x))

    source = ("torch.set_flush_denormal", "jax.nn.log_softmax")


@difference
class CumulativeSum:
    """The largest error of a running sum of a million numbers, relative to the last.

    torch adds in float64 and rounds each; JAX adds float32 in a tree.
    """

    def in_torch():
        x = np.random.default_rng(0).random(10**6, np.float32)
        exact = x.cumsum(dtype=float)
        return abs(torch.tensor(x).cumsum(0).numpy() - exact).max() / exact[-1]

    torch_gives = Between(3.1e-8, 0.0, 6.1e-8)

    def in_jax():
        x = np.random.default_rng(0).random(10**6, np.float32)
        exact = x.cumsum(dtype=float)
        return abs(np.asarray(jnp.cumsum(x)) - exact).max() / exact[-1]

    jax_gives = Between(2.1e-7, 6.3e-8, 1e-5)
    instead = "Sum in float64."

    def same():
        x = np.random.default_rng(0).random(1000)
        with jax.enable_x64(True):
            return torch.tensor(x).cumsum(0), jnp.cumsum(x)

    close = 1e-14
    source = ("torch.cumsum", "jax.numpy.cumsum")


@difference
class MatrixProductOfOneRow:
    """The share of equal bits of a row's product, alone and in a batch of 64."""

    def in_torch():
        draw = np.random.default_rng(0).standard_normal
        x, w = (torch.tensor(draw(shape, np.float32)) for shape in ((64, 256), (256, 256)))
        return ((x @ w)[:1] == x[:1] @ w).float().mean()

    torch_gives = Between(0.0781, 0.0, 1.0)

    def in_jax():
        draw = np.random.default_rng(0).standard_normal
        x, w = (jnp.array(draw(shape, np.float32)) for shape in ((64, 256), (256, 256)))
        return ((x @ w)[:1] == x[:1] @ w).mean()

    jax_gives = Between(1.0, 0.0, 1.0)
    instead = "Compare outputs of other batch sizes with a tolerance."
    portable = False
    source = ("torch.matmul", "jax.numpy.matmul", "jax#18123")


@difference
class LstmKernels:
    """An LSTM layer against its own cell, step by step: torch's layer is another kernel (oneDNN)."""

    def in_torch():
        layer, x = nn.LSTM(8, 16), torch.randn(20, 1, 8)
        with torch.no_grad():
            with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
                native = layer(x)[0]
            return (layer(x)[0] - native).abs().max()

    torch_gives = Between(6e-8, 0.0, 2e-6)

    def in_jax():
        draw = np.random.default_rng(0).standard_normal
        w, x = jnp.array(draw((16, 16), np.float32) / 4), jnp.array(draw((20, 16), np.float32))
        scanned = lax.scan(lambda h, x: (jnp.tanh(w @ h + x),) * 2, jnp.zeros(16), x)[1]
        h, step = jnp.zeros(16), jax.jit(lambda h, x: jnp.tanh(w @ h + x))
        return jnp.abs(scanned - jnp.stack([h := step(h, row) for row in x])).max()

    jax_gives = Between(0.0, 0.0, 2e-6)
    instead = "Compare in float64, which oneDNN does not take."

    def same():
        layer, x = nn.LSTM(8, 16).double(), torch.randn(20, 1, 8, dtype=torch.float64)
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            native = layer(x)[0]
        return layer(x)[0], native

    close = 1e-15
    portable = False
    source = ("torch.nn.LSTM", "jax.lax.scan")


@difference
class Tf32Settings:
    """Whether float32 may be rounded to 10 bits on a GPU: settings when nothing is said.

    torch: not in matrix products, but in cuDNN's recurrent layers and convolutions. JAX: None,
    the hardware's fastest.
    """

    def in_torch():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    torch_gives = (False, True)

    def in_jax():
        return jax.config.jax_default_matmul_precision

    jax_gives = None
    instead = (
        "`torch.backends.cudnn.allow_tf32 = False`, `jax.default_matmul_precision('highest')`."
    )
    source = (
        "https://docs.pytorch.org/docs/stable/notes/cuda.html",
        "jax.default_matmul_precision",
    )


@difference
class FastMath:
    """What a compiler may assume: with XLA's fast-math, isnan(NaN) is False. It is off by default."""

    def in_torch():
        return torch.isnan(torch.tensor(float("nan")) * 2)

    torch_gives = True

    def in_jax():
        options = {"xla_cpu_enable_fast_math": True, "xla_cpu_fast_math_honor_nans": False}
        isnan = jax.jit(lambda x: jnp.isnan(x * 2), compiler_options=options)
        return isnan(float("nan"))

    jax_gives = False
    instead = "Leave it off where NaN is looked for."

    def same():
        x = float("nan")
        return torch.isnan(torch.tensor(x) * 2), jax.jit(lambda x: jnp.isnan(x * 2))(x)

    source = ("torch.isnan", "jax.jit")


@difference
class ChaosOfLargeWeights:
    """A recurrent net of large weights forgets its rounding in no framework.

    The error of each after 60 steps in float32 with weights three times the stable size, against
    its own float64: each is wrong, and so they differ from each other.
    """

    def in_torch():
        return abs(rnn_state(3.0, "float32", "torch") - rnn_state(3.0, "float64", "torch")).max()

    torch_gives = Between(0.881, 1e-3, 2.0)

    def in_jax():
        return abs(rnn_state(3.0, "float32", "jax") - rnn_state(3.0, "float64", "jax")).max()

    jax_gives = Between(1.99, 1e-3, 2.0)
    instead = "Compare in float64, over few steps, at the initial size of weights."

    def same():
        return rnn_state(0.6, "float32", "torch"), rnn_state(0.6, "float32", "jax")

    close = 1e-5
    portable = False
    source = ("torch.nn.RNN", "jax.lax.fori_loop")


@difference
class ParametersWithoutGradient:
    """A parameter that does not matter, as a score's bias before softmax, drifts by rounding.

    Its true gradient is 0; Adam divides what rounding leaves by its size. After 200 steps:
    """

    def in_torch():
        scores, value = np.random.default_rng(0).standard_normal((2, 16, 10), np.float32)
        bias = torch.zeros(1, requires_grad=True)
        adam = torch.optim.Adam([bias], lr=0.01)
        for _ in range(200):
            weights = (torch.tensor(scores) + bias).softmax(1)
            adam.zero_grad()
            ((weights * torch.tensor(value)).sum(1) ** 2).mean().backward()
            adam.step()
        return bias.item()

    torch_gives = Between(0.0409, -2.0, 2.0)

    def in_jax():
        scores, value = np.random.default_rng(0).standard_normal((2, 16, 10), np.float32)
        adam = optax.adam(0.01)

        def step(_, carry):
            loss = jax.grad(lambda b: ((jax.nn.softmax(scores + b) * value).sum(1) ** 2).mean())
            update, state = adam.update(loss(carry[0]), carry[1])
            return carry[0] + update, state

        return lax.fori_loop(0, 200, step, (jnp.zeros(1), adam.init(jnp.zeros(1))))[0].item()

    jax_gives = Between(-0.342, -2.0, 2.0)
    instead = "Leave the bias out, or out of the comparison."
    portable = False
    source = ("torch.nn.MultiheadAttention", "jax.nn.softmax")


@difference
class Bfloat16ProductInFloat32Sum:
    """A bfloat16 product on its way into a float32 sum: rounded in torch, not under `jax.jit`.

    XLA leaves out a rounding that it would undo at once. A function then gives other bits when it
    is fused otherwise, be it only because it stands in a larger one.
    """

    def in_torch():
        x = torch.full((4,), 1 + 2.0**-7, dtype=torch.bfloat16)
        return (x * x).sum(dtype=torch.float32)

    torch_gives = 4.0625

    def in_jax():
        x = jnp.full(4, 1 + 2.0**-7, jnp.bfloat16)
        return jax.jit(lambda x: (x * x).sum(dtype=jnp.float32))(x)

    jax_gives = Between(4.06274, 4.0625, 4.0628)
    instead = "`compiler_options={'xla_allow_excess_precision': False}` of `jax.jit`."

    def same():
        x, exact = [1 + 2.0**-7] * 4, {"xla_allow_excess_precision": False}
        ours = torch.tensor(x, dtype=torch.bfloat16)
        add = jax.jit(lambda x: (x * x).sum(dtype=jnp.float32), compiler_options=exact)
        return (ours * ours).sum(dtype=torch.float32), add(jnp.array(x, jnp.bfloat16))

    close = 0.0
    portable = False
    source = ("torch.sum", "jax.jit")


@difference
class SigmoidOfBfloat16:
    """sigmoid and softmax of bfloat16: torch rounds the result, JAX each operation inside.

    The largest error over bfloat16 numbers from -8 to 8, in ULP; 0.5 is correct rounding.
    """

    def in_torch():
        x = torch.linspace(-8, 8, 4097).bfloat16()
        truth = 1 / (1 + torch.exp(-x.double()))
        ulp = torch.exp2(torch.floor(torch.log2(truth)) - 7)
        return ((torch.sigmoid(x).double() - truth) / ulp).abs().max()

    torch_gives = Between(0.5, 0.49, 0.51)

    def in_jax():
        x = jnp.linspace(-8, 8, 4097).astype(jnp.bfloat16)
        truth = 1 / (1 + np.exp(-np.array(x, np.float64)))
        ulp = 2 ** (np.floor(np.log2(truth)) - 7)
        return np.abs((np.array(jax.nn.sigmoid(x), np.float64) - truth) / ulp).max()

    jax_gives = Between(2.04148, 0.51, 4.0)
    instead = "`jax.nn.sigmoid(x.astype(jnp.float32)).astype(x.dtype)`."

    def same():
        x = np.linspace(-8, 8, 4097, dtype=np.float32)
        ours = torch.tensor(x).bfloat16().sigmoid().float()
        theirs = jax.nn.sigmoid(jnp.array(x).astype(jnp.bfloat16).astype(jnp.float32))
        return ours, theirs.astype(jnp.bfloat16).astype(jnp.float32)

    close = 2.0**-8  # a tie of float32's last bit
    portable = False
    source = ("torch.sigmoid", "jax.nn.sigmoid")


@difference
class Bfloat16AndPythonNumber:
    """bfloat16 with a Python number: torch takes it in float32, JAX rounds it to bfloat16 first.

    Dropout's `x / 0.6` then scales by 0.26 % too little.
    """

    def in_torch():
        return (torch.tensor(7.0, dtype=torch.bfloat16) / 0.6).item()

    torch_gives = 11.6875

    def in_jax():
        return (jnp.bfloat16(7.0) / 0.6).item()

    jax_gives = 11.625
    instead = "Compute in float32 and round once: `(x.astype(jnp.float32) / 0.6).astype(x.dtype)`."

    def same():
        x = jnp.bfloat16(7.0)
        ours = torch.tensor(7.0, dtype=torch.bfloat16) / 0.6
        return ours.item(), (x.astype(jnp.float32) / 0.6).astype(x.dtype).item()

    close = 0.0
    source = ("torch.div", "jax.numpy.divide")
