"""The diagnosis names what was planted, in models of several styles, and claims nothing else."""

import contextlib
import copy

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.nn import functional

from parity import diagnose
from parity.weights import part, then, total, transpose

B, T, D, H = 4, 6, 3, 5
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(B, T, D))
LENGTHS = np.array([6, 2, 4, 1])
MASK = np.arange(T) < LENGTHS[:, None]


def seeded(module: nn.Module) -> nn.Module:
    """Give every parameter random values, biases and scales too."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def lstm(p, x, h=None, c=None, order="ifgo", bias=1.0, transposed=False, forget=0.0, index=-1):
    """A plain JAX LSTM on torch's arrays; returns all outputs and the last state."""
    w_hh = p["weight_hh_l0"]
    h = jnp.zeros((x.shape[0], H)) if h is None else h
    c = jnp.zeros((x.shape[0], H)) if c is None else c

    def step(carry, now):
        h, c = carry
        z = now @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ w_hh.T + bias * p["bias_hh_l0"]
        gates = dict(zip(order, jnp.split(z, 4, -1), strict=True))
        c = jax.nn.sigmoid(gates["f"] + forget) * c + jax.nn.sigmoid(gates["i"]) * jnp.tanh(
            gates["g"]
        )
        h = jax.nn.sigmoid(gates["o"]) * jnp.tanh(c)
        return (h, c), h

    (h, c), outputs = jax.lax.scan(step, (h, c), x.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), (h[None], c[None])


def gru(p, x, before=False):
    def step(h, now):
        i = jnp.split(now @ p["weight_ih_l0"].T + p["bias_ih_l0"], 3, -1)
        w_r, w_z, w_n = jnp.split(p["weight_hh_l0"], 3)
        b_r, b_z, b_n = jnp.split(p["bias_hh_l0"], 3)
        r = jax.nn.sigmoid(i[0] + h @ w_r.T + b_r)
        z = jax.nn.sigmoid(i[1] + h @ w_z.T + b_z)
        inner = (r * h) @ w_n.T + b_n if before else r * (h @ w_n.T + b_n)
        h = (1 - z) * jnp.tanh(i[2] + inner) + z * h
        return h, h

    h, outputs = jax.lax.scan(step, jnp.zeros((x.shape[0], H)), x.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), h[None]


LSTM = seeded(nn.LSTM(D, H, batch_first=True))
GRU = seeded(nn.GRU(D, H, batch_first=True))


class Block(nn.Module):
    """Linear, LayerNorm, GELU, Linear."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(D, H), nn.LayerNorm(H), nn.Linear(H, 2)

    def forward(self, x):
        return self.down(functional.gelu(self.norm(self.up(x))))


class FlaxBlock(flax.linen.Module):
    approximate: bool = False
    epsilon: float = 1e-5

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.LayerNorm(epsilon=self.epsilon, name="norm")(
            flax.linen.Dense(H, name="up")(x)
        )
        return flax.linen.Dense(2, name="down")(jax.nn.gelu(x, approximate=self.approximate))


BLOCK = seeded(Block())
FLAX_WEIGHTS = {
    "params.up.kernel": transpose("up.weight"),
    "params.up.bias": "up.bias",
    "params.norm.scale": "norm.weight",
    "params.norm.bias": "norm.bias",
    "params.down.kernel": transpose("down.weight"),
    "params.down.bias": "down.bias",
}


def flax_block(**options):
    return FlaxBlock(**options).apply


class Pooled(nn.Module):
    """LSTM, mean over real steps, head."""

    def __init__(self, masked=True):
        super().__init__()
        self.lstm, self.head, self.masked = nn.LSTM(D, H, batch_first=True), nn.Linear(H, 2), masked

    def forward(self, x, mask):
        h = self.lstm(x)[0]
        if not self.masked:
            return self.head(h.mean(1))
        m = mask[..., None].to(h.dtype)
        return self.head((h * m).sum(1) / m.sum(1))


def pooled(p, x, mask, padded=False, masked=True):
    h = lstm({n.removeprefix("lstm."): a for n, a in p.items()}, x)[0]
    m = mask[..., None] if masked else jnp.ones_like(h[..., :1])
    h = (h * m).sum(1) / (x.shape[1] if padded else m.sum(1))
    return h @ p["head.weight"].T + p["head.bias"]


POOLED, MEAN = seeded(Pooled()), seeded(Pooled(masked=False))


def as_given(module):
    return {n: a.detach().numpy().astype(float) for n, a in module.state_dict().items()}


def flat(p):
    """Put trees with torch's names, nested at dots, back into one dictionary."""
    found = {}
    for name, value in p.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{rest}".rstrip("."): leaf for rest, leaf in inner.items()}
    return found


