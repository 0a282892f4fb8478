"""Two runs beside each other: their results, and how far apart their loss curves are.

python -m report.side_by_side RUN RUN [--figure FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

Run = tuple[dict[str, Any], list[dict[str, Any]]]


def read_run(directory: Path) -> Run:
    """Return a run's summary and the metrics of its epochs."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return json.loads((directory / "summary.json").read_text()), [json.loads(li) for li in lines]


def losses(run: Run, name: str) -> np.ndarray:
    """Return a loss at each epoch [E]."""
    return np.array([entry[name] for entry in run[1]], dtype=float)


def difference(first: Run, second: Run, name: str) -> np.ndarray:
    """Return the relative difference of a loss at each epoch that both runs have, [E]."""
    a, b = losses(first, name), losses(second, name)
    shared = min(len(a), len(b))
    return np.abs(a[:shared] - b[:shared]) / np.abs(b[:shared])


def table(first: Run, second: Run) -> str:
    """Lay out the two runs' results."""
    (a, _), (b, _) = first, second
    rows = [
        (name, a[name], b[name]) for name in ("backend", "model", "dtype", "parameters", "epochs")
    ]
    rows += [(f"test {name}", a["test"][name], b["test"][name]) for name in a["test"]]
    rows += [("seconds", a["seconds"], b["seconds"])]

    def shown(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    lines = [f"{name:<18}{shown(x):>16}{shown(y):>16}" for name, x, y in rows]
    most = difference(first, second, "train_loss").max()
    return "\n".join(
        [*lines, f"largest relative difference of an epoch's training loss: {most:.1e}"]
    )


def draw(first: Run, second: Run, path: Path) -> None:
    """Draw both runs' loss curves on each other, and their relative difference below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(7, 4.6), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    names = [n for n in ("train_loss", "valid_loss") if n in first[1][0]]
    for name, colour in zip(names, ("tab:blue", "tab:orange"), strict=False):
        label = name.removesuffix("_loss")
        for run, style in ((first, {"lw": 5, "alpha": 0.35}), (second, {"lw": 1.3, "ls": "--"})):
            curve = losses(run, name)
            epochs = np.arange(1, len(curve) + 1)
            top.plot(epochs, curve, color=colour, label=f"{label}, {run[0]['backend']}", **style)
        apart = difference(first, second, name)
        # An exact zero has no logarithm: it is drawn at the smallest step of a float64.
        floor = np.maximum(apart, np.finfo(np.float64).eps)
        bottom.plot(np.arange(1, len(apart) + 1), floor, color=colour, lw=1)
    top.set_yscale("log")
    top.set_ylabel("loss")
    top.set_title(f"{first[0]['model']} in {first[0]['dtype']}, the same weights and batches")
    top.legend(frameon=False, ncols=2)
    bottom.set_yscale("log")
    bottom.set_ylabel("relative\ndifference")
    bottom.set_xlabel("epoch")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    first, second = map(read_run, options.runs)
    print(table(first, second))
    if options.figure:
        draw(first, second, options.figure)


if __name__ == "__main__":
    main()
