"""The layers over time: outputs, last states and all gradients, and torch.nn's own layers."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import rnn as cudnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jax_impl
import torch_impl
from jax_impl.arrays import to_tree
from jax_impl.training import apply
from parity_tests import cases
from parity_tests.cases import CASES, B, Case, H, T
from parity_tests.compare import assert_same, in_jax, in_numpy, in_torch
from spec import reference
from spec.config import Execution, Recurrence

# Each encoder once, whatever stands on top of it.
ENCODERS = [
    *(c for c in CASES if c.config.recurrent and not (c.config.attends or c.every_step)),
    *cases.LAYERS,
]
# As wide below the first layer as above it, where a residual or a mask could slip in unnoticed.
ENCODERS += [
    Case(
        "rnn",
        layers=2,
        features=H,
        dropout=0.4,
        options=Recurrence(residual=True, input_dropout=0.2),
    ),
    Case("lstm", options=Recurrence(zoneout=0.3)),  # a cell that has a kernel, which may not run
]
ENCODERS.sort(key=lambda case: len(str(case)), reverse=True)  # a fault shows soonest
# Plain layers, and the options that the fused kernels have no way for.
ON_BOTH = [(c, l) for c in ENCODERS for l in ("recurrent", "fast") if l == "fast" or c in CASES]
EVERY_STEP = [
    c
    for c in ENCODERS
    if c.ragged and (c.state or c.model == "gru") and (c.layers == 1 or c.model == "rnn")
]
SEVERAL_STEPS = [
    Case("rnn", ragged=True, state=True),
    Case("gru", bidirectional=True),
    Case("lstm", bidirectional=True, ragged=True, state=True),
    Case("lstm", options=Recurrence(zoneout=0.3)),
]
FOR_CUDNN = [c for c in ENCODERS if c.model == "lstm" and c.options == Recurrence()]
FOR_CUDNN += [  # of 6 steps: chunks that some sequences do not reach
    Case("lstm", ragged=True, state=True, options=Recurrence(truncated_bptt_steps=4), **ways)
    for ways in ({}, {"bidirectional": True})
]
TORCH_OPTIONS = (Recurrence(), Recurrence(proj_size=3))
IN_TORCH = [c for c in ENCODERS if c.dropout == 0 and c.reset_after and c.options in TORCH_OPTIONS]
RESETS = np.array([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1]]) > 0
LAYERS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}


def leaves_of(case):
    """The encoder's parameters under torch's names, its input and its first states."""
    cell = f"{case.model}."
    params = {n.removeprefix(cell): a for n, a in case.params.items() if n.startswith(cell)}
    return params | {n: a for n, a in case.leaves.items() if n in ("inputs", "h", "c")}


def cotangents_of(case, every_step=False):
    draw = np.random.default_rng(3).normal
    L, P = case.layers * case.config.directions, case.config.state_size
    shapes = {"outputs": (B, T, case.config.encoded_size), "h": (L, B, P)}
    shapes |= {"c": (L, B, H)} if case.model == "lstm" else {}
    if every_step:
        shapes |= {f"all_{n}": (L, B, T, shapes[n][2]) for n in ("h", "c") if n in shapes}
    return {name: draw(size=shape) for name, shape in shapes.items()}


def named(case, outputs, *states):
    names = iter(("h", "c", "all_h", "all_c") if case.model == "lstm" else ("h", "all_h"))
    parts = (part for s in states for part in (s if case.model == "lstm" else (s,)))
    return {"outputs": outputs} | {next(names): part for part in parts}


def split(case, leaves):
    params = {n: a for n, a in leaves.items() if n not in ("inputs", "h", "c")}
    state = tuple(leaves[n] for n in ("h", "c") if n in leaves) or None
    return params, leaves["inputs"], state[0] if state and case.model != "lstm" else state


def options(case):
    """What a layer takes after the rate of dropout."""
    own = {"rnn": (case.nonlinearity,), "gru": (case.reset_after,), "lstm": ()}[case.model]
    return *own, case.options


def run_torch(case, layers, leaves, **asked):
    params, inputs, state = split(case, leaves)
    sizes = (case.features, H, case.layers, case.bidirectional, case.dropout)
    module = getattr(layers, LAYERS[case.model])(*sizes, *options(case))
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    keep = {name: torch.tensor(mask) for name, mask in case.keep.items()}
    given = (inputs, lengths, state, keep)
    return named(case, *torch.func.functional_call(module, params, given, asked))


def run_jax(case, layers, leaves, **asked):
    params, inputs, state = split(case, leaves)
    lengths = None if case.lengths is None else jnp.asarray(case.lengths)
    arguments = (params, inputs, lengths, state, case.keep, case.dropout)
    return named(case, *getattr(layers, case.model)(*arguments, *options(case), **asked))


def run_numpy(case, leaves, every_step=False, **asked):
    params, inputs, _ = split(case, leaves)
    state = {n: leaves[n] for n in ("h", "c") if n in leaves}
    given = {"keep": case.keep, **state, **asked}
    encoded = reference.encode(case.config, params, inputs, case.lengths, **given)
    names = cotangents_of(case, every_step)
    return {name: getattr(encoded, name) for name in names}


@cache
def torch_of(case, layers):
    run = partial(run_torch, case, getattr(torch_impl, layers))
    return in_torch(run, leaves_of(case), cotangents_of(case))


@cache
def jax_of(case, layers):
    run = partial(run_jax, case, getattr(jax_impl, layers))
    return in_jax(run, leaves_of(case), cotangents_of(case))


@cache
def reference_of(case):
    return in_numpy(partial(run_numpy, case), leaves_of(case), cotangents_of(case))


@pytest.mark.parametrize(("case", "layers"), ON_BOTH, ids=str)
def test_layers_match(case, layers):
    """torch = JAX: every output, the last states, and the gradient of all that went in."""
    assert_same(torch_of(case, layers), jax_of(case, layers))


@pytest.mark.parametrize(("case", "layers"), ON_BOTH, ids=str)
def test_layers_match_the_reference(case, layers):
    """torch = NumPy = JAX, after the faster test above: gradients here are taken one by one."""
    assert_same(torch_of(case, layers), reference_of(case))
    assert_same(jax_of(case, layers), reference_of(case))


@pytest.mark.parametrize("layers", ["recurrent", "fast"])
@pytest.mark.parametrize("case", SEVERAL_STEPS, ids=str)
def test_steps_compiled_as_one_change_nothing(case, layers):
    """Iterations of 4 steps and the 2 that are left, forward and on the way back."""
    single = getattr(jax_impl, layers)
    several = jax_impl.recurrent.by_steps(single, 4)
    leaves = leaves_of(case)
    for run, factor in ((single, 1), (several, 4)):

        def total(leaves, run=run):
            return sum(part.sum() for part in run_jax(case, run, leaves).values())

        program = str(jax.make_jaxpr(jax.grad(total))(leaves))
        loops = re.findall(rf"length={T}\s[^\[]*?unroll=(\d+)", program)
        assert {int(found) for found in loops} == {factor}
    run = partial(run_jax, case, several)
    assert_same(jax_of(case, layers), in_jax(run, leaves, cotangents_of(case)))


def cudnn_reference(x, h, c, weights, lengths, D, H, layers, dropout, both_ways, precision):
    """JAX's own loop over what its binding of cuDNN takes."""
    parts = cudnn.unpack_lstm_weights(weights, D, H, layers, both_ways)
    return cudnn.lstm_ref(x, h, c, *parts, lengths, D, H, layers, dropout, both_ways)


