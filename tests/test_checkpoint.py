"""A checkpoint is loaded exactly, or refused in one line that says why."""

import hashlib
import json
import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import Meaning
from data.scaling import Scaling
from data.sequences import Layout
from experiment import atomic, checkpoint
from experiment.checkpoint import BLANK, CHECKSUM, Checkpoint, Progress
from experiment.config import RunConfig
from spec.errors import CheckpointError, OutputError
from spec.params import init_params, parameter_schema


def example(optimizer: str = "adam", dtype: str = "float32") -> Checkpoint:
    """Make the checkpoint of a small classifier; every array differs."""
    config = RunConfig(model="lstm", hidden_size=2, optimizer=optimizer, dtype=dtype)
    scaling = Scaling(np.array([1.0, 2]), np.array([0.5, 3]), np.zeros(1), np.ones(1))
    layout = Layout(("a", "b"), ("y",), 5, True)
    meaning = Meaning("classification", ("high", "ünï", "low"), layout, scaling)
    schema = parameter_schema(checkpoint.model_config(config, meaning))
    kinds = ("", "optimizer.m.", "optimizer.v.")[: 2 if optimizer == "sgd" else 3]
    arrays = {
        kind + name: array.astype(dtype)
        for seed, kind in enumerate(kinds)
        for name, array in init_params(schema, seed).items()
    }
    progress = Progress(epoch=2, batch=1, step=7, loss_sum=0.1 + 0.2, rows=8, best_loss=0.7)
    return Checkpoint(arrays, config, meaning, progress, {"data": "0" * 64})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint on the disk."""
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, example())
    return path


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_saved_is_loaded(tmp_path, optimizer, dtype):
    saved = example(optimizer, dtype)
    checkpoint.save(tmp_path / "c", saved)
    loaded = checkpoint.load(tmp_path / "c")
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array, err_msg=name)
    for name, array in vars(saved.meaning.scaling).items():
        np.testing.assert_array_equal(getattr(loaded.meaning.scaling, name), array)
    assert replace(loaded.meaning, scaling=saved.meaning.scaling) == saved.meaning
    assert (loaded.config, loaded.progress) == (saved.config, saved.progress)
    assert loaded.sha256 == saved.sha256


def test_equal_states_are_equal_bytes(tmp_path, path):
    again = example()
    backwards = dict(reversed(again.arrays.items()))
    checkpoint.save(tmp_path / "again", replace(again, arrays=backwards))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_any_safetensors_reader_opens_it(path):
    from safetensors.numpy import load_file

    for name, array in example().arrays.items():
        np.testing.assert_array_equal(load_file(path)[name], array)


def refused(path: Path) -> str:
    """Return the reason for which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert caught.value.exit_code == 3
    return message


