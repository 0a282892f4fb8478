"""bfloat16 and float16: both sides round alike, and neither is further from the truth than it may.

The truth is float64 on the rounded weights and inputs, so that arithmetic alone is judged. How far
rounding takes a model is measured in float32: its error there, in units of float32's roundoff.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from jax_impl import arrays as jax_arrays
from jax_impl import training as jax_training
from jax_impl.arrays import to_names
from parity_tests.cases import CASES, LAYERS, B, T
from parity_tests.compare import assert_same, relative_error
from parity_tests.test_training import LABELLING, SMOOTHED, batches
from spec import reference
from spec.batch import Batch
from spec.config import Execution, ModelConfig, OptimizerConfig, Recurrence
from spec.params import init_params, parameter_schema, recurrent_schema
from spec.precision import SCALE_NAME, UNIT_ROUNDOFF, LossScale
from torch_impl import training as torch_training

LOW = ("bfloat16", "float16")
# One of each kind of layer with much around it; the others take their time.
FIRST = {
    "rnn-2layers-bidirectional-ragged-state-dropout",
    "gru-ragged-univariate-classes",
    "lstm_attention-bidirectional-ragged-dropout",
    "transformer-pre-norm-ragged-classes",
}
# A ReLU whose argument is smaller than its rounding may fall to either side of the kink, and which
# is the processor's choice. In this case one was 0.0006; with 7 features none is below 0.06.
AT_KINK = "rnn_relu-2layers-bidirectional-ragged-state"
TABLE = [replace(c, features=7) if str(c) == AT_KINK else c for c in CASES + LAYERS]
MODELS = [c if str(c) in FIRST else pytest.param(c, marks=pytest.mark.long) for c in TABLE]
# Over the whole table an error is at most 3.1 times what float32's says, mostly about 1.
FACTOR = 8


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    return torch.tensor(array).to(getattr(torch, dtype)).double().numpy()


def arrays_of(case, dtype: str = "float64") -> tuple[dict, dict]:
    """Return parameters and what a batch holds, floats rounded to a dtype."""
    told = {"targets": case.targets} if case.config.decodes else {}
    batch = {"inputs": case.leaves["inputs"], **told}
    return ({n: rounded(a, dtype) for n, a in part.items()} for part in (case.params, batch))


@cache
def answers(case, side: str, dtype: str, fast: bool = False, at: str = "float64") -> dict:
    """Run a model by `training.apply`: what it gives, and the gradient of each parameter."""
    params, floats = arrays_of(case, at)
    execution = Execution(dtype=dtype, fast=fast)
    batch = Batch(floats["inputs"], case.lengths, floats.get("targets"), case.keep)
    backend = {"torch": torch_impl, "jax": jax_impl}[side]
    state = backend.init_state(case.config, OptimizerConfig(), execution, params)
    cotangents = [c.astype(execution.master_dtype) for c in case.cotangents.values()]
    if side == "torch":
        output = torch_training.apply(state, torch_training.put(batch, execution))
        outputs = [part for part in output if part is not None]
        torch.autograd.backward(outputs, [torch.tensor(c) for c in cotangents])
        gradients = {n: p.grad.numpy() for n, p in state.model.named_parameters()}
        outputs = [part.detach().numpy() for part in outputs]
    else:
        arrays = jax_training.put(batch, execution)

        @jax_training._jit
        def both_ways(params, arrays, cotangents):
            def outputs(params):
                output = jax_training.apply(case.config, execution, params, arrays)
                return [part for part in output if part is not None]

            found, pullback = jax.vjp(outputs, params)
            return found, pullback(cotangents)[0]

        outputs, gradients = both_ways(state.params, arrays, cotangents)
        gradients = {name: np.asarray(array) for name, array in to_names(gradients).items()}
    named = dict(zip(case.cotangents, map(np.asarray, outputs), strict=True))
    found = named | {f"d {name}": array for name, array in gradients.items()}
    assert {array.dtype.name for array in found.values()} == {execution.master_dtype}
    return found


def error(found: dict, truth: dict, dtype: str) -> dict[str, float]:
    """Return the normwise error of each array in units of a dtype's roundoff."""
    # A gradient that is 0 in truth has no relative error: the keys' part of a bias.
    sized = [name for name, array in truth.items() if np.linalg.norm(array) > 1e-9]
    return {n: relative_error(found[n], truth[n]) / UNIT_ROUNDOFF[dtype] for n in sized}


