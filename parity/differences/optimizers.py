"""Update rules, learning-rate schedules and gradient clipping."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from parity.differences.entry import difference
from parity.differences.expect import Between, Raises, Warns


def in_torch(make: Callable, steps: int = 20) -> float:
    """Return the weight after some steps on one loss, in float64; the gradient is sin 3w + w."""
    w = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for _ in range(steps):
        w.grad = torch.sin(3 * w.detach()) + w.detach()
        optimizer.step()
    return w.item()


def in_optax(optimizer: optax.GradientTransformation, steps: int = 20) -> float:
    """The same by optax."""
    with jax.enable_x64(True):
        w = jnp.array([-2.0])
        state = optimizer.init(w)
        for _ in range(steps):
            updates, state = optimizer.update(jnp.sin(3 * w) + w, state, w)
            w = optax.apply_updates(w, updates)
        return w.item()


def rates(make: Callable, steps: int) -> list[float]:
    """Return torch's learning rate at each of the first steps; it starts from 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return found


SHARED = (in_torch, in_optax, rates)


@difference
class AdamwDecay:
    """AdamW's weight decay: 0.01 in torch, 0.0001 in optax; both multiply it by the rate."""

    def in_torch():
        return in_torch(lambda w: torch.optim.AdamW(w, lr=0.01))

    torch_gives = -1.802758

    def in_jax():
        return in_optax(optax.adamw(0.01))

    jax_gives = -1.806385
    instead = "Write the decay: `optax.adamw(0.01, weight_decay=0.01)`."

    def same():
        return in_torch(lambda w: torch.optim.AdamW(w, lr=0.01)), in_optax(
            optax.adamw(0.01, weight_decay=0.01)
        )

    close = 1e-14
    source = ("torch.optim.AdamW", "optimizers#optax.adamw")
    inject = "adamw_decay_default"


@difference
class AdamWeightDecay:
    """`weight_decay` of torch's Adam is an L2 penalty in the gradient; optax.adamw decays weights."""

    def in_torch():
        return in_torch(lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=0.5))

    torch_gives = -1.804288

    def in_jax():
        return in_optax(optax.adamw(0.01, weight_decay=0.5))

    jax_gives = -1.632216
    instead = "`optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.01))`."

    def same():
        ours = in_torch(lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=0.5))
        return ours, in_optax(optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.01)))

    close = 1e-14
    source = ("torch.optim.Adam", "optimizers#optax.adamw")


@difference
class AdamEpsRoot:
    """Adam's eps outside or inside the square root, at a gradient of 1e-6.

    Both defaults are 1e-8 outside, and equal. optax's `eps_root` is inside, torch has none.
    """

    def in_torch():
        w = torch.zeros(1, requires_grad=True)
        w.grad = torch.tensor([1e-6])
        torch.optim.Adam([w], lr=1.0, eps=1e-8).step()
        return w

    torch_gives = (-0.990099,)

    def in_jax():
        adam = optax.adam(1.0, eps=0.0, eps_root=1e-8)
        return adam.update(jnp.array([1e-6]), adam.init(jnp.zeros(1)))[0]

    jax_gives = (-0.0099995,)
    instead = "`optax.adam(rate, eps=1e-8)`, and leave `eps_root` at 0."

    def same():
        return in_torch(lambda w: torch.optim.Adam(w, lr=0.01)), in_optax(optax.adam(0.01))

    close = 1e-14
    source = ("torch.optim.Adam", "optimizers#optax.adam")
    inject = "adam_eps_inside"


@difference
class AdamBiasCorrection:
    """Adam's first step, which is rate * sign(gradient) by the formula, in float32.

    torch computes 1 - beta**t in Python, optax in float32, where 1 - 0.999 is off by 1e-5.
    """

    def in_torch():
        w = torch.zeros(1, requires_grad=True)
        w.grad = torch.ones(1)
        torch.optim.Adam([w], lr=1.0).step()
        return abs(w.item() + 1) < 2e-7

    torch_gives = True

    def in_jax():
        adam = optax.adam(1.0)
        update = adam.update(jnp.ones(1), adam.init(jnp.zeros(1)))[0]
        return abs(update.item() + 1) < 2e-7

    jax_gives = False
    instead = "`-jnp.expm1(step * math.log(beta))` for 1 - beta**step."

    def same():
        return 1 - 0.999**3, -jnp.expm1(3 * math.log(0.999))

    close = 2e-7
    source = ("torch.optim.Adam", "optimizers#optax.adam")


