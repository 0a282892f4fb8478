"""Random streams: anchored bits, independence, rates."""

import hashlib

import numpy as np
import pytest

from spec.batch import keep_masks
from spec.config import ModelConfig
from spec.random import keep_mask, permutation, uniform, words

CONFIG = ModelConfig(
    model="lstm_attention", hidden_size=4, num_layers=3, bidirectional=True, dropout=0.25
)


def test_stream_is_philox_keyed_by_sha256():
    """Philox(key) as NumPy makes it, from the first 128 bits of SHA-256 of "0/shuffle/3"."""
    digest = hashlib.sha256(b"0/shuffle/3").digest()
    key = np.frombuffer(digest[:16], "<u8")
    np.testing.assert_array_equal(
        words(5, 0, "shuffle", 3), np.random.Philox(key=key).random_raw(5)
    )
    assert words(3, 0, "shuffle", 3).tolist() != words(3, 0, "shuffle", 4).tolist()


def test_words_are_a_prefix_of_more_words():
    np.testing.assert_array_equal(words(9, 1, "x")[:4], words(4, 1, "x"))


def test_permutation_holds_every_row_once_and_moves_them():
    order = permutation(1000, 0, "shuffle", 0)
    assert sorted(order) == list(range(1000))
    assert np.mean(order == np.arange(1000)) < 0.01


def test_uniform_bounds():
    numbers = uniform((200, 50), 2.0, 0, "x")
    assert -2 <= numbers.min() < -1.999
    assert 1.999 < numbers.max() < 2


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_keep_mask_rate(rate):
    """Dropped with the asked probability, within five standard deviations of 200 000 draws."""
    kept = keep_mask((400, 500), rate, 0, "x")
    assert abs((~kept).mean() - rate) <= 5 * (rate * (1 - rate) / kept.size) ** 0.5


def test_masks_have_a_name_a_shape_and_a_step_each():
    masks = keep_masks(CONFIG, seed=0, step=7, rows=3, time=5)
    assert {name: mask.shape for name, mask in masks.items()} == {
        "layer0": (3, 5, 8),
        "layer1": (3, 5, 8),
        "head": (3, 16),
    }
    again, later = (keep_masks(CONFIG, 0, step, 3, 5) for step in (7, 8))
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, again[name])
        assert (mask != later[name]).any()
    assert (masks["layer0"] != masks["layer1"]).any()
    assert keep_masks(ModelConfig(model="rnn"), 0, 0, 3, 5) == {}