def runs_of(case, dtype: str) -> dict[str, dict]:
    """Run a model on readable and on fast layers; a GRU and a transformer of JAX have one kind."""
    runs = {"torch": answers(case, "torch", dtype), "jax": answers(case, "jax", dtype)}
    runs["fast torch"] = answers(case, "torch", dtype, True)
    if case.config.cell in ("rnn", "lstm"):
        runs["fast jax"] = answers(case, "jax", dtype, True)
    return runs


def test_cases_are_in_the_table():
    assert {str(case) for case in CASES} >= FIRST | {AT_KINK}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", MODELS, ids=str)
def test_error_is_that_of_rounding(case, dtype):
    """Outputs and gradients are as far from the truth as float32's, roundoff for roundoff."""
    truth = answers(case, "torch", "float64", at=dtype)
    single = error(answers(case, "torch", "float32", at=dtype), truth, "float32")
    worst = {}
    for name, found in runs_of(case, dtype).items():
        errors = error(found, truth, dtype)
        far = {n: e for n, e in errors.items() if not e <= FACTOR * (single[n] + 1)}
        assert not far, f"{name}: in units of roundoff {far}, of float32 {single}"
        worst[name] = max(errors.values())
    assert max(worst.values()) <= FACTOR * min(worst.values()), worst


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in FIRST], ids=str)
def test_truth_is_the_reference(case):
    """What the errors are measured from is NumPy's answer on the rounded numbers."""
    params, floats = arrays_of(case, "bfloat16")
    expected = reference.predict(
        case.config, params, floats["inputs"], case.lengths, keep=case.keep
    )
    found = answers(case, "torch", "float64", at="bfloat16")
    assert_same({"y": found["predictions"]}, {"y": expected.predictions})


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_readable_layers_round_alike(case):
    """In bfloat16 the sides give equal bits, or are nearer to each other than to the truth.

    In float16 XLA fuses products and sums where a CPU has that instruction, and nothing stops it.
    """
    truth = answers(case, "torch", "float64", at="bfloat16")["predictions"]
    ours = [answers(case, side, "bfloat16")["predictions"] for side in ("torch", "jax")]
    equal = (ours[0] == ours[1]).mean()
    apart = np.linalg.norm(ours[0] - ours[1])
    assert equal > 0.5, equal
    assert apart < max(np.linalg.norm(own - truth) for own in ours), equal


SMALL = ModelConfig(model="gru", hidden_size=4, input_size=3, output_size=2)
FIRST_WEIGHTS = init_params(parameter_schema(SMALL), 0)
DRAW = np.random.default_rng(1)
BATCH = Batch(DRAW.normal(size=(B, T, 3)).astype("f"), targets=DRAW.normal(size=(B, 2)).astype("f"))
SGD = OptimizerConfig(optimizer="sgd", lr=1e-5, momentum=0.0, clip_norm=None)
SIDES = pytest.mark.parametrize("backend", [torch_impl, jax_impl], ids=["torch", "jax"])


def begin(backend, dtype: str, rule: OptimizerConfig = SGD, arrays=FIRST_WEIGHTS, step: int = 0):
    return backend.init_state(SMALL, rule, Execution(dtype=dtype), arrays, step)


def moves(backend, state, batches) -> tuple[dict, list]:
    """Take a step on each batch; return the arrays and the results."""
    results = []
    for batch in batches:
        state, result = backend.train_step(state, batch)
        results.append(result)
    return backend.export_arrays(state), results