@pytest.mark.parametrize("case", FOR_CUDNN, ids=str)
def test_cudnn_is_given_what_it_takes(case):
    """Its order of weights, lengths, states and directions; the kernel itself needs a GPU."""
    unroll = partial(jax_impl.fast.unroll_lstm_by_cudnn, kernel=cudnn_reference)
    layers = jax_impl.recurrent.with_unroll(jax_impl.fast, lstm=unroll)
    found = in_jax(partial(run_jax, case, layers), leaves_of(case), cotangents_of(case))
    assert_same(found, jax_of(case, "recurrent"))


def test_what_cudnn_cannot_do_it_is_not_asked():
    """Zoneout, an LSTM with a projection: the loop runs."""
    for options in (Recurrence(zoneout=0.3), Recurrence(proj_size=3)):
        case = Case("lstm", ragged=True, options=options)
        unroll = partial(jax_impl.fast.unroll_lstm_by_cudnn, kernel=None)
        layers = jax_impl.recurrent.with_unroll(jax_impl.fast, lstm=unroll)
        found = in_jax(partial(run_jax, case, layers), leaves_of(case), cotangents_of(case))
        assert_same(found, jax_of(case, "fast"))


@pytest.mark.parametrize(("asked", "remat"), [(True, False), (False, False), (True, True)])
def test_a_model_reaches_cudnn_when_asked_to(monkeypatch, asked, remat):
    """Both ways, by the program that JAX would compile; only a GPU knows the sizes of its buffers."""
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(cudnn.gpu_rnn, sizes, lambda *given: (4, 4), raising=False)
    case = Case("lstm_attention", bidirectional=True, ragged=True)
    params, arrays = jax.tree.map(
        jnp.float32, (to_tree(case.params), {"inputs": case.leaves["inputs"]})
    )
    arrays["lengths"] = jnp.asarray(case.lengths)
    execution = Execution(device="cuda", cudnn=asked, remat=remat)

    def total(params):
        return apply(case.config, execution, params, arrays).predictions.sum()

    program = str(jax.make_jaxpr(jax.grad(total))(params))
    if remat:  # the kernel runs on chunks of 3 steps, forward twice
        assert program.count("= rnn_fwd[") == 2 * program.count("= rnn_bwd[") == 4
        assert set(re.findall(r":f32\[3,(\d+),\d+\].*= rnn_fwd\[", program)) == {"3"}
        return
    assert program.count("= rnn_fwd[") == program.count("= rnn_bwd[") == 2 * asked
    assert program.count("cudnn_allow_tf32=False") == 4 * asked
    assert ("= scan[" in program) is not asked