@difference
class RmspropDecay:
    """RMSprop's decay: alpha = 0.99 in torch, decay = 0.9 in optax."""

    def in_torch():
        return in_torch(lambda w: torch.optim.RMSprop(w, lr=0.01, eps=0.0))

    torch_gives = -1.437452

    def in_jax():
        return in_optax(optax.rmsprop(0.01, eps=0.0))

    jax_gives = -1.744646
    instead = "`optax.rmsprop(rate, decay=0.99, eps_in_sqrt=False)`."

    def same():
        ours = in_torch(lambda w: torch.optim.RMSprop(w, lr=0.01, momentum=0.9))
        options = {"decay": 0.99, "eps_in_sqrt": False, "momentum": 0.9}
        return ours, in_optax(optax.rmsprop(0.01, **options))

    close = 1e-14
    source = ("torch.optim.RMSprop", "optimizers#optax.rmsprop")


@difference
class RmspropEps:
    """RMSprop's eps: outside the square root in torch, inside in optax; at a gradient of 1e-4."""

    def in_torch():
        w = torch.zeros(1, requires_grad=True)
        w.grad = torch.tensor([1e-4])
        torch.optim.RMSprop([w], lr=1.0, alpha=0.99, eps=1e-8).step()
        return w

    torch_gives = (-9.99001,)

    def in_jax():
        rmsprop = optax.rmsprop(1.0, decay=0.99, eps=1e-8)
        return rmsprop.update(jnp.array([1e-4]), rmsprop.init(jnp.zeros(1)))[0]

    jax_gives = (-0.995037,)
    instead = "`optax.rmsprop(rate, decay=0.99, eps_in_sqrt=False)`."

    def same():
        ours = in_torch(lambda w: torch.optim.RMSprop(w, lr=0.01))
        return ours, in_optax(optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False))

    close = 1e-14
    source = ("torch.optim.RMSprop", "optimizers#optax.rmsprop", "optax#532")
    inject = "rmsprop_eps_inside"


@difference
class AdagradStart:
    """Adagrad's sum of squares starts from 0 in torch and from 0.1 in optax; eps 1e-10 and 1e-7."""

    def in_torch():
        w = torch.zeros(1, requires_grad=True)
        w.grad = torch.tensor([0.1])
        torch.optim.Adagrad([w], lr=1.0).step()
        return w

    torch_gives = (-1.0,)

    def in_jax():
        adagrad = optax.adagrad(1.0)
        return adagrad.update(jnp.array([0.1]), adagrad.init(jnp.zeros(1)))[0]

    jax_gives = (-0.301511,)
    instead = "`optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10)`."

    def same():
        theirs = optax.adagrad(0.01, initial_accumulator_value=0.0, eps=1e-10)
        return in_torch(lambda w: torch.optim.Adagrad(w, lr=0.01)), in_optax(theirs)

    close = 1e-10  # torch's eps stands outside the root, optax's inside
    source = ("torch.optim.Adagrad", "optimizers#optax.adagrad")


@difference
class AdadeltaRate:
    """The default learning rate of Adadelta: 1 in torch; none in optax, and then it climbs.

    Updates are what is added. Without a rate optax leaves out the minus sign too.
    """

    def in_torch():
        w = torch.zeros(1, requires_grad=True)
        w.grad = torch.tensor([3.0])
        torch.optim.Adadelta([w]).step()
        return w

    torch_gives = (-0.00316228,)

    def in_jax():
        adadelta = optax.adadelta()
        return adadelta.update(jnp.array([3.0]), adadelta.init(jnp.zeros(1)), jnp.zeros(1))[0]

    jax_gives = (0.00316228,)
    instead = "`optax.adadelta(1.0)`."

    def same():
        return in_torch(torch.optim.Adadelta), in_optax(optax.adadelta(1.0))

    close = 1e-14
    source = ("torch.optim.Adadelta", "optimizers#optax.adadelta")


@difference
class DefaultRate:
    """Most torch optimisers have a default learning rate; optax's want one."""

    def in_torch():
        return torch.optim.Adam([torch.zeros(1)]).param_groups[0]["lr"]

    torch_gives = 0.001

    def in_jax():
        return optax.adam()

    jax_gives = Raises("TypeError", "learning_rate")
    instead = "Write the rate on both sides."

    def same():
        return in_torch(torch.optim.Adam), in_optax(optax.adam(0.001))

    close = 1e-14
    source = ("torch.optim.Adam", "optimizers#optax.adam")


