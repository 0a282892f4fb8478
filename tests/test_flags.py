"""Flags and configuration files: what is accepted, and what a refusal says."""

import time
from dataclasses import asdict, fields

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiment.config import RunConfig
from experiment.flags import read_yaml, to_yaml
from spec.errors import ConfigError
from spec.options import types_of
from tests.conftest import ROOT, finish, start

WHOLE = ("0", "-1", "1.5", "ten", "nan", "inf", "")
BELOW_ONE = ("1", "-0.1", "2", "nan", "inf", "x")
ABOVE_ZERO = ("0", "-1", "-1e-3", "nan", "inf", "-inf", "1e400", "x")
OUT_OF_RANGE = {
    "--epochs": WHOLE,
    "--batch_size": WHOLE,
    "--hidden_size": WHOLE,
    "--num_layers": (*WHOLE, "1001"),
    "--num_heads": WHOLE,
    "--feedforward_size": WHOLE,
    "--max_length": WHOLE,
    "--proj_size": WHOLE,
    "--truncated_bptt_steps": WHOLE,
    "--patience": WHOLE,
    "--threads": (*WHOLE, "1025"),
    "--unroll": (*WHOLE, "1025"),
    "--windows": WHOLE,
    "--horizon": ("-1", "1.5", "x"),
    "--num_features": WHOLE,
    "--warmup_steps": ("-1", "1.5", str(2**31)),
    "--seed": ("-1", "1.5", "x"),
    "--dropout": BELOW_ONE,
    "--input_dropout": BELOW_ONE,
    "--recurrent_dropout": BELOW_ONE,
    "--zoneout": BELOW_ONE,
    "--forget_bias": ("nan", "inf", "x"),
    "--teacher_forcing": ("-0.1", "1.1", "nan", "x"),
    "--beta1": BELOW_ONE,
    "--beta2": BELOW_ONE,
    "--momentum": BELOW_ONE,
    "--valid_fraction": BELOW_ONE,
    "--test_fraction": (*BELOW_ONE, "0"),
    "--lr": ABOVE_ZERO,
    "--eps": ABOVE_ZERO,
    "--clip_norm": ("0", "-1", "nan", "x"),
    "--weight_decay": ("-1", "nan", "inf", "x"),
    "--bidirectional": ("maybe", "2"),
    "--label_smoothing": BELOW_ONE,
    "--quantiles": ("", "x", "0", "1", "0.5,0.1", "0.5,0.5", "0.1,,0.9", "0.1,nan", "-0.1,0.5"),
    "--delimiter": ("", "ab", "5"),
}


@pytest.mark.parametrize("flag", OUT_OF_RANGE)
def test_a_value_out_of_range_names_flag_value_and_range(train, flag):
    for value in OUT_OF_RANGE[flag]:
        finished = train("--data_path", "absent.csv", flag, value)
        assert finished.code == 2, value
        assert finished.error().startswith(f"error: {flag} "), value
        assert "expected" in finished.error(), value