@pytest.mark.parametrize("case", EVERY_STEP, ids=str)
def test_states_of_every_step_and_resets_match(case):
    """torch = NumPy = JAX: h and c of every step; a step may begin anew, the first one too."""
    leaves, cotangents = leaves_of(case), cotangents_of(case, every_step=True)
    numpy = partial(run_numpy, case, every_step=True, resets=RESETS)
    wanted = in_numpy(numpy, leaves, cotangents)
    asked = {"return_all_states": True, "resets": torch.tensor(RESETS)}
    in_t = in_torch(partial(run_torch, case, torch_impl.fast, **asked), leaves, cotangents)
    assert_same(in_t, wanted)
    asked["resets"] = RESETS
    assert_same(in_jax(partial(run_jax, case, jax_impl.fast, **asked), leaves, cotangents), wanted)


def test_fast_layers_show_all_states():
    """Those of c too, which a kernel does not return: they are the readable layers' own."""
    case = next(c for c in ENCODERS if str(c) == "lstm-bidirectional-ragged-state")
    for run, library, as_numpy in (
        (run_torch, torch_impl, lambda x: x.detach().numpy()),
        (run_jax, jax_impl, np.asarray),
    ):
        put = torch.tensor if run is run_torch else jnp.asarray
        leaves = {name: put(array) for name, array in leaves_of(case).items()}
        of = [
            run(case, layers, leaves, return_all_states=True)
            for layers in (library.fast, library.recurrent)
        ]
        for name, expected in of[1].items():
            np.testing.assert_array_equal(as_numpy(of[0][name]), as_numpy(expected))


KERNELS = [("RNN", "rnn_tanh", {}), ("GRU", "gru", {}), ("LSTM", "lstm", {})]
KERNELS += [("LSTM", "lstm", {"options": Recurrence(proj_size=2)})]