@difference
class RpropLag:
    """The first step of Rprop: optax applies the update of the step before, which is 0."""

    def in_torch():
        return in_torch(lambda w: torch.optim.Rprop(w, lr=0.01), steps=1)

    torch_gives = -1.99

    def in_jax():
        return in_optax(optax.rprop(0.01), steps=1)

    jax_gives = -2.0
    instead = "Until the gradient changes its sign, optax's step t + 1 is torch's step t."

    def same():
        ours = in_torch(lambda w: torch.optim.Rprop(w, lr=0.01), steps=3)
        return ours, in_optax(optax.rprop(0.01), steps=4)

    close = 1e-14
    source = ("torch.optim.Rprop", "optimizers#optax.rprop")
    since = "optax 0.2.8"


@difference
class NadamMomentum:
    """NAdam: torch lets the momentum grow by a schedule, `momentum_decay`; optax has none."""

    def in_torch():
        return in_torch(lambda w: torch.optim.NAdam(w, lr=0.01))

    torch_gives = -1.840138

    def in_jax():
        return in_optax(optax.nadam(0.01))

    jax_gives = -1.800381
    instead = "No argument makes them equal: take Adam, or write one formula for both."
    source = ("torch.optim.NAdam", "optimizers#optax.nadam")


@difference
class AmsgradMaximum:
    """AMSGrad keeps the maximum of v before (torch) or after (optax) its bias is corrected."""

    def in_torch():
        return in_torch(lambda w: torch.optim.Adam(w, lr=0.01, amsgrad=True))

    torch_gives = -1.806421

    def in_jax():
        return in_optax(optax.amsgrad(0.01))

    jax_gives = -1.824224
    instead = "No argument makes them equal: take Adam, or write one formula for both."
    source = ("torch.optim.Adam", "optimizers#optax.amsgrad")


@difference
class SgdMomentum:
    """Momentum as a sum (torch's default, optax.sgd) or as a mean (`optax.ema`): ten times less.

    torch's own mean, `dampening`, leaves the first gradient whole; optax's does not.
    """

    def in_torch():
        return in_torch(lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, dampening=0.9))

    torch_gives = -1.706684

    def in_jax():
        mean = optax.ema(0.9, debias=False)
        return in_optax(optax.chain(mean, optax.scale_by_learning_rate(0.01)))

    jax_gives = -1.814651
    instead = "`optax.sgd(rate, momentum=0.9)` for torch without dampening."

    def same():
        ours = in_torch(lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9))
        return ours, in_optax(optax.sgd(0.01, momentum=0.9))

    close = 1e-14
    source = ("torch.optim.SGD", "transformations#optax.ema")
    inject = "momentum_dampening"


@difference
class SgdDecayAndMomentum:
    """Weight decay before the momentum (torch) or after it (optax, if it stands last in a chain)."""

    def in_torch():
        return in_torch(lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, weight_decay=0.1))

    torch_gives = -0.566834

    def in_jax():
        sgd = optax.sgd(0.01, momentum=0.9)
        return in_optax(optax.chain(sgd, optax.add_decayed_weights(-0.01 * 0.1)))

    jax_gives = -0.761003
    instead = "Put `optax.add_decayed_weights(0.1)` first in the chain."

    def same():
        ours = in_torch(lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, weight_decay=0.1))
        decay, sgd = optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=0.9)
        return ours, in_optax(optax.chain(decay, sgd))

    close = 1e-14
    source = ("torch.optim.SGD", "transformations#optax.add_decayed_weights")


@difference
class NesterovWithoutMomentum:
    """Nesterov's step without momentum: an error in torch, plain SGD in optax."""

    def in_torch():
        return in_torch(lambda w: torch.optim.SGD(w, lr=0.01, nesterov=True))

    torch_gives = Raises("ValueError", "Nesterov momentum requires a momentum")

    def in_jax():
        return in_optax(optax.sgd(0.01, nesterov=True))

    jax_gives = -1.749661
    instead = "Give the momentum."

    def same():
        options = {"momentum": 0.9, "nesterov": True}
        ours = in_torch(lambda w: torch.optim.SGD(w, lr=0.01, **options))
        return ours, in_optax(optax.sgd(0.01, **options))

    close = 1e-14
    source = ("torch.optim.SGD", "optimizers#optax.sgd")


