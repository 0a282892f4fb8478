"""Time a train step and an epoch of both backends beside the frameworks' own layers and Keras 3.

    python -m benchmarks.train_step [--models lstm gru transformer] [--rounds 20] [--threads 2]
    python -m benchmarks.train_step --unroll 2 4 8           JAX, steps compiled as one, beside 1

Every contender does the same work: forward, mean squared error on one output from the last state (of
a Transformer's layer, the mean of all steps), gradients, clipping to norm 1, Adam; float32, NumPy arrays in, the loss as a Python number out. They
take turns within each round, so a busy machine slows all of them; a ratio compares medians of the
same rounds. Keras runs on JAX: its backend is one a process.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import numpy as np

from spec.params import sinusoidal_positions

PEERS = {"seqduet torch": ("torch.nn",), "seqduet JAX": ("flax", "keras")}
Step = Callable[[np.ndarray, np.ndarray], float]
# T time, B batch, D features, H hidden units
SHAPES = [
    (32, 64, 1, 32),
    (128, 64, 8, 64),
    (128, 32, 64, 256),
    (64, 64, 256, 512),
    (150, 16, 1, 32),
]
MODELS = ("lstm", "gru", "transformer")
EPOCH_ROWS, HEADS = 512, 4


def torch_nn(model: str, T: int, B: int, D: int, H: int) -> Step:
    """torch.nn's layer, Linear, torch.optim.Adam."""
    import torch
    from torch import nn

    head, positions = nn.Linear(H, 1), torch.tensor(sinusoidal_positions(T, H)).float()
    if model == "transformer":
        layer = nn.TransformerEncoderLayer(H, HEADS, 4 * H, 0.0, "gelu", batch_first=True)
        body = nn.ModuleList([nn.Linear(D, H), layer])
    else:
        body = {"lstm": nn.LSTM, "gru": nn.GRU}[model](D, H, batch_first=True)
    params = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)

    def features(x):
        if model == "transformer":
            return body[1](body[0](x) + positions).mean(dim=1)
        last = body(x)[1]
        return (last[0] if model == "lstm" else last)[-1]

    def step(x, y):
        optimizer.zero_grad()
        loss = ((head(features(torch.from_numpy(x))) - torch.from_numpy(y)) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return loss.item()

    return step


def flax_linen(cell: str, T: int, B: int, D: int, H: int) -> Step:
    """flax.linen.RNN, or its attention and norms, Dense, optax.adam, jitted."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    positions = jnp.asarray(sinusoidal_positions(T, H), jnp.float32)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            if cell != "transformer":
                return nn.Dense(1)(nn.RNN(getattr(nn, cell)(H))(x)[:, -1])
            x = nn.Dense(H)(x) + positions
            x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(HEADS)(x))
            x = nn.LayerNorm()(x + nn.Dense(H)(nn.gelu(nn.Dense(4 * H)(x), approximate=False)))
            return nn.Dense(1)(x.mean(axis=1))

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


def keras(model: str, T: int, B: int, D: int, H: int) -> Step:
    """keras.layers.LSTM or GRU, Dense, keras.optimizers.Adam."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[model](H)
    model = keras.Sequential([keras.Input((T, D)), layer, keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=1.0), loss="mse")
    return lambda x, y: float(model.train_on_batch(x, y))


def ours(name: str, model: str, T: int, B: int, D: int, H: int, unroll: int = 1) -> Step:
    """`train_step` of a backend, as train.py calls it."""
    from spec.backend import load_backend
    from spec.batch import Batch
    from spec.config import Execution, ModelConfig, OptimizerConfig
    from spec.params import init_params, parameter_schema

    backend = load_backend(name)
    config = ModelConfig(model=model, input_size=D, hidden_size=H, num_heads=HEADS)
    arrays = init_params(parameter_schema(config), seed=0)
    state = backend.init_state(config, OptimizerConfig(), Execution(unroll=unroll), arrays)

    def step(x, y):
        nonlocal state
        state, result = backend.train_step(state, Batch(x, None, y))
        return result.loss

    return step


def contenders(model: str, unroll: Sequence[int]) -> dict[str, Callable[..., Step]]:
    """Name who trains such a model, ours before their peers, or our own loops before `unroll`."""
    if unroll:
        ways = {f"unroll {n}": partial(ours, "jax", model, unroll=n) for n in unroll}
        return {"unroll 1": partial(ours, "jax", model), **ways}
    layer = {"lstm": "LSTM", "gru": "GRU", "transformer": "TransformerEncoderLayer"}[model]
    cells = {"lstm": ["LSTMCell", "OptimizedLSTMCell"], "gru": ["GRUCell"]}.get(model, [model])
    found = {
        "seqduet torch": partial(ours, "torch", model),
        f"torch.nn.{layer}": partial(torch_nn, model),
        "seqduet JAX": partial(ours, "jax", model),
        **{f"flax {cell}": partial(flax_linen, cell) for cell in cells},
    }
    return found if model == "transformer" else found | {"keras on JAX": partial(keras, model)}


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
        beside = ("unroll 1",) if name.startswith("unroll") else PEERS.get(name, ())
        peers = [peer for peer in times if peer.startswith(beside) and peer != name]
        ratios = [f"{middle / statistics.median(times[peer]):.2f} x {peer}" for peer in peers]
        shown = f"  {name:<33}{middle:>9.2f} ms (min {min(own):.2f})  {', '.join(ratios)}"
        print(shown.rstrip(), flush=True)


def compare(
    model: str, shape: tuple[int, int, int, int], rounds: int, unroll: Sequence[int]
) -> None:
    """Time all contenders for a model on one shape."""
    T, B, D, H = shape
    draw = np.random.default_rng(0)
    x = draw.normal(size=(EPOCH_ROWS, T, D)).astype(np.float32)
    y = draw.normal(size=(EPOCH_ROWS, 1)).astype(np.float32)
    steps = {name: build(*shape) for name, build in contenders(model, unroll).items()}
    works = {name: partial(step, x[:B], y[:B]) for name, step in steps.items()}
    report(f"{model}: train step, T {T}, B {B}, D {D}, H {H}", measure(works, rounds))
    if T * B * H <= 128 * 64 * 64:  # larger ones would take minutes and say the same
        works = {name: partial(epoch_of(step, B), x, y) for name, step in steps.items()}
        report(f"epoch of {EPOCH_ROWS} rows", measure(works, max(rounds // 4, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--models", nargs="*", default=["lstm"], choices=MODELS)
    parser.add_argument("--unroll", nargs="*", default=[], type=int, metavar="STEPS")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for model in options.models:
        for shape in SHAPES:
            compare(model, shape, options.rounds, options.unroll)


if __name__ == "__main__":
    main()