class Bidirectional(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(D, H, batch_first=True, bidirectional=True)

    def forward(self, x):
        _, (h, _) = self.rnn(x)
        return torch.cat([h[0], h[1]], -1)


BIDIRECTIONAL = seeded(Bidirectional())


def bidirectional(p, x, end=0):
    p = {n.removeprefix("rnn."): a for n, a in flat(p).items()}
    forward = lstm(p, x)[0]
    reverse = {n.removesuffix("_reverse"): a for n, a in p.items() if n.endswith("_reverse")}
    backward = lstm(reverse, x[:, ::-1])[0][:, ::-1]
    return jnp.concatenate([forward[:, -1], backward[:, end]], -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, H) for _ in range(3))

    def forward(self, x, mask):
        scores = self.q(x) @ self.k(x).mT / H**0.5
        weights = torch.softmax(scores.masked_fill(~mask[:, None], -1e9), -1)
        return weights @ self.v(x)


ATTENTION = seeded(Attention())


def attention(p, x, mask, axis=-1, inverted=False, scale=H**-0.5):
    p = flat(p)
    q, k, v = (x @ p[f"{n}.weight"].T + p[f"{n}.bias"] for n in "qkv")
    scores = q @ k.swapaxes(1, 2) * scale
    seen = ~mask if inverted else mask
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e9), axis)
    return weights @ v


TARGETS = DRAW.normal(size=(B, T, D))


def train_torch(make, clip=None):
    """Three steps of an optimiser on a linear model; returns the weights."""

    def run(x, y):
        w = torch.ones(D, D, dtype=x.dtype, requires_grad=True)
        optimizer = make([w])
        with torch.enable_grad():
            for _ in range(3):
                optimizer.zero_grad()
                ((x.detach() @ w - y.detach()) ** 2).mean().backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_([w], clip)
                optimizer.step()
        return w.detach()

    return run


def train_jax(tx):
    def run(x, y):
        w = jnp.ones((D, D), x.dtype)
        state = tx.init(w)
        for _ in range(3):
            gradient = jax.grad(lambda w: ((x @ w - y) ** 2).mean())(w)
            updates, state = tx.update(gradient, state, w)
            w = w + updates
        return w

    return run


def norm_block(p, x, fast):
    p = flat(p)
    h = x @ p["up.weight"].T + p["up.bias"] + 1e3
    mean = h.mean(-1, keepdims=True)
    var = (
        (h * h).mean(-1, keepdims=True) - mean**2
        if fast
        else ((h - mean) ** 2).mean(-1, keepdims=True)
    )
    h = (h - mean) / jnp.sqrt(var + 1e-5) * p["norm.weight"] + p["norm.bias"]
    return jax.nn.gelu(h, approximate=False) @ p["down.weight"].T + p["down.bias"]


class Shifted(Block):
    def forward(self, x):
        return self.down(functional.gelu(self.norm(self.up(x) + 1e3)))


SHIFTED = seeded(Shifted())
TIES = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]])
P = as_given(LSTM)
SQUARE = {**P, "weight_hh_l0": DRAW.normal(size=(4 * H, H))}


def with_jax(**options):
    return lambda p, x: lstm(p, x, **options)


