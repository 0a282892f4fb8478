"""Tracing, gradients and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen
from jax import lax
from torch import nn

from parity.differences.entry import difference
from parity.differences.expect import Between, Raises

NAN = float("nan")


def aligned(size: int) -> np.ndarray:
    """Return a NumPy array of zeros that starts at a multiple of 64 bytes, as JAX likes it."""
    memory = np.zeros(4 * size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * size].view(np.float32)


SHARED = (aligned,)


@difference
class GradientsAccumulate:
    """The gradient of 2x after asking twice: torch adds to `.grad`, JAX returns it."""

    def in_torch():
        x = torch.tensor(1.0, requires_grad=True)
        for _ in range(2):
            (2 * x).backward()
        return x.grad

    torch_gives = 4.0

    def in_jax():
        for _ in range(2):
            gradient = jax.grad(lambda x: 2 * x)(1.0)
        return gradient

    jax_gives = 2.0
    instead = "`optimizer.zero_grad()` before `backward()`, or `torch.autograd.grad`."

    def same():
        x = torch.tensor(1.0, requires_grad=True)
        return torch.autograd.grad(2 * x, x)[0], jax.grad(lambda x: 2 * x)(1.0)

    source = ("torch.Tensor.backward", "jax.grad")


@difference
class AccumulatedSteps:
    """A step of SGD over the gradients 1 and 3 of two small batches: torch sums, optax averages."""

    def in_torch():
        w = torch.zeros((), requires_grad=True)
        for gradient in (1.0, 3.0):
            (w * gradient).backward()
        torch.optim.SGD([w], lr=1.0).step()
        return w

    torch_gives = -4.0

    def in_jax():
        sgd, w = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2), jnp.zeros(())
        state = sgd.init(w)
        for gradient in (1.0, 3.0):
            updates, state = sgd.update(jnp.array(gradient), state, w)
            w = optax.apply_updates(w, updates)
        return w

    jax_gives = -2.0
    instead = "Divide torch's loss by the number of small batches."

    def same():
        w = torch.zeros((), requires_grad=True)
        for gradient in (1.0, 3.0):
            (w * gradient / 2).backward()
        sgd = optax.MultiSteps(optax.sgd(1.0), 2)
        state = sgd.init(jnp.zeros(()))
        for gradient in (1.0, 3.0):
            updates, state = sgd.update(jnp.array(gradient), state)
        return -w.grad, updates

    source = (
        "torch.Tensor.backward",
        "https://optax.readthedocs.io/en/latest/_collections/examples/gradient_accumulation.html",
    )


@difference
class UnusedParameter:
    """The gradient of a parameter that the loss does not use: None in torch, 0 in JAX."""

    def in_torch():
        used, unused = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
        (2 * used).backward()
        return used.grad, unused.grad

    torch_gives = (2.0, None)

    def in_jax():
        return jax.grad(lambda used, unused: 2 * used, argnums=(0, 1))(1.0, 1.0)

    jax_gives = (2.0, 0.0)
    instead = "`torch.autograd.grad(..., materialize_grads=True)`."

    def same():
        used, unused = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
        ours = torch.autograd.grad(2 * used, (used, unused), materialize_grads=True)
        return list(ours), jax.grad(lambda used, unused: 2 * used, argnums=(0, 1))(1.0, 1.0)

    source = ("torch.autograd.grad", "jax.grad")


@difference
class GradientTwice:
    """The gradient of the same result again: an error in torch, which frees its graph."""

    def in_torch():
        x = torch.tensor(3.0, requires_grad=True)
        y = x * x
        y.backward()
        y.backward()

    torch_gives = Raises("RuntimeError", "backward through the graph a second time")

    def in_jax():
        _, pullback = jax.vjp(lambda x: x * x, 3.0)
        pullback(1.0)
        return pullback(1.0)

    jax_gives = (6.0,)
    instead = "`y.backward(retain_graph=True)`."

    def same():
        x = torch.tensor(3.0, requires_grad=True)
        y = x * x
        ours = [torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2)]
        _, pullback = jax.vjp(lambda x: x * x, 3.0)
        return ours, [pullback(1.0)[0] for _ in range(2)]

    source = ("torch.Tensor.backward", "jax.vjp")


@difference
class ComplexGradient:
    """The gradient of Re(z²) at 1 + 2i: JAX's is the conjugate of torch's."""

    def in_torch():
        z = torch.tensor(1 + 2j, requires_grad=True)
        (z * z).real.backward()
        return z.grad

    torch_gives = 2 - 4j

    def in_jax():
        return jax.grad(lambda z: (z * z).real)(1 + 2j)

    jax_gives = 2 + 4j
    instead = "Conjugate JAX's before a step of descent."

    def same():
        z = torch.tensor(1 + 2j, requires_grad=True)
        (z * z).real.backward()
        return z.grad, jax.grad(lambda z: (z * z).real)(1 + 2j).conj()

    source = ("https://docs.pytorch.org/docs/stable/notes/autograd.html", "jax.grad")


@difference
class LoopWithoutGradient:
    """The gradient through a loop that runs until a condition: fine in torch, an error in JAX."""

    def in_torch():
        x = y = torch.tensor(1.0, requires_grad=True)
        while y < 10:
            y = 2 * y
        return torch.autograd.grad(y, x)[0]

    torch_gives = 16.0

    def in_jax():
        return jax.grad(lambda x: lax.while_loop(lambda y: y < 10, lambda y: 2 * y, x))(1.0)

    jax_gives = Raises(
        "ValueError", "Reverse-mode differentiation does not work for lax.while_loop"
    )
    instead = "`lax.scan` of the most steps there can be, each kept or not."

    def same():
        def double(y, _):
            return jnp.where(y < 10, 2 * y, y), None

        x = y = torch.tensor(1.0, requires_grad=True)
        while y < 10:
            y = 2 * y
        theirs = jax.grad(lambda x: lax.scan(double, x, None, length=8)[0])(1.0)
        return torch.autograd.grad(y, x)[0], theirs

    source = ("torch.autograd.grad", "jax.lax.while_loop")


@difference
class BranchOnAValue:
    """`if` on a value: plain Python in torch, an error under JAX's jit."""

    def in_torch():
        x = torch.tensor(2.0)
        return x if x > 0 else -x

    torch_gives = 2.0

    def in_jax():
        return jax.jit(lambda x: x if x > 0 else -x)(2.0)

    jax_gives = Raises("TracerBoolConversionError", "Attempted boolean conversion of traced array")
    instead = "`jnp.where`, or `lax.cond` where one side is dear."

    def same():
        x = torch.tensor([2.0, -3.0])
        return torch.where(x > 0, x, -x), jax.jit(lambda x: jnp.where(x > 0, x, -x))(x.numpy())

    source = ("torch.where", "jax.lax.cond")


