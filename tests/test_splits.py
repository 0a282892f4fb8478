"""Parts of a data set: sizes, proportions, seeds, order, and nothing of the test in the training."""

from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.dataset import Dataset, load_dataset
from data.scaling import Scaling, mean_and_std
from data.splits import split_off
from spec.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def load(path: Path, content: str, seed: int = 0, **options) -> Dataset:
    path.write_text(content)
    return load_dataset(DataConfig(data_path=str(path), **options), "float64", seed)


def rows_of(data: Dataset) -> list[np.ndarray]:
    return [data.train.rows, data.valid.rows, data.test.rows]


def numbered(rows: int) -> str:
    return "t0,t1,y\n" + "".join(f"{n},{n * n % 11},{n}.5\n" for n in range(rows))


@pytest.mark.parametrize("options", [{}, {"split": "time"}], ids=str)
def test_every_row_is_in_exactly_one_part(file, options):
    data = load(file, numbered(41), test_fraction=0.2, valid_fraction=0.3, **options)
    train, valid, test = rows_of(data)
    assert (len(test), len(valid), len(train)) == (8, 10, 23)
    together = np.concatenate([train, valid, test])
    assert sorted(together) == [*range(41)]
    if options:
        assert together.tolist() == [*range(41)]
        assert "(the last ones in time)" in data.notes[-1]
    else:
        assert "rows: 23 training, 10 validation, 8 test (drawn at random, seed 0)" in data.notes


def test_the_seed_alone_decides_the_split(file):
    first, again, other = (load(file, numbered(50), seed) for seed in (3, 3, 4))
    for one, same in zip(rows_of(first), rows_of(again), strict=True):
        np.testing.assert_array_equal(one, same)
    assert rows_of(first)[2].tolist() != rows_of(other)[2].tolist()
    single = load_dataset(DataConfig(data_path=str(file)), "float32", 3)
    np.testing.assert_array_equal(first.test.rows, single.test.rows)


def test_random_draws_are_spread_over_the_file(file):
    test = np.concatenate([load(file, numbered(40), seed).test.rows for seed in range(40)])
    assert abs(test.mean() - 19.5) < 3 * 11.6 / np.sqrt(len(test))
    assert len(np.unique(test)) == 40


SIZES = {"a": 60, "b": 20, "c": 13, "d": 7}


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_divided_in_proportion(file, seed):
    labels = [label for label, size in SIZES.items() for _ in range(size)]
    content = "t0,y\n" + "".join(f"{n},{label}\n" for n, label in enumerate(labels))
    data = load(file, content, seed, test_fraction=0.15, valid_fraction=0.2)
    counts = [np.bincount(data.train.targets[rows], minlength=4) for rows in rows_of(data)]
    assert counts[2].tolist() == [9, 3, 2, 1]
    for part, fraction in ((counts[1], 0.85 * 0.2), (counts[0], 0.85 * 0.8)):
        assert (abs(part - fraction * np.array([*SIZES.values()])) <= 1).all()
    assert sum(map(sum, counts)) == 100


def test_a_single_row_of_a_class_is_trained_on():
    labels = np.array([0] * 30 + [1])
    for seed in range(20):
        rest, part = split_off(np.arange(31), 0.2, labels, False, "test_fraction", seed)
        assert 30 in rest
        assert len(part) == 6


def test_which_rows_of_a_class_are_taken_is_random():
    labels = np.repeat([0, 1], [20, 10])
    drawn = [split_off(np.arange(30), 0.3, labels, False, "x", seed)[1] for seed in range(30)]
    assert all(np.bincount(labels[rows]).tolist() == [6, 3] for rows in drawn)
    assert set(np.concatenate(drawn)) == set(range(30))


def test_parts_of_no_rows(file):
    assert len(load(file, numbered(9), valid_fraction=0).valid) == 0
    for options in ({"test_fraction": 0.01}, {"test_fraction": 0.99}, {"valid_fraction": 0.01}):
        (name,) = options
        with pytest.raises(DataError, match=f"{file}: --{name} .* of . rows is ."):
            load(file, numbered(9), **options)