# name: (torch, JAX, inputs, params, weights, the names one of which must be among the causes, each)
PAIRS = {
    "gate order": (LSTM, with_jax(order="igfo"), X, P, None, ["gate_order"]),
    "missing bias": (LSTM, with_jax(bias=0.0), X, P, None, ["missing_bias"]),
    "doubled bias": (LSTM, with_jax(bias=2.0), X, P, None, ["doubled_bias"]),
    "forget bias": (LSTM, with_jax(forget=1.0), X, P, None, ["forget_bias"]),
    "carry order": (LSTM, lambda p, x: (lambda y, s: (y, s[::-1]))(*lstm(p, x)), X, P, None, ["carry_order"]),
    "GRU reset": (GRU, lambda p, x: gru(p, x, True), X, as_given(GRU), None, ["gru_reset"]),
    "GELU": (BLOCK, flax_block(approximate=True), X, None, FLAX_WEIGHTS, ["gelu_form"]),
    "LayerNorm eps": (BLOCK, flax_block(epsilon=1e-6), X, None, FLAX_WEIGHTS, ["layernorm_eps"]),
    "fast variance": (SHIFTED, lambda p, x: norm_block(p, x, True), X, None, "equal", ["fast_variance"]),
    "mask sense": (
        ATTENTION, lambda p, x, m: attention(p, x, m, inverted=True), (X, MASK & (np.arange(T) != 3)),
        None, "equal", ["mask_sense"],
    ),
    "softmax axis": (
        ATTENTION, lambda p, x, m: attention(p, x, m, axis=1), (X, np.ones_like(MASK)), None, "equal",
        ["softmax_axis"],
    ),
    "attention scale": (
        ATTENTION, lambda p, x, m: attention(p, x, m, scale=1.0), (X, MASK), None, "equal",
        ["attention_scale"],
    ),
    "mean over padding": (
        POOLED, lambda p, x, m: pooled(p, x, m, padded=True), (X, MASK), as_given(POOLED), None,
        ["padding_in_mean"],
    ),
    "mean without padding": (MEAN, pooled, (X, MASK), as_given(MEAN), None, ["padding_in_mean"]),
    "loss reduction": (
        lambda x, y: functional.mse_loss(x, y), lambda x, y: ((x - y) ** 2).sum(-1).mean(), (X, TARGETS),
        None, None, ["loss_reduction"],
    ),
    "half loss": (
        lambda x, y: functional.mse_loss(x, y), lambda x, y: optax.l2_loss(x, y).mean(), (X, TARGETS),
        None, None, ["l2_loss_half"],
    ),
    "transposed": (
        nn.Sequential(seeded(nn.Linear(D, D))), lambda p, x: x @ p["0.weight"] + p["0.bias"], X,
        None, lambda a: {"0.weight": a["0.weight"], "0.bias": a["0.bias"]}, ["transposed_weight"],
    ),
    "batch and time": (LSTM, lambda p, x: lstm(p, x.swapaxes(0, 1)), X.repeat(2, 0)[:6], P, None, ["axes_swapped"]),
    "reverse end": (
        BIDIRECTIONAL, lambda p, x: bidirectional(p, x, end=-1), X, None, "equal", ["reverse_end"]
    ),
    "float32 inside": (
        BLOCK, lambda v, x: FlaxBlock().apply(v, x.astype(jnp.float32).astype(x.dtype)), X, None,
        FLAX_WEIGHTS, ["dtype_truncation"],
    ),
    "AdamW decay": (
        train_torch(lambda w: torch.optim.AdamW(w, lr=1e-2)), train_jax(optax.adamw(1e-2)), (X, TARGETS),
        None, None, ["optimizer_decay"],
    ),
    "Adam eps": (
        train_torch(lambda w: torch.optim.Adam(w, lr=1e-2)), train_jax(optax.adam(1e-2, eps=1e-5)),
        (X, TARGETS), None, None, ["optimizer_eps"],
    ),
    "L2 for AdamW": (
        train_torch(lambda w: torch.optim.AdamW(w, lr=1e-2, weight_decay=0.1)),
        train_jax(optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))), (X, TARGETS), None, None,
        ["optimizer_decoupled_decay"],
    ),
    "clip formula": (
        train_torch(lambda w: torch.optim.SGD(w, lr=1e-1), clip=0.1),
        train_jax(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1e-1))), (X, TARGETS), None, None,
        ["clip_formula"],
    ),
    "tie of abs": (lambda x: x.abs() * 2, lambda x: jnp.abs(x) * 2, TIES, None, None, ["tie_abs"]),
    "stopped gradient": (
        lambda x: torch.tanh(x) * x, lambda x: jax.lax.stop_gradient(jnp.tanh(x)) * x, X, None, None, ["detach"]
    ),
    "gate order and missing bias": (
        LSTM, with_jax(order="igfo", bias=0.0), X, P, None, ["gate_order", "missing_bias"],
    ),
    "GELU and LayerNorm eps": (
        BLOCK, flax_block(approximate=True, epsilon=1e-6), X, None, FLAX_WEIGHTS,
        ["gelu_form", "layernorm_eps"],
    ),
    "mask sense and scale": (
        ATTENTION, lambda p, x, m: attention(p, x, m, inverted=True, scale=1.0),
        (X, MASK & (np.arange(T) != 3)), None, "equal", ["mask_sense", "attention_scale"],
    ),
    "gate order and carry order": (
        LSTM, lambda p, x: (lambda y, s: (y, s[::-1]))(*lstm(p, x, order="fiog")), X, P, None,
        ["gate_order", "carry_order"],
    ),
}  # fmt: skip