def test_every_number_has_a_range_that_is_tested():
    numeric = {n for n, (kinds, _) in types_of(RunConfig).items() if kinds[0] in (int, float)}
    assert {f"--{name}" for name in numeric} <= set(OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--model", "lstm_atention"], "did you mean lstm_attention?"),
        (["--backend", "jaxx"], "did you mean jax?"),
        (["--optimizer", "adamm"], "did you mean adam?"),
        (["--hiden-size", "4"], "did you mean --hidden_size?"),
        (["--data_pat=x"], "did you mean --data_path?"),
        (["--zzz"], "--help lists all"),
        (["rows.csv"], "--data_path rows.csv"),
        (["--lr"], "expected one argument"),
        (["--debug=yes"], "ignored explicit argument"),
    ],
)
def test_what_is_unknown_gets_a_suggestion(train, argv, hint):
    finished = train(*argv)
    assert finished.code == 2
    assert hint in finished.error()


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--num_heads", "5"], "--num_heads 5: must divide --hidden_size 4"),
        (["--bidirectional"], "--bidirectional: is for recurrent layers"),
        (["--remat"], "--remat: is for recurrent layers"),
        (["--unroll", "2"], "--unroll 2: is for recurrent layers"),
        (["--cudnn", "--device", "cuda"], "--cudnn: is for an lstm, not --model transformer"),
        (["--cudnn"], "--cudnn: is for float32 and fast layers on a GPU: --device cuda"),
        (
            ["--cudnn", "--device", "cuda", "--model", "lstm", "--zoneout", "0.1"],
            "--cudnn: its kernel knows no --zoneout; leave one of them out",
        ),
        (["--cudnn", "--device", "gpu:0", "--no-fast"], "--cudnn: is for float32 and fast layers"),
        (["--cudnn", "--device", "cuda:1", "--dtype", "float64"], "--cudnn: is for float32"),
        (["--positions", "learned", "--max_length", "2"], "there are sequences of 3 steps"),
    ],
)
def test_what_a_transformer_cannot_do_is_said_before_a_file_is_written(
    train, tmp_path, one_backend, argv, hint
):
    data = tmp_path / "rows.csv"
    data.write_text("t0,t1,t2,y\n" + "".join(f"{n},{n % 3},{n % 5},{n}.5\n" for n in range(12)))
    out = tmp_path / "run"
    words = ("--data_path", data, "--out", out, "--backend", one_backend)
    finished = train(*words, "--model", "transformer", "--hidden_size", 4, *argv)
    assert finished.code == 2
    assert hint in finished.error()
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--quantiles", "0.1,0.9"], "--quantiles 0.1,0.9: is for --loss quantile"),
        (["--loss", "gaussian_nll", "--quantiles", "0.5"], "--quantiles 0.5: is for --loss quanti"),
        (["--loss", "quantile", "--task", "classification"], "--loss quantile: is for regression"),
        (["--loss", "cross_entropy", "--task", "regression"], "is for classification, and the tas"),
        (["--task", "regression", "--label_smoothing", "0.1"], "--label_smoothing 0.1: is for cl"),
        (
            ["--loss", "squared_error", "--class_weights", "balanced"],
            "--class_weights balanced: is",
        ),
        (["--loss", "pinball"], "--loss 'pinball': expected one of auto, squared_error, quantile"),
    ],
)
def test_a_loss_for_another_task_is_refused_before_a_file_is_read(train, argv, says):
    finished = train("--data_path", "absent.csv", *argv)
    assert finished.code == 2
    assert says in finished.error()


def test_every_option_is_a_flag_and_dashes_are_underscores(train):
    out = train("--help").out
    assert all(f"--{item.name} " in out for item in fields(RunConfig))
    printed = train("--hidden-size", "7", "--clip-norm=none", "--no-fast", "--print-config").out
    values = {line.partition("  #")[0] for line in printed.splitlines()}
    assert {"hidden_size: 7", "clip_norm: null", "fast: false"} <= values


def test_a_value_may_start_with_a_dash(train):
    assert 'data_path: "-x.csv"' in train("--data_path", "-x.csv", "--print_config").out
    assert "-x.csv: cannot be read" in train("--data_path", "-x.csv").error()


def test_an_empty_path_is_not_the_bundled_sample(train):
    finished = train("--data_path", "")  # of a shell variable that is not set
    assert finished.code == 2
    assert "cannot be read" in finished.error()


def test_predict_names_what_it_needs(predict):
    assert "--checkpoint: is required" in predict().error()
    finished = predict("--checkpoint", "c", "--data_path", "d", "--out", "x", "--attention", "./x")
    assert finished.code == 2
    assert "is --out as well" in finished.error()


def test_a_printed_configuration_is_a_configuration(train, tmp_path):
    path = tmp_path / "run.yaml"
    given = ["--data_path", "a b.csv", "--lr", "1e-5", "--clip_norm", "none", "--bidirectional"]
    path.write_text(train(*given, "--print_config").out)
    again = train("--config", path, "--print_config").out
    assert again == path.read_text()
    changed = train("--config", path, "--print_config", "--lr", "0.5").out
    assert changed == again.replace("lr: 1e-05 ", "lr: 0.5 ")