@pytest.mark.parametrize(("kind", "kernel", "options"), KERNELS)
def test_fast_layers_run_their_kernels(kind, kernel, options, monkeypatch):
    """Their numbers alone would not tell: what no kernel does runs step by step."""
    calls, inside = [], getattr(torch, kernel)
    monkeypatch.setattr(torch, kernel, lambda *given: calls.append(given) or inside(*given))
    module = getattr(torch_impl.fast, kind)(3, H, **options).double()
    module(torch.ones(B, T, 3, dtype=torch.float64))
    assert calls
    if kind != "GRU" and not options:
        params = {name: p.detach().numpy() for name, p in module.named_parameters()}
        run = partial(getattr(jax_impl.fast, kind.lower()), params)
        assert "custom_vjp_call" in str(jax.make_jaxpr(run)(np.ones((B, T, 3))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fast_lstm_keeps_its_cell_in_float32(dtype):
    """Also where the numbers that shut its gates in the padding are beyond float16."""
    case = next(c for c in ENCODERS if str(c) == "lstm-bidirectional-ragged-state")
    leaves = {name: torch.tensor(array).to(dtype) for name, array in leaves_of(case).items()}
    leaves["c"] = leaves["c"].float()
    fast = run_torch(case, torch_impl.fast, leaves)
    readable = run_torch(case, torch_impl.recurrent, leaves)
    for name, expected in readable.items():
        assert fast[name].dtype == expected.dtype == (torch.float32 if name == "c" else dtype)
        error = (fast[name].double() - expected.double()).norm() / expected.double().norm()
        assert error < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("layers", ["recurrent", "fast"])
def test_one_layer_alone_is_torchs_by_default(layers):
    """The reset after the product, tanh; a cell that has a kernel is known as such."""
    draw = np.random.default_rng(0).normal
    x, h = draw(size=(B, T, 3)), draw(size=(B, H))
    for library, put in ((torch_impl, torch.tensor), (jax_impl, jnp.asarray)):
        module = getattr(library, layers)
        for kind, gates, options in (
            ("rnn", 1, {"nonlinearity": "tanh"}),
            ("gru", 3, {"reset_after": True}),
        ):
            shapes = {"weight_ih": (gates * H, 3), "weight_hh": (gates * H, H)}
            shapes |= {"bias_ih": (gates * H,), "bias_hh": (gates * H,)}
            weights = {name: put(draw(size=shape)) for name, shape in shapes.items()}
            unroll = getattr(module, f"unroll_{kind}")
            given = weights, put(x), None, (put(h),), False
            (plain,), _ = unroll(*given)
            (asked,), _ = unroll(*given, **options)
            np.testing.assert_array_equal(plain, asked)


def test_an_lstm_of_torchs_has_the_cell_with_a_kernel():
    for library, plain in ((torch_impl, torch_impl.LSTMCell), (jax_impl, jax_impl.lstm_cell)):
        put = torch.ones if library is torch_impl else jnp.ones
        weights = {"weight_ih": put((4 * H, 3)), "weight_hh": put((4 * H, H))}
        weights |= {"bias_ih": put((4 * H,)), "bias_hh": put((4 * H,))}
        cell_of = library.recurrent.cell_of
        assert cell_of(weights) is plain
        assert cell_of(weights | {"weight_hr": put((2, H))}) is not plain
        coupled = {name: part[: 3 * H] for name, part in weights.items()}
        assert cell_of(coupled) is not plain


def torch_layer(case):
    kind = getattr(torch.nn, LAYERS[case.model])
    extra = {"nonlinearity": case.nonlinearity} if case.model == "rnn" else {}
    extra |= {"proj_size": case.options.proj_size} if case.options.proj_size else {}
    return kind(
        case.features, H, case.layers, batch_first=True, bidirectional=case.bidirectional, **extra
    ).double()


def run_torch_nn(case, leaves):
    params, inputs, state = split(case, leaves)
    module = torch_layer(case)
    if case.lengths is None:
        return named(case, *torch.func.functional_call(module, params, (inputs, state)))
    lengths = torch.tensor(case.lengths)
    inputs = torch.where(torch.arange(T)[:, None] < lengths[:, None, None], inputs, 0.0)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, final = torch.func.functional_call(module, params, (packed, state))
    outputs = pad_packed_sequence(outputs, batch_first=True, total_length=T)[0]
    return named(case, outputs, final)


@pytest.mark.parametrize("case", IN_TORCH, ids=str)
def test_torch_nn_is_the_same_function(case):
    """torch.nn.LSTM, GRU and RNN, packed where lengths differ, agree on values and gradients."""
    leaves, cotangents = leaves_of(case), cotangents_of(case)
    assert_same(in_torch(partial(run_torch_nn, case), leaves, cotangents), reference_of(case))


@pytest.mark.parametrize("case", [c for c in ENCODERS if c.options in TORCH_OPTIONS], ids=str)
def test_state_dicts_are_interchangeable(case):
    """torch.nn takes our state_dict and we take torch.nn's, strictly, in the same order."""
    sizes = (case.features, H, case.layers, case.bidirectional)
    ours = getattr(torch_impl, LAYERS[case.model])(*sizes, options=case.options)
    theirs = torch_layer(case).float()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)
    ours.load_state_dict(torch_layer(case).state_dict())


@pytest.mark.parametrize("layers", ["recurrent", "fast"])
def test_length_zero_gives_zeros_and_the_first_state(layers):
    """No step at all: outputs are 0, the state is the first one, gradients are finite."""
    case = next(c for c in ENCODERS if str(c) == "lstm-bidirectional-ragged-state")
    leaves = leaves_of(case)
    leaves["inputs"] = np.full_like(leaves["inputs"], np.nan)
    params, inputs, state = split(case, leaves)
    module = getattr(torch_impl, layers).LSTM(case.features, H, bidirectional=True).double()
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    first = tuple(map(torch.tensor, state))
    outputs, final = torch.func.functional_call(
        module, tensors, (torch.tensor(inputs), torch.zeros(B, dtype=torch.int64), first)
    )
    (outputs.sum() + final.h.sum() + final.c.sum()).backward()
    j_outputs, j_final = getattr(jax_impl, layers).lstm(
        params, jnp.asarray(inputs), jnp.zeros(B, int), state
    )
    for found in (outputs.detach(), j_outputs):
        assert not np.asarray(found).any()
    for t, j, expected in zip(map(torch.detach, final), j_final, state, strict=True):
        np.testing.assert_array_equal(t, expected)
        np.testing.assert_array_equal(j, expected)
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors.values())


@pytest.mark.parametrize("name", LAYERS.values())
def test_defaults_are_those_of_torch_nn(name):
    """One layer, one direction; masks without a rate scale nothing."""
    ours, theirs = getattr(torch_impl, name)(3, H), getattr(torch.nn, name)(3, H)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(B, T, 3, generator=torch.Generator().manual_seed(0))
    expected = theirs(inputs.swapaxes(0, 1))[0].swapaxes(0, 1)
    torch.testing.assert_close(ours(inputs)[0], expected)
    two = getattr(torch_impl, name)(3, H, num_layers=2)
    params = {n: tensor.numpy() for n, tensor in two.state_dict().items()}
    in_jax = getattr(jax_impl, name.lower())
    kept = np.ones((B, T, H), bool)
    plain, masked = two(inputs)[0], two(inputs, keep={"layer0": torch.tensor(kept)})[0]
    assert torch.equal(plain, masked)
    plain, masked = (
        in_jax(params, inputs.numpy())[0],
        in_jax(params, inputs.numpy(), keep={"layer0": kept})[0],
    )
    np.testing.assert_array_equal(plain, masked)
    np.testing.assert_allclose(plain, two(inputs)[0].detach(), rtol=1e-4, atol=1e-6)
