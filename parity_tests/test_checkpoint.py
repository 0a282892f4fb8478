"""One file for both: either backend predicts with and continues what the other trained."""

import json

import numpy as np
import pytest

import predict
import train
from experiment import checkpoint
from parity_tests.compare import relative_error

EPOCHS = 8
OPTIONS = [
    "--hidden_size=4", "--num_layers=2", "--bidirectional", "--dropout=0.2", "--batch_size=5",
    "--lr=0.1", "--schedule=cosine", "--warmup_steps=3", "--dtype=float64", f"--epochs={EPOCHS}",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ragged sequences of two features; the label says which feature is larger on average."""
    draw = np.random.default_rng(9)
    lines = ["t0_a,t0_b,t1_a,t1_b,t2_a,t2_b,label"]
    for _ in range(30):
        steps = draw.normal(size=(draw.integers(1, 4), 2))
        cells = [f"{value:.4f}" for value in steps.ravel()] + [""] * (6 - steps.size)
        lines.append(",".join([*cells, "up" if steps[:, 0].sum() > steps[:, 1].sum() else "down"]))
    path = tmp_path_factory.mktemp("data") / "ragged.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A whole run of each backend."""
    runs = {}
    for backend in ("torch", "jax"):
        runs[backend] = tmp_path_factory.mktemp("runs") / backend
        out = f"--out={runs[backend]}"
        assert train.main([f"--data_path={data}", f"--backend={backend}", out, *OPTIONS]) is None
    return runs


def arrays_of(run):
    return checkpoint.load(run / "checkpoint.safetensors").arrays


def assert_same_run(run, other):
    """Weights, moments, every epoch's losses and the test metrics agree to rounding."""
    expected = arrays_of(other)
    for name, array in arrays_of(run).items():
        assert relative_error(array, expected[name]) <= 1e-10, name
    for line, line_other in zip(
        *[(r / "metrics.jsonl").read_text().splitlines() for r in (run, other)], strict=True
    ):
        entry, entry_other = json.loads(line), json.loads(line_other)
        for key in set(entry) - {"seconds"}:
            assert entry[key] == pytest.approx(entry_other[key], rel=1e-10), key
    test, test_other = (json.loads((r / "summary.json").read_text())["test"] for r in (run, other))
    assert test == pytest.approx(test_other, rel=1e-10)


def test_both_backends_train_the_same(straight):
    assert_same_run(straight["torch"], straight["jax"])


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_the_other_backend_continues(data, straight, tmp_path, first, second, monkeypatch):
    """Stopped by a signal in mid-epoch, continued by the other: as if it had never stopped."""
    run = tmp_path / "run"
    stop_after(monkeypatch, steps=9)
    arguments = [f"--data_path={data}", f"--backend={first}", f"--out={run}", *OPTIONS]
    assert train.main(arguments) == 130
    stored = checkpoint.load(run / "checkpoint.safetensors").progress
    assert stored.step == 9
    assert stored.batch > 0
    monkeypatch.undo()
    assert train.main([f"--resume={run}", f"--backend={second}"]) is None
    assert_same_run(run, straight[first])


def stop_after(monkeypatch, steps):
    """Raise SIGINT in this process once so many steps are taken."""
    import signal

    from experiment import loop

    take = loop.keep_masks

    def counted(config, seed, step, *rest):
        if step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return take(config, seed, step, *rest)

    monkeypatch.setattr(loop, "keep_masks", counted)


@pytest.mark.parametrize("trained", ["torch", "jax"])
def test_predictions_agree(data, straight, tmp_path, trained):
    tables = []
    for backend in ("torch", "jax"):
        out, weights = tmp_path / f"{backend}.csv", tmp_path / f"{backend}_attention.csv"
        predict.main(
            [
                f"--checkpoint={straight[trained]}",
                f"--data_path={data}",
                f"--backend={backend}",
                f"--out={out}",
                f"--attention={weights}",
            ]
        )
        rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
        tables.append([row[1] for row in rows])
        tables.append(np.array([row[2:4] for row in rows], float))
        cells = weights.read_text().replace("\n", ",").split(",")
        tables.append(np.array([float(cell) for cell in cells if "." in cell]))
    labels, chances, attention, labels_2, chances_2, attention_2 = tables
    assert labels == labels_2
    assert set(labels) == {"up", "down"}
    assert relative_error(chances, chances_2) <= 1e-12
    assert relative_error(attention, attention_2) <= 1e-12