@difference
class TwoBiasesUnderTraining:
    """Two biases that are added, as torch's LSTM has, learn twice as fast as Flax's one.

    How far one step of SGD at rate 0.1 moves the effective bias, over its gradient.
    """

    def in_torch():
        cell, x = nn.LSTMCell(1, 1), torch.ones(1, 1)
        start = (cell.bias_ih + cell.bias_hh).detach()
        cell(x, (x, x))[0].sum().backward()
        torch.optim.SGD(cell.parameters(), lr=0.1).step()
        return ((cell.bias_ih + cell.bias_hh - start) / cell.bias_ih.grad).mean()

    torch_gives = -0.2

    def in_jax():
        cell, x, sgd = linen.OptimizedLSTMCell(1), jnp.ones((1, 1)), optax.sgd(0.1)
        params = cell.init(jax.random.key(0), (x, x), x)["params"]
        loss = jax.grad(lambda params: cell.apply({"params": params}, (x, x), x)[1].sum())
        gradient = loss(params)
        new = optax.apply_updates(params, sgd.update(gradient, sgd.init(params))[0])
        bias = [tree["hf"]["bias"] for tree in (new, params, gradient)]
        return ((bias[0] - bias[1]) / bias[2]).mean()

    jax_gives = -0.1
    instead = "Keep two biases on both sides."

    def same():
        ours = torch.zeros(2, requires_grad=True)
        ours.sum().backward()
        torch.optim.SGD([ours], lr=0.1).step()
        theirs, sgd = {"bias_ih": 0.0, "bias_hh": 0.0}, optax.sgd(0.1)
        gradient = jax.grad(lambda p: p["bias_ih"] + p["bias_hh"])(theirs)
        theirs = optax.apply_updates(theirs, sgd.update(gradient, sgd.init(theirs))[0])
        return ours.sum(), theirs["bias_ih"] + theirs["bias_hh"]

    source = ("torch.nn.LSTM", "flax.linen.layers/LSTMCell", "flax#3746")
    inject = "two_biases_as_one"


@difference
class ClipEps:
    """Clipping by the global norm: torch divides by norm + 1e-6, optax by the norm.

    torch also scales a gradient whose norm lies within 1e-6 below the bound.
    """

    def in_torch():
        w = torch.zeros(1, requires_grad=True, dtype=torch.float64)
        w.grad = torch.tensor([1e-3], dtype=torch.float64)
        nn.utils.clip_grad_norm_([w], max_norm=1e-4)
        return w.grad / 1e-4

    torch_gives = (0.999,)

    def in_jax():
        clip = optax.clip_by_global_norm(1e-4)
        return clip.update(jnp.array([1e-3]), clip.init(None))[0] / 1e-4

    jax_gives = (1.0,)
    instead = "`gradient * jnp.minimum(max_norm / (norm + 1e-6), 1)`."

    def same():
        w, gradient = torch.zeros(2, requires_grad=True), [3.0, 4.0]
        w.grad = torch.tensor(gradient)
        nn.utils.clip_grad_norm_([w], max_norm=1e-4)
        norm = jnp.linalg.norm(jnp.array(gradient))
        return w.grad, jnp.array(gradient) * jnp.minimum(1e-4 / (norm + 1e-6), 1)

    source = ("torch.nn.utils.clip_grad_norm_", "transformations#optax.clip_by_global_norm")
    inject = "clip_eps"


@difference
class DecayWithoutGradient:
    """A parameter the loss does not use: torch skips it, optax decays it.

    Its gradient is None in torch and 0 in JAX.
    """

    def in_torch():
        w = torch.ones(1, requires_grad=True)
        torch.optim.AdamW([w], lr=0.1, weight_decay=0.5).step()
        return w

    torch_gives = (1.0,)

    def in_jax():
        adamw, w = optax.adamw(0.1, weight_decay=0.5), jnp.ones(1)
        return optax.apply_updates(w, adamw.update(jnp.zeros(1), adamw.init(w), w)[0])

    jax_gives = (0.95,)
    instead = "Leave such parameters out of the tree, or give torch zeros."

    def same():
        w = torch.ones(1, requires_grad=True)
        w.grad = torch.zeros(1)
        torch.optim.AdamW([w], lr=0.1, weight_decay=0.5).step()
        adamw, v = optax.adamw(0.1, weight_decay=0.5), jnp.ones(1)
        return w, optax.apply_updates(v, adamw.update(jnp.zeros(1), adamw.init(v), v)[0])

    source = ("torch.optim.AdamW", "optimizers#optax.adamw")