@difference
class ShapeFromValues:
    """`x[x > 0]`, whose length depends on values: fine in torch, an error under JAX's jit."""

    def in_torch():
        x = torch.tensor([-1.0, 2.0, 3.0])
        return x[x > 0].sum()

    torch_gives = 5.0

    def in_jax():
        return jax.jit(lambda x: x[x > 0].sum())(jnp.array([-1.0, 2.0, 3.0]))

    jax_gives = Raises("NonConcreteBooleanIndexError", "Array boolean indices must be concrete")
    instead = "`x.sum(where=x > 0)`: masks, not shorter arrays."

    def same():
        x = torch.tensor([-1.0, 2.0, 3.0])
        return x[x > 0].sum(), jax.jit(lambda x: x.sum(where=x > 0))(x.numpy())

    source = ("torch.masked_select", "jax.numpy.nonzero")


@difference
class RememberedGlobals:
    """A global changed after the first call: torch sees it, a jitted function does not."""

    def in_torch():
        scale = {"value": 1.0}

        def multiply(x):
            return x * scale["value"]

        multiply(torch.tensor(1.0))
        scale["value"] = 5.0
        return multiply(torch.tensor(1.0))

    torch_gives = 5.0

    def in_jax():
        scale = {"value": 1.0}
        multiply = jax.jit(lambda x: x * scale["value"])
        multiply(1.0)
        scale["value"] = 5.0
        return multiply(1.0)

    jax_gives = 1.0
    instead = "Pass what can change as an argument."

    def same():
        multiply = jax.jit(lambda x, scale: x * scale)
        return [1.0 * s for s in (1.0, 5.0)], [multiply(1.0, s) for s in (1.0, 5.0)]

    source = ("torch.compile", "jax.jit")


