"""Time a train step and an epoch of both backends beside the frameworks' own layers and Keras 3.

    python -m benchmarks.train_step [--rounds 20] [--threads 2]

Every contender does the same work: forward, mean squared error on one output from the last state,
gradients, clipping to norm 1, Adam; float32, NumPy arrays in, the loss as a Python number out. They
take turns within each round, so a busy machine slows all of them; a ratio compares medians of the
same rounds. Keras runs on JAX: its backend is one a process.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial

import numpy as np

Step = Callable[[np.ndarray, np.ndarray], float]
# T time, B batch, D features, H hidden units
SHAPES = [
    (32, 64, 1, 32),
    (128, 64, 8, 64),
    (128, 32, 64, 256),
    (64, 64, 256, 512),
    (150, 16, 1, 32),
]
EPOCH_ROWS = 512


def torch_nn(T: int, B: int, D: int, H: int) -> Step:
    """torch.nn.LSTM, Linear, torch.optim.Adam."""
    import torch

    lstm, head = torch.nn.LSTM(D, H, batch_first=True), torch.nn.Linear(H, 1)
    params = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)

    def step(x, y):
        optimizer.zero_grad()
        _, (h, _) = lstm(torch.from_numpy(x))
        loss = ((head(h[-1]) - torch.from_numpy(y)) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return loss.item()

    return step


def flax_linen(cell: str, T: int, B: int, D: int, H: int) -> Step:
    """flax.linen.RNN, Dense, optax.adam, jitted."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.RNN(getattr(nn, cell)(H))(x)[:, -1])

    model = Model()
    params = model.init(jax.random.key(0), jnp.zeros((B, T, D)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = params, optimizer.init(params)

    @jax.jit
    def advance(state, x, y):
        def loss(params):
            return ((model.apply(params, x) - y) ** 2).mean()

        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    def step(x, y):
        nonlocal state
        state, value = advance(state, jnp.array(x), jnp.array(y))
        return float(value)

    return step


def keras(T: int, B: int, D: int, H: int) -> Step:
    """keras.layers.LSTM, Dense, keras.optimizers.Adam."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    model = keras.Sequential([keras.Input((T, D)), keras.layers.LSTM(H), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=1.0), loss="mse")
    return lambda x, y: float(model.train_on_batch(x, y))


def ours(name: str, T: int, B: int, D: int, H: int) -> Step:
    """`train_step` of a backend, as train.py calls it."""
    from spec.backend import load_backend
    from spec.batch import Batch
    from spec.config import Execution, ModelConfig, OptimizerConfig
    from spec.params import init_params, parameter_schema

    backend = load_backend(name)
    config = ModelConfig(model="lstm", input_size=D, hidden_size=H)
    arrays = init_params(parameter_schema(config), seed=0)
    state = backend.init_state(config, OptimizerConfig(), Execution(), arrays)

    def step(x, y):
        nonlocal state
        state, result = backend.train_step(state, Batch(x, None, y))
        return result.loss

    return step


CONTENDERS: dict[str, Callable[..., Step]] = {
    "seqduet torch": lambda *shape: ours("torch", *shape),
    "torch.nn.LSTM": torch_nn,
    "seqduet JAX": lambda *shape: ours("jax", *shape),
    "flax LSTMCell": lambda *shape: flax_linen("LSTMCell", *shape),
    "flax Optimized": lambda *shape: flax_linen("OptimizedLSTMCell", *shape),
    "keras on JAX": keras,
}
PEERS = {
    "seqduet torch": ["torch.nn.LSTM"],
    "seqduet JAX": ["flax LSTMCell", "flax Optimized", "keras on JAX"],
}


def epoch_of(step: Step, B: int) -> Step:
    """Take the steps of an epoch; whole batches only, so that each contender compiles once."""

    def epoch(x, y):
        return sum(step(x[n : n + B], y[n : n + B]) for n in range(0, len(x) - B + 1, B))

    return epoch


def measure(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each contender in each round, after two that do not count.

    Each round has its own order: what runs before a contender leaves its threads and caches behind,
    and in one fixed cycle a torch program after a torch program would gain by it every time.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    draw = random.Random(0)
    for n in range(-2, rounds):
        for name in draw.sample(list(works), len(works)):
            began = time.perf_counter()
            works[name]()
            if n >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, minima, and the ratio of each of ours to its peers."""
    print(title)
    for name, own in times.items():
        middle = statistics.median(own)
        ratios = [
            f"{middle / statistics.median(times[peer]):.2f} x {peer}"
            for peer in PEERS.get(name, [])
            if peer in times
        ]
        shown = f"  {name:<16}{middle:>9.2f} ms (min {min(own):.2f})  {', '.join(ratios)}"
        print(shown.rstrip(), flush=True)


def compare(shape: tuple[int, int, int, int], names: list[str], rounds: int) -> None:
    """Time all contenders on one shape."""
    T, B, D, H = shape
    draw = np.random.default_rng(0)
    x = draw.normal(size=(EPOCH_ROWS, T, D)).astype(np.float32)
    y = draw.normal(size=(EPOCH_ROWS, 1)).astype(np.float32)
    steps = {name: CONTENDERS[name](*shape) for name in names}
    works = {name: partial(step, x[:B], y[:B]) for name, step in steps.items()}
    report(f"train step, T {T}, B {B}, D {D}, H {H}", measure(works, rounds))
    if T * B * H <= 128 * 64 * 64:  # larger ones would take minutes and say the same
        works = {name: partial(epoch_of(step, B), x, y) for name, step in steps.items()}
        report(f"epoch of {EPOCH_ROWS} rows", measure(works, max(rounds // 4, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--without", nargs="*", default=[], choices=CONTENDERS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    names = [name for name in CONTENDERS if name not in options.without]
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for shape in SHAPES:
        compare(shape, names, options.rounds)


if __name__ == "__main__":
    main()
