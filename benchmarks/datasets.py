"""Train the recipes in configs/ on their data sets, in both backends, and compare with the bars.

    python -m benchmarks.datasets DIRECTORY [--dtype float64] [--seeds 0 1 2] [--only gun_point]

DIRECTORY holds NAME_train.csv and NAME_test.csv of each set in `BARS`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# recipe: (files, metric, bar, whether more is better)
BARS = {
    "italy_power_demand": ("ItalyPowerDemand", "accuracy", 0.96, True),
    "japanese_vowels": ("JapaneseVowels", "accuracy", 0.96, True),
    "basic_motions": ("BasicMotions", "accuracy", 0.93, True),
    "gun_point": ("GunPoint", "accuracy", 0.90, True),
    "sunspots_monthly": ("SunspotsMonthly", "rmse", 17.5, False),
    "el_nino_sst": ("ElNinoSST", "rmse", 0.95, False),
}


def train(recipe: str, data: Path, backend: str, dtype: str, seed: int) -> dict:
    """Run train.py; return its summary."""
    files = BARS[recipe][0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, ROOT / "train.py", "--config", ROOT / f"configs/{recipe}.yaml"]
        command += ["--data_path", data / f"{files}_train.csv"]
        command += ["--test_path", data / f"{files}_test.csv", "--backend", backend]
        command += ["--dtype", dtype, "--seed", str(seed), "--out", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((out / "summary.json").read_text())


def printed(summary: dict) -> list[str]:
    """Return every test figure as train.py prints it."""
    return [f"{value:.6g}" for value in summary["test"].values()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DIRECTORY")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(BARS), choices=BARS)
    options = parser.parse_args()
    missed = 0
    print(f"{options.dtype}, median of seeds {options.seeds}")
    print(
        "| data set | metric | bar | torch | JAX | every printed digit equal | best baseline | seconds torch, JAX |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for recipe in options.only:
        name, metric, bar, more = BARS[recipe]
        runs = {
            backend: [train(recipe, options.data, backend, options.dtype, s) for s in options.seeds]
            for backend in ("torch", "jax")
        }
        medians = [statistics.median(r["test"][metric] for r in runs[b]) for b in runs]
        seconds = [statistics.median(r["seconds"] for r in runs[b]) for b in runs]
        missed += any(m < bar if more else m > bar for m in medians)
        pairs = list(zip(runs["torch"], runs["jax"], strict=True))
        equal = sum(printed(a) == printed(b) for a, b in pairs)
        rivals = {n: values[metric] for n, values in runs["torch"][0]["baselines"].items()}
        best = (max if more else min)(rivals, key=rivals.get)
        print(
            f"| {name} | {metric} | {bar:g} | {medians[0]:.4g} | {medians[1]:.4g} "
            f"| {equal} of {len(pairs)} seeds | {best} {rivals[best]:.4g} "
            f"| {seconds[0]:.1f}, {seconds[1]:.1f} |",
            flush=True,
        )
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