@difference
class SideEffects:
    """How often Python runs in calls of lengths 5, 6, 7, 5 and then of another dtype.

    Eager torch runs every call; jit runs a shape and dtype once, and compiles it then.
    """

    def in_torch():
        calls = []
        for x in [*map(torch.ones, (5, 6, 7, 5)), torch.ones(5, dtype=torch.int32)]:
            torch.func.vmap(lambda x: calls.append(1) or x)(x)
        return len(calls)

    torch_gives = 5

    def in_jax():
        calls = []
        function = jax.jit(lambda x: calls.append(1) or x)
        for x in [*map(jnp.ones, (5, 6, 7, 5)), jnp.ones(5, int)]:
            function(x)
        return len(calls)

    jax_gives = 4
    instead = "Return values, and pad to few lengths; `jax.debug.print` prints at each call."

    def same():
        count = jax.jit(lambda x, calls: (x, calls + 1))
        calls = jnp.array(0)
        for length in (5, 6, 7, 5):
            _, calls = count(jnp.ones(length), calls)
        return 4, calls

    source = ("torch.compile", "jax.jit", "jax.debug.print")


@difference
class UnrolledLoop:
    """A hundred time steps: torch records each of its operations, `lax.scan` is one.

    JAX's Python loop is unrolled under jit, 200 operations here, and compiling them takes long.
    """

    def in_torch():
        h = torch.zeros((), requires_grad=True)
        for _ in range(100):
            h = torch.tanh(h + 1)
        operations, node = 0, h.grad_fn
        while node.next_functions:
            operations, node = operations + 1, node.next_functions[0][0]
        return operations

    torch_gives = 200

    def in_jax():
        def step(h, _):
            return jnp.tanh(h + 1), None

        return len(jax.make_jaxpr(lambda h: lax.scan(step, h, None, length=100)[0])(0.0).eqns)

    jax_gives = 1
    instead = "`lax.scan` over time in JAX."

    def same():
        ours, theirs = torch.tensor(0.0), jnp.array(0.0)
        for _ in range(100):
            ours = torch.tanh(ours + 1)
        scan = lax.scan(lambda h, _: (jnp.tanh(h + 1), None), theirs, None, length=100)
        return ours, scan[0]

    source = ("torch.autograd.grad", "jax.lax.scan")


@difference
class RecomputedSteps:
    """Bytes kept for a gradient over 100 steps of 1000 numbers.

    torch keeps what each of five operations needs, `jax.checkpoint` the carry of each step.
    """

    def in_torch():
        saved = []
        h = torch.zeros(1000, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes), id)
        with hooks:
            for _ in range(100):
                h = torch.tanh(h.sin() * h.cos())
        return sum(saved)

    torch_gives = 2000000

    def in_jax():
        step = jax.checkpoint(lambda h, _: (jnp.tanh(jnp.sin(h) * jnp.cos(h)), None))
        gradient = jax.grad(lambda h: lax.scan(step, h, None, length=100)[0].sum())
        compiled = jax.jit(gradient).lower(jnp.zeros(1000)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    jax_gives = Between(408324, 400000, 900000)
    instead = "`torch.utils.checkpoint.checkpoint(step, h, use_reentrant=False)`."

    def same():
        x = torch.linspace(-1, 1, 5, requires_grad=True)
        step = torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)
        theirs = jax.grad(lambda x: jax.checkpoint(jnp.tanh)(x).sum())(x.detach().numpy())
        return torch.autograd.grad(step.sum(), x)[0], theirs

    source = ("https://docs.pytorch.org/docs/stable/checkpoint.html", "jax.checkpoint")


