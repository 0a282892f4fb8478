"""The instrument is itself tested: each planted difference is reported, and at the right place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn

import parity
from parity.measure import ulps
from parity.truth import exactly
from parity_tests.cases import CASES
from parity_tests.test_diagnose import (
    ATTENTION,
    BLOCK,
    FLAX_WEIGHTS,
    GRU,
    LSTM,
    MASK,
    B,
    H,
    P,
    T,
    X,
    as_given,
    attention,
    flax_block,
    gru,
    lstm,
    seeded,
)
from parity_tests.test_models import run_jax, run_numpy
from spec.params import parameter_schema

AT = (2, 1, 0)


def planted(change):
    """Return tanh in JAX, its result changed."""
    return lambda x: change(jnp.tanh(x))


def test_agreement(parity):
    report = parity(LSTM, lstm, X, P)
    assert [a.name for a in report.outputs] == ["output.0", "output.1.0", "output.1.1"]
    assert {a.name for a in report.gradients} == {"d input", *(f"d {n}" for n in P)}
    assert all(a.rel < 1e-14 for a in report.arrays)
    assert report.variants["a batch of 1"].startswith("same")
    assert report.variants["one step"].startswith("same")
    assert "same" in report.as_dict()["verdict"] or report.as_dict()["same"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_ulp_is_counted_and_placed(dtype):
    up = planted(lambda y: y.at[AT].set(jnp.nextafter(y[AT], jnp.inf)))
    exact = parity.compare(lambda x: x * 2, lambda x: x * 2, X, dtype=dtype)
    assert exact["output"].max_ulp == 0
    report = parity.compare(
        lambda x: x * 2,
        lambda x: (x * 2).at[AT].set(jnp.nextafter(x[AT] * 2, jnp.inf)),
        X,
        dtype=dtype,
        gradients=False,
    )
    assert (report["output"].max_ulp, report["output"].worst) == (1, AT)
    assert report.same  # one ULP is rounding
    assert parity.compare(torch.tanh, up, X, dtype=dtype, gradients=False).same


@pytest.mark.parametrize("where", ["params", "inside"])
def test_weights_computed_in_float32_are_told_from_a_difference(where):
    """A sum of two biases, rounded once; a difference of 1e-6 beside it is none of it."""
    rnn = seeded(RNN(X.shape[2], H, batch_first=True))
    p = {n.removesuffix("_l0"): x.detach().numpy() for n, x in rnn.named_parameters()}
    own = {"i": p["weight_ih"].T, "h": p["weight_hh"].T, "b": p["bias_ih"] + p["bias_hh"]}

    def run(p, x, scale=1.0):
        def step(h, now):
            h = jnp.tanh(now @ p["i"] + h @ p["h"] + p["b"])
            return h, h * scale

        return jax.lax.scan(step, jnp.zeros((len(x), H)), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    def compared(scale):
        if where == "params":
            return parity.compare(rnn, lambda p, x: run(p, x, scale), X, own)
        return parity.compare(rnn, lambda x: run(own, x, scale), X)

    report = compared(1.0)
    assert report.same
    assert report.verdict == "the same but for weights rounded to float32"
    assert f"torch's numbers: {'b' if where == 'params' else 'what the JAX'}" in str(report)
    assert report["output"].rel > 1e-9
    assert compared(1 + 1e-6).verdict == "they compute different functions"
    exact = own | {"b": p["bias_ih"].astype(float) + p["bias_hh"]}
    assert parity.compare(rnn, run, X, exact).verdict == "both within rounding"


def test_params_may_hold_what_is_no_weight():
    """As an Equinox module does, which is a tree of its arrays and functions, and nnx's states."""
    linear = nn.Linear(X.shape[2], H)
    params = {"activation": jnp.tanh, "key": jax.random.key(0), "size": H}
    params |= {"weight": linear.weight.detach().numpy(), "bias": linear.bias.detach().numpy()}

    def run(p, x):
        return p["activation"](x @ p["weight"].T + p["bias"])

    report = parity.compare(nn.Sequential(linear, nn.Tanh()), run, X, params)
    assert report.verdict == "both within rounding"


def test_a_difference_in_one_element_is_placed():
    report = parity.compare(torch.tanh, planted(lambda y: y.at[AT].add(1e-9)), X)
    assert not report.same
    assert report["output"].worst == AT
    assert report["output"].torch == pytest.approx(np.tanh(X[AT]), rel=1e-15)
    assert report["output"].jax - report["output"].torch == pytest.approx(1e-9, rel=1e-5)
    assert report["d input"].same


def test_nan_on_one_side():
    report = parity.compare(torch.tanh, planted(lambda y: y.at[AT].set(jnp.nan)), X)
    assert report["output"].verdict == "NaN or inf on one side"
    assert report["output"].worst == AT
    both = parity.compare(lambda x: torch.log(x), lambda x: jnp.log(x), X, gradients=False)
    assert both.same


