"""What train.py prints, writes and refuses."""

import json
import os
import pty
import sys
import time
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from experiment import checkpoint
from experiment.checkpoint import Checkpoint
from experiment.loop import Training
from experiment.run_directory import BEST, LAST, METRICS, RunDirectory
from spec.backend import StepResult, load_backend
from tests.conftest import FRAMEWORKS, ROOT, TINY, finish, installed, start

REGRESSION = ["mse", "rmse", "mae", "r2"]
CLASSIFICATION = ["accuracy", "macro_f1", "log_loss"]


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / METRICS).read_text().splitlines()]


def test_a_regression_leaves_a_run_and_a_table(train, numbers, tmp_path, backend):
    out = tmp_path / "run"
    finished = train(*TINY, "--data_path", numbers, "--backend", backend, "--out", out)
    assert (finished.code, finished.err) == (0, "")
    assert set(os.listdir(out)) == {
        *("config.yaml", "metrics.jsonl", "summary.json", ".lock"),
        *("checkpoint.safetensors", "previous.safetensors", "best.safetensors"),
    }
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["backend"], summary["model"], summary["task"]) == (
        backend,
        "lstm",
        "regression",
    )
    assert summary["parameters"] == 4 * 4 * (1 + 4 + 2) + 4 + 1
    assert summary["epochs"] == 3
    assert summary["seconds"] == pytest.approx(sum(e["seconds"] for e in entries(out)), abs=1e-3)
    assert list(summary["test"]) == REGRESSION
    assert list(summary["baselines"]) == ["mean", "ridge", "persistence"]
    assert {"seqduet", "python", "numpy", *FRAMEWORKS[backend]} <= set(summary["versions"])
    table = finished.out.splitlines()[-7:]
    assert table[0].split() == ["test", *REGRESSION]
    for line, values in zip(
        table[1:5], (summary["test"], *summary["baselines"].values()), strict=True
    ):
        printed = [float(word) for word in line.split()[-4:]]
        assert printed == pytest.approx(list(values.values()), rel=1e-5)
    assert f"weights: epoch {summary['best_epoch']} of 3, by validation loss" in finished.out
    assert finished.out.endswith(f"predict.py --checkpoint {out} --data_path FILE\n")


def test_a_projected_lstm_trains_without_torchs_warning(train, numbers, tmp_path, one_backend):
    finished = train(
        *(*TINY, "--data_path", numbers, "--backend", one_backend, "--out", tmp_path / "run"),
        *("--proj_size", 2),
    )
    assert (finished.code, finished.err) == (0, "")


def test_a_classification_reports_its_own_metrics(train, labels, tmp_path, one_backend):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", labels, "--backend", one_backend, "--out", out)
    finished = train(*argv)
    assert finished.code == 0, finished.err
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["test"]) == CLASSIFICATION
    assert list(summary["baselines"]) == ["majority", "logistic regression"]
    assert "accuracy" in finished.out
    assert all("valid_accuracy" in entry for entry in entries(out))
    assert checkpoint.load(out / LAST).meaning.classes == ("high", "low")


def test_without_flags_the_bundled_sample_is_trained_on(train, tmp_path, monkeypatch, one_backend):
    monkeypatch.chdir(tmp_path)
    finished = train("--epochs", 1, "--hidden_size", 4, "--backend", one_backend)
    assert finished.code == 0, finished.err
    run = Path("runs", f"japanese_vowels_train-lstm_attention-{one_backend}-1")
    assert f"run: {run}\n" in finished.out
    assert (run / BEST).is_file()


