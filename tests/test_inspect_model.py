"""inspect_model.py: the same numbers and the same page from either backend."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="make one-framework goes without the extra report")

from matplotlib.figure import Figure

import inspect_model as inspect_command
from experiment import checkpoint
from experiment.inspection import InspectConfig
from experiment.inspection import inspect as looked_at
from experiment.run_directory import BEST
from report.model_figures import attributed, gradient, principal_plane, shades
from spec.tensors import decode
from tests.conftest import FRAMEWORKS, ROOT, TINY, command, finish, installed, start

SAMPLES = ROOT / "data" / "samples"
VOWELS = SAMPLES / "japanese_vowels_train.csv"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def inspect(capsys, monkeypatch):
    """inspect(*argv) -> Finished."""
    return command(inspect_command.main, capsys, monkeypatch)


@pytest.fixture
def run(train, numbers, tmp_path, one_backend) -> Path:
    """A finished regression."""
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def arrays_in(directory: Path) -> dict[str, np.ndarray]:
    return decode((directory / "arrays.safetensors").read_bytes())[0]


def text_of(page: str) -> str:
    """Return a page without its figures and tags."""
    return re.sub(r"<[^>]*>", " ", re.sub(r"<(svg|style)\b.*?</\1>", " ", page, flags=re.DOTALL))


def test_either_backend_finds_the_same_and_shows_the_same_page(train, inspect, tmp_path):
    """On recorded speech: sequences of several lengths, attention."""
    for name in FRAMEWORKS:
        installed(name)
    argv = ("--data_path", VOWELS, "--model", "lstm_attention")
    argv += ("--hidden_size", 3, "--epochs", 1, "--dtype", "float64", "--out", tmp_path / "run")
    assert train(*argv).code == 0
    pages, found = {}, {}
    for name in FRAMEWORKS:
        out = tmp_path / name
        argv = ("--checkpoint", tmp_path / "run", "--data_path", VOWELS, "--rows", 2)
        finished = inspect(*argv, "--backend", name, "--out", out)
        assert (finished.code, finished.err) == (0, "")
        assert f"report: {out / 'report.html'}" in finished.out
        pages[name], found[name] = (out / "report.html").read_text(), arrays_in(out)
    assert set(found["torch"]) == set(found["jax"])
    assert {"lstm.l0.c", "d lstm.l0.f", "attention.weights"} <= set(found["torch"])
    assert len(set(found["torch"]["lengths"])) == 2
    for name, array in found["torch"].items():
        size = np.nanmax(np.abs(array)) or 1.0
        np.testing.assert_allclose(
            found["jax"][name], array, rtol=0, atol=1e-12 * size, err_msg=name
        )
    in_torch, in_jax = ({p.name for p in (tmp_path / name).iterdir()} for name in FRAMEWORKS)
    assert in_torch == in_jax
    assert {f"line{n}-{kind}.svg" for n in (2, 3) for kind in ("gates-l0", "gradient")} < in_torch
    assert headings(pages["torch"]) == headings(pages["jax"])
    assert pages["torch"].count("<svg ") == pages["jax"].count("<svg ") == 8


def headings(page: str) -> list[str]:
    return re.findall(r"<h[123].*?>(.*?)</h", page)


def test_the_page_holds_every_section_and_nothing_from_elsewhere(inspect, run, numbers, tmp_path):
    out = tmp_path / "out"
    argv = ("--checkpoint", run, "--data_path", numbers, "--rows", 2, "--out", out)
    assert inspect(*argv).code == 0
    page = (out / "report.html").read_text()
    found = headings(page)
    assert found[:2] == ["lstm, seen from inside", "Predictions"]
    for line in (2, 3):
        assert any(text.startswith(f"Line {line}: predicted ") for text in found)
    for section in ("Gradient through time", "Gates and states of layer 0"):
        assert found.count(section) == 2
    assert found[-2:] == ["Parameters", "How to repeat this"]
    labels = re.findall(r'aria-label="(.*?)"', page)
    assert labels[:2] == [
        "Line 2: the sequence and what the prediction rests on",
        "Line 2: gradient through time",
    ]
    assert len(set(labels)) == page.count("<svg ")
    text = text_of(page)
    assert (
        f"python inspect_model.py --checkpoint {run} --data_path {numbers} --rows 2 --out" in text
    )
    links = re.findall(r'(?:src|href)="(?!#|data:image/png;base64,)([^"]*)"|url\((?!#)', page)
    assert links == []
    assert "<script" not in page
    figures = [path for path in out.iterdir() if path.suffix in (".png", ".svg")]
    assert len(figures) == 2 * page.count("<svg ") == 16
    for path in figures:
        start = path.read_bytes()[:200]
        assert start.startswith(PNG if path.suffix == ".png" else b"<?xml"), path


def test_a_transformer_shows_its_heads(train, inspect, numbers, tmp_path, one_backend):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--model", "transformer")
    argv += ("--num_heads", 2, "--positions", "learned", "--max_length", 5)
    assert train(*argv, "--out", tmp_path / "run").code == 0
    out = tmp_path / "out"
    argv = ("--checkpoint", tmp_path / "run", "--rows", 1, "--out", out)
    finished = inspect(*argv, "--data_path", numbers)
    assert (finished.code, finished.err) == (0, "")
    found = headings((out / "report.html").read_text())
    assert {"Attention of layer 0", "Residual stream of layer 0"} <= set(found)
    weights = arrays_in(out)["transformer.l0.weights"]
    assert weights.shape == (1, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    longer = numbers.with_name("longer.csv")
    longer.write_text("t0,t1,t2,t3,t4,t5,y\n1,2,3,4,5,6,7\n")
    argv = ("--checkpoint", tmp_path / "run", "--rows", 1, "--out", tmp_path / "no")
    assert (
        "--max_length 5: there are sequences of 6 steps"
        in inspect(*argv, "--data_path", longer).error()
    )
    assert not (tmp_path / "no").exists()


def test_self_attention_shows_its_heads(train, inspect, numbers, tmp_path, one_backend):
    argv = (*TINY, "--data_path", numbers, "--backend", one_backend, "--model", "lstm_attention")
    assert train(*argv, "--self_attention", "--out", tmp_path / "run").code == 0
    out = tmp_path / "out"
    argv = ("--checkpoint", tmp_path / "run", "--rows", 1, "--out", out, "--data_path", numbers)
    assert inspect(*argv).code == 0
    page = (out / "report.html").read_text()
    assert headings(page).count("Attention of the last layer's outputs to each other") == 1
    assert "there a mix of all steps by self-attention" in text_of(page)
    drawn = (out / "line2-heads-self.svg").read_text()
    assert [f"head {n}" in drawn for n in range(5)] == [True] * 4 + [False]


def test_names_are_drawn_as_they_are(train, inspect, tmp_path, one_backend):
    """Between two $ matplotlib would read mathematics."""
    data, run, out = (tmp_path / name for name in ("data.csv", "run", "out"))
    rows = [f"{n},{n % 3},{n * n % 7},{n},{n % 5}.5" for n in range(12)]
    data.write_text("\n".join(["t0_p$_$,t0_cost_$^,t1_p$_$,t1_cost_$^,y$^$", *rows]))
    argv = (*TINY, "--data_path", data, "--backend", one_backend)
    assert train(*argv, "--out", run).code == 0
    finished = inspect("--checkpoint", run, "--data_path", data, "--rows", 1, "--out", out)
    assert (finished.code, finished.err) == (0, "")
    drawn = (out / "line2-sequence.svg").read_text()
    assert ">p$_$<" in drawn
    assert ">cost_$^<" in drawn
    assert "mathdefault" not in (out / "report.html").read_text()  # nor is matplotlib's own


def test_of_a_path_the_last_step_is_explained(train, tmp_path, one_backend):
    data, run = SAMPLES / "sunspots_monthly.csv", tmp_path / "run"
    argv = ("--data_path", data, "--backend", one_backend, "--model", "lstm_seq2seq")
    argv += ("--windows", 300, "--horizon", 3, "--forecast", "path", "--batch_size", 4096)
    assert train(*argv, "--hidden_size", 2, "--epochs", 1, "--out", run).code == 0
    given = {"checkpoint": str(run), "data_path": str(data), "rows": 1, "out": "unused"}
    last = looked_at(InspectConfig(**given))
    first = looked_at(InspectConfig(**given, explain="sunspots+1"))
    assert last.summary()[0]["explained"] == "sunspots+3"
    for found, steps, marker in ((last, 3, "None"), (first, 1, "o")):  # a lone point has no line
        lines = {line.get_label(): line for line in gradient(found, 0).axes[0].get_lines()}
        for name in ("decoder.h", "decoder.c"):
            assert np.isfinite(lines[name].get_ydata()).sum() == steps
            assert lines[name].get_marker() == marker


def test_attention_is_shaded_from_its_least_to_its_largest_weight():
    assert shades(np.array([0.26, 0.24, 0.25])) == (0.24, 0.26)
    low, high = shades(np.array([0.25, np.nextafter(0.25, 1), 0.25]))
    assert low == 0.25
    assert high > 0.254


def test_many_features_are_numbered_by_whole_numbers():
    drawn = Figure()
    panel = drawn.subplots()
    attributed(drawn, panel, np.ones((3, 20)), "saliency", ())
    low, high = sorted(panel.get_ylim())
    ticks = [tick for tick in panel.get_yticks() if low < tick < high]
    assert len(ticks) > 2
    assert all(tick == round(tick) for tick in ticks)


def test_the_plane_is_the_same_whatever_sign_an_axis_comes_with():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 3)) * [0.1, 5.0, 2.0] + [1.0, 2.0, 3.0]
    mean, axes, parts = principal_plane(states)
    np.testing.assert_allclose(mean, states.mean(axis=0))
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    assert np.abs(axes).argmax(axis=1).tolist() == [1, 2]
    assert axes[0, 1] > 0.9
    assert axes[1, 2] > 0.9
    spread = ((states - mean) @ axes.T).var(axis=0) / states.var(axis=0).sum()
    np.testing.assert_allclose(parts, spread, rtol=1e-12)


def test_the_page_shows_the_numbers_of_the_run(inspect, predict, run, numbers, tmp_path):
    out, predictions = tmp_path / "out", tmp_path / "predictions.csv"
    argv = ("--checkpoint", run, "--data_path", numbers)
    assert inspect(*argv, "--rows", 1, "--out", out).code == 0
    assert predict(*argv, "--out", predictions).code == 0
    line, prediction, truth = predictions.read_text().splitlines()[1].split(",")
    words = text_of((out / "report.html").read_text()).split()
    shown = f"predicted {float(prediction):.5g}, true {float(truth):.5g}"
    assert f"Line {line}: {shown}" in " ".join(words)
    for name, array in checkpoint.load(run / BEST).arrays.items():
        if not name.startswith("optimizer."):
            shape = " x ".join(map(str, array.shape))
            norm = np.linalg.norm(array.astype(float))
            rms = norm / np.sqrt(array.size)
            largest = np.abs(array).max()
            text = f"{name} {shape} {array.size} {norm:.4g} {rms:.4g} {largest:.4g}"
            assert text in " ".join(words)


def test_the_shares_add_up_and_a_class_can_be_chosen(train, labels, tmp_path, backend):
    argv = (*TINY, "--data_path", labels, "--backend", backend, "--out", tmp_path / "run")
    assert train(*argv).code == 0
    given = {"checkpoint": str(tmp_path / "run"), "data_path": str(labels), "rows": 4}
    predicted = looked_at(InspectConfig(**given, out="unused"))
    low = looked_at(InspectConfig(**given, out="unused", explain="low"))
    np.testing.assert_array_equal(
        predicted.explained, predicted.arrays["predictions"].argmax(axis=1)
    )
    np.testing.assert_array_equal(low.explained, [1, 1, 1, 1])
    for found in (predicted, low):
        attribution, outputs = found.attribution, found.arrays["predictions"]
        explained = outputs[np.arange(4), found.explained]
        np.testing.assert_allclose(attribution.prediction, explained, rtol=1e-5)
        apart = attribution.prediction - attribution.baseline
        total = found.arrays["integrated gradients"].sum(axis=(1, 2))
        np.testing.assert_allclose(total, apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--out", "made"), 2, "--checkpoint: is required"),
        (("--checkpoint", "run", "--out", "made"), 2, "--data_path: is required"),
        (("--checkpoint", "run", "--data_path", "numbers.csv"), 2, "--out: is required"),
        (("--rows", "0"), 2, "--rows"),
        (("--rows", "21"), 2, "numbers.csv has 20 sequences"),
        (("--rows", "1,2"), 2, "--rows"),
        (("--explain", "z"), 2, "--explain z: no such target; there are y"),
        (("--checkpoint", "nowhere"), 3, "nowhere: cannot be read"),
        (("--data_path", "nowhere.csv"), 2, "nowhere.csv: cannot be read"),
        (("--out", "run"), 2, "--out run: exists; name a new directory"),
        (("--out", "numbers.csv/new"), 5, "numbers.csv/new: cannot be made"),
        (("--frobnicate", "1"), 2, "--frobnicate: no such flag"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_said_in_one_line_and_writes_nothing(
    inspect, run, numbers, tmp_path, monkeypatch, argv, code, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if "is required" not in message:
        usual = {"--checkpoint": "run", "--data_path": "numbers.csv", "--out": "made"}
        argv = [x for pair in (usual | {argv[0]: argv[1]}).items() for x in pair]
    finished = inspect(*argv)
    assert finished.code == code
    assert message in finished.error()
    assert sorted(tmp_path.rglob("*")) == before


def test_help_imports_no_framework():
    code = (
        "import sys, inspect_model\n"
        "try: inspect_model.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'jax', 'matplotlib'} & set(sys.modules), 'imported'"
    )
    finished = finish(start("-c", code))
    assert (finished.code, finished.err) == (0, "")
    assert "--explain" in finished.out


def test_without_matplotlib_it_says_what_to_install(inspect, run, numbers, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    finished = inspect("--checkpoint", run, "--data_path", numbers, "--out", out)
    assert finished.code == 2
    assert "matplotlib is not installed; run: pip install" in finished.error()
    assert "[report]" in finished.error()
    assert not out.exists()


@pytest.mark.parametrize(
    ("loss", "first", "other", "index"),
    [
        ("quantile", "y_q50", "y_q90", 2),
        pytest.param("gaussian_nll", "y", "y_std", 1, marks=pytest.mark.long),
    ],
)
def test_an_output_of_a_distribution_is_explained(
    train, predict, inspect, numbers, tmp_path, one_backend, loss, first, other, index
):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = (*TINY, "--loss", loss, "--data_path", numbers, "--backend", one_backend)
    assert train(*argv, "--out", run).code == 0
    argv = ("--checkpoint", run, "--data_path", numbers, "--rows", 2)
    finished = inspect(*argv, "--out", tmp_path / "first")
    assert (finished.code, finished.err) == (0, "")
    assert predict("--checkpoint", run, "--data_path", numbers, "--out", out).code == 0
    line, said = out.read_text().splitlines()[1].split(","), finished.out.splitlines()
    answers = line[2:-1] if loss == "quantile" else line[1:-1]
    shown = " / ".join(f"{float(number):.5g}" for number in answers)
    assert said[2].startswith(f"line 2, steps 5, prediction {shown}, truth ")
    assert said[2].endswith(f"explained {first}")
    finished = inspect(*argv, "--explain", other, "--out", tmp_path / "other")
    assert (finished.code, finished.err) == (0, "")
    explained = arrays_in(tmp_path / "other")["explained"]
    np.testing.assert_array_equal(explained, [index] * 2)
    refused = inspect(*argv, "--explain", "y_q33", "--out", tmp_path / "none")
    assert "--explain y_q33: no such output" in refused.error()
