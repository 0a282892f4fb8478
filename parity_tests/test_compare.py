"""compare.py: what it writes, what it refuses, and that every injected fault is found where it is."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import compare
from data.dataset import load_dataset
from experiment import study
from experiment.checkpoint import model_config
from parity.drift import drift
from parity.family import judge_forward, judge_gradients, packed
from parity.inject import INJECTIONS, injected
from report.parity_page import page
from spec.batch import Batch
from spec.config import Execution, ModelConfig
from spec.errors import ConfigError
from spec.params import init_params, parameter_schema

ROOT = Path(__file__).parent.parent
ROWS = 22
SMALL = ["--hidden_size", "3", "--batch_size", "10", "--epochs", "2", "--threads", "1"]
SMALL += ["--valid_fraction", "0"]


def write_rows(path, task):
    """Write sequences of 2 to 4 steps; what to predict can be learnt from them."""
    draw = np.random.default_rng(0)
    lines = [",".join(f"t{t}_{f}" for t in range(4) for f in "ab") + ",y"]
    for row in range(ROWS):
        cells = [f"{x:.3f}" for x in draw.normal(size=8)]
        cells[2 * (2 + row % 3) :] = [""] * (8 - 2 * (2 + row % 3))
        target = f"{float(cells[0]):.1f}5" if task == "regression" else "ab"[row % 2]
        lines.append(",".join([*cells, target]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {t: write_rows(folder / f"{t}.csv", t) for t in ("regression", "classification")}


def command(*words):
    """Run compare.py as a user does."""
    given = [sys.executable, ROOT / "compare.py", *words]
    return subprocess.run(given, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    """Compare once, by the command, without a fault."""
    out = tmp_path_factory.mktemp("studies") / "new" / "study"
    done = command("--data-path", files["classification"], *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return (
        done.stdout,
        json.loads((out / "parity.json").read_text()),
        (out / "report.html").read_text(),
    )


def test_without_a_fault_nothing_is_found(report):
    text, found, _ = report
    assert found["verdict"] == "same"
    assert found["drift"]["verdict"] == "same"
    assert "verdict: same" in text
    for dtype in ("float32", "float64"):
        section = found[dtype]
        assert section["verdict"] == "same"
        assert set(section["forward"]) == {"predictions", "attention", "outputs", "h", "c", "loss"}
        assert {"inputs", "head.weight", "attention.v_a"} <= set(section["gradients"])
        rows = section["training"]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert set(rows[0]) == {"step", "loss_torch", "loss_jax", "params_rel"}
        rounding = 64 * np.finfo(dtype).eps
        assert all(0 < row["params_rel"] < rounding for row in rows)
        for entry in (*section["forward"].values(), *section["gradients"].values()):
            assert entry["verdict"] == "both within rounding"
            assert 0 <= entry["rel"] < 1
        speeds = found["speed"][dtype]
        for side in ("torch", "jax"):
            assert 0 < speeds[side]["step_seconds"] < speeds["jax"]["first_step_seconds"] * 10
            assert speeds[side]["peak_mib"] > 50
    facts = found["environment"]
    assert facts["seed"] == 0
    assert facts["inject"] is None
    assert facts["command"].startswith("python compare.py --data-path")
    assert set(facts["versions"]) >= {"torch", "jax", "numpy", "python"}


def test_report_needs_nothing_else(report):
    _, found, html = report
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", html)
    assert "@import" not in html
    assert html.count("<svg") == 3
    assert "@media print" in html
    assert "Equal" in html
    for name in found["float64"]["gradients"]:
        assert f"<code>{name}</code>" in html
    targets = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", html))
    assert targets <= set(re.findall(r'id="([^"]+)"', html))


# Step and array of each fault; 2 is the short last batch's.
FOUND = {
    "adamw_decay_default": (1, r"^(?!optimizer|loss)"),
    "clip_eps": (1, r"^optimizer\."),
    "padding_in_mean": (2, r""),
    "adam_eps_inside": (1, r"^(?!optimizer|loss)"),
    "two_biases_as_one": (1, r"bias_hh_l0$"),
    "l2_loss_half": (1, r""),
    "mask_sense": (1, r""),
    "gru_reset_before": (1, r""),
    "dropout_unscaled": (1, r""),
    "momentum_dampening": (1, r"^(?!loss|optimizer\.v)"),
    "float32_inside": (1, r""),
    "layernorm_eps": (1, r""),
    "gelu_tanh": (1, r""),
    "rmsprop_eps_inside": (1, r"^(?!loss|optimizer\.v)"),
}


def test_page_shows_long_runs_and_bugs(report):
    """Of many steps a mean is drawn; the bug's step is marked; what is not finite is said."""
    found = json.loads(json.dumps(report[1]))
    steps = np.arange(1, 301)
    for dtype in ("float32", "float64"):
        loss = {"loss_torch": 1.0, "loss_jax": 1.0, "params_rel": 0.0}
        found[dtype]["training"] = [{"step": int(step), **loss} for step in steps]
    found["float64"]["forward"]["h"] |= {"rel": None, "verdict": "NaN or inf on one side"}
    found["drift"]["step"] = 217
    curves = {
        dtype: {"apart": 1e-9 * steps, "explained": np.full(300, 1e-8), "ulps": {}}
        for dtype in ("float32", "float64")
    }
    html = page(found, curves)
    assert "mean of 3 steps" in html
    assert "step 217" in html
    assert "not finite" in html
    assert html.count("<svg") == 2  # without states no heat map