def test_a_given_test_file_is_the_test(file, tmp_path):
    other = tmp_path / "test.csv"
    other.write_text("t0,t1,t2,y\n1,2,3,0.5\n4,5,,-1.5\n100,200,,9\n")
    data = load(file, numbered(20), test_path=str(other))
    assert [len(rows) for rows in rows_of(data)] == [17, 3, 3]
    assert sorted(np.concatenate(rows_of(data)[:2])) == [*range(20)]
    assert data.test.lengths.tolist() == [3, 2, 2]
    assert data.test_known.targets.tolist() == [[0.5], [-1.5], [9]]
    scaling = data.meaning.scaling
    unscaled = data.test.inputs * scaling.input_std + scaling.input_mean
    np.testing.assert_allclose(unscaled[0, :, 0], [1, 2, 3], rtol=1e-12)
    assert set(data.sha256) == {"data", "test"}
    assert f"{other}: 3 sequences of 2 to 3 steps, target y" in data.notes


def test_a_test_file_has_no_class_of_its_own(file, tmp_path):
    other = tmp_path / "test.csv"
    other.write_text("t0,y\n1,up\n\n2,left\n")
    with pytest.raises(DataError) as error:
        load(file, "t0,y\n" + "1,up\n2,down\n" * 6, test_path=str(other))
    assert str(error.value).startswith(
        f"{other}: line 4, column 2 \"y\": the label 'left' does not"
    )
    assert "its classes are 'down', 'up'" in str(error.value)


def test_sequences_that_are_also_trained_on_are_reported(file, tmp_path):
    other = tmp_path / "test.csv"
    other.write_text("t0,t1,t2,y\n3,9,,1\n3,9,1,1\n4,5,,1\n7,7,7,1\n")
    data = load(file, numbered(20), valid_fraction=0, test_path=str(other))
    assert "warning: 2 test sequences also occur in the training rows" in data.notes


def extremes(rows: int, place: int, value: float) -> str:
    """A file of ordinary rows, in order of time, but one."""
    cells = [(np.sin(n), np.cos(n), n % 5 + 0.5) for n in range(rows)]
    cells[place] = (value, -value, value)
    return "t0_a,t0_b,y\n" + "".join(",".join(map(repr, map(float, row))) + "\n" for row in cells)


def scaling_of(data: Dataset) -> np.ndarray:
    return np.concatenate([*vars(data.meaning.scaling).values()])


def test_scaling_sees_the_training_rows_only(file):
    options = {"split": "time", "test_fraction": 0.25, "valid_fraction": 0.2}
    plain = load(file, extremes(40, 39, 0.1), **options)
    train, valid, test = rows_of(plain)
    assert (train[-1], valid[-1], test[-1]) == (23, 29, 39)
    for outlier in (24, 29, 30, 39):
        other = load(file, extremes(40, outlier, 1e6), **options)
        if outlier != 39:
            plain = load(file, extremes(40, outlier, 0.1), **options)
        np.testing.assert_array_equal(scaling_of(other), scaling_of(plain))
    seen = load(file, extremes(40, 23, 1e6), **options)
    assert abs(scaling_of(seen) - scaling_of(plain)).min() > 1e3


def test_scaling_sees_a_test_file_as_little(file, tmp_path):
    other = tmp_path / "test.csv"
    found = []
    for value in (1, 10**6):
        other.write_text(f"t0,t1,y\n{value},{value},{value}.5\n")
        found.append(scaling_of(load(file, numbered(20), test_path=str(other))))
    np.testing.assert_array_equal(*found)


