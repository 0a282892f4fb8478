"""Both notebooks run from start to end, leave nothing behind, and print what is stored in them."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest

from notebooks.execute import FOLDER, NAMES, executed
from tests.conftest import FRAMEWORKS, installed, series

PATHS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_PICTURE = 80_000  # characters of base64: 60 kB
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
# What such a cell prints is made of rounding errors: neither their sizes nor the array in which they
# are largest is the same on another processor.
ROUNDING = {"mended", "float32", "drift-decay", "drift-biases", "drift-same", "drift-chaos"}
LOOSE = 0.05  # relative: what rounding leaves of a loss that training has multiplied it into


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """Return the texts a cell put out."""
    outputs = cell.get("outputs", [])
    return [output.get("text") or output.data["text/plain"] for output in outputs]


def words(text: str, rounding: bool) -> list[str]:
    """Return the text without numbers, and without the lines of Flax's files."""
    text = re.sub(r"(\w\.py):\d+", r"\1", text)
    if rounding:
        text = re.sub(r"\b[a-z]+(\.\w+)+\b", "ARRAY", text)
    text = re.sub(r" +\]", "]", text)  # behind a number that happens to have fewer digits
    return NUMBER.sub("#", text).replace("-", " ").split()


def numbers(text: str) -> list[float]:
    """Return the numbers of a text but those like 2.7e-16, which are rounding errors."""
    text = re.sub(r"\w\.py:\d+", "", text)
    return [float(found) for found in NUMBER.findall(text) if "e" not in found]


def assert_agree(name: str, found: str, expected: str) -> None:
    """Compare what a cell prints with what is stored."""
    rounding = name in ROUNDING
    assert words(found, rounding) == words(expected, rounding), name
    if not rounding:
        assert numbers(found) == pytest.approx(numbers(expected), rel=LOOSE), name


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.mark.long
def test_it_runs_and_prints_what_is_stored(path, monkeypatch, tmp_path):
    for name in FRAMEWORKS:
        installed(name)
    stored = nbformat.read(path, as_version=4)
    before = sorted(FOLDER.iterdir())
    with TemporaryDirectory() as empty:
        monkeypatch.setenv("TMPDIR", empty)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which torch makes, and keeps
        fresh = executed(path)
        assert list(Path(empty).iterdir()) == []
    assert sorted(FOLDER.iterdir()) == before
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        for expected, found in zip(printed(old), printed(new), strict=True):
            assert_agree(new.id, found, expected)


@pytest.mark.long
def test_it_takes_another_file_in_the_place_of_the_sample(tmp_path):
    for name in FRAMEWORKS:
        installed(name)
    mine = tmp_path / "my prices.csv"
    mine.write_text(series(120, lambda last: round(2 * last + 0.05, 2)))
    notebook = nbformat.read(FOLDER / "train_on_your_own_csv.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if cell.id == "setup")
    lines = setup.source.splitlines()
    assert lines[-1].startswith("my_csv = ")
    setup.source = "\n".join([*lines[:-1], f"my_csv = {str(mine)!r}"])
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    text = "\n".join(
        text for cell in executed(tmp_path / "mine.ipynb").cells for text in printed(cell)
    )
    assert "regression" in text
    assert "12 rows: predictions.csv" in text


def test_what_is_stored_is_whole_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert max(map(len, pictures)) < LARGEST_PICTURE
    assert sum(bool(text.strip()) for cell in code for text in printed(cell)) > 5
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    for text in (text for cell in code for text in printed(cell)):
        assert not re.search(r"(?:^|[\s'\"(])(?:/\w|[A-Z]:\\)|Warning", text), text


def test_both_are_there_and_executed():
    assert sorted(NAMES) == [path.stem for path in PATHS]


STORED = "JAX add (normalization.py:57), head.bias is 2.7e-16 off at step 3: 0.97"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trace", ("add", "mul")),
        ("trace", ("step 3", "step 4")),
        ("trace", ("0.97", "0.91")),
        ("trace", ("head.bias", "lstm.bias")),
        ("mended", ("off", "on")),
    ],
)
def test_a_changed_output_is_seen(name, change):
    with pytest.raises(AssertionError):
        assert_agree(name, STORED.replace(*change), STORED)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trace", (":57", ":61")),
        ("trace", ("2.7e-16", "-3.1e-17")),
        ("trace", ("0.97", "0.971")),
        ("mended", ("head.bias", "lstm.bias")),
        ("mended", ("step 3", "step 4")),
    ],
)
def test_rounding_is_passed_over(name, change):
    assert_agree(name, STORED.replace(*change), STORED)