def test_config_yaml_repeats_the_run(train, numbers, tmp_path, backend):
    first, second = tmp_path / "first", tmp_path / "second"
    argv = ("--data_path", numbers, "--backend", backend, "--dropout", 0.2)
    assert train(*TINY, *argv, "--out", first).code == 0
    assert train("--config", first / "config.yaml", "--out", second).code == 0
    for name in (LAST, BEST, "config.yaml"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    other = tmp_path / "other"
    assert train("--config", first / "config.yaml", "--seed", 1, "--out", other).code == 0
    ours, theirs = (checkpoint.load(run / LAST).arrays for run in (first, other))
    assert all((array != theirs[name]).any() for name, array in ours.items())


def test_one_seed_gives_both_backends_the_same_start_batches_and_masks(
    train, labels, tmp_path, monkeypatch
):
    seen = {}
    for name in FRAMEWORKS:
        module, batches = load_backend(installed(name)), []
        train_step, save = module.train_step, Training.save

        def record(state, batch, batches=batches, train_step=train_step):
            arrays = (batch.inputs, batch.targets, batch.keep["layer0"], batch.keep["head"])
            batches.append([array.tobytes() for array in arrays])
            return train_step(state, batch)

        def keep_first(training, best=False, name=name, save=save):
            save(training, best)
            if training.progress.step == 0:
                seen[name, "start"] = files(training.directory.path)[LAST]

        monkeypatch.setattr(module, "train_step", record)
        monkeypatch.setattr(Training, "save", keep_first)
        argv = (*TINY, "--dropout", 0.3, "--num_layers", 2, "--data_path", labels)
        assert train(*argv, "--backend", name, "--out", tmp_path / name).code == 0
        monkeypatch.undo()
        seen[name, "batches"] = batches
    batches = seen["torch", "batches"]
    assert batches == seen["jax", "batches"]
    assert len(batches) == 6
    for kind in range(4):  # every epoch has an order of its own, every step its masks
        assert batches[0][kind] != batches[2][kind] != batches[4][kind]
    ours, theirs = (loaded(tmp_path / "c", seen[name, "start"]).arrays for name in FRAMEWORKS)
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


def loaded(path: Path, content: bytes) -> Checkpoint:
    path.write_bytes(content)
    return checkpoint.load(path)


def test_jax_is_the_same_to_the_bit_whatever_its_flags(train, numbers, tmp_path):
    installed("jax")
    import jax

    results = set()
    for flag in ("jax_enable_x64", "jax_threefry_partitionable"):
        before = getattr(jax.config, flag)
        try:
            for value in (False, True):
                jax.config.update(flag, value)
                out = tmp_path / f"{flag}-{value}"
                argv = (*TINY, "--dropout", 0.2, "--data_path", numbers, "--backend", "jax")
                assert train(*argv, "--out", out).code == 0
                results.add((out / LAST).read_bytes())
        finally:
            jax.config.update(flag, before)
    assert len(results) == 1


def test_init_begins_from_the_weights_of_another_run(train, numbers, tmp_path, one_backend):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "a").code == 0
    begun = train(*argv, "--lr", 1e-30, "--init", tmp_path / "a", "--out", tmp_path / "b")
    assert begun.code == 0, begun.err
    ours, theirs = (checkpoint.load(tmp_path / name).arrays for name in (f"a/{BEST}", f"b/{LAST}"))
    np.testing.assert_array_equal(ours["head.weight"], theirs["head.weight"])
    for wrong, reason in (
        (["--hidden_size", 5], "has shape"),
        (["--init", tmp_path / "absent"], "cannot be read"),
        (["--init", tmp_path], "holds no best.safetensors"),
    ):
        finished = train(*argv, "--init", tmp_path / "a", *wrong, "--out", tmp_path / "c")
        assert finished.code == 3
        assert "--init" in finished.error()
        assert reason in finished.error()
    assert not (tmp_path / "c").exists()