@SIDES
def test_masters_keep_what_bfloat16_would_lose(backend):
    """200 steps, each far below half a unit of a bfloat16 weight, move weights as float32's do."""
    low, _ = moves(backend, begin(backend, "bfloat16"), [BATCH] * 200)
    single, _ = moves(backend, begin(backend, "float32"), [BATCH] * 200)
    for name, before in FIRST_WEIGHTS.items():
        moved, expected = low[name] - before.astype("f"), single[name] - before.astype("f")
        per_step = np.abs(expected).max() / 200
        assert per_step < np.abs(before).mean() * 2.0**-9, "rounding would not have lost it"
        assert relative_error(moved, expected) < 0.1, name


@SIDES
def test_scale_saves_gradients_from_underflow(backend):
    """A head of 1e-5 leaves gradients near float16's least number, 6e-8: without a scale many go."""
    small = rounded(FIRST_WEIGHTS["head.weight"] * 1e-5, "float16")
    weights = FIRST_WEIGHTS | {"head.weight": small}
    name = "optimizer.m.gru.weight_ih_l0"  # the gradient itself, where there is no momentum
    truth, _ = moves(torch_impl, begin(torch_impl, "float64", SGD, weights), [BATCH])
    state = begin(backend, "float16", SGD, weights)
    plain, _ = moves(backend, state._replace(loss_scale=LossScale(1.0)), [BATCH])
    found, _ = moves(backend, begin(backend, "float16", SGD, weights), [BATCH])
    assert relative_error(found[name], truth[name]) < 8 * UNIT_ROUNDOFF["float16"]
    assert relative_error(plain[name], truth[name]) > 0.1


FAR = replace(BATCH, targets=BATCH.targets * np.float32(1000))  # 2**15 times its gradient overflows
ADAM = OptimizerConfig(lr=1e-3, schedule="cosine", total_steps=20, warmup_steps=2)


@SIDES
def test_overflow_skips_the_step_and_halves_the_scale(backend):
    """Weights, moments and the count of steps stay; the loss is told, and is no divergence."""
    arrays, (first, second) = moves(backend, begin(backend, "float16", ADAM), [FAR, FAR])
    assert (first.loss_scale, second.loss_scale) == (2.0**14, 2.0**13)
    assert first.loss > 1e5
    assert not first.taken
    assert not first.diverged
    for name, before in FIRST_WEIGHTS.items():
        np.testing.assert_array_equal(arrays[name], before.astype("f"))
        assert not arrays[f"optimizer.m.{name}"].any()
    np.testing.assert_array_equal(arrays[SCALE_NAME], np.array([2.0**13, 0, 2], "f"))
    clean, _ = moves(backend, begin(backend, "float16", ADAM), [BATCH])
    start = begin(backend, "float16", ADAM, arrays, step=2)
    after, (result,) = moves(backend, start, [BATCH])
    assert result.taken
    for name in FIRST_WEIGHTS:  # the first step that Adam and the schedule know of
        assert relative_error(after[name], clean[name]) < 1e-4, name
    np.testing.assert_array_equal(after[SCALE_NAME], np.array([2.0**13, 1, 2], "f"))


def test_both_sides_skip_the_same_steps():
    batches = [BATCH, FAR, FAR, BATCH, FAR, BATCH]
    found = [
        moves(backend, begin(backend, "float16", ADAM), batches)[1]
        for backend in (torch_impl, jax_impl)
    ]
    taken, scales = (
        [[getattr(r, a) for r in side] for side in found] for a in ("taken", "loss_scale")
    )
    assert taken[0] == taken[1] == [True, False, False, True, False, True]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("first", [torch_impl, jax_impl], ids=["from torch", "from jax"])
def test_either_side_continues_with_the_scale(first):
    """Interrupted after a skipped step: the same bits in one framework, rounding in the other."""
    second = jax_impl if first is torch_impl else torch_impl
    batches = [BATCH, FAR, BATCH, BATCH]
    whole, results = moves(first, begin(first, "float16", ADAM), batches)
    half, _ = moves(first, begin(first, "float16", ADAM), batches[:2])
    own, _ = moves(first, begin(first, "float16", ADAM, half, step=2), batches[2:])
    assert {n: a.tobytes() for n, a in own.items()} == {n: a.tobytes() for n, a in whole.items()}
    other, continued = moves(second, begin(second, "float16", ADAM, half, step=2), batches[2:])
    np.testing.assert_array_equal(other[SCALE_NAME], whole[SCALE_NAME])
    for ours, theirs in zip(continued, results[2:], strict=True):
        assert abs(ours.loss / theirs.loss - 1) < 2.0**-8


