"""The tensor file is safetensors to the byte, and depends on its content only."""

import numpy as np
import pytest
from safetensors import numpy as safetensors

from spec.tensors import decode, encode

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1.5, -0.0, 1e-310]),
    "flags": np.array([[True], [False]]),
    "count": np.array(7, dtype=np.int64),
    "none": np.zeros((0, 4), dtype=np.float32),
}


def test_round_trip_with_metadata():
    arrays, metadata = decode(encode(ARRAYS, {"b": "2", "a": '"quoted"'}))
    assert metadata == {"b": "2", "a": '"quoted"'}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_the_library_reads_ours_and_we_read_the_librarys():
    for name, array in safetensors.load(encode(ARRAYS, {"x": "y"})).items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    for name, array in decode(safetensors.save(ARRAYS, {"x": "y"}))[0].items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_equal_content_is_equal_bytes():
    turned = dict(reversed(ARRAYS.items()))
    assert encode(ARRAYS, {"a": "1", "b": "2"}) == encode(turned, {"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 64, b"PK\x03\x04" + b"\x00" * 40, encode(ARRAYS, {})[:-1]],
)
def test_anything_else_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"\w"):  # with a reason, whichever it is
        decode(content)


def test_unknown_dtype_is_named():
    content = safetensors.save({"x": np.zeros(3, np.uint16)})
    with pytest.raises(ValueError, match="x has dtype U16"):
        decode(content)
