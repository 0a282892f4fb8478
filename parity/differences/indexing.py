"""Indices, shapes and element types: the same words for other things."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from jax import lax
from torch import nn
from torch.nn import functional

from parity.differences.entry import difference
from parity.differences.expect import Raises, Warns

NAN = float("nan")


@difference
class IndexPastTheEnd:
    """Reading x[5] of three values: an error in torch, the last value in JAX.

    Far below, x[-7], it is the first. Both also when the index is an array.
    """

    def in_torch():
        return torch.tensor([1.0, 2.0, 3.0])[5]

    torch_gives = Raises("IndexError", "index 5 is out of bounds")

    def in_jax():
        x = jnp.array([1.0, 2.0, 3.0])
        return x[5], x[-7]

    jax_gives = (3.0, 1.0)
    instead = "`x.at[5].get(mode='fill', fill_value=jnp.nan)` makes the fault visible."

    def same():
        x = jnp.array([1.0, 2.0, 3.0])
        inside = torch.tensor([1.0, 2.0, 3.0])[torch.tensor([0, -1])]
        return inside, x.at[jnp.array([0, -1])].get(mode="fill", fill_value=jnp.nan)

    source = ("torch.Tensor.index_select", "jax.numpy.ndarray.at")


@difference
class TakePastTheEnd:
    """Taking or gathering past the end: an error in torch, NaN in JAX (where x[5] is the last)."""

    def in_torch():
        return torch.tensor([1.0, 2.0]).gather(0, torch.tensor([2]))

    torch_gives = Raises("RuntimeError", "index 2 is out of bounds")

    def in_jax():
        x = jnp.array([1.0, 2.0])
        return jnp.take(x, 2), jnp.take_along_axis(x, jnp.array([2]), 0)

    jax_gives = (NAN, (NAN,))
    instead = "Check indices where they are made, in NumPy."
    source = ("torch.gather", "jax.numpy.take")


@difference
class EmbeddingPastTheEnd:
    """An embedding of an unknown token: an error in torch, NaN in Flax."""

    def in_torch():
        return nn.Embedding(3, 2)(torch.tensor([5]))

    torch_gives = Raises("IndexError", "index out of range")

    def in_jax():
        return linen.Embed(3, 2).init_with_output(jax.random.key(0), jnp.array([5]))[0]

    jax_gives = ((NAN, NAN),)
    instead = "Check tokens where they are read, in NumPy."
    source = ("torch.nn.Embedding", "flax.linen.layers/Embed")


@difference
class PaddingToken:
    """The embedding of a padding token: zeros without gradient in torch, an ordinary row in Flax."""

    def in_torch():
        return nn.Embedding(3, 2, padding_idx=0)(torch.tensor([0]))

    torch_gives = ((0.0, 0.0),)

    def in_jax():
        return linen.Embed(3, 2, padding_idx=0)

    jax_gives = Raises("TypeError", "unexpected keyword argument 'padding_idx'")
    instead = "Multiply by the mask: `embedded * (tokens != 0)[..., None]`."

    def same():
        ours, tokens = nn.Embedding(3, 2, padding_idx=0), np.array([0, 2, 1])
        params = {"params": {"embedding": ours.weight.detach().numpy()}}
        embedded = linen.Embed(3, 2).apply(params, tokens)
        return ours(torch.tensor(tokens)), embedded * (tokens != 0)[..., None]

    source = ("torch.nn.Embedding", "flax.linen.layers/Embed")


@difference
class WritePastTheEnd:
    """Writing past the end: an error in torch, nothing at all in JAX."""

    def in_torch():
        x = torch.zeros(2)
        x[torch.tensor([2])] = 1.0
        return x

    torch_gives = Raises("IndexError", "index 2 is out of bounds")

    def in_jax():
        return jnp.zeros(2).at[2].set(1.0)

    jax_gives = (0.0, 0.0)
    instead = "Check indices where they are made, in NumPy."
    source = ("torch.Tensor.index_put_", "jax.numpy.ndarray.at")


@difference
class SlicePastTheEnd:
    """Two values from place 4 of five: an error in torch, moved back to place 3 in JAX."""

    def in_torch():
        return torch.arange(5).narrow(0, 4, 2)

    torch_gives = Raises("RuntimeError", "exceeds dimension size")

    def in_jax():
        return lax.dynamic_slice(jnp.arange(5), (4,), (2,))

    jax_gives = (3, 4)
    instead = "Pad by the length of the slice first, or check the start."

    def same():
        padded = jnp.pad(jnp.arange(5), (0, 2))
        ours = functional.pad(torch.arange(5), (0, 2)).narrow(0, 4, 2)
        return ours, lax.dynamic_slice(padded, (4,), (2,))

    source = ("torch.narrow", "jax.lax.dynamic_slice")


@difference
class RepeatedIndex:
    """Adding 1 at a place named twice: once in torch's x[i] += 1, twice by JAX's `.at[].add`."""

    def in_torch():
        x = torch.zeros(2)
        x[torch.tensor([0, 0])] += 1
        return x

    torch_gives = (1.0, 0.0)

    def in_jax():
        return jnp.zeros(2).at[jnp.array([0, 0])].add(1)

    jax_gives = (2.0, 0.0)
    instead = "`x.index_add_(0, index, values)` in torch."

    def same():
        ours = torch.zeros(2).index_add_(0, torch.tensor([0, 0]), torch.ones(2))
        return ours, jnp.zeros(2).at[jnp.array([0, 0])].add(1)

    source = ("torch.Tensor.index_add_", "jax.numpy.ndarray.at")


@difference
class AssignmentInPlace:
    """Assigning to an element: in place in torch, an error in JAX."""

    def in_torch():
        x = torch.zeros(2)
        x[0] = 1.0
        return x

    torch_gives = (1.0, 0.0)

    def in_jax():
        x = jnp.zeros(2)
        x[0] = 1.0
        return x

    jax_gives = Raises("TypeError", "JAX arrays are immutable")
    instead = "`x = x.at[0].set(1.0)`."

    def same():
        x = torch.zeros(2)
        x[0] = 1.0
        return x, jnp.zeros(2).at[0].set(1.0)

    source = ("torch.Tensor.index_put_", "jax.numpy.ndarray.at")


@difference
class SlicesShareMemory:
    """A slice changed by +=: torch changes what it was cut from, JAX does not."""

    def in_torch():
        x = torch.zeros(3)
        first = x[:1]
        first += 1
        return x

    torch_gives = (1.0, 0.0, 0.0)

    def in_jax():
        x = jnp.zeros(3)
        first = x[:1]
        first += 1
        return x

    jax_gives = (0.0, 0.0, 0.0)
    instead = "In torch, `first = first + 1`, or `.clone()` before."

    def same():
        x, y = torch.zeros(3), jnp.zeros(3)
        first, theirs = x[:1], y[:1]
        first, theirs = first + 1, theirs + 1
        return (x, first), (y, theirs)

    source = ("torch.Tensor.clone", "jax.numpy.ndarray.at")


@difference
class ListAsIndex:
    """A list as an index: several elements in torch, an error in JAX."""

    def in_torch():
        return torch.tensor([1.0, 2.0, 3.0])[[0, 2]]

    torch_gives = (1.0, 3.0)

    def in_jax():
        return jnp.array([1.0, 2.0, 3.0])[[0, 2]]

    jax_gives = Raises("TypeError", "Using a non-tuple sequence")
    instead = "`x[np.array([0, 2])]`."

    def same():
        index = np.array([0, 2])
        return torch.tensor([1.0, 2.0, 3.0])[index], jnp.array([1.0, 2.0, 3.0])[index]

    source = ("torch.index_select", "jax#4564")


@difference
class NegativeStep:
    """x[::-1]: an error in torch, reversed in JAX."""

    def in_torch():
        return torch.arange(3)[::-1]

    torch_gives = Raises("ValueError", "step must be greater than zero")

    def in_jax():
        return jnp.arange(3)[::-1]

    jax_gives = (2, 1, 0)
    instead = "`x.flip(0)`."

    def same():
        return torch.arange(3).flip(0), jnp.arange(3)[::-1]

    source = ("torch.flip", "jax.numpy.flip")


@difference
class SplitCount:
    """`split(x, 2)`: parts of two in torch, two parts in JAX."""

    def in_torch():
        return [len(part) for part in torch.split(torch.arange(6), 2)]

    torch_gives = (2, 2, 2)

    def in_jax():
        return [len(part) for part in jnp.split(jnp.arange(6), 2)]

    jax_gives = (3, 3)
    instead = "`torch.tensor_split(x, 2)`."

    def same():
        return torch.stack(torch.arange(6).tensor_split(2)), jnp.stack(jnp.split(jnp.arange(6), 2))

    source = ("torch.split", "torch.tensor_split", "jax.numpy.split")


@difference
class ChunkCount:
    """Five values cut in four: torch's `chunk` gives three parts, JAX's `array_split` four."""

    def in_torch():
        return [len(part) for part in torch.arange(5).chunk(4)]

    torch_gives = (2, 2, 1)

    def in_jax():
        return [len(part) for part in jnp.array_split(jnp.arange(5), 4)]

    jax_gives = (2, 1, 1, 1)
    instead = "`torch.tensor_split(x, 4)`."

    def same():
        ours = [len(part) for part in torch.arange(5).tensor_split(4)]
        return ours, [len(part) for part in jnp.array_split(jnp.arange(5), 4)]

    source = ("torch.chunk", "torch.tensor_split", "jax.numpy.array_split")


@difference
class RepeatOrder:
    """`x.repeat(2)`: the whole twice in torch, each element twice in JAX."""

    def in_torch():
        return torch.tensor([1, 2]).repeat(2)

    torch_gives = (1, 2, 1, 2)

    def in_jax():
        return jnp.array([1, 2]).repeat(2)

    jax_gives = (1, 1, 2, 2)
    instead = "`x.repeat_interleave(2)` is JAX's repeat, `jnp.tile(x, 2)` torch's."

    def same():
        x, y = torch.tensor([1, 2]), jnp.array([1, 2])
        return (x.repeat_interleave(2), x.repeat(2)), (y.repeat(2), jnp.tile(y, 2))

    source = ("torch.Tensor.repeat", "jax.numpy.repeat")


@difference
class TransposeArguments:
    """`x.transpose(0, 1)`: swaps two axes in torch, names the new order of all in JAX."""

    def in_torch():
        return tuple(torch.ones(2, 3, 4).transpose(0, 1).shape)

    torch_gives = (3, 2, 4)

    def in_jax():
        return jnp.ones((2, 3, 4)).transpose(0, 1).shape

    jax_gives = Raises("TypeError", "transpose permutation")
    instead = "`x.swapaxes(0, 1)` on both sides."

    def same():
        ours = torch.arange(24).reshape(2, 3, 4).swapaxes(0, 1)
        return ours, jnp.arange(24).reshape(2, 3, 4).swapaxes(0, 1)

    source = ("torch.transpose", "jax.numpy.transpose")


@difference
class MeshgridOrder:
    """The axes of a grid of two and three points: rows first in torch, x first in JAX."""

    def in_torch():
        return tuple(torch.meshgrid(torch.arange(2), torch.arange(3))[0].shape)

    torch_gives = Warns("torch.meshgrid", (2, 3))

    def in_jax():
        return jnp.meshgrid(jnp.arange(2), jnp.arange(3))[0].shape

    jax_gives = (3, 2)
    instead = "`indexing='ij'` on both sides."

    def same():
        ours = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
        return list(ours), jnp.meshgrid(jnp.arange(2), jnp.arange(3), indexing="ij")

    source = ("torch.meshgrid", "jax.numpy.meshgrid")


@difference
class PadOrder:
    """Padding (1, 0) of [2, 3]: the last axis in torch, every axis in JAX."""

    def in_torch():
        return tuple(functional.pad(torch.ones(2, 3), (1, 0)).shape)

    torch_gives = (2, 4)

    def in_jax():
        return jnp.pad(jnp.ones((2, 3)), (1, 0)).shape

    jax_gives = (3, 4)
    instead = "Name every axis in JAX, `((0, 0), (1, 0))`; torch counts from the last."

    def same():
        ours = functional.pad(torch.ones(2, 3), (1, 0))
        return ours, jnp.pad(jnp.ones((2, 3)), ((0, 0), (1, 0)))

    source = ("torch.nn.functional.pad", "jax.numpy.pad")


@difference
class OneHotOutOfRange:
    """One-hot of a class that does not exist: an error in torch, zeros in JAX.

    torch's result is int64, JAX's float32.
    """

    def in_torch():
        return functional.one_hot(torch.tensor([3]), 3)

    torch_gives = Raises("RuntimeError", "Class values must be smaller than num_classes")

    def in_jax():
        return jax.nn.one_hot(jnp.array([3]), 3)

    jax_gives = ((0.0, 0.0, 0.0),)
    instead = "Check classes where they are read; `.float()` in torch."

    def same():
        return functional.one_hot(torch.tensor([2, 0]), 3).float(), jax.nn.one_hot(
            jnp.array([2, 0]), 3
        )

    source = ("torch.nn.functional.one_hot", "jax.nn.one_hot")


@difference
class MaximumOverAnAxis:
    """`x.max(1)`: values and places in torch, values in JAX."""

    def in_torch():
        return len(torch.ones(4, 3).max(1))

    torch_gives = 2

    def in_jax():
        return len(jnp.ones((4, 3)).max(1))

    jax_gives = 4
    instead = "`x.amax(1)` in torch."

    def same():
        return torch.eye(3).amax(1), jnp.eye(3).max(1)

    source = ("torch.max", "torch.amax", "jax.numpy.max")


@difference
class NonzeroLayout:
    """The places of nonzero values of a matrix: rows of indices in torch, a tuple of axes in JAX."""

    def in_torch():
        return torch.tensor([[0, 1, 1]]).nonzero()

    torch_gives = ((0, 1), (0, 2))

    def in_jax():
        return jnp.array([[0, 1, 1]]).nonzero()

    jax_gives = ((0, 0), (1, 2))
    instead = "`x.nonzero(as_tuple=True)` in torch, or `jnp.argwhere(x)`."

    def same():
        x = [[0, 1, 1], [1, 0, 0]]
        return torch.tensor(x).nonzero(), jnp.argwhere(jnp.array(x))

    source = ("torch.nonzero", "jax.numpy.nonzero")


@difference
class SqueezeOfLongAxis:
    """Squeezing an axis of length 2: nothing in torch, an error in JAX."""

    def in_torch():
        return tuple(torch.ones(2, 1).squeeze(0).shape)

    torch_gives = (2, 1)

    def in_jax():
        return jnp.ones((2, 1)).squeeze(0).shape

    jax_gives = Raises("ValueError", "cannot select an axis to squeeze out")
    instead = "Index with 0 the axis that has length 1."

    def same():
        return torch.ones(2, 1)[:, 0], jnp.ones((2, 1))[:, 0]

    source = ("torch.squeeze", "jax.numpy.squeeze")


@difference
class MatrixTwoNorm:
    """The 2-norm of a matrix: all elements by `torch.norm`, the largest singular value in JAX."""

    def in_torch():
        return torch.norm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), p=2)

    torch_gives = 5.477226

    def in_jax():
        return jnp.linalg.norm(jnp.array([[1.0, 2.0], [3.0, 4.0]]), ord=2)

    jax_gives = 5.464986
    instead = "`torch.linalg.norm(x, ord=2)`."

    def same():
        x = [[1.0, 2.0], [3.0, 4.0]]
        return torch.linalg.norm(torch.tensor(x), ord=2), jnp.linalg.norm(jnp.array(x), ord=2)

    source = ("torch.norm", "torch.linalg.norm", "jax.numpy.linalg.norm")


@difference
class SixtyFourBits:
    """An array of float64 and int64: as it is in torch, cut to 32 bits in JAX, silently."""

    def in_torch():
        return torch.tensor(np.array([0.1])).dtype, torch.tensor(np.array([2**31]))

    torch_gives = ("float64", (2147483648,))

    def in_jax():
        return jnp.array(np.array([0.1])).dtype, jnp.array(np.array([2**31]))

    jax_gives = ("float32", (-2147483648,))
    instead = "`jax.config.update('jax_enable_x64', True)` before anything else."

    def same():
        with jax.enable_x64(True):
            theirs = jnp.array(np.array([0.1])), jnp.array(np.array([2**31]))
        return (torch.tensor(np.array([0.1])), torch.tensor(np.array([2**31]))), theirs

    close = 1e-15
    source = ("torch.tensor", "jax.enable_x64")
    inject = "float32_inside"


@difference
class MixedPrecisionProduct:
    """float32 times float64: an error in torch's matmul, float64 in JAX.

    So a layer with weights of 32 bits fails on one side and is quiet on the other.
    """

    def in_torch():
        return torch.ones(2, 2) @ torch.ones(2, 2, dtype=torch.float64)

    torch_gives = Raises("RuntimeError", "same dtype")

    def in_jax():
        with jax.enable_x64(True):
            return (jnp.ones((2, 2), jnp.float32) @ jnp.ones((2, 2), jnp.float64)).dtype

    jax_gives = "float64"
    instead = "Convert; under `jax.numpy_dtype_promotion('strict')` JAX demands it too."

    def same():
        ours = torch.full((2,), 0.1).double() @ torch.ones(2, dtype=torch.float64)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            x = jnp.full(2, 0.1, jnp.float32).astype(jnp.float64)
            return ours, x @ jnp.ones(2, jnp.float64)

    close = 1e-15
    source = ("torch.matmul", "jax.numpy_dtype_promotion")


@difference
class ScalarTensor:
    """A float32 array times a float64 array without axes: float32 in torch, float64 in JAX."""

    def in_torch():
        return (torch.ones(2) * torch.tensor(2.0, dtype=torch.float64)).dtype

    torch_gives = "float32"

    def in_jax():
        with jax.enable_x64(True):
            return (jnp.ones(2, jnp.float32) * jnp.array(2.0, jnp.float64)).dtype

    jax_gives = "float64"
    instead = "A Python number, which never decides the dtype on either side."

    def same():
        with jax.enable_x64(True):
            theirs = (jnp.ones(2, jnp.float32) * 2.0).dtype
        return str((torch.ones(2) * 2.0).dtype), f"torch.{theirs}"

    source = ("torch.result_type", "jax.numpy.promote_types")


@difference
class NumpyScalar:
    """float16 times a NumPy float32: float16 in torch, float32 in JAX."""

    def in_torch():
        return (torch.ones(2, dtype=torch.float16) * np.float32(2)).dtype

    torch_gives = "float16"

    def in_jax():
        return (jnp.ones(2, jnp.float16) * np.float32(2)).dtype

    jax_gives = "float32"
    instead = "A Python number: `x * float(scale)`."

    def same():
        ours = (torch.ones(2, dtype=torch.float16) * 2.0).dtype
        return str(ours), f"torch.{(jnp.ones(2, jnp.float16) * 2.0).dtype}"

    source = ("torch.result_type", "jax.numpy.promote_types")


@difference
class IntegerDtype:
    """The dtype of `arange` and `argmax`: int64 in torch, int32 in JAX."""

    def in_torch():
        return torch.arange(3).dtype, torch.ones(3).argmax().dtype

    torch_gives = ("int64", "int64")

    def in_jax():
        return jnp.arange(3).dtype, jnp.ones(3).argmax().dtype

    jax_gives = ("int32", "int32")
    instead = "Say the dtype where it is written to a file; it is int64 in JAX under x64."

    def same():
        with jax.enable_x64(True):
            theirs = f"torch.{jnp.arange(3).dtype}"
        return str(torch.arange(3).dtype), theirs

    source = ("torch.arange", "jax.numpy.arange")


@difference
class MeanOfIntegers:
    """The mean of integers: an error in torch, a float in JAX."""

    def in_torch():
        return torch.tensor([1, 2]).mean()

    torch_gives = Raises("RuntimeError", "could not infer output dtype")

    def in_jax():
        return jnp.array([1, 2]).mean()

    jax_gives = 1.5
    instead = "`x.mean(dtype=torch.float32)`."

    def same():
        return torch.tensor([1, 2]).mean(dtype=torch.float32), jnp.array([1, 2]).mean()

    source = ("torch.mean", "jax.numpy.mean")


@difference
class SumOfInt32:
    """The sum of int32 beyond its range: torch sums in int64, JAX wraps around."""

    def in_torch():
        return torch.tensor([2**31 - 1, 1], dtype=torch.int32).sum()

    torch_gives = 2147483648

    def in_jax():
        return jnp.array([2**31 - 1, 1], jnp.int32).sum()

    jax_gives = -2147483648
    instead = "Sum counts in NumPy, or under x64 with `dtype=jnp.int64`."

    def same():
        ours = torch.tensor([2**31 - 1, 1], dtype=torch.int32).sum()
        with jax.enable_x64(True):
            return ours, jnp.array([2**31 - 1, 1], jnp.int32).sum(dtype=jnp.int64)

    close = 0.0
    source = ("torch.sum", "jax.numpy.sum")


@difference
class Bfloat16ToNumpy:
    """bfloat16 to NumPy: an error in torch, a type of `ml_dtypes` in JAX."""

    def in_torch():
        return torch.ones(2, dtype=torch.bfloat16).numpy().dtype

    torch_gives = Raises("TypeError", "unsupported ScalarType BFloat16")

    def in_jax():
        return np.asarray(jnp.ones(2, jnp.bfloat16)).dtype

    jax_gives = "bfloat16"
    instead = "`x.float().numpy()`."

    def same():
        x = [0.1, 3.0]
        ours = torch.tensor(x, dtype=torch.bfloat16).float().numpy()
        return ours, np.asarray(jnp.array(x, jnp.bfloat16).astype(jnp.float32))

    source = ("torch.Tensor.numpy", "jax.numpy.asarray")
