"""Make the bundled samples from the wheels that ship their sources.

pip download --no-deps aeon==1.6.0 statsmodels==0.15.0
python data/samples/make_samples.py aeon-*.whl statsmodels-*.whl
"""

import csv
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent


def japanese_vowels(text: str) -> list[list[str]]:
    """Turn a .ts file, features one after the other, into time-major rows; digits stay as text."""
    cases = text[text.index("@data") + len("@data") :].split()
    rows = []
    for case in cases:
        *features, label = [part.split(",") for part in case.split(":")]
        rows.append([value for step in zip(*features, strict=True) for value in step] + label)
    return rows


def sunspots(text: str) -> list[list[str]]:
    """Turn a table of years and months into one column, oldest first; 2009 is incomplete."""
    years = [line.split() for line in text.splitlines() if line[:4].isdigit()]
    return [[value] for year in years if len(year) == 13 for value in year[1:]]


def write(name: str, header: list[str], rows: list[list[str]]) -> None:
    with open(HERE / name, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main(aeon: str, statsmodels: str) -> None:
    with zipfile.ZipFile(aeon) as wheel:
        for part in ("TRAIN", "TEST"):
            source = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
            rows = japanese_vowels(wheel.read(source).decode())
            steps = max(len(row) // 12 for row in rows)
            header = [f"t{t}_lpc{d}" for t in range(steps) for d in range(12)] + ["speaker"]
            padded = [row[:-1] + [""] * (12 * steps + 1 - len(row)) + row[-1:] for row in rows]
            write(f"japanese_vowels_{part.lower()}.csv", header, padded)
    with zipfile.ZipFile(statsmodels) as wheel:
        source = "statsmodels/datasets/sunspots/src/sunspots_monthly.dat"
        write("sunspots_monthly.csv", ["sunspots"], sunspots(wheel.read(source).decode()))


if __name__ == "__main__":
    main(*sys.argv[1:])