def test_a_refused_command_writes_nothing(train, numbers, tmp_path, one_backend):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    run = tmp_path / "run"
    assert train(*argv, "--out", run).code == 0
    before, names = files(run), set(os.listdir(tmp_path))
    for changed, code, reason in (
        (["--out", run], 2, "already holds a run"),
        (["--out", run, "--data_path", "absent"], 2, "already holds a run"),  # before data are read
        (["--out", ""], 2, "--out: is empty"),
        (["--out", numbers], 5, "cannot be made"),
        (["--out", tmp_path / "absent" / "run"], 5, "cannot be made"),
        (["--out", tmp_path / "new", "--target", "z"], 2, 'no column is named "z"'),
        (["--out", tmp_path / "new", "--data_path", tmp_path / "absent.csv"], 2, "cannot be read"),
        (["--out", tmp_path / "new", "--hidden_size", 10**6], 2, "choose a smaller model"),
        (["--out", tmp_path / "new", "--epochs", 10**12], 2, "at most 2**31 - 1"),
        (["--out", tmp_path / "new", "--warmup_steps", 99, "--schedule", "cosine"], 2, "--warmup"),
        (["--out", tmp_path / "new", "--device", "abacus"], 2, "--device"),
    ):
        finished = train(*argv, *changed)
        assert finished.code == code
        assert reason in finished.error()
        assert set(os.listdir(tmp_path)) == names
    assert files(run) == before


def test_a_second_process_is_told_to_wait(train, numbers, tmp_path, one_backend):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--out", tmp_path / "run")
    assert train(*argv).code == 0
    directory = RunDirectory.reopen(tmp_path / "run")
    before = files(tmp_path / "run")
    finished = train(*argv, "--resume")
    assert finished.code == 75
    assert "another process is writing this run" in finished.error()
    assert files(tmp_path / "run") == before
    directory.lock.release()
    assert train(*argv, "--resume").code == 0


def test_a_learning_rate_that_is_too_large_diverges(train, numbers, tmp_path, backend):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", backend)
    finished = train(*argv, "--lr", 1e30, "--out", out)
    assert finished.code == 4
    assert "error: step 2: loss inf" in finished.error()
    assert f"--resume {out}" in finished.error()
    assert checkpoint.load(out / LAST).progress.step == 0
    assert train("--resume", out, "--lr", 1e-3).code == 0


@pytest.mark.parametrize("what", ["gradient", "weights", "validation"])
def test_what_is_not_finite_is_never_saved_nor_best(
    train, numbers, tmp_path, monkeypatch, one_backend, what
):
    """The loss itself stays finite; the second epoch goes wrong elsewhere."""
    out, module, called = tmp_path / "run", load_backend(one_backend), count(1)
    name = {"gradient": "train_step", "weights": "export_arrays", "validation": "predict"}[what]
    original = getattr(module, name)

    def spoil(*arguments):
        result, call = original(*arguments), next(called)
        if what == "gradient" and call == 4:  # the second step of the second epoch
            return result[0], StepResult(result[1].loss, float("nan"))
        if what == "weights" and call == 3:  # after the first save and the first epoch
            return result | {"head.bias": np.array([np.nan], np.float32)}
        if what == "validation" and call == 2:
            return result._replace(outputs=np.full_like(result.outputs, np.nan))
        return result

    monkeypatch.setattr(module, name, spoil)
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    finished = train(*argv, "--out", out)
    assert finished.code == 4
    assert finished.error().startswith("error: step 4: ")
    for name in (LAST, BEST):
        assert checkpoint.load(out / name).progress.epoch == 1
    monkeypatch.undo()
    assert train("--resume", out).code == 0
    assert train(*argv, "--out", tmp_path / "straight").code == 0
    assert (out / LAST).read_bytes() == (tmp_path / "straight" / LAST).read_bytes()


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    train, numbers, tmp_path, monkeypatch, one_backend
):
    out, written, fsync = tmp_path / "run", count(1), os.fsync

    def fill(number):
        if next(written) >= 12:
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", fill)
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    finished = train(*argv, "--out", out)
    monkeypatch.undo()
    assert finished.code == 5
    assert "No space left on device" in finished.error()
    assert 0 < checkpoint.load(out / LAST).progress.epoch < 3
    assert not [name for name in os.listdir(out) if name.endswith("part")]
    assert train("--resume", out).code == 0
    assert train(*argv, "--out", tmp_path / "straight").code == 0
    assert (out / LAST).read_bytes() == (tmp_path / "straight" / LAST).read_bytes()


