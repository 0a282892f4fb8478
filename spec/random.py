"""Random numbers that depend on a key alone: the same bits in every backend, process and order.

A stream is NumPy's Philox counter generator, keyed by a hash of what the numbers are for, so
nothing has to be stored to continue a run. Only raw 64-bit words are used: their stream is
stable between NumPy versions, the distributions built on it are not (NEP 19).
"""

import hashlib

import numpy as np


def words(count: int, *key: int | str) -> np.ndarray:
    """Return the first `count` words of the key's stream, uint64 [count]."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8")).random_raw(count)


def uniform(shape: tuple[int, ...], bound: float, *key: int | str) -> np.ndarray:
    """Draw float64 numbers evenly from [-bound, bound)."""
    unit = (words(int(np.prod(shape)), *key) >> np.uint64(11)) * 2.0**-53
    return (bound * (2 * unit - 1)).reshape(shape)


def normal(shape: tuple[int, ...], *key: int | str) -> np.ndarray:
    """Draw float64 standard normal numbers.

    Source: Box & Muller (1958).
    """
    half = (words(2 * int(np.prod(shape)), *key) >> np.uint64(11)) * 2.0**-53
    radius, turn = half.reshape(2, *shape)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)


def permutation(count: int, *key: int | str) -> np.ndarray:
    """Return the numbers 0 .. count - 1 in random order, int64 [count]."""
    return np.argsort(words(count, *key), kind="stable")


def keep_mask(shape: tuple[int, ...], rate: float, *key: int | str) -> np.ndarray:
    """Draw a dropout mask, bool: True (keep) with probability 1 - rate, to within 2**-32."""
    count = int(np.prod(shape))
    halves = words(-(-count // 2), *key).astype("<u8", copy=False).view("<u4")[:count]
    return (halves >= np.uint32(min(round(rate * 2**32), 2**32 - 1))).reshape(shape)