@difference
class CosineBeyondTheEnd:
    """A cosine schedule after its last step: torch's climbs again, optax's stays at 0."""

    def in_torch():
        return rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4), 9)[::2]

    torch_gives = (1.0, 0.5, 0.0, 0.5, 1.0)

    def in_jax():
        return [optax.cosine_decay_schedule(1.0, 4)(step) for step in range(0, 9, 2)]

    jax_gives = (1.0, 0.5, 0.0, 0.0, 0.0)
    instead = "A `LambdaLR` that holds the last step."

    def same():
        def cosine(step):
            return 0.5 * (1 + math.cos(math.pi * min(step, 4) / 4))

        ours = rates(lambda o: lr_scheduler.LambdaLR(o, cosine), 9)
        return ours, [optax.cosine_decay_schedule(1.0, 4)(step) for step in range(9)]

    source = (
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "schedules#optax.schedules.cosine_decay_schedule",
    )


@difference
class WarmUpStart:
    """A linear warm-up over five steps: torch starts from a third, optax from what it is given."""

    def in_torch():
        return rates(lr_scheduler.LinearLR, 6)[::5]

    torch_gives = (0.333333, 1.0)

    def in_jax():
        return [optax.linear_schedule(0.0, 1.0, 5)(step) for step in (0, 5)]

    jax_gives = (0.0, 1.0)
    instead = "`optax.linear_schedule(rate / 3, rate, 5)`; a rate of 0 wastes the first step."

    def same():
        theirs = [optax.linear_schedule(1 / 3, 1.0, 5)(step) for step in range(7)]
        return rates(lr_scheduler.LinearLR, 7), theirs

    source = ("torch.optim.lr_scheduler.LinearLR", "schedules#optax.schedules.linear_schedule")


@difference
class OneCycleShift:
    """The one-cycle schedule of ten steps: the peak is at step 2 in torch, at step 3 in optax."""

    def in_torch():
        return rates(lambda o: lr_scheduler.OneCycleLR(o, 1.0, 10), 4)

    torch_gives = (0.04, 0.52, 1.0, 0.950485)

    def in_jax():
        return [optax.cosine_onecycle_schedule(10, 1.0)(step) for step in range(4)]

    jax_gives = (0.04, 0.28, 0.76, 1.0)
    instead = "Interpolate between torch's own turning points, 0.3 n - 1 and n - 1."

    def same():
        turns = {2: 25.0, 9: 4e-6}
        cycle = optax.piecewise_interpolate_schedule("cosine", 0.04, turns)
        ours = rates(lambda o: lr_scheduler.OneCycleLR(o, 1.0, 10), 9)
        return ours, [cycle(step) for step in range(9)]

    source = (
        "torch.optim.lr_scheduler.OneCycleLR",
        "schedules#optax.schedules.cosine_onecycle_schedule",
    )


@difference
class StepDecay:
    """A decay of 0.1 every two steps: in steps in torch, smooth in optax."""

    def in_torch():
        return rates(lambda o: lr_scheduler.StepLR(o, 2, gamma=0.1), 4)

    torch_gives = (1.0, 1.0, 0.1, 0.1)

    def in_jax():
        return [optax.exponential_decay(1.0, 2, 0.1)(step) for step in range(4)]

    jax_gives = (1.0, 0.316228, 0.1, 0.0316228)
    instead = "`optax.exponential_decay(rate, 2, 0.1, staircase=True)`."

    def same():
        staircase = optax.exponential_decay(1.0, 2, 0.1, staircase=True)
        ours = rates(lambda o: lr_scheduler.StepLR(o, 2, gamma=0.1), 7)
        return ours, [staircase(step) for step in range(7)]

    source = ("torch.optim.lr_scheduler.StepLR", "schedules#optax.schedules.exponential_decay")


