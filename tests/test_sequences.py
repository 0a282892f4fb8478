"""From columns, tensors and series to sequences; a second file has to agree."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from data.config import DataConfig
from data.sequences import Sequences, read_sequences
from spec.errors import ConfigError, DataError


def read(path: Path, content: str, layout=None, need_targets=True, **options) -> Sequences:
    path.write_text(content, encoding="utf-8")
    return read_sequences(str(path), DataConfig(**options), layout, need_targets)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


# Header: (options, features, inputs of the row 1, 2, 3, ..; what the note says).
LAYOUTS = {
    "t0,t1,t2,y": ({}, ("value",), [[1], [2], [3]], "3 steps of 1 feature: value, by the header"),
    "t00,t01,t02,y": ({}, ("value",), [[1], [2], [3]], "by the header"),
    "t5,t6,y": ({}, ("value",), [[1], [2]], "by the header"),
    "t0_a,t0_b c,t1_a,t1_b c,y": ({}, ("a", "b c"), [[1, 2], [3, 4]], "2 features: a, b c"),
    "t0_x_1,t1_x_1,t2_x_1,y": ({}, ("x_1",), [[1], [2], [3]], "1 feature: x_1"),
    "t" + "9" * 5000 + ",u,y": ({}, ("f0",), [[1], [2]], "the header is no t0, t1"),
    "open,high,low,y": ({}, ("f0",), [[1], [2], [3]], "the header is no t0, t1"),
    "p,q,r,s,y": ({"num_features": 2}, ("f0", "f1"), [[1, 2], [3, 4]], "2 steps of 2 features"),
    "t0,t1,u,v,y": ({"num_features": 2}, ("f0", "f1"), [[1, 2], [3, 4]], "2 features: f0, f1"),
    "t0,t1,t2,t3,y": ({"num_features": 2}, ("f0", "f1"), [[1, 2], [3, 4]], "by --num_features"),
    "t0,t1,y": ({"num_features": 1}, ("value",), [[1], [2]], "by the header"),
    "t0_a,t0_b,y": ({"num_features": 2}, ("a", "b"), [[1, 2]], "by the header"),
}


@pytest.mark.parametrize("header", LAYOUTS)
def test_columns_are_understood_and_said(file, header):
    options, features, expected, note = LAYOUTS[header]
    width = header.count(",")
    row = ",".join(str(n + 1) for n in range(width)) + ",0.5\n"
    sequences = read(file, f"{header}\n{row}", **options)
    assert sequences.layout.features == features
    assert sequences.inputs.tolist() == [expected]
    assert sequences.layout.steps == len(expected)
    assert note in sequences.notes[0]
    by_name = features[0] != "f0"
    guessed = not by_name and not options
    assert ("--num_features overrides" in sequences.notes[0]) == guessed
    named = header.split(",")[:-1]
    assert sequences.layout.columns == (None if by_name else tuple(named))


@pytest.mark.parametrize(("count", "shape"), [(None, (1, 6, 1)), (2, (1, 3, 2)), (3, (1, 2, 3))])
def test_without_header_columns_are_time_major(file, count, shape):
    sequences = read(file, "1,2,3,4,5,6,7.5\n", num_features=count)
    assert sequences.inputs.shape == shape
    assert sequences.inputs.ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert sequences.targets == [("7.5",)]
    assert sequences.layout.targets == ("column 7",)
    why = "by --num_features" if count else "as there is no header (--num_features overrides)"
    assert sequences.notes[0].endswith(why)


FAULTY_LAYOUTS = {
    "t0,t1,x,y": ({}, 'line 1, column 3 "x": is not named t0, t1'),
    "id,t0,t1,y": ({}, 'line 1, column 1 "id": is not named'),
    "t0,t2,y": ({}, 'line 1, column 2 "t2": each step from t0 on'),
    "t1,t0,y": ({}, 'line 1, column 2 "t0": each step from t1 on'),
    "t0_a,t1_a,t0_b,t1_b,y": (
        {},
        'line 1, column 2 "t1_a": each step from t0 on should have a, b, in this',
    ),
    "t0_a,t0_b,t1_a,y": ({}, 'line 1, column 3 "t1_a": each step from t0 on should have a, b'),
    "t0_a,t0_b,t1_b,t1_a,y": ({}, 'line 1, column 3 "t1_b"'),
    "t0_a,t0_b,t1_a,t1_b,y": ({"num_features": 4}, "--num_features 4, but the header names 2"),
    "a,b,c,d,e,f,g,y": ({"num_features": 2}, "7 = 3 x 2 + 1"),
}


@pytest.mark.parametrize("header", FAULTY_LAYOUTS)
def test_columns_that_make_no_steps_are_refused(file, header):
    options, fault = FAULTY_LAYOUTS[header]
    with pytest.raises(DataError) as error:
        read(file, f"{header}\n{'1,' * header.count(',')}2\n", **options)
    assert str(error.value).startswith(f"{file}: ")
    assert fault in str(error.value)
    assert "--num_features" in str(error.value)


def test_shorter_sequences_leave_their_last_cells_empty(file):
    rows = ["1,2,3,4,5,6,a", "1,2,3,4,,,b", "1,2, ,\t,,,c", "7,8,9,10,,,d"]
    sequences = read(file, "t0_a,t0_b,t1_a,t1_b,t2_a,t2_b,y\n" + "\n".join(rows) + "\n")
    assert sequences.lengths.tolist() == [3, 2, 1, 2]
    assert sequences.inputs.shape == (4, 3, 2)
    gone = np.isnan(sequences.inputs).all(axis=2)
    assert gone.tolist() == [[False] * n + [True] * (3 - n) for n in (3, 2, 1, 2)]
    shorter = read(file, "t0,t1,t2,y\n1,,,a\n1,2,,b\n")
    assert shorter.inputs.shape == (2, 2, 1)
    assert shorter.layout.steps == 3


MISSING = "t0_a,t0_b,t1_a,t1_b,y\n1,2,3,4,p\n1,,3,4,q\n1,2,NA,4,r\n5,6,7,,s\n8,9,,,t\n"


def test_missing_readings(file):
    with pytest.raises(DataError, match="3 missing values") as error:
        read(file, MISSING)
    places = ('line 3, column 2 "t0_b"', 'line 4, column 3 "t1_a"', 'line 5, column 4 "t1_b"')
    assert "; ".join(places) + ";" in str(error.value)

    dropped = read(file, MISSING, missing="drop")
    assert [target for (target,) in dropped.targets] == ["p", "t"]
    assert (dropped.lines.tolist(), dropped.lengths.tolist()) == ([2, 6], [2, 1])
    assert dropped.target_place(1, 0) == f'{file}: line 6, column 5 "y"'
    assert dropped.notes[-1] == "3 missing values: 3 rows dropped (--missing drop)"

    filled = read(file, MISSING, missing="mean")
    assert len(filled) == 5
    assert np.isnan(filled.inputs).sum() == 3 + 2  # and one step beyond an end
    assert filled.lengths.tolist() == [2, 2, 2, 2, 1]
    assert "3 missing values replaced by the training mean" in filled.notes[-1]


TRAINED = "t0_a,t0_b,t1_a,t1_b,y\n1,2,3,4,p\n5,6,7,8,q\n"
PLAIN = "x,z,w,y\n1,2,3,p\n5,6,7,q\n"
BARE = "1,2,3,4.5\n5,6,7,8.5\n"
# Training file: {further file: (inputs and targets, or the fault)} where targets are not needed.
FURTHER = {
    TRAINED: {
        "t0_a,t0_b,y\n1,2,p\n": ([[[1, 2]]], [("p",)]),
        "t0_a,t0_b,t1_a,t1_b,t2_a,t2_b\n1,2,3,4,5,6\n": ([[[1, 2], [3, 4], [5, 6]]], None),
        "y,t0_a,t0_b\np,1,2\n": ([[[1, 2]]], [("p",)]),
        "t0_b,t0_a,y\n1,2,p\n": "features are b, a, the training data's a, b",
        "t0_a,t0_c,y\n1,2,p\n": "features are a, c",
        "t0_a,y\n1,p\n": "features are a, the training data's a, b",
        "t0_a,t0_b,label\n1,2,p\n": 'column 3 "label": is not named t0',
        "a,b,c,d\n1,2,3,4\n": "features are f0, f1, the training data's a, b",
        "1,2,3,4\n": "has no header",
        "1,2,3,4,5\n": "has no header",
    },
    PLAIN: {
        "x,z,w\n1,2,3\n": ([[[1], [2], [3]]], None),
        "y,x,z,w\np,1,2,3\n": ([[[1], [2], [3]]], [("p",)]),
        "z,x,w,y\n1,2,3,p\n": 'line 1, column 1 "z": the training data has "x" there',
        "x,z,v,y\n1,2,3,p\n": 'line 1, column 3 "v": the training data has "w" there',
        "x,z,y\n1,2,p\n": "2 columns beside the target, the training data has 3",
        "x,z,w,v\n1,2,3,4\n": "4 columns beside the target, the training data has 3",
        "t0,t1,t2\n1,2,3\n": 'column 1 "t0": the training data has "x" there',
        "1,2,3\n": "has no header",
    },
    BARE: {
        "7,8,9\n": ([[[7], [8], [9]]], None),
        "7,8,9,1.5\n": ([[[7], [8], [9]]], [("1.5",)]),
        "a,b,c\n7,8,9\n": ([[[7], [8], [9]]], None),
        "t0,t1,t2,y\n7,8,9,1.5\n": ([[[7], [8], [9]]], [("1.5",)]),
        "7,8\n": "2 columns, where the training data, without header, has 4 (3 without target)",
        "7,8,9,1,2\n": "5 columns, where the training data, without header, has 4",
    },
}


@pytest.mark.parametrize(
    ("training", "further"), [(a, b) for a, files in FURTHER.items() for b in files]
)
def test_a_further_file_agrees_with_the_training_file(file, training, further):
    layout = read(file, training).layout
    expected = FURTHER[training][further]
    if isinstance(expected, str):
        with pytest.raises(DataError) as error:
            read(file, further, layout, need_targets=False)
        assert expected in str(error.value)
        return
    inputs, targets = expected
    found = read(file, further, layout, need_targets=False)
    assert (found.inputs.tolist(), found.targets) == (inputs, targets)
    assert found.layout.features == layout.features
    if targets is None:
        with pytest.raises(DataError, match=r'no column is named "y"|has 4; give'):
            read(file, further, layout)


def test_several_targets_are_all_there_or_none(file):
    layout = read(file, "t0,t1,p,q\n1,2,3,4\n", target="q,p").layout
    assert read(file, "q,t0,t1,p\n4,1,2,3\n", layout, False).targets == [("4", "3")]
    assert read(file, "t0,t1\n1,2\n", layout, False).targets is None
    with pytest.raises(DataError, match='no column is named "q"'):
        read(file, "t0,t1,p\n1,2,3\n", layout, False)


ARRAYS = {
    "inputs": np.arange(4 * 3 * 2, dtype=np.float64).reshape(4, 3, 2) / 7,
    "targets": np.array([0.5, 1.25, -3, 1e-7]),
    "lengths": np.array([3, 1, 2, 3]),
}


def tensor_file(directory: Path, ending: str, arrays: dict[str, np.ndarray]) -> Path:
    path = directory / f"data{ending}"
    if ending.lower() == ".safetensors":
        path.write_bytes(save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
    else:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    return path


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".NPZ"])
def test_tensors(tmp_path, ending):
    sequences = read_sequences(str(tensor_file(tmp_path, ending, ARRAYS)), DataConfig())
    assert sequences.lengths.tolist() == [3, 1, 2, 3]
    assert sequences.targets == [("0.5",), ("1.25",), ("-3.0",), ("1e-07",)]
    assert sequences.layout.features == ("f0", "f1")
    for n, length in enumerate(ARRAYS["lengths"]):
        np.testing.assert_array_equal(sequences.inputs[n, :length], ARRAYS["inputs"][n, :length])
        assert np.isnan(sequences.inputs[n, length:]).all()


def test_tensors_of_every_kind(tmp_path):
    inputs = ARRAYS["inputs"]
    for kind in (np.float32, np.float16, ">f4", np.int8, np.uint16):
        arrays = {"inputs": inputs.astype(kind), "targets": np.array(["a", "b", "NA", "a "])}
        sequences = read_sequences(str(tensor_file(tmp_path, ".npz", arrays)), DataConfig())
        np.testing.assert_array_equal(sequences.inputs, inputs.astype(kind).astype(np.float64))
        assert sequences.targets == [("a",), ("b",), ("NA",), ("a ",)]
    arrays = {"inputs": inputs[..., 0], "targets": np.arange(12).reshape(4, 3)}
    sequences = read_sequences(str(tensor_file(tmp_path, ".npz", arrays)), DataConfig())
    assert sequences.inputs.shape == (4, 3, 1)
    assert sequences.targets[2] == ("6", "7", "8")
    assert sequences.layout.targets == ("target0", "target1", "target2")


def changed(name: str, change) -> dict[str, np.ndarray]:
    return ARRAYS | {name: change(ARRAYS[name].copy())}


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


NAN = (2, 1, 0)
FAULTY_TENSORS = {
    "no inputs": ({"x": ARRAYS["inputs"]}, "no array 'inputs'"),
    "no targets": ({"inputs": ARRAYS["inputs"]}, "no array 'targets', only inputs"),
    "flat inputs": (changed("inputs", np.ravel), "inputs are float64 [24]; expected numbers"),
    "text inputs": (changed("inputs", lambda a: a.astype(str)), "expected numbers [N, T, D]"),
    "complex inputs": (changed("inputs", lambda a: a + 1j), "inputs are complex128"),
    "no step": (changed("inputs", lambda a: a[:, :0]), "inputs are float64 [4, 0, 2]"),
    "no row": ({name: array[:0] for name, array in ARRAYS.items()}, "[0, 3, 2]"),
    "infinite": (changed("inputs", put(NAN, np.inf)), "inputs[2, 1, 0] = inf is beyond float32"),
    "1e39": (changed("inputs", put(NAN, 1e39)), "inputs[2, 1, 0] = 1e+39 is beyond float32"),
    "missing": (changed("inputs", put(NAN, np.nan)), "1 missing value inside sequences: inputs[2, 1"),
    "too long": (changed("lengths", put(1, 4)), "expected 4 whole numbers from 1 to 3"),
    "too short": (changed("lengths", put(1, 0)), "expected 4 whole numbers from 1 to 3"),
    "real lengths": (changed("lengths", lambda a: a + 0.5), "lengths are float64 [4]"),
    "few lengths": (changed("lengths", lambda a: a[:3]), "lengths are int64 [3]"),
    "few targets": (changed("targets", lambda a: a[:3]), "targets are float64 [3]"),
    "one target": (changed("targets", lambda a: a[0]), "targets are float64 []"),
    "deep targets": (changed("targets", lambda a: a.reshape(2, 2, 1)), "expected numbers or text"),
    "no column": (changed("targets", lambda a: a.reshape(4, 1)[:, :0]), "targets are float64 [4, 0]"),
    "objects": (changed("targets", lambda a: a.astype(object)), "allow_pickle=False"),
    "object inputs": (changed("inputs", lambda a: a.astype(object)), "allow_pickle=False"),
    "empty label": (ARRAYS | {"targets": np.array(["a", "", "b", "c"])}, "targets[1]: the target is empty"),
    "label in two lines": (ARRAYS | {"targets": np.array(["a", "b", "c", "d\ne"])}, "targets[3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY_TENSORS)
def test_faulty_tensors_are_refused(tmp_path, name):
    arrays, fault = FAULTY_TENSORS[name]
    path = tensor_file(tmp_path, ".npz", arrays)
    with pytest.raises(DataError) as error:
        read_sequences(str(path), DataConfig())
    assert str(error.value).startswith(f"{path}: ")
    assert fault in str(error.value)


class Planted:
    """Runs when unpickled."""

    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_what_is_no_tensor_file_is_refused(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    good = tensor_file(tmp_path, ending, ARRAYS).read_bytes()
    npy = io.BytesIO()
    np.save(npy, np.array([Planted()]), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, inputs=np.array([Planted()]), targets=np.arange(1))
    bad = [b"", b"\n", b"t0,y\n1,2\n", b"{}", pickle.dumps(Planted()), npy.getvalue(), good[:-7]]
    bad += [good[: len(good) // 2], good[:9], archive.getvalue(), struct.pack("<Q", 2**62) + b"{}"]
    if ending == ".npz":  # a zip holds checksums
        bad.append(good.replace(ARRAYS["targets"].tobytes(), bytes(32)))
    for content in bad:
        path = tmp_path / f"bad{ending}"
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_sequences(str(path), DataConfig())
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "planted").exists()


def test_an_array_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, inputs=np.zeros((40, 500, 2)), targets=np.arange(40))
    assert len(read_sequences(str(path), DataConfig())) == 40
    monkeypatch.setattr("data.tensor_files.MOST_UNPACKED", 10_000)
    with pytest.raises(DataError, match=r"inputs.npy unpacks to 320128 bytes, over 200 times"):
        read_sequences(str(path), DataConfig())


def test_tensors_and_a_further_file(tmp_path, file):
    path = str(tensor_file(tmp_path, ".npz", ARRAYS))
    layout = read(file, TRAINED).layout
    sequences = read_sequences(path, DataConfig(target="y"), layout)
    assert sequences.layout == layout
    assert sequences.notes[0] == "inputs are 3 steps of 2 features: a, b"
    untold = tmp_path / "unknown.npz"
    np.savez(untold, inputs=ARRAYS["inputs"])
    unknown = read_sequences(str(untold), DataConfig(), layout, need_targets=False)
    assert (unknown.targets, unknown.layout.targets) == (None, ())
    for content, numbers in ((PLAIN, "1 and 1"), ("t0_a,t0_b,p,q\n1,2,3,4\n", "2 and 2")):
        target = "p,q" if "q" in content.split("\n")[0] else None
        layout = read(file, content, target=target).layout
        with pytest.raises(DataError, match=f"2 features and 1 targets, .* has {numbers}"):
            read_sequences(path, DataConfig(), layout)
    for options in ({"windows": 2}, {"num_features": 3}, {"target": "y"}):
        (name,) = options
        with pytest.raises(DataError, match=f"--{name}"):
            read_sequences(path, DataConfig(**options))
    layout = read_sequences(path, DataConfig()).layout
    bare = read(file, "1,2,3,4,5,6\n", layout, need_targets=False)
    assert bare.inputs.tolist() == [[[1, 2], [3, 4], [5, 6]]]


def test_missing_tensors_are_dropped_or_filled(tmp_path):
    path = str(tensor_file(tmp_path, ".npz", changed("inputs", put(NAN, np.nan))))
    dropped = read_sequences(path, DataConfig(missing="drop"))
    assert dropped.lines.tolist() == [1, 2, 4]
    assert dropped.target_place(2, 0) == f"{path}: targets[3]"
    np.testing.assert_array_equal(dropped.inputs[2], ARRAYS["inputs"][3])
    assert len(read_sequences(path, DataConfig(missing="mean"))) == 4


def series(rows: int, header: str = "a,b") -> str:
    """Column n of row r holds r + n / 10, so a value says where it stood."""
    width = header.count(",") + 1
    lines = [",".join(f"{r + n / 10}" for n in range(width)) for r in range(rows)]
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize("horizon", [1, 3])
def test_windows_of_a_series_whose_value_is_its_index(file, horizon):
    R, W = 11, 4
    sequences = read(file, series(R), windows=W, horizon=horizon)
    N = R - W - horizon + 1
    assert sequences.inputs.shape == (N, W, 2)
    for n in range(N):
        assert sequences.inputs[n, :, 0].tolist() == [n, n + 1, n + 2, n + 3]
        assert sequences.targets[n] == (f"{n + W - 1 + horizon + 0.1}",)
        assert sequences.lines[n] == n + W + 1  # of the last step; the header is line 1
    assert sequences.layout.features == ("a", "b")
    assert sequences.layout.targets == ("b",)
    when = "1 step later" if horizon == 1 else "3 steps later"
    assert sequences.notes[0] == f"windows of 4 steps of 2 features: a, b; target b, {when}"

    beyond = read(file, series(R), sequences.layout, False, windows=W, horizon=horizon)
    assert len(beyond) == R - W + 1
    assert beyond.inputs[-1, :, 0].tolist() == [7, 8, 9, 10]
    assert beyond.targets == sequences.targets
    assert beyond.lines[-1] == R + 1


def test_a_series_just_long_enough(file):
    assert len(read(file, series(7), windows=4, horizon=3)) == 1
    with pytest.raises(DataError, match="6 rows are too few for --windows 4 --horizon 3; 7 are"):
        read(file, series(6), windows=4, horizon=3)
    layout = read(file, series(7), windows=4, horizon=3).layout
    assert read(file, series(4), layout, False, windows=4, horizon=3).targets is None
    with pytest.raises(DataError, match=r"3 rows are too few .* 4 are needed"):
        read(file, series(3), layout, False, windows=4, horizon=3)


def test_windows_without_header_and_with_one_column(file):
    content = "0.5\n1.5\n2.5\n3.5\n"
    sequences = read(file, content, windows=2)
    assert sequences.layout.features == sequences.layout.targets == ("column 1",)
    assert sequences.inputs.tolist() == [[[0.5], [1.5]], [[1.5], [2.5]]]
    assert sequences.targets == [("2.5",), ("3.5",)]
    assert len(read(file, content, sequences.layout, False, windows=2)) == 3
    with pytest.raises(DataError, match="line 3: blank, which in one column may be a missing"):
        read(file, "0.5\n1.5\n\n3.5\n", windows=2)
    with pytest.raises(
        DataError, match="2 columns, where the training data, without header, has 1"
    ):
        read(file, "0.5,1\n1.5,1\n", sequences.layout, False, windows=2)


def test_windows_of_labels(file):
    content = "a,state\n0,on\n1,off\n2,on\n3,idle\n4,off\n"
    for options in ({}, {"task": "classification"}):
        sequences = read(file, content, windows=2, **options)
        assert sequences.layout.features == ("a",)
        assert sequences.targets == [("on",), ("idle",), ("off",)]
        assert sequences.inputs[..., 0].tolist() == [[0, 1], [1, 2], [2, 3]]
        assert sequences.target_place(1, 0) == f'{file}: line 5, column 2 "state"'
    unknown = read(file, "a\n7\n8\n9\n", sequences.layout, False, windows=2)
    assert unknown.targets is None
    assert unknown.inputs[..., 0].tolist() == [[7, 8], [8, 9]]
    assert unknown.notes == ["windows of 2 steps of 1 feature: a"]
    numbers = read(file, series(5), windows=2, task="classification")
    assert numbers.layout.features == ("a",)
    assert not numbers.forecasts
    with pytest.raises(DataError, match="no column beside the target"):
        read(file, "state\non\noff\non\n", windows=2)
    with pytest.raises(DataError, match="as labels are none, or forecast numbers: --task regressi"):
        read(file, "a\n7\n8\n9\n", windows=2, task="classification")


def test_windows_of_several_targets_in_the_order_of_the_file(file):
    sequences = read(file, series(6, "a,b,c"), windows=2, target="c,a")
    assert sequences.layout.features == ("a", "b", "c")
    assert sequences.layout.targets == ("c", "a")
    assert sequences.inputs[1].tolist() == [[1, 1.1, 1.2], [2, 2.1, 2.2]]
    assert sequences.targets[1] == ("3.2", "3.0")
    with pytest.raises(DataError, match="features are b, a, c, the training data's a, b, c"):
        read(file, series(6, "b,a,c"), sequences.layout, windows=2)


FAULTY_SERIES = {
    "missing": (series(6).replace("3.0,", ","), {}, 'line 5, column 1 "a"'),
    "dropped": (series(6).replace("3.0,", ","), {"missing": "drop"}, "would tear the series"),
    "target missing": (series(6).replace("3.1", ""), {"missing": "mean"}, 'line 5, column 2 "b"'),
    "target NA": (series(6).replace("3.1", "NA"), {"missing": "mean"}, "'NA' is no value"),
    "target text": (series(6).replace("3.1", "x"), {}, "line 5, column 2 \"b\": the target 'x'"),
    "date": ("day,b\n2020-01-01,1\n2020-01-02,2\n", {}, "'2020-01-01' is not a number"),
    "not there": (series(6), {"target": "z"}, 'no column is named "z"'),
}


@pytest.mark.parametrize("name", FAULTY_SERIES)
def test_faulty_series_are_refused(file, name):
    content, options, fault = FAULTY_SERIES[name]
    with pytest.raises(DataError) as error:
        read(file, content, windows=2, **options)
    assert fault in str(error.value)


def test_missing_readings_of_a_series_are_filled(file):
    sequences = read(file, series(6).replace("3.0,", ","), windows=2, missing="mean")
    assert np.isnan(sequences.inputs[..., 0]).tolist() == [[False] * 2, [False] * 2, [False, True],
                                                           [True, False]]  # fmt: skip
    assert "1 missing value replaced" in sequences.notes[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"horizon": 2},
        {"windows": 3, "num_features": 2},
        {"windows": 3, "split": "random"},
        {"delimiter": ";;"},
        {"delimiter": "\0"},
        {"decimal": ","},
    ],
    ids=str,
)
def test_options_that_contradict_each_other(options):
    with pytest.raises(ConfigError):
        DataConfig(**options)