def test_a_directory_that_vanishes_is_an_output_error(
    train, numbers, tmp_path, monkeypatch, one_backend
):
    out, add_metrics = tmp_path / "run", RunDirectory.add_metrics

    def vanish(directory, entry):
        out.rename(tmp_path / "moved")
        add_metrics(directory, entry)

    monkeypatch.setattr(RunDirectory, "add_metrics", vanish)
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    finished = train(*argv, "--out", out)
    assert finished.code == 5
    assert f"{out / METRICS}: cannot be written" in finished.error()


class Terminal(TextIOWrapper):
    """A stderr that is a terminal; its reader may go away."""

    def __init__(self) -> None:
        super().__init__(BytesIO(), "utf-8", write_through=True)
        self.gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_gets_a_bar_and_a_pipe_quiet_lines(
    train, numbers, tmp_path, monkeypatch, one_backend
):
    argv = (*TINY, "--epochs", 40, "--data_path", numbers, "--backend", one_backend)
    piped = train(*argv, "--out", tmp_path / "piped")
    lines = [line for line in piped.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 11
    assert lines[0].startswith("epoch 1/40: train ")
    assert lines[-1].startswith("epoch 40/40: train ")
    assert piped.err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = train(*argv, "--out", tmp_path / "shown")
    assert "epoch 1/" not in shown.out
    bar = terminal.buffer.getvalue().decode().split("\r")[-1]
    assert "epoch 40/40: 100%" in bar
    assert "80/80" in bar
    assert "valid" in bar


def test_a_terminal_that_was_closed_does_not_end_the_run(
    train, numbers, tmp_path, monkeypatch, one_backend
):
    terminal, add_metrics = Terminal(), RunDirectory.add_metrics

    def hang_up(directory, entry):
        terminal.gone = True
        time.sleep(0.2)  # until the bar is due to be drawn again
        add_metrics(directory, entry)

    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(RunDirectory, "add_metrics", hang_up)
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    assert checkpoint.load(tmp_path / "run" / LAST).progress.epoch == 3
    terminal.gone = False  # for its destructor


def test_memory_does_not_grow_with_epochs(train, numbers, tmp_path, monkeypatch, backend):
    sizes, add_metrics = [], RunDirectory.add_metrics

    def measure(directory, entry):
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
        add_metrics(directory, entry)

    monkeypatch.setattr(RunDirectory, "add_metrics", measure)
    argv = (*TINY, "--epochs", 200, "--data_path", numbers, "--backend", backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    assert sizes[-1] < 1.05 * sizes[49]
    assert len(os.listdir(tmp_path / "run")) == 7


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", "<&- >&- 2>&-"])
def test_a_stdout_that_takes_nothing_disturbs_nothing(numbers, tmp_path, one_backend, redirect):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--out", out)
    finished = finish(start(ROOT / "train.py", *argv, redirect=redirect))
    assert (finished.code, finished.err) == (0, "")
    assert checkpoint.load(out / LAST).progress.epoch == 3
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize("flag", ["--help", "--print_config", "--version"])
def test_help_and_configuration_may_be_cut_short(flag):
    for redirect in (">&- 2>/dev/null", ">/dev/full"):
        finished = finish(start(ROOT / "train.py", flag, redirect=redirect))
        assert (finished.code, finished.err) == (0, ""), redirect
    reader, writer = os.pipe()
    process = start(ROOT / "train.py", flag, stdout=writer)
    os.close(reader)  # as head -1 does
    os.close(writer)
    finished = finish(process)
    assert (finished.code, finished.err) == (0, "")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_names_that_stdout_cannot_write_are_escaped(tmp_path, environment):
    finished = finish(start(ROOT / "train.py", "--data_path", "größe.csv", env=environment))
    assert finished.code == 2
    assert "cannot be read" in finished.error()
    shown = finish(
        start(ROOT / "train.py", "--data_path", "größe.csv", "--print_config", env=environment)
    )
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith('data_path: "gr\\')


def test_no_file_gets_the_number_of_a_closed_stdout():
    code = "import os; from experiment.command import run; run(lambda _: os.open('/', os.O_RDONLY))"
    assert finish(start("-c", code, redirect="<&- >&- 2>&-")).code > 2


@pytest.mark.parametrize("name", ["a b.csv", "größe.csv", "new\nline.csv", "-x.csv", "x\udcff.csv"])
def test_any_file_name_works(train, predict, numbers, tmp_path, monkeypatch, one_backend, name):
    monkeypatch.chdir(tmp_path)
    numbers.rename(name)
    argv = (*TINY, "--epochs", 1, "--data_path", name, "--backend", one_backend)
    finished = train(*argv)
    assert finished.code == 0, finished.err
    (run,) = Path("runs").iterdir()
    assert train("--resume", run, "--epochs", 2).code == 0
    assert train("--config", run / "config.yaml", "--out", f"{name}.run").code == 0
    predicted = predict("--checkpoint", run, "--data_path", name, "--out", f"{name}.out")
    assert predicted.code == 0, predicted.err


def test_on_a_real_terminal_the_bar_is_drawn(numbers, tmp_path, one_backend):
    leader, follower = pty.openpty()
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--out", tmp_path / "run")
    process = start(ROOT / "train.py", *argv, stderr=follower)
    os.close(follower)
    finished = finish(process)
    assert finished.code == 0
    shown = b""
    with suppress(OSError):  # the end of a terminal whose last writer left
        while True:
            shown += os.read(leader, 4096)
    os.close(leader)
    assert "epoch 3/3: 100%" in shown.decode()


@pytest.mark.parametrize(
    ("option", "steps"),
    [
        (["--batch_size", 1000], 1),
        (["--batch_size", 13], 2),  # the last batch has one row
        (["--batch_size", 1], 14),
        (["--valid_fraction", 0], 3),
        (["--test_fraction", 0.8], 1),
    ],
)
def test_awkward_sizes_work(train, numbers, tmp_path, one_backend, option, steps):
    out = tmp_path / "run"
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, *option)
    finished = train(*argv, "--out", out)
    assert finished.code == 0, finished.err
    assert checkpoint.load(out / LAST).progress.step == 3 * steps
    judge = "training" if "--valid_fraction" in option else "validation"
    assert finished.out.splitlines()[-2].endswith(f"by {judge} loss")


@pytest.mark.parametrize("text", ["5.5", "1e-30"])
def test_what_is_constant_trains_without_nan(train, tmp_path, backend, text):
    path, out = tmp_path / "constant.csv", tmp_path / "run"
    path.write_text("t0,t1,y\n" + f"1,2,{text}\n" * 20)
    argv = (*TINY, "--task", "regression", "--data_path", path, "--backend", backend)
    finished = train(*argv, "--out", out)
    assert finished.code == 0, finished.err
    assert "constant" in finished.out
    text = (out / "summary.json").read_text() + (out / METRICS).read_text()
    assert "nan" not in text.lower()


def test_the_number_of_threads_changes_no_more_than_rounding(train, numbers, tmp_path):
    installed("torch")
    import torch

    before, weights = torch.get_num_threads(), []
    argv = (*TINY, "--data_path", numbers, "--backend", "torch")
    try:
        for threads in (1, 2):
            out = tmp_path / f"{threads}"
            assert train(*argv, "--threads", threads, "--out", out).code == 0
            assert torch.get_num_threads() == threads
            weights.append(checkpoint.load(out / LAST).arrays)
    finally:
        torch.set_num_threads(before)
    for name, array in weights[0].items():
        np.testing.assert_allclose(array, weights[1][name], rtol=0, atol=1e-6, err_msg=name)