@difference
class MemoryShared:
    """Whether what torch makes of a JAX array can be written to: yes, and that changes the JAX array."""

    def in_torch():
        x = jnp.zeros(2)
        torch.from_dlpack(x)[0] = 1.0
        return x

    torch_gives = (1.0, 0.0)

    def in_jax():
        x = torch.zeros(2)
        jnp.from_dlpack(x).at[0].set(1.0)
        return x

    jax_gives = (0.0, 0.0)
    instead = "`torch.tensor(np.array(x))`, which copies."

    def same():
        x, ours = jnp.zeros(2), torch.zeros(2)
        torch.tensor(np.array(x))[0] = 1.0
        return ours, x

    source = ("torch.from_dlpack", "jax.dlpack.from_dlpack")


@difference
class NumpyAliased:
    """A NumPy array changed after it was handed over: torch.tensor copied it, device_put did not."""

    def in_torch():
        array = aligned(16)
        x = torch.tensor(array)
        array[0] = 1.0
        return x[0]

    torch_gives = 0.0

    def in_jax():
        array = aligned(16)
        x = jax.device_put(array)
        array[0] = 1.0
        return x[0]

    jax_gives = 1.0
    instead = "`jnp.array(array.copy())`: JAX's own copy may be made after the call returns."

    def same():
        array = aligned(16)
        ours, theirs = torch.tensor(array), jnp.array(array.copy())
        array[0] = 1.0
        return ours, theirs

    source = ("torch.tensor", "jax.device_put")
    since = "JAX on a CPU, arrays aligned to 64 bytes"


@difference
class BatchBufferReused:
    """Wrong results of 50 when one NumPy buffer is filled again for each batch.

    A jitted call returns before it has read its input. (The count differs from run to run.)
    """

    def in_torch():
        buffer, sums = aligned(2**18), []
        for batch in range(50):
            buffer[:] = batch
            sums.append(torch.from_numpy(buffer).sin().mean())
        return sum(abs(x.item() - np.sin(i)) > 1e-3 for i, x in enumerate(sums))

    torch_gives = 0

    def in_jax():
        buffer, sums, mean = aligned(2**18), [], jax.jit(lambda x: jnp.sin(x).mean())
        mean(buffer).block_until_ready()
        for batch in range(50):
            buffer[:] = batch
            sums.append(mean(buffer))
        return sum(abs(x.item() - np.sin(i)) > 1e-3 for i, x in enumerate(sums))

    jax_gives = Between(49, 1, 50)
    instead = "A new array for each batch, `buffer.copy()`; `jnp.array(buffer)` is not enough."

    def same():
        buffer, ours, theirs = aligned(2**10), [], []
        mean = jax.jit(lambda x: jnp.sin(x).mean())
        for batch in range(20):
            buffer[:] = batch
            ours.append(torch.from_numpy(buffer).sin().mean())
            theirs.append(mean(buffer.copy()))
        return ours, theirs

    portable = False
    source = ("torch.from_numpy", "https://docs.jax.dev/en/latest/async_dispatch.html")