@SIDES
def test_clipping_sees_the_gradient_not_its_multiple(backend):
    """The norm is the float32 gradient's, and what is clipped moves weights by lr x clip_norm."""
    rule = replace(SGD, clip_norm=1e-2, lr=1.0)
    arrays, (result,) = moves(backend, begin(backend, "float16", rule), [BATCH])
    _, (single,) = moves(backend, begin(backend, "float32", rule), [BATCH])
    assert abs(result.gradient_norm / single.gradient_norm - 1) < 2.0**-7
    moved = np.concatenate([(arrays[n] - w).ravel() for n, w in FIRST_WEIGHTS.items()])
    assert abs(np.linalg.norm(moved) / 1e-2 - 1) < 1e-3


def long_memory(seed: int = 0) -> tuple[dict, np.ndarray]:
    """Return an LSTM whose forget gates stand at 0.9975, and 200 steps that it adds up."""
    schema = recurrent_schema("lstm", 3, 32, 1, False, Recurrence(forget_bias=6.0))
    shrink = {"weight_ih_l0": 0.3, "weight_hh_l0": 0.05}
    drawn = init_params(schema, seed).items()
    params = {name: rounded(a * shrink.get(name, 1.0), "bfloat16") for name, a in drawn}
    inputs = np.random.default_rng(seed).normal(size=(8, 200, 3))
    return params, rounded(inputs, "bfloat16")


def last_outputs(side: str, layers: str, dtype: str) -> np.ndarray:
    params, inputs = long_memory()
    if side == "torch":
        put = partial(torch.tensor, dtype=getattr(torch, dtype))
        own = {name: put(array) for name, array in params.items()}
        module = getattr(torch_impl, layers).LSTM(3, 32)
        outputs, _ = torch.func.functional_call(module, own, (put(inputs),))
        return outputs[:, -1].detach().double().numpy()
    own = {name: jnp.asarray(array, dtype) for name, array in params.items()}
    run = jax_training._jit(getattr(jax_impl, layers).lstm)
    return np.asarray(run(own, jnp.asarray(inputs, dtype))[0][:, -1].astype(float))


@pytest.mark.parametrize("layers", ["recurrent", "fast"])
@pytest.mark.parametrize("side", ["torch", "jax"])
def test_long_memory_keeps_its_bits(side, layers):
    """Off by 0.5 to 0.8 roundoffs; with gates and cell state in bfloat16 by 8 to 12."""
    truth = last_outputs("torch", "recurrent", "float64")
    found = last_outputs(side, layers, "bfloat16")
    assert relative_error(found, truth) < 2 * UNIT_ROUNDOFF["bfloat16"]


def test_weights_gradients_are_summed_in_float32():
    """Over the chunks of JAX's fast LSTM: [H + D + 1, 4 H], in the program that it compiles."""
    params, inputs = long_memory()
    own = {name: jnp.asarray(array, "bfloat16") for name, array in params.items()}

    def total(params):
        return jax_impl.fast.lstm(params, jnp.asarray(inputs, "bfloat16"))[0].sum()

    program = str(jax.make_jaxpr(jax.grad(total))(own))
    assert ":f32[36,128] = dot_general" in program
    assert ":bf16[36,128]" not in program


