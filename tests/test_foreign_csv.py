"""CSV files that others collected because parsers trip over them; see data_files/README.md."""

import csv
from pathlib import Path

import pytest

from data.config import DataConfig
from data.sequences import read_sequences
from spec.errors import DataError

FOREIGN = Path(__file__).parent / "data_files" / "foreign"

# What the refusal says, or (last sequence, last target, rows).
EXPECTED = {
    "csv-spectrum/comma_in_quotes.csv": "line 2, column 1 \"first\": 'John' is not a number",
    "csv-spectrum/empty.csv": 'line 2, column 3 "c": the target is empty',
    "csv-spectrum/empty_crlf.csv": 'line 2, column 3 "c": the target is empty',
    "csv-spectrum/escaped_quotes.csv": ([3], "4", 2),
    "csv-spectrum/json.csv": ([1], '{"type": "Point", "coordinates": [102.0, 0.5]}', 1),
    "csv-spectrum/location_coordinates.csv": "line 2: a quote inside a cell",
    "csv-spectrum/newlines.csv": "line 3, column 1 \"a\": 'Once upon \\na time' is not a number",
    "csv-spectrum/newlines_crlf.csv": "line 3, column 1 \"a\": 'Once upon \\na time' is not",
    "csv-spectrum/quotes_and_newlines.csv": 'line 2, column 2 "b": the target \'ha \\n"ha" \\nha\'',
    "csv-spectrum/simple.csv": ([1, 2], "3", 1),
    "csv-spectrum/simple_crlf.csv": ([1, 2], "3", 1),
    "csv-spectrum/utf8.csv": ([4, 5], "ʤ", 2),
    "frictionless/ascii-notvalid.csv": "line 2, column 2 \"B\": 'ssµ' is not a number",
    "frictionless/blank-cells.csv": 'line 6, column 2 "name": the target is empty',
    "frictionless/blank-headers.csv": "line 1, column 2: no name",
    "frictionless/bom.csv": ([2], "中国人", 2),
    "frictionless/capital-invalid.csv": 'line 1, columns 2, 3 "name": the same name',
    "frictionless/capital-valid.csv": ([5], "Rome", 5),
    "frictionless/capitals.csv": ([5, 5], " Lisbon", 5),
    "frictionless/defective-rows.csv": "line 2: found 2 cells, expected 3 as in the header",
    "frictionless/delimiter.csv": "use --delimiter ';'",
    "frictionless/dialect.csv": "use --delimiter '|'",
    "frictionless/duplicate-column.csv": 'line 1, columns 2, 3 "B": the same name',
    "frictionless/duplicate-headers.csv": 'line 1, columns 1, 3, 5 "id": the same name',
    "frictionless/empty.csv": "is empty",
    "frictionless/escaping.csv": "line 2: a quote inside a cell",
    "frictionless/implicit-gz.csv": "gzip",
    "frictionless/implicit-zip.csv": "a zip archive",
    "frictionless/invalid.csv": "line 1, column 3: no name",
    "frictionless/issue-1109.csv": "line 1: a quote inside a cell",
    "frictionless/issue-1138.csv": "use --delimiter ';'",
    "frictionless/issue-1341.csv": "line 2, column 2 \"location\": 'Papua New Guinea' is not",
    "frictionless/latin1.csv": "line 3, byte 3: 0xa9 is not UTF-8",
    "frictionless/long.csv": ([6], "f", 6),
    "frictionless/matrix-with-comment.csv": "line 1: starts with '#'",
    "frictionless/matrix.csv": ([41, 42, 43], "44", 4),
    "frictionless/number-test.csv": "line 3, column 1 \"number\": 'INF' is infinite",
    "frictionless/numeric-labels.csv": "line 1, column 1",
    "frictionless/skip-blank-at-the-end.csv": "line 2: found 1 cell, expected 2",
    "frictionless/skip-rows.csv": "line 1: starts with '#'",
    "frictionless/table-infer-iso-8859-7.csv": "line 2, byte 6: 0xcb is not UTF-8",
    "frictionless/table-infer-missing-values.csv": '3 missing values inside sequences: line 3, column 1 "id"',
    "frictionless/table-infer-row-limit.csv": "line 6, column 1 \"id\": 'qwerty' is not a number",
    "frictionless/table-infer-utf8.csv": ([5, 37], "Iñtërnâtiônàlizætiøn", 5),
    "frictionless/table-limits.csv": ([9, 10, 11], " 12", 3),
    "frictionless/table.csv": ([2], "中国人", 2),
    "frictionless/table.csv.gz": "gzip",
    "frictionless/table.csv.zip": "a zip archive",
    "frictionless/timezone.csv": "line 2, column 1 \"datetime\": '2020-01-01T15:00:00'",
    "frictionless/vix.csv": "use --delimiter ';'",
    "frictionless/without-headers-extra.csv": "line 3: found 3 cells, expected 2 as in the first line",
    "frictionless/without-headers.csv": ([3], "german", 3),
    "frictionless/without-rows.csv": "a header and no rows",
    "rust-csv/smallpop-colon.csv": "no column beside the target",
    "rust-csv/smallpop-no-headers.csv": "line 1, column 1",
    "rust-csv/strange.csv": "or say another --delimiter",
    "rust-csv/uspop-latin1.csv": "line 4, byte 1: 0xd5 is not UTF-8",
    "rust-csv/uspop-null.csv": "line 2, column 1 \"City\": 'Davidsons Landing' is not a number",
    "univocity/bean_test.csv": "line 2, column 1 \"date\": '10-oct-2001' is not a number",
    "univocity/escape.csv": "line 1: text behind a quoted cell",
    "univocity/essential-dos.csv": "line 1: no column beside the target; is it a title",
    "univocity/essential-mac.csv": "line 1: no column beside the target; is it a title",
    "univocity/european.csv": "use --delimiter ';'",
    "univocity/example.tsv": "line 1: starts with '#'",
    "univocity/github_1.csv": "line 2: found 4 cells, expected 3",
    "univocity/multi_schema.csv": "line 1, column 1",
    "univocity/ticket_3.csv": "line 1: a quote inside a cell",
}


def test_every_file_is_listed():
    found = {str(path.relative_to(FOREIGN)) for path in FOREIGN.rglob("*.*")}
    assert found == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_foreign_file(name):
    path, expected = str(FOREIGN / name), EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(DataError) as error:
            read_sequences(path, DataConfig())
        assert str(error.value).startswith(f"{path}: ")
        assert expected in str(error.value)
    else:
        sequences = read_sequences(path, DataConfig())
        values, target, rows = expected
        assert sequences.inputs[-1].ravel().tolist() == values
        assert (sequences.targets[-1], len(sequences)) == ((target,), rows)


VARIANTS = [
    {"header": "yes"},
    {"header": "no"},
    {"delimiter": ";"},
    {"delimiter": ";", "decimal": ","},
    {"delimiter": "tab"},
    {"delimiter": " "},
    {"windows": 2},
    {"missing": "mean"},
    {"num_features": 2},
]


def widths(path: Path, delimiter: str) -> set[int]:
    """Return the widths of a file's records as the csv module sees them; blank ones left out."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        return {len(row) for row in rows if len(row) > 1 or "".join(row).strip()}


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_no_ragged_file_is_accepted(options):
    config, accepted = DataConfig(**options), 0
    for name in EXPECTED:
        try:
            read_sequences(str(FOREIGN / name), config)
        except DataError:
            continue
        accepted += 1
        assert len(widths(FOREIGN / name, config.separator)) == 1, name
    assert accepted > 0 or options.get("delimiter") in ("tab", " ")