def test_swapped_names():
    report = parity.compare(
        lambda x: {"a": torch.tanh(x), "b": torch.sin(x)},
        lambda x: {"a": jnp.sin(x), "b": jnp.tanh(x)},
        X,
    )
    assert {a.name: a.same for a in report.outputs} == {"a": False, "b": False}
    assert parity.compare(
        lambda x: {"a": torch.tanh(x), "b": torch.sin(x)},
        lambda x: {"b": jnp.sin(x), "a": jnp.tanh(x)},
        X,
    ).same


def test_a_gradient_off_by_a_factor():
    @jax.custom_vjp
    def twice(x):
        return jnp.tanh(x)

    twice.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (2 * g * (1 - jnp.tanh(x) ** 2),))
    report = parity.compare(torch.tanh, twice, X)
    assert report["output"].same
    assert not report["d input"].same
    assert report["d input"].jax == pytest.approx(2 * report["d input"].torch)


def test_a_gradient_that_is_zero_on_paper():
    """A bias that the softmax cancels: its gradient is noise, unless it is wrong."""
    report = parity.compare(ATTENTION, attention, (X, MASK), None, "equal")
    assert report.same
    assert report["d k.bias"].rel < report["d k.bias"].tolerance
    assert report["d k.bias"].tolerance > 1e3 * report["d q.bias"].tolerance
    report = parity.compare(
        ATTENTION,
        lambda p, x, m: attention(p, x, m) + 1e-6 * p["k"]["bias"],
        (X, MASK),
        None,
        "equal",
    )
    assert not report["d k.bias"].same


def test_who_is_off():
    rounded = planted(lambda y: y.astype(jnp.float32).astype(y.dtype))
    assert parity.compare(torch.tanh, rounded, X)["output"].verdict == "JAX is off"
    report = parity.compare(lambda x: torch.tanh(x).float().to(x.dtype), jnp.tanh, X, truth=np.tanh)
    assert report["output"].verdict == "torch is off"
    report = parity.compare(torch.tanh, jnp.sin, X)
    assert report["output"].verdict == "they compute different functions"
    report = parity.compare(torch.tanh, jnp.sin, X, truth=np.tanh)
    assert report["output"].verdict == "JAX is off"


def test_float32_is_held_against_float64():
    report = parity.compare(BLOCK, flax_block(), X, None, FLAX_WEIGHTS, dtype="float32")
    assert report.same
    assert 0 < report["output"].torch_rel < report["output"].tolerance < 1e-3
    half = lambda v, x: flax_block()(v, x.astype(jnp.float16).astype(x.dtype))  # noqa: E731
    assert (
        parity.compare(BLOCK, half, X, None, FLAX_WEIGHTS, dtype="float32")["output"].verdict
        == "JAX is off"
    )


def test_shapes_dtypes_and_variants():
    assert (
        parity.compare(lambda x: x.sum(1), lambda x: x.sum(0), X)["output"].verdict
        == "shapes differ"
    )
    report = parity.compare(torch.tanh, lambda x: jnp.tanh(x) * (x.shape[0] > 1), X)
    assert report["output"].same
    assert not report.same
    assert report.variants["a batch of 1"].startswith("differs")
    with pytest.raises(ValueError, match="return the same"):
        parity.compare(lambda x: (x, x), lambda x: x, X)


def test_the_failure_message_says_where(parity):
    with pytest.raises(AssertionError, match=r"output\[2, 1, 0\]: they compute.* ULP at most"):
        parity(torch.tanh, planted(lambda y: y.at[AT].add(1e-3)), X)


def test_weights_are_strict():
    layer = nn.Linear(3, 5)
    template = {"kernel": np.zeros((3, 5)), "scale": np.zeros(5)}
    with pytest.raises(parity.WeightsError) as error:
        parity.compare(layer, lambda p, x: x @ p["kernel"], X, template, {"kernel": "weight"})
    assert str(error.value) == (
        "weights do not fit: JAX's kernel has the shape (5, 3), expected (3, 5); "
        "JAX's scale gets no value; torch's bias is not used"
    )
    with pytest.raises(parity.WeightsError, match="torch has no 'wieght'"):
        parity.compare(layer, lambda p, x: x @ p["kernel"], X, None, {"kernel": "wieght"})


def test_ulps_count_floats():
    x = np.array([1.0, -1.0, 0.0, 5e-324, np.nan, np.inf])
    y = np.array([np.nextafter(1, 2), np.nextafter(-1, 0), -0.0, -5e-324, 1.0, 1.0])
    assert ulps(x, y).tolist() == [1, 1, 0, 2, 0, 0]
    assert ulps(np.float32([1.0]), np.float32([1.0 + 2**-20])).tolist() == [8]


# gelu's own constants are rounded to float64, which the truth of the code keeps.
EXACT = [case for case in CASES if case.config.recurrent or case.activation == "relu"][::4]