def root_mean_square(x: np.ndarray) -> np.ndarray:
    moved = x - x.mean(axis=-1, keepdims=True)
    return moved / np.sqrt((moved**2).mean(axis=-1, keepdims=True) + 1e-5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


KEEP = np.arange(40) % 3 > 0
# (the function of each side, with the truth)
FUNCTIONS = {
    "sigmoid": (torch.sigmoid, jax_arrays.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (torch.tanh, jax_arrays.tanh, np.tanh),
    "softmax": (partial(torch.softmax, dim=-1), jax_arrays.softmax, softmax),
    "standardize": (torch_impl.cells.standardize, jax_impl.cells.standardize, root_mean_square),
    "gelu": (
        torch_impl.encoder.gelu,
        jax_impl.encoder.gelu,
        lambda x: reference.activate(x, "gelu"),
    ),
    "gelu_tanh": (
        torch_impl.encoder.gelu_tanh,
        jax_impl.encoder.gelu_tanh,
        lambda x: reference.activate(x, "gelu_tanh"),
    ),
    "dropout": (
        lambda x: torch_impl.carry.dropout(x, torch.tensor(KEEP), 0.4),
        lambda x: jax_impl.carry.dropout(x, jnp.asarray(KEEP), 0.4),
        lambda x: np.where(KEEP, x / 0.6, 0.0),
    ),
    "zone_out": (
        lambda x: torch_impl.carry.zone_out(x, x.flip(0), None, 0.3),
        lambda x: jax_impl.carry.zone_out(x, x[::-1], None, 0.3),
        lambda x: 0.3 * x[::-1] + 0.7 * x,
    ),
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_rounds_once(name, dtype):
    """The nearest number to the truth, on both sides: float32 inside, rounded at the end."""
    in_torch, in_jax, in_numpy = FUNCTIONS[name]
    drawn = np.random.default_rng(3).normal(scale=2, size=(50, 40))
    x = rounded(np.maximum(drawn, -2), dtype)  # below, 1 + tanh cancels in float32
    truth = in_numpy(x)
    low = torch.tensor(x).to(getattr(torch, dtype))
    both = {
        "torch": in_torch(low).double().numpy(),
        "jax": np.asarray(jax_training._jit(in_jax)(jnp.asarray(x, dtype)).astype(float)),
    }
    least = {"bfloat16": 2.0**-133, "float16": 2.0**-24}[dtype]
    spacing = 2.0 ** np.floor(np.log2(np.abs(truth) + 1e-300)) * 2 * UNIT_ROUNDOFF[dtype]
    for side, found in both.items():
        ulps = np.abs(found - truth) / np.maximum(spacing, least)
        assert ulps.max() < 0.51, f"{side}: {ulps.max()} units of the last place"


# What else a step of training may do, each with what runs it.
OPTIONS = {
    "cut": (replace(SMALL, model="lstm", dropout=0.3, truncated_bptt_steps=2), {}),
    "remat": (SMALL, {"remat": True}),
    "quantiles": (replace(SMALL, loss="quantile", quantiles="0.1,0.5,0.8", output_size=6), {}),
    "gaussian": (replace(SMALL, loss="gaussian_nll", output_size=4), {}),
    "weighted": (SMOOTHED, {}),
    "labelling": (LABELLING, {}),
}


@pytest.mark.parametrize("backend", [torch_impl, jax_impl], ids=["torch", "jax"])
@pytest.mark.parametrize(
    "name",
    [n if n == "cut" else pytest.param(n, marks=pytest.mark.long) for n in OPTIONS],
)
def test_training_with_options_is_as_near_the_truth(name, backend):
    """Six steps: losses and gradient norms are within a few roundoffs of float64's."""
    config, options = OPTIONS[name]

    def numbers(dtype: str) -> np.ndarray:
        execution = Execution(dtype=dtype, **options)
        arrays = init_params(parameter_schema(config), 3)
        state = backend.init_state(config, OptimizerConfig(lr=1e-2), execution, arrays)
        found = []
        for batch, _ in zip(batches(config), range(6), strict=False):
            state, result = backend.train_step(state, batch)
            found.append((result.loss, result.gradient_norm))
        return np.array(found)

    truth = numbers("float64")
    off = np.abs(numbers("bfloat16") / truth - 1)
    assert off.max() <= FACTOR * UNIT_ROUNDOFF["bfloat16"]