def test_every_fault_has_a_test():
    assert {*FOUND, "layernorm_fast_variance"} == set(INJECTIONS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fault_of_rounding_is_found_in_the_forward_pass(dtype, files):
    """The fast variance is the same function, only far less exact: no step parts, one side is off."""
    name = "layernorm_fast_variance"
    options = {"hidden_size": 4, "threads": 1, **INJECTIONS[name].options}
    config = study.StudyConfig(data_path=files["classification"], **options)
    dataset = load_dataset(config, "float64", 0)
    model = model_config(config, dataset.meaning)
    start = init_params(parameter_schema(model), 0)
    given = model, start, next(study.batches(config, dataset)), Execution(dtype=dtype)
    assert judge_forward(*given).verdict == "both within rounding"
    with injected(name, config.batch_size):
        assert judge_forward(*given).verdict == "JAX is off"


def test_decoder_is_compared_as_it_is_taught(tmp_path):
    """Values, attention and gradients on a batch whose true values some steps are told."""
    draw, path = np.random.default_rng(3), tmp_path / "series.csv"
    path.write_text("a,b\n" + "".join(f"{x:.3f},{y:.3f}\n" for x, y in draw.normal(size=(30, 2))))
    config = study.StudyConfig(
        data_path=str(path),
        **{"windows": 4, "horizon": 3, "forecast": "path", "target": "b,a", "threads": 1},
        **{"model": "gru_seq2seq", "hidden_size": 3, "num_layers": 2, "dropout": 0.3},
    )
    dataset = load_dataset(config, "float64", 0)
    model = model_config(config, dataset.meaning)
    start, batch = init_params(parameter_schema(model), 0), next(study.batches(config, dataset))
    assert 0 < batch.keep["teacher"].mean() < 1
    for judge in (judge_forward, judge_gradients):
        report = judge(model, start, batch, Execution(dtype="float64"))
        assert report.verdict == "both within rounding"


@pytest.mark.parametrize("name", FOUND)
def test_fault_is_found(name, files):
    options = {"model": "rnn", "hidden_size": 4, "epochs": 2, "threads": 1}
    path = files["regression" if name == "l2_loss_half" else "classification"]
    config = study.StudyConfig(data_path=path, **{**options, **INJECTIONS[name].options})
    dataset = load_dataset(config, "float64", 0)
    # One batch of all rows compiles once; or a full and a short one.
    rows = len(dataset.train)
    config = replace(config, batch_size=rows // 2 + 1 if name == "padding_in_mean" else rows)
    start = init_params(parameter_schema(model_config(config, dataset.meaning)), 0)
    runs = [study.training(side, config, dataset) for side in ("torch", "jax")]
    with injected(name, config.batch_size):
        found = drift(*runs, start)
    step, array = FOUND[name]
    assert (found.verdict, found.step) == ("bug", step), found
    assert re.search(array, found.array), found
    assert found.parted["float64"] == step
    if name in ("padding_in_mean", "float32_inside"):
        assert found.parted["float32"] == (step if name == "padding_in_mean" else None)


def test_verdict_names_the_arrays_and_the_step(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "alone", lambda function, *given: function(*given))
    words = ["--data-path", files["classification"], *SMALL, "--model", "rnn"]
    compare.main([*words, "--inject", "float32_inside", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert found["verdict"].startswith("different: predictions (forward): JAX is off")
    assert "at step 1" in found["verdict"]
    assert found["float32"]["verdict"] == "same"
    assert found["environment"]["inject"]["name"] == "float32_inside"
    html = (tmp_path / "out" / "report.html").read_text()
    assert "float32_inside" in html
    assert "JAX is off" in html
    assert "different" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inject", "clip_epps", "--out", "new"], r"clip_epps: no such .*mean clip_eps"),
        (["--out", "."], r"--out .: exists"),
        ([], "--out: is required"),
        (["--epochs", "0", "--out", "new"], "--epochs 0: expected a whole number >= 1"),
        (["--inject", "l2_loss_half", "--out", "new"], "needs a regression"),
        (
            ["--inject", "dropout_unscaled", "--dropout=0", "--out", "new"],
            "needs a --dropout above",
        ),
        (["--inject", "padding_in_mean", "--batch-size", "23", "--out", "new"], "short last batch"),
        (["--backend", "jax", "--out", "new"], "--backend: no such flag"),
    ],
)
def test_mistakes_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        compare.main(words)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "new").exists()


def test_mistake_is_one_line(tmp_path):
    done = command("--epochs", "0", "--out", tmp_path / "new")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_help_imports_no_framework():
    code = (
        "import sys, compare\n"
        "try: compare.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'jax', 'matplotlib', 'parity'} & set(sys.modules), 'imported'"
    )
    given = [sys.executable, "-c", code]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--inject" in done.stdout


def test_list_names_every_fault(capsys):
    compare.main(["--inject", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(INJECTIONS)
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize(("loss", "targets"), [("quantile", 2), ("gaussian_nll", 3)])
def test_the_judge_knows_losses_of_several_outputs(loss, targets):
    config = ModelConfig(model="rnn", hidden_size=3, loss=loss, output_size=6)
    draw, start = np.random.default_rng(7), init_params(parameter_schema(config), 0)
    batch = Batch(draw.normal(size=(4, 3, 1)), None, draw.normal(size=(4, targets)))
    report = judge_gradients(config, start, batch, Execution(dtype="float64"))
    assert {a.verdict for a in report.outputs + report.gradients} == {"both within rounding"}


def test_the_judge_is_given_the_class_weights():
    """Without them both sides would agree on another loss."""
    weights, inputs = np.array([0.5, 2.0]), np.zeros((1, 2, 3))
    batch = Batch(inputs, None, np.array([1]), class_weights=weights)
    np.testing.assert_array_equal(packed(batch, targets=True)["class_weights"], weights)
