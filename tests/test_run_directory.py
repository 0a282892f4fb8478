"""A run's directory: one writer at a time, and always a whole checkpoint in it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from experiment import atomic, checkpoint
from experiment.checkpoint import Checkpoint
from experiment.run_directory import BEST, LAST, PREVIOUS, RunDirectory, checkpoint_at
from spec.errors import BusyError, CheckpointError, ConfigError, OutputError
from tests.conftest import finish, start
from tests.test_checkpoint import example


def at(epoch: int) -> Checkpoint:
    """Return a checkpoint of an epoch."""
    state = example()
    return replace(state, progress=replace(state.progress, epoch=epoch))


def epochs(path: Path) -> dict[str, int]:
    """Return the epoch of each checkpoint that a directory holds."""
    return {file.name: checkpoint.load(file).progress.epoch for file in path.glob("*.safetensors")}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_last_two_and_the_best_are_kept(tmp_path):
    directory = RunDirectory.create(tmp_path / "run", "")
    directory.save(at(0))
    assert epochs(directory.path) == {LAST: 0}
    directory.save(at(1), best=True)
    assert epochs(directory.path) == {LAST: 1, PREVIOUS: 0, BEST: 1}
    directory.save(at(2))
    directory.save(at(3), best=True)
    directory.save(at(4))
    assert epochs(directory.path) == {LAST: 4, PREVIOUS: 3, BEST: 3}
    assert set(os.listdir(directory.path)) == {LAST, PREVIOUS, BEST, ".lock"}


@pytest.mark.parametrize("name", [LAST, PREVIOUS, BEST, "metrics.jsonl", "config.yaml"])
def test_a_directory_that_holds_a_run_is_refused_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}.*--resume"):
        RunDirectory.create(tmp_path, "")
    assert (tmp_path / name).read_text() == "mine"


def test_without_a_path_the_next_free_number_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = [RunDirectory.create(None, "a") for _ in range(2)]  # at the same time
    (tmp_path / "runs" / "a-3").write_text("a file")
    taken.append(RunDirectory.create(None, "a"))
    assert [str(directory.path) for directory in taken] == ["runs/a-1", "runs/a-2", "runs/a-4"]


def test_the_directory_for_runs_is_made_and_no_other(tmp_path, monkeypatch):
    """As `--out runs/mine` in a fresh clone."""
    monkeypatch.chdir(tmp_path)
    RunDirectory.create(Path("runs/mine"), "")
    assert Path("runs/mine").is_dir()
    with pytest.raises(OutputError, match="--out elsewhere/mine: cannot be made"):
        RunDirectory.create(Path("elsewhere/mine"), "")


def test_what_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in ("file", "absent/run", "x" * 5000, "file/run"):
        with pytest.raises(OutputError):
            RunDirectory.create(tmp_path / path, "")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_second_writer_is_refused_and_a_released_lock_is_free(tmp_path):
    directory = RunDirectory.create(tmp_path, "")
    directory.save(at(0))
    with pytest.raises(BusyError) as caught:
        RunDirectory.reopen(tmp_path)
    assert caught.value.exit_code == 75
    directory.lock.release()
    RunDirectory.reopen(tmp_path)


def test_litter_of_killed_writers_is_removed_and_nothing_else(tmp_path):
    mine = ["a.tmp", ".tmpABC", "checkpoint.safetensors.tmp", ".hidden", "x.seqduet-part"]
    litter = [f".{LAST}.abc{atomic.MARK}", f".{PREVIOUS}{atomic.MARK}"]
    for name in (*mine, *litter):
        (tmp_path / name).write_text(name)
    RunDirectory.create(tmp_path, "")
    assert set(os.listdir(tmp_path)) == {*mine, ".lock"}


def test_metrics_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
    directory = RunDirectory.create(tmp_path, "")
    for epoch in (1, 2, 3):
        directory.add_metrics({"epoch": epoch})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"epoch": 2, "tr\xff')
    assert directory.begin_metrics(2) == [{"epoch": 1}, {"epoch": 2}]
    kept = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in kept.splitlines()] == [{"epoch": 1}, {"epoch": 2}]


def test_a_damaged_checkpoint_names_a_whole_one_that_continues(tmp_path):
    directory = RunDirectory.create(tmp_path, "")
    for epoch in (0, 1, 2):
        directory.save(at(epoch), best=epoch == 1)
    directory.lock.release()
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).unlink()  # the best, a link, is to stay
    (tmp_path / LAST).write_bytes(whole[:-1])
    directory = RunDirectory.reopen(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        directory.load()
    directory.lock.release()
    assert f"that of epoch 1 is whole: --resume {tmp_path / PREVIOUS}" in str(caught.value)

    directory = RunDirectory.reopen(tmp_path / PREVIOUS)
    assert directory.load().progress.epoch == 1
    directory.save(at(2))
    assert epochs(tmp_path) == {LAST: 2, PREVIOUS: 1, BEST: 1}  # not the damaged one
    directory.save(at(3))
    assert epochs(tmp_path) == {LAST: 3, PREVIOUS: 2, BEST: 1}


def test_with_no_whole_checkpoint_the_error_names_no_other(tmp_path):
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_text("damaged")
    with pytest.raises(CheckpointError) as caught:
        RunDirectory.reopen(tmp_path).load()
    assert "--resume" not in str(caught.value)


def test_only_a_run_is_reopened(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("x" * 5000)):
        with pytest.raises(CheckpointError, match="to continue from"):
            RunDirectory.reopen(path)
    copy = tmp_path / "copy.safetensors"
    checkpoint.save(copy, at(0))
    with pytest.raises(CheckpointError, match="--init"):
        RunDirectory.reopen(copy)
    assert os.listdir(tmp_path) == ["copy.safetensors"]


def test_a_directory_means_its_best_checkpoint(tmp_path):
    assert checkpoint_at(tmp_path / "a file") == tmp_path / "a file"
    with pytest.raises(CheckpointError, match="the directory of a run"):
        checkpoint_at(tmp_path)
    (tmp_path / LAST).touch()
    with pytest.raises(CheckpointError, match=f"no epoch is complete; give {tmp_path / LAST}"):
        checkpoint_at(tmp_path)
    (tmp_path / BEST).touch()
    assert checkpoint_at(tmp_path) == tmp_path / BEST


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod", "link"])
@pytest.mark.parametrize("best", [False, True])
def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch, call, best):
    directory = RunDirectory.create(tmp_path, "")
    for epoch in (0, 1):
        directory.save(at(epoch), best=True)
    before = contents(tmp_path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    if call == "link":  # a file system without links: the copy does
        directory.save(at(2), best)
        assert epochs(tmp_path) == {LAST: 2, PREVIOUS: 1, BEST: 2 if best else 1}
        return
    with pytest.raises(OutputError, match="No space left"):
        directory.save(at(2), best)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    directory.save(at(2), best)
    assert epochs(tmp_path) == {LAST: 2, PREVIOUS: 1, BEST: 2 if best else 1}


def test_a_file_system_that_turns_read_only_is_an_output_error(tmp_path, monkeypatch):
    directory = RunDirectory.create(tmp_path, "")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl"):
        directory.add_metrics({"epoch": 1})


def save_and_die(path: Path, best: bool, operation: int) -> bool:
    """In a child process, save epoch 2 over epoch 1 and die before a file operation.

    Returns:
      whether the child lived to the end, as there are fewer operations.
    """
    child = os.fork()
    if child == 0:
        left = operation

        def counted(function):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        for name in ("open", "link", "replace", "fsync", "fchmod", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        RunDirectory.reopen(path).save(at(2), best)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def kill_before_every_operation(root: Path) -> None:
    """Check what a killed save leaves; runs in a process without threads, which may fork."""
    for best in (False, True):
        for operation in range(100):
            path = root / f"{best}-{operation}"
            directory = RunDirectory.create(path, "")
            directory.save(at(0), best=True)
            directory.save(at(1), best=False)
            directory.lock.release()
            lived = save_and_die(path, best, operation)
            found = epochs(path)  # each is whole, or this raises
            assert found[LAST] in (1, 2), found
            assert found[PREVIOUS] in (0, 1), found
            assert found[BEST] in (0, 2), found
            if best and found[LAST] == 2:
                assert found[BEST] == 2, "the best epoch would be lost"
            directory = RunDirectory.reopen(path)
            directory.save(at(3))
            assert epochs(path)[PREVIOUS] == found[LAST]
            assert set(os.listdir(path)) == {LAST, PREVIOUS, BEST, ".lock"}
            directory.lock.release()
            if lived:
                break
        assert operation > 5
        assert lived
    print("every one")


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    code = (
        "import sys, pathlib; from tests.test_run_directory import kill_before_every_operation;"
        "kill_before_every_operation(pathlib.Path(sys.argv[1]))"
    )
    finished = finish(start("-c", code, tmp_path))
    assert finished.out == "every one\n", finished.err
