"""predict.py: a row for each sequence, in its order, whichever backend trained."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from experiment import atomic, checkpoint
from experiment.predictions import harmless
from experiment.run_directory import BEST, LAST
from tests.conftest import FRAMEWORKS, TINY, Finished, installed, series

ATTENTION = ("--model", "lstm_attention", "--hidden_size", 3, "--epochs", 2, "--batch_size", 8)


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def metrics_in(finished: Finished) -> dict[str, float]:
    """Read the metrics off the last lines."""
    words = [line.split() for line in finished.out.splitlines() if line.startswith(" ")]
    return {name: float(value) for name, value in words}


@pytest.fixture
def run(train, numbers, tmp_path, one_backend) -> Path:
    """A finished regression."""
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


@pytest.fixture
def classifier(train, labels, tmp_path, one_backend) -> Path:
    """A finished classification."""
    argv = (*TINY, "--data_path", labels, "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_a_row_for_each_sequence_in_order(predict, run, numbers, tmp_path):
    lines = numbers.read_text().splitlines()
    shuffled = [lines[0], "", *lines[11:], "", "", *lines[1:11]]  # blank lines are skipped
    (tmp_path / "other.csv").write_text("\n".join(shuffled) + "\n")
    for name in ("numbers", "other"):
        out = tmp_path / f"{name}.out"
        path = tmp_path / f"{name}.csv"
        finished = predict("--checkpoint", run, "--data_path", path, "--out", out)
        assert (finished.code, finished.err) == (0, "")
        assert f"20 rows: {out}" in finished.out
    header, straight = table(tmp_path / "numbers.out")
    assert header == ["line", "prediction", "y"]
    assert [row[0] for row in straight] == [str(n) for n in range(2, 22)]
    _, other = table(tmp_path / "other.out")
    assert [int(row[0]) for row in other] == [*range(3, 13), *range(15, 25)]
    assert [row[2] for row in other] == [line.rpartition(",")[2] for line in shuffled if line][1:]
    np.testing.assert_allclose(
        [float(row[1]) for row in other[10:] + other[:10]],
        [float(row[1]) for row in straight],
        rtol=1e-6,
    )


def test_columns_in_another_order_are_refused(train, predict, tmp_path, one_backend):
    """Names that follow no convention have one meaning: that of the training file."""
    rows = "".join(f"{n},{n + 1},{n % 3},{'up' if n % 2 else 'down'}\n" for n in range(20))
    (tmp_path / "train.csv").write_text("speed,angle,force,label\n" + rows)
    (tmp_path / "new.csv").write_text("angle,speed,force,label\n" + rows)
    argv = (*TINY, "--data_path", tmp_path / "train.csv", "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    out = tmp_path / "out.csv"
    finished = predict(
        "--checkpoint", tmp_path / "run", "--data_path", tmp_path / "new.csv", "--out", out
    )
    assert finished.code == 2
    assert 'column 1 "angle": the training data has "speed" there' in finished.error()
    assert not out.exists()


def test_metrics_are_those_of_the_written_rows(predict, run, numbers, tmp_path):
    out = tmp_path / "out.csv"
    finished = predict("--checkpoint", run, "--data_path", numbers, "--out", out)
    found = metrics_in(finished)
    rows = np.array([[float(cell) for cell in row[1:]] for row in table(out)[1]])
    assert found["mae"] == pytest.approx(np.abs(rows[:, 0] - rows[:, 1]).mean(), rel=1e-5)
    assert list(found) == ["mse", "rmse", "mae", "r2"]
    bare = "\n".join(line.rpartition(",")[0] for line in numbers.read_text().splitlines())
    (tmp_path / "bare.csv").write_text(bare + "\n")
    again = tmp_path / "again.csv"
    finished = predict("--checkpoint", run, "--data_path", tmp_path / "bare.csv", "--out", again)
    assert finished.code == 0, finished.err
    assert metrics_in(finished) == {}
    assert table(again) == (["line", "prediction"], [row[:2] for row in table(out)[1]])


def test_the_test_metrics_are_those_of_the_summary(train, predict, numbers, tmp_path, backend):
    test = tmp_path / "test.csv"
    test.write_text(series(31, lambda last: last))
    argv = (*TINY, "--data_path", numbers, "--test_path", test, "--backend", backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    found = predict("--checkpoint", tmp_path / "run", "--data_path", test, "--out", tmp_path / "o")
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    assert metrics_in(found) == pytest.approx(expected, rel=1e-5)


def test_classes_come_with_their_probabilities(predict, classifier, labels, tmp_path):
    out = tmp_path / "out.csv"
    finished = predict("--checkpoint", classifier, "--data_path", labels, "--out", out)
    assert list(metrics_in(finished)) == ["accuracy", "macro_f1", "log_loss"]
    header, rows = table(out)
    assert header == ["line", "prediction", "probability_high", "probability_low", "y"]
    for _, predicted, high, low, _ in rows:
        assert float(high) + float(low) == pytest.approx(1, abs=1e-12)
        assert predicted == ("high" if float(high) > float(low) else "low")


@pytest.mark.parametrize("trained", FRAMEWORKS)
def test_either_backend_predicts_what_the_other_trained(train, predict, labels, tmp_path, trained):
    answers = []
    argv = (*ATTENTION, "--dtype", "float64", "--data_path", labels)
    for name in FRAMEWORKS:
        installed(name)
    assert train(*argv, "--backend", trained, "--out", tmp_path / "run").code == 0
    for name in (None, *FRAMEWORKS):
        out, weights = tmp_path / f"{name}.csv", tmp_path / f"{name}-attention.csv"
        argv = ("--checkpoint", tmp_path / "run", "--data_path", labels)
        argv += () if name is None else ("--backend", name)
        assert predict(*argv, "--out", out, "--attention", weights).code == 0
        chances = [row[2:4] for row in table(out)[1]]
        answers.append(np.array(chances + [row[1:3] for row in table(weights)[1]], float))
    np.testing.assert_array_equal(answers[0], answers[1 + list(FRAMEWORKS).index(trained)])
    np.testing.assert_allclose(answers[1], answers[2], rtol=1e-12)


def test_alone_or_in_a_batch_a_row_is_the_same(train, predict, numbers, tmp_path, backend):
    argv = (*ATTENTION, "--data_path", numbers, "--backend", backend, "--out", tmp_path / "run")
    assert train(*argv).code == 0
    many, one = tmp_path / "many.csv", tmp_path / "one.csv"
    many.write_text(series(600, lambda last: last))  # batches of 256, 256 and 88
    argv = ("--checkpoint", tmp_path / "run")
    assert predict(*argv, "--data_path", many, "--out", tmp_path / "many.out").code == 0
    _, together = table(tmp_path / "many.out")
    header, *rows = many.read_text().splitlines()
    for n in (0, 255, 256, 599):
        one.write_text(f"{header}\n{rows[n]}\n")
        out = tmp_path / f"{n}.out"
        assert predict(*argv, "--data_path", one, "--out", out).code == 0
        alone = float(table(out)[1][0][1])
        assert alone == pytest.approx(float(together[n][1]), abs=1e-6)


def test_attention_is_spread_over_the_real_steps(
    train, predict, tmp_path, one_backend, monkeypatch
):
    path = tmp_path / "ragged.csv"
    rows = series(30, lambda last: last).splitlines()
    rows[3] = "0.5,-0.5,,,,1"  # a sequence of two steps
    path.write_text("\n".join(rows) + "\n")
    argv = (*ATTENTION, "--data_path", path, "--backend", one_backend, "--out", tmp_path / "run")
    assert train(*argv).code == 0
    weights = tmp_path / "attention.csv"
    argv = ("--checkpoint", tmp_path / "run", "--data_path", path)
    finished = predict(*argv, "--out", tmp_path / "out.csv", "--attention", weights)
    assert finished.code == 0, finished.err
    header, found = table(weights)
    assert header == ["line", "t0", "t1", "t2", "t3", "t4"]
    assert [row[0] for row in found] == [str(n) for n in range(2, 32)]
    assert found[2][3:] == ["", "", ""]
    for row in found:
        assert sum(float(cell) for cell in row[1:] if cell) == pytest.approx(1, abs=1e-6)

    def full(target, content, replace=atomic.replace):
        if target.name == "second.csv":
            raise OSError(28, "No space left on device")
        replace(target, content)

    monkeypatch.setattr(atomic, "replace", full)
    finished = predict(*argv, "--out", tmp_path / "a.csv", "--attention", tmp_path / "second.csv")
    assert finished.code == 5
    assert not (tmp_path / "a.csv").exists()  # both or none


def test_attention_of_a_model_without_is_refused(predict, run, numbers, tmp_path):
    argv = ("--checkpoint", run, "--data_path", numbers, "--out", tmp_path / "o")
    finished = predict(*argv, "--attention", tmp_path / "a")
    assert finished.code == 2
    assert "the model lstm has no attention" in finished.error()
    assert not (tmp_path / "o").exists()


def test_windows_are_predicted_into_the_future(train, predict, tmp_path, one_backend):
    path = tmp_path / "series.csv"
    path.write_text("x,y\n" + "".join(f"{n % 5},{n}\n" for n in range(40)))
    argv = ("--windows", 4, "--horizon", 2, "--target", "y", "--data_path", path)
    argv += ("--backend", one_backend, "--out", tmp_path / "run")
    assert train(*TINY, *argv).code == 0
    out = tmp_path / "out.csv"
    finished = predict("--checkpoint", tmp_path / "run", "--data_path", path, "--out", out)
    assert finished.code == 0, finished.err
    assert "mae" in metrics_in(finished)
    header, rows = table(out)
    assert header == ["line", "prediction", "y"]
    assert len(rows) == 40 - 4 + 1
    assert [row[0] for row in rows] == [str(line) for line in range(5, 42)]  # where windows end
    # A window that ends on line n forecasts line n + 2, whose y is n.
    assert [float(row[2]) for row in rows[:-2]] == list(range(5, 40))
    assert [row[2] for row in rows[-2:]] == ["", ""]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace(",y", ",z"), '"z"'),
        (lambda text: text.replace("t0,t1", "t1,t0"), "line 1"),
        (lambda text: text.replace("t0,t1,t2,t3,t4", "t0_a,t1_a,t2_a,t3_a,t4_a"), "features"),
        (lambda text: text.replace("t0,t1,t2,t3,t4", "t0_a,t0_b,t1_a,t1_b,t2_a"), "line 1"),
        (lambda text: text.replace("high", "higher"), "'higher' does not occur"),
        (lambda text: text.split("\n")[0] + "\n", "no rows"),
        (lambda text: "", "empty"),
    ],
    ids=["another column", "order", "name", "names", "unseen class", "no rows", "empty"],
)
def test_data_of_another_form_are_refused(predict, classifier, labels, tmp_path, change, reason):
    labels.write_text(change(labels.read_text()))
    out = tmp_path / "out.csv"
    finished = predict("--checkpoint", classifier, "--data_path", labels, "--out", out)
    assert finished.code == 2
    assert str(labels) in finished.error()
    assert reason in finished.error()
    assert not out.exists()


def test_nothing_is_overwritten(predict, run, numbers, tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    argv = ("--checkpoint", run, "--data_path", numbers)
    for flag in ("--out", "--attention"):
        finished = predict(*argv, "--out", tmp_path / "free.csv", flag, taken)
        assert finished.code == 2
        assert f"{flag} {taken}: exists" in finished.error()
    (tmp_path / "link.csv").symlink_to("nowhere")
    assert predict(*argv, "--out", tmp_path / "link.csv").code == 2
    absent = predict(*argv, "--out", tmp_path / "absent" / "out.csv")
    assert absent.code == 5
    assert "its directory is missing" in absent.error()
    assert taken.read_text() == "mine"
    assert not (tmp_path / "free.csv").exists()


def test_a_checkpoint_that_is_not_usable_is_named(predict, run, numbers, tmp_path):
    argv = ("--data_path", numbers, "--out", tmp_path / "out.csv")
    for path in (tmp_path / "absent", numbers, tmp_path):
        finished = predict("--checkpoint", path, *argv)
        assert finished.code == 3
        assert str(path) in finished.error()
    (run / BEST).unlink()
    finished = predict("--checkpoint", run, *argv)
    assert finished.code == 3
    assert f"give {run / LAST}" in finished.error()
    assert predict("--checkpoint", run / LAST, *argv).code == 0


def test_labels_that_a_spreadsheet_would_run_get_an_apostrophe(
    train, predict, tmp_path, one_backend
):
    path, out = tmp_path / "labels.csv", tmp_path / "out.csv"
    path.write_text(series(24, lambda last: '"=1+1"' if last > 0 else "@x"))
    argv = (*TINY, "--data_path", path, "--backend", one_backend, "--out", tmp_path / "run")
    assert train(*argv).code == 0
    assert checkpoint.load(tmp_path / "run" / LAST).meaning.classes == ("=1+1", "@x")
    assert predict("--checkpoint", tmp_path / "run", "--data_path", path, "--out", out).code == 0
    header, rows = table(out)
    assert header[2:4] == ["probability_=1+1", "probability_@x"]
    assert {cell for row in rows for cell in (row[1], row[4])} <= {"'=1+1", "'@x"}


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd()", "'=cmd()"),
        ("+1+1", "'+1+1"),
        ("-x", "'-x"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("-1.5", "-1.5"),
        ("+1e-5", "+1e-5"),
        ("a=b", "a=b"),
        ("", ""),
        (-3, -3),
    ],
)
def test_numbers_stay_numbers(cell, written):
    assert harmless(cell) == written


def test_a_signal_lets_a_file_that_is_being_written_be_finished(
    predict, run, numbers, tmp_path, monkeypatch
):
    fsync = os.fsync

    def interrupted(number):
        monkeypatch.setattr(os, "fsync", fsync)
        signal.raise_signal(signal.SIGTERM)
        fsync(number)

    monkeypatch.setattr(os, "fsync", interrupted)
    out, before = tmp_path / "out.csv", set(os.listdir(tmp_path))
    finished = predict("--checkpoint", run, "--data_path", numbers, "--out", out)
    assert finished.code == 143
    assert len(table(out)[1]) == 20
    assert set(os.listdir(tmp_path)) == before | {out.name}


def test_a_disk_that_is_full_leaves_no_part(predict, run, numbers, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = set(os.listdir(tmp_path))
    finished = predict("--checkpoint", run, "--data_path", numbers, "--out", tmp_path / "out.csv")
    assert finished.code == 5
    assert "No space left on device" in finished.error()
    assert set(os.listdir(tmp_path)) == before