@difference
class ScheduleClock:
    """What a schedule counts: in torch the calls of `scheduler.step()`, in optax the updates.

    The rate of the fourth update without such a call, as in the middle of an epoch.
    """

    def in_torch():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            optimizer.step()
        return scheduler.get_last_lr()

    torch_gives = (1.0,)

    def in_jax():
        sgd = optax.inject_hyperparams(optax.sgd)(optax.exponential_decay(1.0, 1, 0.5))
        state = sgd.init(jnp.zeros(1))
        for _ in range(4):
            _, state = sgd.update(jnp.zeros(1), state)
        return state.hyperparams["learning_rate"]

    jax_gives = 0.125
    instead = "Call `scheduler.step()` after every update, and count in updates on both sides."

    def same():
        theirs = [optax.exponential_decay(1.0, 1, 0.5)(step) for step in range(4)]
        return rates(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 4), theirs

    source = (
        "torch.optim.lr_scheduler.ExponentialLR",
        "schedules#optax.schedules.exponential_decay",
    )


@difference
class ScheduleBeforeUpdate:
    """The rate of the very first update when the schedule is advanced too early.

    torch only warns and skips the first value; optax has no order to get wrong.
    """

    def in_torch():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        scheduler.step()
        return scheduler.get_last_lr()[0]

    torch_gives = Warns("`lr_scheduler.step()` before `optimizer.step()`", 0.5)

    def in_jax():
        return optax.exponential_decay(1.0, 1, 0.5)(0)

    jax_gives = 1.0
    instead = "`optimizer.step()` first, then `scheduler.step()`."

    def same():
        theirs = optax.exponential_decay(1.0, 1, 0.5)(0)
        return rates(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 1)[0], theirs

    source = (
        "torch.optim.lr_scheduler.ExponentialLR",
        "schedules#optax.schedules.exponential_decay",
    )


@difference
class AverageOfWeights:
    """A running mean of the weights 1 and 2, factor 0.9: torch starts from the first, optax from 0.

    `optax.ema` then divides by 1 - 0.9**t.
    """

    def in_torch():
        w = nn.Linear(1, 1, bias=False)
        mean = swa_utils.AveragedModel(w, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        for value in (1.0, 2.0):
            nn.init.constant_(w.weight, value)
            mean.update_parameters(w)
        return mean.module.weight.item()

    torch_gives = 1.1

    def in_jax():
        ema, state = optax.ema(0.9), optax.ema(0.9).init(jnp.zeros(()))
        for value in (1.0, 2.0):
            mean, state = ema.update(jnp.array(value), state)
        return mean

    jax_gives = 1.526316
    instead = "`optax.incremental_update(new, mean, 0.1)`, starting from the weights."

    def same():
        w = nn.Linear(1, 1, bias=False)
        mean = swa_utils.AveragedModel(w, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        for value in (1.0, 2.0):
            nn.init.constant_(w.weight, value)
            mean.update_parameters(w)
        theirs = optax.incremental_update(jnp.array(2.0), jnp.array(1.0), 0.1)
        return mean.module.weight.item(), theirs

    source = ("torch.optim.swa_utils.AveragedModel", "transformations#optax.ema")


@difference
class RectifiedAdamInFloat32:
    """RAdam after 20 steps in float32: its error against float64.

    The rectification cancels; torch computes it in Python, optax in the array's dtype.
    """

    def in_torch():
        w = torch.tensor([-2.0], requires_grad=True)
        radam = torch.optim.RAdam([w], lr=0.01)
        for _ in range(20):
            w.grad = torch.sin(3 * w.detach()) + w.detach()
            radam.step()
        return abs(w.item() - in_torch(lambda w: torch.optim.RAdam(w, lr=0.01)))

    torch_gives = Between(1e-7, 0.0, 1.5e-6)

    def in_jax():
        w, radam = jnp.array([-2.0]), optax.radam(0.01)
        state = radam.init(w)
        for _ in range(20):
            updates, state = radam.update(jnp.sin(3 * w) + w, state, w)
            w = optax.apply_updates(w, updates)
        return abs(w.item() - in_torch(lambda w: torch.optim.RAdam(w, lr=0.01)))

    jax_gives = Between(2.7e-5, 2e-6, 1e-3)
    instead = "Train in float64: there both agree."

    def same():
        ours = in_torch(lambda w: torch.optim.RAdam(w, lr=0.01))
        return ours, in_optax(optax.radam(0.01))

    close = 1e-9
    source = ("torch.optim.RAdam", "optimizers#optax.radam")
