"""Seeds, streams and draws. No seed gives the same numbers on both sides: draw in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from parity.differences.entry import difference
from parity.differences.expect import Raises


def seeded(seed: int = 0) -> torch.Generator:
    """Return a torch generator that starts from a seed."""
    return torch.Generator().manual_seed(seed)


SHARED = (seeded,)


@difference
class SameSeed:
    """Two normal numbers from seed 0."""

    def in_torch():
        return torch.randn(2, generator=seeded(0))

    torch_gives = (1.540996, -0.293429)

    def in_jax():
        return jax.random.normal(jax.random.key(0), (2,))

    jax_gives = (1.622642, 2.025265)
    instead = "`np.random.default_rng(0)` for both."

    def same():
        x = np.random.default_rng(0).normal(size=2)
        return torch.tensor(x, dtype=torch.float32), jnp.array(x)

    source = ("torch.randn", "jax.random.normal")
    since = "JAX 0.5.0 for these numbers (`jax_threefry_partitionable`)"


@difference
class StateOrKey:
    """Drawing twice: torch's generator moves on, JAX's key gives the same again."""

    def in_torch():
        return torch.equal(torch.rand(2), torch.rand(2))

    torch_gives = False

    def in_jax():
        key = jax.random.key(0)
        return bool((jax.random.uniform(key, (2,)) == jax.random.uniform(key, (2,))).all())

    jax_gives = True
    instead = "A key for every draw: `for key in jax.random.split(key, n)`."

    def same():
        key, other = jax.random.split(jax.random.key(0))
        theirs = jax.random.uniform(key, (2,)) == jax.random.uniform(other, (2,))
        return torch.rand(2) == torch.rand(2), theirs

    source = ("torch.rand", "jax.random.split")


@difference
class FirstNumbersOfMore:
    """Whether the first 16 of 17 normal numbers are those of 16: no in torch, yes in JAX.

    torch's vectorised draw of 16 or more pairs them otherwise.
    """

    def in_torch():
        few, more = (torch.randn(n, generator=seeded()) for n in (16, 17))
        return torch.equal(few, more[:16])

    torch_gives = False

    def in_jax():
        few, more = (jax.random.normal(jax.random.key(0), (n,)) for n in (16, 17))
        return bool((few == more[:16]).all())

    jax_gives = True
    instead = "Do not expect a longer draw to start alike; draw what is needed in NumPy, once."

    def same():
        few, more = (np.random.default_rng(0).normal(size=n) for n in (16, 17))
        return bool((torch.tensor(few) == torch.tensor(more[:16])).all()), bool(
            (few == more[:16]).all()
        )

    source = ("torch.randn", "jax.random.normal", "https://docs.jax.dev/en/latest/jax.random.html")
    since = "JAX 0.5.0 (`jax_threefry_partitionable`); before, JAX's draws did not either"


@difference
class SeedAndPrecision:
    """Whether float32 and float64 draws of one seed agree: in torch to rounding, in JAX not."""

    def in_torch():
        single = torch.randn(8, generator=seeded())
        double = torch.randn(8, generator=seeded(), dtype=torch.float64)
        return torch.allclose(single.double(), double, atol=1e-5)

    torch_gives = True

    def in_jax():
        with jax.enable_x64(True):
            single = jax.random.normal(jax.random.key(0), (8,), jnp.float32)
            double = jax.random.normal(jax.random.key(0), (8,), jnp.float64)
            return bool(jnp.allclose(single, double, atol=1e-5))

    jax_gives = False
    instead = "Draw in one precision, then convert."

    def same():
        x = np.random.default_rng(0).normal(size=8)
        return torch.tensor(x).float(), jnp.array(x, jnp.float32)

    source = ("torch.randn", "jax.random.normal")


@difference
class RandomUnderVmap:
    """Random numbers in a function that is mapped over a batch: an error in torch, equal in JAX."""

    def in_torch():
        return torch.func.vmap(lambda x: x + torch.rand(()))(torch.zeros(2))

    torch_gives = Raises("RuntimeError", "called random operation while in randomness error mode")

    def in_jax():
        key = jax.random.key(0)
        x = jax.vmap(lambda x: x + jax.random.uniform(key))(jnp.zeros(2))
        return bool(x[0] == x[1])

    jax_gives = True
    instead = "`vmap(..., randomness='different')`; in JAX map over split keys too."

    def same():
        ours = torch.func.vmap(lambda x: x + torch.rand(()), randomness="different")(torch.zeros(2))
        keys = jax.random.split(jax.random.key(0))
        theirs = jax.vmap(lambda x, key: x + jax.random.uniform(key))(jnp.zeros(2), keys)
        return ours[0] == ours[1], theirs[0] == theirs[1]

    source = ("torch.func.vmap", "jax.vmap")


@difference
class ImpossibleProbability:
    """A probability of 1.5: an error in torch, certainty in JAX."""

    def in_torch():
        return torch.bernoulli(torch.tensor(1.5))

    torch_gives = Raises("RuntimeError", "p_in >= 0 && p_in <= 1")

    def in_jax():
        return jax.random.bernoulli(jax.random.key(0), 1.5)

    jax_gives = True
    instead = "Check rates where they are read."
    source = ("torch.bernoulli", "jax.random.bernoulli")


@difference
class CategoricalArguments:
    """Drawing a class: from probabilities in torch, from their logarithms in JAX.

    How often class 0 of [0.9, 0.1] comes, given the same two numbers.
    """

    def in_torch():
        drawn = torch.multinomial(torch.tensor([0.9, 0.1]), 1000, replacement=True)
        return bool((drawn == 0).float().mean() > 0.85)

    torch_gives = True

    def in_jax():
        drawn = jax.random.categorical(jax.random.key(0), jnp.array([0.9, 0.1]), shape=(1000,))
        return bool((drawn == 0).mean() > 0.85)

    jax_gives = False
    instead = "`jax.random.categorical(key, jnp.log(p))`, or `jax.random.choice(key, n, p=p)`."

    def same():
        p, shape = [0.9, 0.1], (100_000,)
        ours = torch.multinomial(torch.tensor(p), 100_000, replacement=True).float().mean()
        theirs = jax.random.categorical(jax.random.key(0), jnp.log(jnp.array(p)), shape=shape)
        return 1 - ours, (theirs == 0).mean()

    close = 0.01
    source = ("torch.multinomial", "jax.random.categorical")


@difference
class DrawingWithoutReplacement:
    """Drawing three of two: torch's default is without replacement, JAX's with."""

    def in_torch():
        return tuple(torch.multinomial(torch.tensor([0.5, 0.5]), 3).shape)

    torch_gives = Raises("RuntimeError", "without replacement")

    def in_jax():
        return jax.random.choice(jax.random.key(0), 2, (3,)).shape

    jax_gives = (3,)
    instead = "Say which: `replacement=True`, `replace=False`."

    def same():
        ours = torch.multinomial(torch.tensor([0.5, 0.5]), 2, replacement=False)
        theirs = jax.random.choice(jax.random.key(0), 2, (2,), replace=False)
        return ours.sort().values, jnp.sort(theirs)

    source = ("torch.multinomial", "jax.random.choice")


@difference
class ShuffleOfTheLoader:
    """The order of a shuffled torch loader is not the permutation of its generator.

    It first draws a seed. A JAX loop that permutes by hand has the permutation.
    """

    def in_torch():
        loader = DataLoader(range(5), shuffle=True, batch_size=5, generator=seeded())
        order = next(iter(loader))
        return torch.equal(order, torch.randperm(5, generator=seeded()))

    torch_gives = False

    def in_jax():
        data = np.arange(5) * 10
        order = np.asarray(jax.random.permutation(jax.random.key(0), 5))
        batch = jax.random.permutation(jax.random.key(0), jnp.array(data))
        return bool((batch == data[order]).all())

    jax_gives = True
    instead = "Permute in NumPy for both, and hand torch the order as a `sampler`."

    def same():
        order = np.random.default_rng(0).permutation(5)
        ours = next(iter(DataLoader(range(5), sampler=order.tolist(), batch_size=5)))
        return ours, jnp.arange(5)[order]

    source = ("https://docs.pytorch.org/docs/stable/data.html", "jax.random.permutation")


@difference
class DropoutMasks:
    """Whether a dropout layer drops the same twice: never in torch, in JAX if given the same key."""

    def in_torch():
        layer, x = nn.Dropout(0.5), torch.ones(100)
        return torch.equal(layer(x), layer(x))

    torch_gives = False

    def in_jax():
        layer, x = nnx.Dropout(0.5), jnp.ones(100)
        first, second = (layer(x, rngs=nnx.Rngs(dropout=0)) for _ in range(2))
        return bool((first == second).all())

    jax_gives = True
    instead = "Draw the masks in NumPy and pass them in."

    def same():
        keep, x = np.random.default_rng(0).random(100) < 0.5, np.ones(100, np.float32)
        ours = torch.where(torch.tensor(keep), torch.tensor(x) / 0.5, 0.0)
        return ours, jnp.where(keep, jnp.array(x) / 0.5, 0.0)

    source = ("torch.nn.Dropout", "flax.nnx.stochastic/Dropout")


@difference
class RandomnessUnderJit:
    """NumPy's random numbers in a compiled function: drawn once, when it is traced."""

    def in_torch():
        rng = np.random.default_rng(0)
        return [round(float(torch.tensor(rng.random())), 3) for _ in range(2)]

    torch_gives = (0.637, 0.27)

    def in_jax():
        rng = np.random.default_rng(0)
        draw = jax.jit(lambda: jnp.array(rng.random()))
        return [round(float(draw()), 3) for _ in range(2)]

    jax_gives = (0.637, 0.637)
    instead = "Pass what is random as an argument."

    def same():
        ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
        double = jax.jit(lambda x: 2 * x)
        return [2 * ours.random() for _ in range(2)], [double(theirs.random()) for _ in range(2)]

    source = ("torch.tensor", "jax.jit")