@pytest.mark.parametrize("case", [*EXACT, *(c for c in CASES if c.activation == "relu")], ids=str)
def test_the_truth_is_exact(case):
    """The walked jaxpr equals the NumPy reference in extended precision, far below float64's step."""
    import jax_impl

    found = exactly(lambda leaves: run_jax(case, jax_impl.recurrent, leaves), case.leaves)
    leaves = {n: a.astype(np.longdouble) for n, a in case.leaves.items()}
    for name, array in run_numpy(case, leaves).items():
        assert np.abs(found[name] - array).max() < 1e-17
    assert set(case.params) == set(parameter_schema(case.config))


def late(p, x, step_of_fault=3):
    """An LSTM whose forget gate is off at one time step."""

    def step(carry, now):
        h, c, t = carry
        z = now @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
        i, f, g, o = jnp.split(z, 4, -1)
        f = f + 0.1 * (t == step_of_fault)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c, t + 1), h

    zeros = jnp.zeros((x.shape[0], H))
    (h, c, _), outputs = jax.lax.scan(step, (zeros, zeros, 0), x.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), (h[None], c[None])


@pytest.mark.parametrize("fault", [1, 3])
def test_the_trace_finds_the_time_step(fault):
    found = parity.trace(LSTM, lambda p, x: late(p, x, fault), X, P)
    assert not found.same
    assert found.first.steps == (fault,)
    assert found.first.place.startswith("test_judge.py:")
    assert found.agreeing[0].steps == (fault,)


def test_the_trace_finds_the_operation():
    found = parity.trace(BLOCK, flax_block(epsilon=1e-3), X, None, FLAX_WEIGHTS)
    assert found.first.place.startswith("normalization.py")
    found = parity.trace(LSTM, lambda p, x: lstm(p, x, forget=1.0), X, P)
    assert found.first.operation == "add"  # sigmoid's operand; that c is 0 hides it from h at first
    assert found.first.steps == (0,)
    found = parity.trace(GRU, lambda p, x: gru(p, x, before=True), X, as_given(GRU))
    assert (found.first.operation, found.first.steps) == ("add", (0,))
    assert parity.trace(LSTM, lstm, X, P).same
    assert parity.trace(LSTM, lstm, X, P).first is None
    swapped = parity.trace(LSTM, lambda p, x: (lstm(p, x)[0], lstm(p, x)[1][::-1]), X, P)
    assert swapped.first is None
    assert not swapped.same


class RNN(nn.RNN):
    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.parametrize(
    ("fault", "operation", "step"),
    [
        ("weight_hh", "dot_general", 1),  # h is 0 at first, so that any weight will do
        ("weight_ih", "dot_general", 0),
        ("bias_hh", "tanh", 0),  # flax has one bias, the sum; without one, all adds up to tanh
    ],
)
def test_the_trace_looks_through_sums_in_another_order(fault, operation, step):
    """Flax adds its one bias to the product before that of h, torch one to each."""
    rnn = seeded(RNN(X.shape[2], H, batch_first=True))
    weights = {
        n.removesuffix("_l0"): p.detach().double().numpy() for n, p in rnn.named_parameters()
    }
    weights[fault] = weights[fault] * 0.5
    inner = {"kernel": weights["weight_ih"].T, "bias": weights["bias_ih"] + weights["bias_hh"]}
    cell = {"i": inner, "h": {"kernel": weights["weight_hh"].T}}
    if fault == "bias_hh":
        inner["bias"] = weights["bias_ih"]
    model = linen.RNN(linen.SimpleCell(H))
    found = parity.trace(rnn, lambda x: model.apply({"params": {"cell": cell}}, x), X)
    assert (found.first.operation, found.first.steps) == (operation, (step,))


def test_the_trace_passes_over_what_leads_to_no_output():
    """As linen.RNN does, which computes a cell's first step once more and throws it away."""

    def in_jax(x):
        jnp.exp(x - 1)
        return jnp.tanh(x) * 2.5

    found = parity.trace(lambda x: torch.tanh(x) * 2, in_jax, X)
    assert (found.first.operation, found.agreeing[0].operation) == ("mul", "tanh")


def test_the_trace_takes_a_model_with_float32_states():
    def in_jax(p, x):
        zeros = jnp.zeros((x.shape[0], H), jnp.float32)
        return jax.lax.scan(lambda h, now: (jnp.tanh(now @ p + h), h), zeros, x.swapaxes(0, 1))[0]

    def in_torch(x):
        h = 0
        for t in range(T):
            h = torch.tanh(x[:, t] @ torch.from_numpy(weight) + h)
        return h

    weight = P["weight_ih_l0"][:H].T
    assert parity.trace(in_torch, in_jax, X, weight).same


def test_the_trace_compares_tags():
    def in_torch(x):
        y = parity.tag("early", torch.tanh(x))
        return parity.tag("late", y * 2) + 1

    def in_jax(x):
        y = parity.tag("early", jnp.tanh(x))
        return parity.tag("late", y * 2.5) + 1

    found = parity.trace(in_torch, in_jax, X)
    assert found.tags["early"] < 1e-15
    assert found.tags["late"] == pytest.approx(0.2)
    assert "first tag that differs: late" in str(found)
    assert B != T