@settings(deadline=None)
@given(st.text())
@example("none")
@example("null")
@example("\udcff.csv")
@example("\x7f\x85\u2028\ufeff\U0001f600")
def test_any_text_survives_yaml(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("yaml") / "run.yaml"
    config = RunConfig(data_path=text, target=text, patience=None)
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_yaml(str(path), RunConfig) == asdict(config)


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("epochs: 1\nepochz: 2\n", "line 2", "did you mean epochs?"),
        ("epochs: 1\n\nepochs: 2\n", "line 3", "stands twice"),
        ("lr: fast\n", "line 1", "expected a finite number > 0"),
        ("epochs: 1.5\n", "line 1", "expected a whole number"),
        ("epochs:\n", "line 1", "found nothing"),
        ("model: [lstm]\n", "line 1", "found a list or mapping"),
        ("model: {name: lstm}\n", "line 1", "found a list or mapping"),
        ("? [epochs]\n: 1\n", "line 1", "no option"),
        ("epochs: 1\n\tlr: 2\n", "line 2", "not YAML"),
        ("model: 'lstm\n", "line 2", "not YAML"),
        ("lr: !!python/name:os.system\n", "line 1", "expected"),
        ("--- {}\n--- {}\n", "line 2", "not YAML"),
        ("- epochs\n", "", "name: value"),
        ("", "", "name: value"),
        ("epochs\n", "", "name: value"),
        ("[" * 100_000, "", "not YAML"),
        ('{"epochs": 1', "line 1", "not YAML"),
        ('{"epochs": 1, "epochs": 1}', "line 1", "stands twice"),
        ("epochs: \0\n", "", "not YAML"),
    ],
)
def test_a_faulty_configuration_names_its_line(train, tmp_path, content, place, reason):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    finished = train("--config", path, "--data_path", "absent.csv")
    assert finished.code == 2
    assert f"{path}" in finished.error()
    assert place in finished.error()
    assert reason in finished.error()


def test_a_configuration_that_is_no_text_is_refused(train, tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"data_path: \xe9\n")
    for name in ("latin.yaml", "absent.yaml", "."):
        finished = train("--config", tmp_path / name)
        assert finished.code == 2
        assert str(tmp_path / name) in finished.error()


def test_yaml_null_and_plain_none_mean_none_and_quotes_mean_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("patience: none\nclip_norm: ~\ntarget: 'none'\ntest_path:\nlr: '0.5'\n")
    assert read_yaml(str(path), RunConfig) == {
        "patience": None,
        "clip_norm": None,
        "target": "none",
        "test_path": None,
        "lr": 0.5,
    }
    path.write_text("device: null\n")
    with pytest.raises(ConfigError, match=r"line 1: device: .* found nothing"):
        read_yaml(str(path), RunConfig)


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_help_is_quick_and_imports_nothing_heavy(script):
    began = time.perf_counter()
    finished = finish(start("-X", "importtime", ROOT / script, "--help"))
    assert time.perf_counter() - began < 1.5
    assert finished.code == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in finished.err.splitlines()}
    assert "experiment" in imported
    assert not imported & {"torch", "jax", "numpy", "sklearn", "yaml", "tqdm"}


def test_version(train):
    finished = train("--version")
    assert finished.code == 0
    assert finished.out.startswith("seqduet ")


def test_errors_are_one_line_and_debug_shows_where():
    argv = ["--data_path", "new\nline\x1b[2J.csv"]
    plain = finish(start(ROOT / "train.py", *argv))
    assert plain.code == 2
    assert "new\\nline\\x1b" in plain.error()
    shown = finish(start(ROOT / "train.py", *argv, "--debug"))
    assert "Traceback" in shown.err
    assert shown.code != 0