def test_every_damage_is_noticed(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        bit = 1 << (place % 8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        assert "damaged" in refused(path), place
    for size in [*range(0, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert "damaged" in refused(path), size
        path.write_bytes(whole[:size] + bytes(len(whole) - size))  # pages that were never written
        assert "damaged" in refused(path), size
    path.write_bytes(whole + b"\0")
    assert "damaged" in refused(path)
    path.write_bytes(whole)
    checkpoint.load(path)


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change header and record of a checkpoint, and seal it with a valid checksum."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header["__metadata__"]
    record = json.loads(metadata["seqduet"])
    change(header, record)
    metadata["seqduet"] = json.dumps(record)
    seal(path, header, data)


def seal(path: Path, header: dict[str, Any], data: bytes) -> None:
    """Write a safetensors file whose checksum is valid."""
    header["__metadata__"]["checksum"] = BLANK
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + data
    start, end = CHECKSUM.search(content).span(1)
    path.write_bytes(content[:start] + hashlib.sha256(content).hexdigest().encode() + content[end:])


def retyped(dtype: str) -> Callable:
    def change(header, record):
        header["lstm.weight_hh_l0"]["dtype"] = dtype
        header["lstm.weight_hh_l0"]["shape"] = [8, 2] if dtype == "I32" else [4, 2]

    return change


def dropped(header, record):
    """Remove the last array, whose bytes end the file, by naming them otherwise."""
    header["scaling.other"] = header.pop("scaling.target_std")


def renamed(name: str) -> Callable:
    def change(header, record):
        header[name] = header.pop("head.bias")

    return change


def config(**changes: Any) -> Callable:
    return lambda header, record: record["config"].update(changes)


def recorded(**changes: Any) -> Callable:
    return lambda header, record: record.update(changes)


def progress(**changes: Any) -> Callable:
    return lambda header, record: record["progress"].update(changes)


def layout(**changes: Any) -> Callable:
    return lambda header, record: record["layout"].update(changes)


FORGED = {
    "newer format": (recorded(format=2), "has format 2, this program reads 1"),
    "format of no sense": (recorded(format={"a": "b" * 1000}), "has format"),
    "no record": (lambda header, record: record.clear(), "misses 'format'"),
    "a list for a record": (recorded(config=[1]), "not usable"),
    "missing array": (renamed("head.bias2"), "head.bias is missing"),
    "missing scaling": (dropped, "scaling.target_std is missing"),
    "path for a name": (renamed("../../x"), "head.bias is missing"),
    "NUL in a name": (renamed("head.bias\0"), "head.bias is missing"),
    "name of 10 kB": (renamed("x" * 10_000), "head.bias is missing"),
    "whole numbers for weights": (retyped("I32"), "lstm.weight_hh_l0 has dtype int32"),
    "double precision": (retyped("F64"), "lstm.weight_hh_l0 has shape [4, 2]"),
    "unknown dtype": (retyped("F8_E5M2"), ""),
    "other model": (config(model="rnn"), "rnn.weight_ih_l0 is missing"),
    "unknown option": (config(colour="red"), "colour"),
    "option out of range": (config(hidden_size=0), "--hidden_size 0"),
    "larger": (config(hidden_size=4), "has shape"),
    "huge": (config(hidden_size=10**15), "has shape"),
    "huge beyond 64 bits": (config(hidden_size=10**30), "has shape"),
    "deep": (config(num_layers=10**12), "--num_layers"),
    "deep within the range": (config(num_layers=1000), "is missing"),
    "other precision": (config(dtype="float64"), "float32, the run float64"),
    "other optimiser": (config(optimizer="sgd"), "unknown arrays"),
    "more classes": (recorded(classes=["a", "b", "c", "d"]), "head.weight has shape"),
    "no classes": (recorded(classes=[]), "do not fit the task"),
    "classes that are numbers": (recorded(classes=[1, 2, 3]), "not text"),
    "weights of other classes": (recorded(class_weights=[1.0, 2.0]), "3 classes have weights"),
    "a class of weight 0": (recorded(class_weights=[1.0, 0.0, 2.0]), "3 classes have weights"),
    "weights that are text": (recorded(class_weights=["1", "1", "1"]), "not usable"),
    "weights nobody asked for": (recorded(class_weights=[1.0] * 3), "class_weights is None"),
    "weights lost": (config(class_weights="balanced"), "class_weights is balanced"),
    "a loss of another task": (config(loss="quantile"), "--loss quantile: is for regression"),
    "unknown task": (recorded(task="ranking"), "do not fit the task"),
    "more features": (layout(features=["a", "b", "c"]), "scaling.input_mean has shape"),
    "steps that are text": (layout(steps="5"), "steps"),
    "no targets": (layout(targets=None), "not usable"),
    "negative step": (progress(step=-1), "step is -1"),
    "text for an epoch": (progress(epoch="2"), "epoch is '2'"),
    "no best loss": (progress(best_loss=float("nan")), "best_loss is nan"),
    "checksums that are none": (recorded(sha256=3), "not usable"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_valid_checksum_is_not_trusted(path, name):
    change, reason = FORGED[name]
    forge(path, change)
    assert "damaged" not in refused(path)
    assert reason in refused(path)


def test_huge_claims_take_no_memory(path):
    forge(path, lambda header, record: None)
    checkpoint.load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("huge", "huge beyond 64 bits", "deep", "deep within the range"):
        checkpoint.save(path, example())
        forge(path, FORGED[name][0])
        refused(path)
    with open(path, "wb") as file:
        file.truncate(2**30)  # of nothing
    refused(path)
    path.write_bytes(b"\xff" * 8)
    with open(path, "ab") as file:
        file.truncate(2**30)
    refused(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024  # KiB


@pytest.mark.parametrize("kind", ["weights", "optimizer.m.head.bias", "scaling.input_mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(path, kind, value):
    state = example()
    name = "head.weight" if kind == "weights" else kind
    if name.startswith("scaling."):
        getattr(state.meaning.scaling, name.removeprefix("scaling."))[0] = value
    else:
        state.arrays[name].flat[0] = value
    checkpoint.save(path, state)
    assert f"{name} holds values that are not finite" in refused(path)


def test_a_standard_deviation_of_0_is_refused(path):
    state = example()
    state.meaning.scaling.input_std[1] = 0
    checkpoint.save(path, state)
    assert "standard deviation" in refused(path)


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz", "text", "empty", "zeros"])
def test_another_format_is_refused_and_not_run(tmp_path, kind):
    path, mark = tmp_path / "c.safetensors", tmp_path / "mark"
    with open(path, "wb") as file:
        match kind:
            case "pickle":
                pickle.dump(Payload(mark), file)
            case "npy":
                np.save(file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
            case "npz":
                np.savez(file, x=np.ones(3))
            case "text":
                file.write(b"t0,t1,y\n1,2,3\n" * 100)
            case "zeros":
                file.write(bytes(100))
    assert "no checkpoint of this program" in refused(path)
    assert not mark.exists()


def test_paths_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero"), tmp_path / "absent"):
        refused(path)
    refused(tmp_path / "loop")
    refused(tmp_path / ("x" * 5000))


def test_the_mode_follows_the_umask(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            checkpoint.save(tmp_path / "c", example())
            assert os.umask(mask) == mask
        finally:
            os.umask(before)
        assert (tmp_path / "c").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(path, monkeypatch, call):
    whole = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.save(path, example("sgd"))
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == [path.name]


def test_a_link_in_place_of_a_part_is_not_followed(path):
    victim = path.parent / "victim"
    victim.write_text("mine")
    atomic.part_of(path).symlink_to(victim)
    checkpoint.save(path, example("sgd"))
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