@difference
class MappedLstm:
    """Mapping a batch axis over a recurrent layer: torch's vmap cannot, JAX's can."""

    def in_torch():
        lstm = nn.LSTM(2, 3)
        return torch.func.vmap(lambda x: lstm(x)[0])(torch.ones(5, 4, 2))

    torch_gives = Raises("RuntimeError", "Batching rule not implemented for aten::lstm")

    def in_jax():
        rnn, x = linen.RNN(linen.LSTMCell(3)), jnp.ones((5, 4, 2))
        params = rnn.init(jax.random.key(0), x[0])
        return jax.vmap(lambda x: rnn.apply(params, x))(x).shape

    jax_gives = (5, 4, 3)
    instead = "Use the layer's own batch axis, or write the cell out."

    def same():
        def cell(x, h):
            return torch.tanh(x + h)

        x = torch.linspace(-1, 1, 6).reshape(3, 2)
        theirs = jax.vmap(lambda x, h: jnp.tanh(x + h))(x.numpy(), x.numpy())
        return torch.func.vmap(cell)(x, x), theirs

    source = ("torch.func.vmap", "jax.vmap")


@difference
class ForwardModeLstm:
    """The directional derivative of an LSTM, forwards: torch's oneDNN layer has none."""

    def in_torch():
        lstm, x = nn.LSTM(2, 3), torch.ones(4, 2)
        return torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))

    torch_gives = Raises("NotImplementedError", "forward AD with mkldnn_rnn_layer")

    def in_jax():
        rnn, x = linen.RNN(linen.LSTMCell(3)), jnp.ones((4, 2))
        params = rnn.init(jax.random.key(0), x)
        return jax.jvp(lambda x: rnn.apply(params, x), (x,), (x,))[1].shape

    jax_gives = (4, 3)
    instead = "float64, or `torch.backends.mkldnn.flags(enabled=False)`."

    def same():
        lstm, x = nn.LSTM(2, 3).double(), torch.ones(4, 2, dtype=torch.float64)
        forwards = torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))[1]
        step = 1e-6
        return forwards, (lstm(x * (1 + step))[0] - lstm(x * (1 - step))[0]) / (2 * step)

    close = 1e-8
    source = ("torch.func.jvp", "jax.jvp")


@difference
class BatchNormState:
    """BatchNorm's running mean: torch updates it unasked, Flax wants to be told it may."""

    def in_torch():
        norm = nn.BatchNorm1d(1)
        norm(torch.tensor([[1.0], [3.0]]))
        return norm.running_mean

    torch_gives = (0.2,)

    def in_jax():
        norm, x = linen.BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0]])
        return norm.apply(norm.init(jax.random.key(0), x), x)

    jax_gives = Raises("ModifyScopeVariableError", 'collection "batch_stats" is immutable')
    instead = "`apply(..., mutable='batch_stats')`, and keep the state that comes back."

    def same():
        ours, x = nn.BatchNorm1d(1), [[1.0], [3.0]]
        ours(torch.tensor(x))
        norm = linen.BatchNorm(use_running_average=False, momentum=0.9)
        params = norm.init(jax.random.key(0), jnp.array(x))
        state = norm.apply(params, jnp.array(x), mutable="batch_stats")[1]
        return ours.running_mean, state["batch_stats"]["mean"]

    source = ("torch.nn.BatchNorm1d", "flax.linen.layers/BatchNorm")


@difference
class DonatedBuffer:
    """An input that the function may overwrite: gone in JAX, changed in place in torch."""

    def in_torch():
        x = torch.ones(2)
        x.add_(1)
        return x

    torch_gives = (2.0, 2.0)

    def in_jax():
        x = jnp.ones(2)
        jax.jit(lambda x: x + 1, donate_argnums=0)(x)
        return x + 1

    jax_gives = Raises("RuntimeError", "Array has been deleted")
    instead = "Give the result the name of what was donated."

    def same():
        x, y = torch.ones(2), jnp.ones(2)
        y = jax.jit(lambda y: y + 1, donate_argnums=0)(y)
        return x.add_(1), y

    source = ("torch.Tensor.add_", "jax.jit")