def test_scaling_sees_real_steps_only(file):
    """Each reading counts once: not the room of shorter sequences, not what is missing."""
    rows = [("1,10,2,20,3,30", 3), ("4,40,,,,", 1), ("5,50,6,60,,", 2)] * 8
    lines = [f"{cells},{n}.5" for n, (cells, _) in enumerate(rows)]
    content = "\n".join(["t0_a,t0_b,t1_a,t1_b,t2_a,t2_b,y", *lines, ""])
    data = load(file, content, valid_fraction=0.25)
    cells = [lines[n].split(",")[:-1] for n in data.train.rows]
    readings = np.array([float(c) for row in cells for c in row if c]).reshape(-1, 2)
    assert len(readings) == sum(rows[n][1] for n in data.train.rows)
    scaling = data.meaning.scaling
    np.testing.assert_allclose(scaling.input_mean, readings.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(scaling.input_std, readings.std(axis=0), rtol=1e-13)
    steps = np.arange(3) < data.train.lengths[:, None]
    assert (data.train.inputs[~steps] == 0).all()

    holes = load(
        file, content.replace("5,50,6,60", "NA,50,6,60"), valid_fraction=0.25, missing="mean"
    )
    without = readings[readings[:, 0] != 5, 0]
    np.testing.assert_allclose(holes.meaning.scaling.input_mean[0], without.mean(), rtol=1e-13)
    assert (holes.train.inputs[2, 0] == [0, holes.train.inputs[2, 0, 1]]).all()
    assert holes.train.inputs[2, 0, 1] != 0


def test_a_constant_becomes_exactly_zero(file):
    content = "t0_a,t0_b,t1_a,t1_b,y\n" + "".join(f"{n},0.1,{n * n},0.1,0.7\n" for n in range(999))
    data = load(file, content, task="regression")
    assert (data.train.inputs[..., 1] == 0).all()
    assert (data.train.targets == 0).all()
    assert data.meaning.scaling.input_std[1] == data.meaning.scaling.target_std[0] == 1
    assert data.meaning.scaling.restore(data.train.targets).tolist() == [[0.7]] * 999


def test_mean_and_std_of_parts_are_those_of_the_whole():
    draw = np.random.default_rng(0)
    readings = draw.normal([3, -1e6, 1e-9], [1, 10, 1e-12], size=(1001, 3))
    readings[draw.random((1001, 3)) < 0.2] = np.nan
    readings[:400, 0] = np.nan  # a whole part without a reading of this column
    parts = np.split(readings, [1, 37, 300, 301, 900])
    mean, std = mean_and_std(parts)
    np.testing.assert_allclose(mean, np.nanmean(readings, axis=0), rtol=1e-13)
    np.testing.assert_allclose(std, np.nanstd(readings, axis=0), rtol=1e-9)
    assert [part.tolist() for part in mean_and_std([np.full((5, 2), np.nan)])] == [[0, 0], [0, 0]]


def test_mean_and_std_by_weight_are_those_of_repeated_readings():
    draw = np.random.default_rng(1)
    readings, times = draw.normal([3, -1e6], [1, 10], size=(60, 2)), draw.integers(1, 5, size=60)
    readings[draw.random((60, 2)) < 0.2] = np.nan
    repeated = readings.repeat(times, axis=0)
    for scale in (1.0, 0.01):
        parts, weights = np.split(readings, [7, 40]), np.split(times * scale, [7, 40])
        mean, std = mean_and_std(parts, iter(weights))
        np.testing.assert_allclose(mean, np.nanmean(repeated, axis=0), rtol=1e-13)
        np.testing.assert_allclose(std, np.nanstd(repeated, axis=0), rtol=1e-9)
    constant = mean_and_std([np.full((3, 1), 0.1)], iter([np.array([0.3, 0.7, 0.1])]))
    assert [part.tolist() for part in constant] == [[0.1], [0.0]]


def test_a_value_beyond_the_dtype_once_scaled_is_refused(file, tmp_path):
    rows = "".join(f"{n}e-30,{n}e-30\n" for n in range(20))
    other = tmp_path / "test.csv"
    for bad in ("1e38,0", "0,1e38"):
        other.write_text(f"t0,y\n{bad}\n")
        file.write_text("t0,y\n" + rows)
        config = DataConfig(data_path=str(file), test_path=str(other), task="regression")
        with pytest.raises(DataError, match=f"{other}: a value lies too many standard deviations"):
            load_dataset(config, "float32", 0)
        assert np.isfinite(load_dataset(config, "float64", 0).test.inputs).all()


def test_scaling_in_parts_is_scaling_at_once(monkeypatch):
    draw = np.random.default_rng(1)
    readings = draw.normal(size=(7, 5, 2))
    readings[3, 2:] = np.nan
    scaling = Scaling(np.array([0.5, -1]), np.array([2.0, 3]), np.zeros(1), np.ones(1))
    monkeypatch.setattr("data.scaling.PART", 25)
    expected = np.nan_to_num((readings - [0.5, -1]) / [2, 3], nan=0).astype(np.float32)
    np.testing.assert_array_equal(scaling.inputs(readings, "float32"), expected)


@pytest.mark.parametrize("horizon", [1, 3])
def test_windows_are_split_in_time_without_leakage(file, horizon):
    """The value is the row's number, so what the training part holds says what it has seen."""
    W, R = 5, 60
    content = "x\n" + "".join(f"{n}.5\n" for n in range(R))
    options = {"windows": W, "horizon": horizon, "test_fraction": 0.2, "valid_fraction": 0.2}
    data = load(file, content, **options)
    train, valid, test = rows_of(data)
    N = R - W - horizon + 1
    assert np.concatenate([train, valid, test]).tolist() == [*range(N)]

    scaling = data.meaning.scaling
    readings = data.train.inputs * scaling.input_std + scaling.input_mean
    answers = scaling.restore(data.train.targets)[:, 0]
    np.testing.assert_allclose(answers, np.arange(N) + W - 1 + horizon + 0.5, rtol=1e-12)
    seen = max(readings[train].max(), answers[train].max())
    assert seen < answers[valid].min() - 0.9
    assert max(readings[valid].max(), answers[valid].max()) < answers[test].min() - 0.9

    own = np.arange(train[-1] + W) + 0.5  # each reading counts once, though windows overlap
    np.testing.assert_allclose(scaling.input_mean, own.mean(), rtol=1e-14)
    np.testing.assert_allclose(scaling.input_std, own.std(), rtol=1e-14)
    np.testing.assert_allclose(scaling.target_mean, answers[train].mean(), rtol=1e-14)
    np.testing.assert_allclose(data.test_known.last[:, 0], test + W - 0.5, rtol=1e-14)

    jumped = [f"{n}.5" if n <= train[-1] + W - 1 + horizon else "1e6" for n in range(R)]
    other = load(file, "x\n" + "\n".join(jumped) + "\n", **options)
    np.testing.assert_array_equal(scaling_of(other), scaling_of(data))


def test_rows_agree_between_runs_that_know_the_meaning(file):
    """A continued run reads the file with the scaling it began with."""
    data = load(file, numbered(30))
    config = DataConfig(data_path=str(file))
    again = load_dataset(config, "float64", 0, data.meaning)
    assert again.meaning is data.meaning
    for one, other in zip(rows_of(data), rows_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)
    file.write_text(numbered(30).replace("29,", "1e9,"))
    changed = load_dataset(config, "float64", 0, data.meaning)
    np.testing.assert_array_equal(data.train.inputs[:29], changed.train.inputs[:29])


def test_batches_hold_the_rows_of_their_part(file):
    data = load(file, "t0,t1,y\n" + "".join(f"{n},{'' if n % 3 else n},{n}.5\n" for n in range(20)))
    batch = data.valid.batch(np.array([2, 0]))
    rows = data.valid.rows[[2, 0]]
    np.testing.assert_array_equal(batch.inputs, data.valid.inputs[rows])
    assert batch.lengths.tolist() == [1 if n % 3 else 2 for n in rows]
    np.testing.assert_allclose(data.meaning.scaling.restore(batch.targets)[:, 0], rows + 0.5)


def test_windows_of_a_given_test_file(file, tmp_path):
    other = tmp_path / "test.csv"
    other.write_text("x\n" + "".join(f"{n}.25\n" for n in range(9)))
    content = "x\n" + "".join(f"{n}.5\n" for n in range(40))
    data = load(file, content, windows=4, horizon=2, test_path=str(other))
    assert [len(rows) for rows in rows_of(data)] == [30, 5, 4]
    assert data.test_known.targets[:, 0].tolist() == [5.25, 6.25, 7.25, 8.25]
    scaling = data.meaning.scaling
    np.testing.assert_allclose(
        data.test.inputs[0, :, 0] * scaling.input_std + scaling.input_mean,
        [0.25, 1.25, 2.25, 3.25],
        rtol=1e-12,
    )
