"""With one framework absent the other trains and predicts; what is missing is said in one line."""

import pytest

from tests.conftest import FRAMEWORKS, ROOT, TINY, finish, installed, start

ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"


@pytest.mark.parametrize("present", FRAMEWORKS)
def test_one_framework_is_enough(numbers, tmp_path, present):
    installed(present)
    absent = {"torch": "jax", "jax": "torch"}[present]
    (tmp_path / "stubs").mkdir()
    for module in (*FRAMEWORKS[absent], *{"torch": (), "jax": ("jaxlib",)}[absent]):
        (tmp_path / "stubs" / f"{module}.py").write_text(ABSENT)
    environment = {"PYTHONPATH": f"{tmp_path / 'stubs'}:{ROOT}"}

    def command(script: str, *argv: object):
        return finish(start(ROOT / script, *argv, env=environment))

    run, out = tmp_path / "run", tmp_path / "out.csv"
    argv = (*TINY, "--data_path", numbers, "--out", run)
    refused = command("train.py", *argv, "--backend", absent)
    assert refused.code == 2
    assert f"--backend {absent}: {absent} is not installed; run: pip install" in refused.error()
    assert f"[{absent}]" in refused.error()
    assert not run.exists()
    trained = command("train.py", *argv, "--backend", present)
    assert (trained.code, trained.err) == (0, "")
    argv = ("--checkpoint", run, "--data_path", numbers, "--out", out)
    refused = command("predict.py", *argv, "--backend", absent)
    assert refused.code == 2
    assert f"{absent} is not installed" in refused.error()
    assert not out.exists()
    predicted = command("predict.py", *argv)
    assert (predicted.code, predicted.err) == (0, "")
    assert len(out.read_text().splitlines()) == 21