@difference
class InitialWeightsOfTwins:
    """Two layers made one after the other: different in torch, equal in Flax if given one seed."""

    def in_torch():
        return torch.equal(nn.Linear(3, 4).weight, nn.Linear(3, 4).weight)

    torch_gives = False

    def in_jax():
        first, second = (nnx.Linear(3, 4, rngs=nnx.Rngs(0)).kernel[...] for _ in range(2))
        return bool((first == second).all())

    jax_gives = True
    instead = "One `rngs = nnx.Rngs(0)` for all layers: it counts."

    def same():
        rngs = nnx.Rngs(0)
        first, second = (nnx.Linear(3, 4, rngs=rngs).kernel[...] for _ in range(2))
        ours = torch.equal(nn.Linear(3, 4).weight, nn.Linear(3, 4).weight)
        return ours, bool((first == second).all())

    source = ("torch.nn.Linear", "flax.nnx.linear/Linear")


@difference
class DropoutProbability:
    """The number given to a random mask: dropped in torch's dropout, kept in JAX's bernoulli."""

    def in_torch():
        return (functional.dropout(torch.ones(10_000), 0.1) == 0).float().mean() < 0.5

    torch_gives = True

    def in_jax():
        return (~jax.random.bernoulli(jax.random.key(0), 0.1, (10_000,))).mean() < 0.5

    jax_gives = False
    instead = "`jax.random.bernoulli(key, 1 - rate, shape)`."

    def same():
        ours = (functional.dropout(torch.ones(100_000), 0.1) != 0).float().mean()
        return ours, jax.random.bernoulli(jax.random.key(0), 0.9, (100_000,)).mean()

    close = 0.01
    source = ("torch.nn.functional.dropout", "jax.random.bernoulli")