CELL_WEIGHTS = {
    **{
        f"params.cell.i{gate}.kernel": then(part("weight_ih_l0", k, 4), jnp.transpose)
        for k, gate in enumerate("ifgo")
    },
    **{
        f"params.cell.h{gate}.kernel": then(part("weight_hh_l0", k, 4), jnp.transpose)
        for k, gate in enumerate("ifgo")
    },
    **{
        f"params.cell.h{gate}.bias": lambda a, k=k: jnp.split(
            total("bias_ih_l0", "bias_hh_l0")(a), 4
        )[k]
        for k, gate in enumerate("ifgo")
    },
}

MATCHING = {
    "lstm": (LSTM, lstm, X, P, None),
    "gru": (GRU, gru, X, as_given(GRU), None),
    "flax block": (BLOCK, flax_block(), X, None, FLAX_WEIGHTS),
    "flax lstm": (
        lambda x: copy.deepcopy(LSTM).double()(x)[0],
        lambda x: flax.linen.RNN(flax.linen.LSTMCell(H, parent=None, param_dtype=jnp.float64)).apply(
            {"params": {"cell": nested_cell()}}, x
        ),
        X, None, None,
    ),
    "pooled": (POOLED, pooled, (X, MASK), as_given(POOLED), None),
    "both directions": (BIDIRECTIONAL, bidirectional, X, None, "equal"),
    "attention": (ATTENTION, attention, (X, MASK), None, "equal"),
    "loss": (lambda x, y: functional.mse_loss(x, y), lambda x, y: ((x - y) ** 2).mean(), (X, TARGETS), None, None),
    "AdamW": (
        train_torch(lambda w: torch.optim.AdamW(w, lr=1e-2)), train_jax(optax.adamw(1e-2, weight_decay=1e-2)),
        (X, TARGETS), None, None,
    ),
    "two-pass variance": (SHIFTED, lambda p, x: norm_block(p, x, False), X, None, "equal"),
}  # fmt: skip


def nested_cell():
    from parity.weights import convert

    return convert(CELL_WEIGHTS, as_given(LSTM))["params"]["cell"]


@pytest.mark.parametrize("name", PAIRS)
def test_names_the_cause(name):
    torch_model, jax_fn, inputs, params, weights, causes = PAIRS[name]
    found = diagnose(torch_model, jax_fn, inputs, params, weights)
    assert found.verdict == "explained", str(found)
    assert sorted(found.names) == sorted(causes), str(found)
    assert found.after < 1e-10
    assert found.before > found.after
    assert found.notes == [] or not np.isfinite(found.before), str(found)


@pytest.mark.parametrize("name", MATCHING)
def test_claims_nothing_where_both_agree(name):
    found = diagnose(*MATCHING[name])
    assert found.verdict == "the same", str(found)
    assert found.names == []


@pytest.mark.parametrize(
    "strange",
    [
        lambda p, x: jax.tree.map(lambda y: y + 0.01 * y**3, lstm(p, x)),
        pytest.param(
            lambda p, x: lstm({n: jnp.sin(a) for n, a in p.items()}, x), marks=pytest.mark.long
        ),
        pytest.param(lambda p, x: lstm(p, x + 0.3 * x[:, :, ::-1]), marks=pytest.mark.long),
    ],
)
def test_claims_nothing_unknown(strange):
    with contextlib.suppress(AssertionError):
        found = diagnose(LSTM, strange, X, P, seconds=20)
    assert found.verdict == "none of the known ones", str(found)
    assert found.causes == []


def test_says_that_gradients_stay_apart():
    """One fault hides in the gradients of what another has made equal."""
    torch_model = seeded(nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, 2)))

    def detached(p, x):
        hidden = x @ jax.lax.stop_gradient(p["0.weight"]).T + p["0.bias"]
        return jax.nn.gelu(hidden, approximate=True) @ p["2.weight"].T + p["2.bias"]

    found = diagnose(torch_model, detached, X, as_given(torch_model))
    assert found.names == ["gelu_form"], str(found)
    assert "gradients stay" in str(found)
