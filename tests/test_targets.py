"""What the target is: decided and said, overridden, and kept literally."""

from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.dataset import Dataset, load_dataset
from data.sequences import read_sequences
from spec.errors import DataError


def load(path: Path, targets: list[object], **options) -> Dataset:
    """Read a file of two steps and these targets, in float64."""
    rows = "".join(f"{n}.25,{n * n % 7},{target}\n" for n, target in enumerate(targets))
    path.write_text("t0,t1,y\n" + rows, encoding="utf-8")
    return load_dataset(DataConfig(data_path=str(path), **options), "float64", 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


DECISIONS = {
    "text": (["up", "down"] * 6, "classification", "the target is text"),
    "absent words": (["NA", "None"] * 6, "classification", "the target is text"),
    "whole numbers, few": ([1, 2, 3] * 4, "classification", "whole numbers with 3 values in 12"),
    "20 values, each twice": (
        [*range(20)] * 2,
        "classification",
        "whole numbers with 20 values in 40 rows",
    ),
    "20 values, one once": ([*range(20), *range(19)], "regression", "20 values in 39 rows"),
    "21 values": ([*range(21)] * 9, "regression", "whole numbers with 21 values in 189 rows"),
    "negative": ([-1, 1] * 6, "classification", "whole numbers with 2 values"),
    "1.0 is whole": (["1.0", "2.0"] * 6, "classification", "whole numbers with 2 values"),
    "fractions": ([0.5, 1] * 6, "regression", "the target has fractions"),
    "exponents": (["1e-3", "2"] * 6, "regression", "the target has fractions"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_auto_says_what_it_decides_and_why(file, name):
    targets, task, reason = DECISIONS[name]
    data = load(file, targets)
    assert data.meaning.task == task
    (note,) = [note for note in data.notes if note.startswith("task: ")]
    other = {"classification": "regression", "regression": "classification"}[task]
    assert note.startswith(f"task: {task}, as ")
    assert reason in note
    assert note.endswith(f"(--task {other} overrides)")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_task_overrides_and_is_not_commented(file, task):
    data = load(file, [3, 10, 2] * 4, task=task)
    assert data.meaning.task == task
    assert data.meaning.classes == (("2", "3", "10") if task == "classification" else ())
    assert not [note for note in data.notes if note.startswith("task: ")]


def test_labels_that_no_training_row_has_are_named(file):
    found = load(file, [*"aabbabbabbbbbbbbcd"], split="time").notes
    assert "warning: no training row has the label 'c', 'd'" in found
    assert not [n for n in load(file, [*"ab"] * 9, split="time").notes if "training row has" in n]


LITERAL = {
    "absent words": ["NA", "None", "null", "nan"],
    "zeros": ["01", "1", "1.0", "+1"],
    "spaces": ["cat", "cat ", " cat", "Cat"],
    "scripts": ["é", "e\u0301", "中", "\u00a0x", "\u200b"],
    "formula": ["=1+1", "@x", "-x", "#x", "'x"],
    "beyond 2**53": ["9007199254740993", "9007199254740992"],
    "booleans": ["True", "true", "TRUE"],
    "naughty": ["undefined", "../../etc", "%s%d", "{0}", "\\n", "<b>", "1;DROP TABLE"],
}


@pytest.mark.parametrize("name", LITERAL)
def test_labels_stay_what_stands_in_the_file(file, name):
    labels = LITERAL[name]
    data = load(file, labels * 4, task="classification")
    assert set(data.meaning.classes) == set(labels)
    assert data.meaning.output_size == len(labels)
    restored = [data.meaning.classes[n] for n in data.train.targets]
    assert restored == labels * 4


def test_classes_are_in_order_of_number_or_of_text(file):
    assert load(file, [10, 9, -1] * 4).meaning.classes == ("-1", "9", "10")
    assert load(file, ["b", "a", "C"] * 4).meaning.classes == ("C", "a", "b")
    assert load(file, ["10", "9", "x"] * 4, task="classification").meaning.classes == (
        "10",
        "9",
        "x",
    )


ALIKE = {
    "spaces": ["cat", "cat "],
    "case": ["Cat", "cat"],
    "number": ["1", "01"],
    "two forms of é": ["\u00e9", "e\u0301"],
}


@pytest.mark.parametrize("name", ALIKE)
def test_labels_that_look_alike_are_kept_apart_with_a_warning(file, name):
    one, other = ALIKE[name]
    data = load(file, [one, other, "9"] * 4, task="classification")
    assert len(data.meaning.classes) == 3
    (warning,) = [note for note in data.notes if "differ in spelling only" in note]
    assert repr(one) in warning
    assert repr(other) in warning


def test_a_label_that_may_mean_missing_is_mentioned(file):
    notes = load(file, ["NA", "up", "down"] * 4).notes
    assert "warning: 'NA' is taken as a label" in notes
    assert not [note for note in load(file, ["up", "down"] * 6).notes if "warning" in note]


MIXED = {
    "text among numbers": (["1.5", "2", "oops", "3"], 4, "'oops' stands among numbers"),
    "number among text": (["a", "b", "c", "4"], 5, "'4' stands among text"),
    "absent among numbers": (["1.5", "NA", "2", "3"], 3, "'NA' is no value"),
    "infinite": (["1.5", "2", "3", "inf"], 5, "'inf' stands among numbers"),
}


@pytest.mark.parametrize("name", MIXED)
def test_auto_does_not_guess_a_mixed_target(file, name):
    targets, line, fault = MIXED[name]
    with pytest.raises(DataError) as error:
        load(file, targets)
    assert str(error.value).startswith(f'{file}: line {line}, column 3 "y": the target {fault}')
    assert "--task classification" in str(error.value)
    assert len(load(file, targets * 4, task="classification").meaning.classes) == 4
    with pytest.raises(DataError, match=r'line \d, column 3 "y": the target '):
        load(file, targets, task="regression")


def several(path: Path, header: str = "a,t0,b,t1,c") -> str:
    rows = "".join(f"{n}.5,{n},{-n * n},{n * 3 % 5},{n * 7 % 13}\n" for n in range(10))
    path.write_text(f"{header}\n{rows}")
    return str(path)


def test_several_targets_in_the_order_that_was_asked_for(file):
    path = several(file)
    data = load_dataset(DataConfig(data_path=path, target="c,a,b"), "float64", 0)
    assert data.meaning.layout.targets == ("c", "a", "b")
    assert data.meaning.layout.features == ("value",)
    assert data.meaning.output_size == 3
    assert "task: regression, as there are several targets" in " ".join(data.notes)
    n = data.test.rows
    expected = np.stack([n * 7 % 13, n + 0.5, -n * n], axis=1)
    np.testing.assert_array_equal(data.test_known.targets, expected)
    restored = data.meaning.scaling.restore(data.test.targets[n])
    np.testing.assert_allclose(restored, expected, atol=1e-12)


def test_target_is_the_last_column_or_the_named_one(file):
    path = several(file, "t0,t1,t2,t3,y")
    assert read_sequences(path, DataConfig()).targets[1] == ("7",)
    path = several(file, "y,t0,t1,t2,t3")
    sequences = read_sequences(path, DataConfig(target=" y "))
    assert sequences.targets[1] == ("1.5",)
    assert sequences.inputs[1, :, 0].tolist() == [1, -1, 3, 7]


FAULTY = {
    "unknown": ("z", "no column is named \"z\"; columns: a, t0, b, t1, c"),
    "nearly": ("A,tl", 'no column is named "A"'),
    "suggestion": ("a,bb", "(did you mean b?)"),
    "empty": ("a,", 'no column is named ""'),
    "twice": ("a,b,a", 'names "a" twice'),
    "all": ("a,t0,b,t1,c", "no column beside the target"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_target_option(file, name):
    target, fault = FAULTY[name]
    with pytest.raises(DataError) as error:
        read_sequences(several(file), DataConfig(target=target))
    assert fault in str(error.value)


def test_target_needs_a_header(file):
    file.write_text("1.5,2,3\n4,5,6\n")
    with pytest.raises(DataError, match="--target y names no column, as the file has no header"):
        read_sequences(str(file), DataConfig(target="y"))


def test_classification_takes_one_target(file):
    with pytest.raises(DataError, match="takes one target"):
        load_dataset(
            DataConfig(data_path=several(file), target="a,b,c", task="classification"), "float64", 0
        )


def test_regression_targets_are_standardised_on_the_training_rows(file):
    data = load(file, [f"{n * n}.5" for n in range(20)])
    known = np.arange(20)[:, None] ** 2 + 0.5
    train = known[data.train.rows]
    scaling = data.meaning.scaling
    np.testing.assert_allclose(scaling.target_mean, train.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(scaling.target_std, train.std(axis=0), rtol=1e-14)
    scaled = data.train.targets[data.train.rows]
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-14)
    np.testing.assert_array_equal(data.test_known.targets, known[data.test.rows])
