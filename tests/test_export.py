"""export.py: what is written was run before; what cannot be written is said in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import export as export_command
from experiment import atomic, checkpoint, exports
from experiment.pretrained import CARD, CONFIG, WEIGHTS, from_pretrained
from experiment.run_directory import BEST, LAST
from spec.errors import CheckpointError, ConfigError, DataError, OutputError
from tests.conftest import ROOT, TINY, command, finish, installed, start
from tests.test_predict import table

OWN = {"torch": ("torchscript", "torch_export", "safetensors"), "jax": ("stablehlo", "safetensors")}


@pytest.fixture
def export(capsys, monkeypatch):
    """export(*argv) -> Finished."""
    return command(export_command.main, capsys, monkeypatch)


def trained(train, data: Path, path: Path, backend: str, *options: object) -> Path:
    assert (
        train(*TINY, "--data_path", data, "--backend", backend, "--out", path, *options).code == 0
    )
    return path


@pytest.fixture
def run(train, numbers, tmp_path, one_backend) -> Path:
    """A finished regression."""
    return trained(train, numbers, tmp_path / "run", one_backend)


@pytest.fixture
def classifier(train, labels, tmp_path, one_backend) -> Path:
    """A finished classification."""
    return trained(train, labels, tmp_path / "run", one_backend)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("own", "format"), [(b, f) for b, all in OWN.items() for f in all])
def test_each_format_is_run_written_and_never_replaced(
    train, export, numbers, tmp_path, own, format
):
    run = trained(train, numbers, tmp_path / "run", installed(own))
    argv = ("--checkpoint", run, "--format", format, "--out", tmp_path / "model")
    finished = export(*argv)
    assert (finished.code, finished.err) == (0, "")
    check, *written = finished.out.splitlines()
    assert "1 x 1, 2 x 9, 5 x 11 (batch x time)" in check
    assert f"largest difference from {own} " in check
    assert written[-1] == f"{format}: {tmp_path / 'model'}"
    before = contents(tmp_path)
    again = export(*argv)
    assert again.code == 2
    assert "--out" in again.error()
    assert "exists" in again.error()
    assert contents(tmp_path) == before


def test_labels_stand_beside_what_has_no_room_for_them(train, export, labels, tmp_path):
    run = trained(train, labels, tmp_path / "run", installed("jax"))
    out = tmp_path / "model"
    assert export("--checkpoint", run, "--format", "stablehlo", "--out", out).code == 0
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["classes"] == ["high", "low"]
    assert record["layout"]["features"] == ["value"]
    out.unlink()
    refused = export("--checkpoint", run, "--format", "stablehlo", "--out", out)
    assert "model.json: exists" in refused.error()
    assert not out.exists()


def test_learned_positions_bound_the_check(train, export, numbers, tmp_path, one_backend):
    options = ("--model", "transformer", "--positions", "learned", "--max_length", "6")
    run = trained(train, numbers, tmp_path / "run", one_backend, *options)
    finished = export("--checkpoint", run, "--format", "safetensors", "--out", tmp_path / "model")
    assert (finished.code, finished.err) == (0, "")
    assert "1 x 1, 2 x 6, 5 x 6 (batch x time)" in finished.out


@pytest.mark.parametrize(
    ("argv", "says", "code"),
    [
        (["--format", "onnx", "--out", "m"], "--checkpoint: is required", 2),
        (["--checkpoint", "run", "--out", "m"], "--format: is required: one of onnx, torch", 2),
        (["--checkpoint", "run", "--format", "onnx"], "--out: is required", 2),
        (["--checkpoint", "run", "--format", "onxn", "--out", "m"], "rs (did you mean onnx?)", 2),
        (["--format", "onnx", "--out", "m"], "is required: a run directory or checkpoint", 2),
        (["--checkpoint", "run", "--format", "onnx", "--out", ""], "--out '': names no file", 2),
        (["--checkpoint", "run", "--format", "onnx", "--out", "m/"], "'m/': names no file", 2),
        (["--checkpoint", "run", "--format", "safetensors", "--out", ""], "names no file", 2),
        (["--checkpoint", "run", "--format", "safetensors", "--out", "full"], "exists", 2),
        (["--checkpoint", "run", "--format", "safetensors", "--out", "no/m"], "missing", 5),
        (["--checkpoint", "no", "--format", "safetensors", "--out", "m"], "no: cannot be read", 3),
        (["--checkpoint", "full", "--format", "safetensors", "--out", "m"], "full: holds no", 3),
    ],
)
def test_bad_input_is_told_in_a_line(export, run, tmp_path, monkeypatch, argv, says, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    finished = export(*argv)
    assert finished.code == code
    assert says in finished.error()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnx", "export"), ("stablehlo", "jax", "jax"), ("torchscript", "torch", "torch")],
)
def test_a_missing_package_is_named(export, run, tmp_path, monkeypatch, format, package, extra):
    stored = checkpoint.load(run / BEST)
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("onnx_impl", "torch_impl.export", "jax_impl.export"):
        for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as caught:
        exports.make(format, stored, "")
    assert f"--format {format}: {package} is not installed" in str(caught.value)
    assert f"'.[{extra}]'" in str(caught.value)


@pytest.mark.parametrize("wrong", ["differs", "differs where all are shorter", "NaN", "fails"])
def test_what_answers_wrongly_is_not_written(export, run, tmp_path, monkeypatch, wrong):
    make = exports.make
    frozen = RuntimeError("Sizes of tensors must match\nexcept in dimension 1")

    def made(format, stored, record):
        content, answer = make(format, stored, record)

        def off(inputs, lengths):
            if wrong == "fails":
                raise frozen
            if wrong == "differs where all are shorter" and lengths.max() == inputs.shape[1]:
                return answer(inputs, lengths)
            return answer(inputs, lengths) + (np.nan if wrong == "NaN" else 1e-3)

        return content, off

    monkeypatch.setattr(exports, "make", made)
    backend = checkpoint.load(run / BEST).config.backend
    before = contents(tmp_path)
    finished = export("--checkpoint", run, "--format", OWN[backend][0], "--out", tmp_path / "model")
    assert finished.code == 5
    assert "nothing was written" in finished.error()
    assert ("except in dimension 1" in finished.err) == (wrong == "fails")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_answers_as_predict(train, predict, export, labels, tmp_path, backend, dtype):
    run = trained(train, labels, tmp_path / "run", backend, "--dtype", dtype)
    out, folder = tmp_path / "out.csv", tmp_path / "model"
    folder.mkdir()  # an empty one is as good as none
    assert predict("--checkpoint", run, "--data_path", labels, "--out", out).code == 0
    assert export("--checkpoint", run, "--format", "safetensors", "--out", folder).code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CONFIG, CARD])
    model = from_pretrained(folder, backend)
    readings = [line.split(",")[:5] for line in labels.read_text().splitlines()[1:]]
    answers = model.answer(np.array(readings, float)[..., None])
    header, rows = table(out)
    assert header[2:4] == [f"probability_{label}" for label in model.meaning.classes]
    assert answers.tolist() == [[float(cell) for cell in row[2:4]] for row in rows]
    assert json.loads((folder / CONFIG).read_text())["dtype"] == model.dtype == dtype
    assert ("computing in bfloat16" in (folder / CARD).read_text()) == (dtype == "bfloat16")


def test_lengths_and_what_stands_past_them(export, run, tmp_path, one_backend):
    assert export("--checkpoint", run, "--format", "safetensors", "--out", tmp_path / "m").code == 0
    model = from_pretrained(tmp_path / "m", one_backend)
    inputs = np.random.default_rng(3).normal(size=(3, 4, 1))
    padded = np.concatenate([inputs, np.full((3, 3, 1), np.inf)], axis=1)
    np.testing.assert_allclose(model.answer(padded, [4, 4, 4]), model.answer(inputs), rtol=1e-6)
    missing, mean = inputs.copy(), model.meaning.scaling.input_mean
    missing[1, 2] = np.nan
    inputs[1, 2] = mean
    np.testing.assert_array_equal(model.answer(missing), model.answer(inputs))
    for bad, lengths, says in (
        (inputs[0], None, "expected [N, T, 1]"),
        (inputs[:0], None, "expected [N, T, 1]"),
        (inputs, [4, 4], "expected int [3]"),
        (inputs, [4.0, 4.0, 4.0], "expected int [3]"),
        (inputs, [4, 0, 4], "from 0 to 4, not 1 to 4"),
        (inputs, [4, 4, 5], "from 4 to 5, not 1 to 4"),
        (np.full((1, 1, 1), np.inf), None, "too many standard deviations"),
    ):
        with pytest.raises(DataError) as caught:
            model.answer(bad, lengths)
        assert says in str(caught.value)


def test_a_damaged_folder_is_refused(export, run, tmp_path, one_backend):
    folder = tmp_path / "model"
    assert export("--checkpoint", run, "--format", "safetensors", "--out", folder).code == 0
    whole, config = (folder / WEIGHTS).read_bytes(), json.loads((folder / CONFIG).read_text())
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    scaling = config["scaling"] | {"input_std": [0.0]}
    for weights, changed, says in (
        (bytes(damaged), {}, "model.safetensors is damaged"),
        (whole, {"format": 9}, "has format 9, this program reads 1"),
        (whole, {"scaling": scaling}, "a standard deviation is not above 0"),
        (whole, {"scaling": config["scaling"] | {"target_mean": [None]}}, "not finite"),
        (whole, {"layout": config["layout"] | {"features": ["a", "b"]}}, "scaling.input"),
        (whole, {"model": config["model"] | {"hidden_size": 5}}, "has shape"),
        (whole, {"model": config["model"] | {"hidden": 5}}, "hidden"),
        (whole, {"model": config["model"] | {"task": "classification"}}, "are not those of"),
    ):
        (folder / WEIGHTS).write_bytes(weights)
        (folder / CONFIG).write_text(json.dumps(config | changed))
        with pytest.raises(CheckpointError) as caught:
            from_pretrained(folder, one_backend)
        assert says in str(caught.value), changed
        assert str(folder) in str(caught.value)
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        from_pretrained(folder, one_backend)


def test_the_card_says_what_the_model_is(train, export, tmp_path, one_backend):
    rows = "".join(f"{n % 7},{n % 5},{('a`|b', 'x')[n % 2]}\n" for n in range(20))
    (tmp_path / "data.csv").write_text("t0,t1,label\n" + rows)
    run = trained(train, tmp_path / "data.csv", tmp_path / "run", one_backend)
    for name in (BEST, LAST):
        argv = ("--checkpoint", run / name, "--format", "safetensors", "--out", tmp_path / name)
        assert export(*argv).code == 0
    card = (tmp_path / BEST / CARD).read_text()
    assert card.startswith("---\nlibrary_name: seqduet\n")
    assert "# lstm, classification" in card
    assert "classes: `a'|b`, `x`" in card
    accuracy = json.loads((run / "summary.json").read_text())["test"]["accuracy"]
    assert f"| this model | {accuracy:.6g} |" in card
    assert all(digest in card for digest in checkpoint.load(run / BEST).sha256.values())
    assert "this model" not in (tmp_path / LAST / CARD).read_text()  # the best's were measured


def test_equal_models_give_equal_bytes(export, run, tmp_path):
    for name in "ab":
        argv = ("--checkpoint", run, "--format", "safetensors", "--out", tmp_path / name)
        assert export(*argv).code == 0
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o777 & ~atomic.umask()
    one, other = (sorted(contents(tmp_path / name).values()) for name in "ab")
    assert one == other


def test_a_directory_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    written = []

    def full(path, content):
        written.append(path.name)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(OutputError) as caught:
        atomic.write_directory(tmp_path / "model", {"a": b"", "b": b""})
    assert str(caught.value) == f"{tmp_path / 'model'}: cannot be written: No space left on device"
    assert written == ["a", "b"]
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_written_with_what_stands_beside_it_or_not_at_all(
    train, export, labels, tmp_path, monkeypatch
):
    run = trained(train, labels, tmp_path / "run", installed("jax"))
    argv = ("--checkpoint", run, "--format", "stablehlo", "--out", tmp_path / "model")
    before, replace = contents(tmp_path), atomic.replace

    def full(path, content):
        if path.name == "model":
            raise OSError(28, "No space left on device")
        replace(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace", full)
        finished = export(*argv)
    assert finished.code == 5
    assert f"{tmp_path / 'model'}: cannot be written: No space left" in finished.error()
    assert contents(tmp_path) == before
    assert export(*argv).code == 0  # nothing is in its way


def test_a_directory_that_fills_meanwhile_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic.write_directory(tmp_path / "model", {"a": b""})
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine"]


def test_what_a_killed_export_left_is_removed_with_the_rest(tmp_path):
    part = tmp_path / f".model.abc{atomic.MARK}"
    part.mkdir()
    (part / "a").write_text("a")
    atomic.remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_framework():
    code = (
        "import sys, runpy; sys.argv = ['export.py', '--help']\n"
        "try: runpy.run_path('export.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print({'torch', 'jax', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    finished = finish(start("-c", code, cwd=ROOT))
    assert "--format {onnx,torchscript,torch_export,stablehlo,safetensors}" in finished.out
    assert finished.out.endswith("set()\n")
