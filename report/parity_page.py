"""The report of a comparison: one HTML file with its figures inside, for the screen and for paper.

Dimensions: S training steps, T time steps of a sequence.
"""

import io
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

DTYPES = ("float64", "float32")
SIDES = {"torch": ("PyTorch", "#d1495b"), "jax": ("JAX", "#1f5f99")}
COLOURS = {"float64": "#3d348b", "float32": "#c77700"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ABOVE = {"loc": "lower right", "bbox_to_anchor": (1, 0.97), "ncols": 2}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names from a header are drawn as they are, $ and all
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#3a3f47",
    "xtick.color": "#5a6069",
    "ytick.color": "#5a6069",
    "legend.frameon": False,
}

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}
</head>
<body>
{body}
</body>
</html>
"""
LOSSES = "The training loss in both backends, on each other."
APART = """How far the two training runs are apart after each step: loss, parameters and the optimiser's
moments end to end (line), the loss alone (thin). Bands: what rounding explains of the line, measured by
each side's float32 run against its own float64 run and by a run whose start was moved by one rounding.
A line that leaves its band is a bug."""
STATES = """How many units in the last place (ULP) the backends are apart: nine tenths of the first batch's
hidden units are nearer. From the readable layers. Grey: no sequence is that long."""
ARRAYS = """Forward pass, and gradients of the loss, on the first batch from the initial weights. The relative
error is ‖PyTorch - JAX‖ / ‖truth‖; the truth is a third implementation in extended precision for the forward
pass, JAX's own in extended precision for gradients. The tolerance, for each side's distance from the truth,
is derived: 64 times what one rounding of every input and weight does to the array; a gradient that is
next to nothing beside the largest is held to the rounding of that one. ULP count float by float and are large
near 0, where nothing is wrong."""
CSS = Path(__file__).with_suffix(".css")


def page(result: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Write the report.

    Args:
      result: what parity.json holds; see `compare.py`.
      curves: by dtype "apart" and "explained" [S], as in `parity.drift`, and "ulps": name -> [T].
    """
    facts, drift = result["environment"], result["drift"]
    name = f"{facts['options']['model']} in PyTorch and JAX"
    about = [", ".join(facts["data"]["files"]), f"{facts['parameters']} parameters"]
    about += [f"{len(result['float64']['training'])} training steps", f"seed {facts['seed']}"]
    with matplotlib.rc_context(STYLE):
        parts = [
            f"<h1>{escape(name)}</h1>",
            f'<p class="soft">{escape(" · ".join(about))}</p>',
            banner(result),
            tiles(result),
            "<h2>Training, the same weights and batches</h2>",
            figure(losses(result), LOSSES),
            figure(apart(curves, result, drift["step"]), APART),
            f"<p>{escape(drift['sentence'][:1].upper() + drift['sentence'][1:])}.</p>",
        ]
        if curves["float64"]["ulps"]:
            parts.append("<h2>Hidden states, layer by layer and step by step</h2>")
            parts.append(figure(heat_map(curves), STATES))
    parts += [
        f"<h2>Every array</h2><p>{ARRAYS}</p>",
        arrays_table(result),
        f"<h2>Speed and memory</h2>{speed_table(result)}",
        f"<h2>How to repeat this</h2><pre><code>{escape(facts['command'])}</code></pre>",
        facts_table(facts),
    ]
    head = f"<title>{escape(name)}: parity</title>\n<style>\n{CSS.read_text()}</style>"
    return HTML.format(head=head, body="\n".join(parts))


def banner(result: Mapping[str, Any]) -> str:
    """Say the verdict."""
    kind = result["verdict"].partition(":")[0]
    steps = len(result["float64"]["training"])
    lines = {
        "same": f"Forward pass, gradients and {steps} training steps agree to rounding, in float32 and in "
        "float64.",
        "chaos": "Forward pass and gradients agree to rounding. Training multiplies rounding until the runs "
        "part, in either backend alike; nothing is wrong.",
        "different": "More than rounding:",
    }
    title = {"same": "Equal", "chaos": "Equal, but chaotic", "different": "Different"}[kind]
    text = f"{lines[kind]}"
    if kind == "different":
        items = "".join(
            f"<li>{dtype}: {escape(result[dtype]['verdict'].partition(': ')[2])}</li>"
            for dtype in DTYPES
            if result[dtype]["verdict"].startswith("different")
        )
        text += f"<ul>{items}</ul>"
    if fault := result["environment"]["inject"]:
        text += f"<p>JAX was given the fault <code>{escape(fault['name'])}</code>: {escape(fault['sentence'])}</p>"
    return f'<div class="verdict {kind}"><strong>{title}</strong>{text}</div>'


def most(section: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    """Return the largest relative error among arrays, and whose it is."""
    rel = {name: entry["rel"] for name, entry in section.items()}
    return max((np.inf if value is None else value, name) for name, value in rel.items())


def key_figures(result: Mapping[str, Any], dtype: str) -> dict[str, tuple[float, str]]:
    """Return the largest relative differences of a dtype, each with where it is."""
    training = result[dtype]["training"]
    loss = [
        abs(row["loss_torch"] - row["loss_jax"]) / (abs(row["loss_torch"]) or 1) for row in training
    ]
    weights = [row["params_rel"] for row in training]
    return {
        "forward pass": most(result[dtype]["forward"]),
        "gradients": most(result[dtype]["gradients"]),
        "training loss": (max(loss), f"step {int(np.argmax(loss)) + 1}"),
        "parameters": (max(weights), f"step {int(np.argmax(weights)) + 1}"),
    }


def tiles(result: Mapping[str, Any]) -> str:
    """Show the largest differences, in float64 and below in float32."""
    wide, narrow = (key_figures(result, dtype) for dtype in DTYPES)
    cells = "".join(
        f'<div class="tile"><span>{name}, float64</span><b>{number(value)}</b>'
        f"<span>in {escape(where)}</span><span>float32: {number(narrow[name][0])}</span></div>"
        for name, (value, where) in wide.items()
    )
    return f'<p class="soft">Largest relative differences</p><div class="tiles">{cells}</div>'


def number(value: float | None) -> str:
    """Write a small number with its power of ten, as print does."""
    if value is None or not np.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa} · 10{str(int(power)).translate(SUPERSCRIPTS)}"


def figure(drawn: Figure, caption: str) -> str:
    """Put a figure into the page as SVG."""
    caption = " ".join(caption.split())
    return inline(svg_of(drawn, caption), caption, caption)


def svg_of(drawn: Figure, salt: str) -> str:
    """Draw as SVG; equal figures with equal salt give equal text, others no name twice."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def inline(svg: str, label: str, caption: str) -> str:
    """Strip an SVG file of what a page needs not, name it and write a caption, if any, below."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="scroll">{svg}</div>{below}</figure>'


def panels(count: int, height: float, rows: int = 1) -> tuple[Figure, Iterable]:
    """Make a figure of page width."""
    drawn = Figure(figsize=(8.2, height), layout="constrained")
    return drawn, drawn.subplots(rows, count, squeeze=False).ravel()


def powers(axis: Any) -> None:
    """Label a logarithmic axis by powers of ten."""
    axis.set_major_locator(LogLocator(numticks=9))
    axis.set_minor_locator(LogLocator(numticks=1))
    axis.set_major_formatter(
        FuncFormatter(lambda x, _: "10" + str(round(np.log10(x))).translate(SUPERSCRIPTS))
    )


def losses(result: Mapping[str, Any]) -> Figure:
    """Draw both backends' loss curves on each other, one panel a dtype; of many steps their mean."""
    drawn, axes = panels(2, 2.5)
    window = max(1, len(result["float64"]["training"]) // 100)
    for panel, dtype in zip(axes, DTYPES, strict=True):
        rows = result[dtype]["training"]
        steps = np.array([row["step"] for row in rows])[window - 1 :]
        for side, style in (("torch", {"lw": 3.6, "alpha": 0.35}), ("jax", {"lw": 0.9})):
            label, colour = SIDES[side]
            loss = [row[f"loss_{side}"] for row in rows]
            mean = np.convolve(loss, np.full(window, 1 / window), "valid")
            panel.plot(steps, mean, color=colour, label=label, **style)
        panel.set_title(dtype, loc="left", fontsize=9.5, color=COLOURS[dtype], fontweight="bold")
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.grid(axis="y", color="#eceef1", lw=0.8)
    axes[0].set_ylabel("loss" if window == 1 else f"loss, mean of {window} steps")
    axes[0].legend(**ABOVE)
    return drawn


def apart(curves: Mapping[str, Any], result: Mapping[str, Any], step: int | None) -> Figure:
    """Draw the drift of both dtypes over the steps, and what rounding explains."""
    drawn, (panel,) = panels(1, 3.2)
    for dtype in reversed(DTYPES):
        rows, eps = result[dtype]["training"], float(np.finfo(dtype).eps)
        colour, steps = COLOURS[dtype], np.arange(1, len(rows) + 1)
        explained = np.maximum(curves[dtype]["explained"], eps)
        panel.fill_between(
            steps, np.full(len(steps), eps / 64), explained, color=colour, alpha=0.1, lw=0
        )
        loss = [abs(r["loss_torch"] - r["loss_jax"]) / (abs(r["loss_torch"]) or 1) for r in rows]
        # An exact zero has no logarithm: it is left out.
        panel.plot(
            steps, np.where(np.array(loss) > 0, loss, np.nan), color=colour, lw=0.6, alpha=0.45
        )
        line = curves[dtype]["apart"]
        panel.plot(steps, np.where(line > 0, line, np.nan), color=colour, lw=1.8, label=dtype)
    panel.set_yscale("log")
    panel.set_ylim(1e-18, max(1.0, *panel.get_ylim()))
    powers(panel.yaxis)
    if step is not None:
        panel.axvline(step, color="#c0283d", lw=1, ls=(0, (4, 3)))
        panel.annotate(
            f"step {step}",
            (step, panel.get_ylim()[1]),
            (4, -9),
            textcoords="offset points",
            color="#c0283d",
        )
    panel.set_xlabel("step")
    panel.set_ylabel("relative difference")
    panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    panel.grid(axis="y", color="#eceef1", lw=0.8)
    panel.legend(**ABOVE)
    panel.margins(x=0.01)
    return drawn


def heat_map(curves: Mapping[str, Any]) -> Figure:
    """Draw the ULP of each layer's states at each time step."""
    names = list(curves["float64"]["ulps"])
    drawn, axes = panels(1, 1.1 + 0.46 * len(names), rows=2)
    tables = {dtype: np.stack(list(curves[dtype]["ulps"].values())) for dtype in DTYPES}
    top = max(10.0, *(np.nanmax(table) for table in tables.values()))
    colours = matplotlib.colormaps["YlGnBu"].with_extremes(bad="#e9ebee")
    for panel, dtype in zip(axes, DTYPES, strict=True):
        table = np.maximum(tables[dtype], 1)  # NaN stays
        mesh = panel.pcolormesh(
            np.ma.masked_invalid(table),
            cmap=colours,
            norm=LogNorm(1, top),
            edgecolor="face",
            lw=0.2,
        )
        panel.set_facecolor("#e9ebee")
        panel.set_yticks(np.arange(len(names)) + 0.5, names)
        panel.invert_yaxis()
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.set_title(dtype, loc="left", fontsize=9.5, color=COLOURS[dtype], fontweight="bold")
        ticks = MaxNLocator(12, integer=True).tick_values(0, table.shape[1] - 1)
        ticks = ticks[(ticks >= 0) & (ticks < table.shape[1])]
        panel.set_xticks(ticks + 0.5, [str(int(t) + 1) for t in ticks])
    axes[-1].set_xlabel("time step")
    bar = drawn.colorbar(mesh, ax=list(axes), label="ULP, 90th percentile", aspect=25, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    return drawn


def row_of(cells: Iterable[tuple[str, str]]) -> str:
    """Write a table's row from (text, class) cells."""
    return "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for text, kind in cells) + "</tr>"


def arrays_table(result: Mapping[str, Any]) -> str:
    """List every array: largest ULP, relative error, tolerance, worst index, in both dtypes."""
    columns = ("max ULP", "relative", "tolerance", "worst at")
    head = "".join(
        f'<th colspan="{len(columns)}" class="group edge">{dtype}</th>' for dtype in DTYPES
    )
    heads = "".join(
        f'<th class="{"edge" if column == columns[0] else ""}">{column}</th>'
        for _ in DTYPES
        for column in columns
    )
    rows = []
    for part in ("forward", "gradients"):
        title = {"forward": "Forward pass", "gradients": "Gradients of the loss"}[part]
        rows.append(f'<tr class="part"><td colspan="{1 + 2 * len(columns)}">{title}</td></tr>')
        for name in result["float64"][part]:
            cells = [(f"<code>{escape(name)}</code>", "text")]
            for dtype in DTYPES:
                entry = result[dtype][part][name]
                fine = entry["verdict"] == "both within rounding"
                index = ", ".join(map(str, entry["worst"]))
                cells += [
                    (
                        f"{entry['max_ulp']:,.0f}"
                        if entry["max_ulp"] < 1e6
                        else f"{entry['max_ulp']:.0e}",
                        "edge",
                    ),
                    (number(entry["rel"]), "" if fine else "off"),
                    (number(entry["tolerance"]), ""),
                    (
                        index if fine else f"{index} · {escape(entry['verdict'])}",
                        "" if fine else "off",
                    ),
                ]
            rows.append(row_of(cells))
    return (
        f'<div class="scroll"><table><thead><tr><th rowspan="2">array</th>{head}</tr><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def speed_table(result: Mapping[str, Any]) -> str:
    """Compare time and memory of both backends."""
    rows = []
    for dtype in reversed(DTYPES):
        for side, (label, _) in SIDES.items():
            seen = result["speed"][dtype][side]
            cells = [
                (label, "text"),
                (dtype, "text"),
                (f"{1000 * seen['step_seconds']:.1f} ms", ""),
            ]
            cells += [
                (f"{seen['first_step_seconds']:.2f} s", ""),
                (f"{seen['peak_mib']:.0f} MiB", ""),
            ]
            rows.append(row_of(cells))
    facts = result["environment"]
    threads = facts["options"]["threads"]
    how = (
        "Each backend alone in a fresh process, after everything else was done. A step: median of up to 40 after "
        "the first two, forward and backward pass, update and the transfer of the batch. First step: with "
        "compilation. Peak memory: the most the process held resident, the framework and the data included. "
        f"{'Default number of' if threads is None else threads} threads on {facts['cores']} cores"
    )
    if facts["load"] is not None:
        how += f"; the machine's load average at the end of the comparison was {facts['load']:.1f}"
    return (
        '<table class="whole"><thead><tr><th>backend</th><th>dtype</th><th>step</th>'
        "<th>first step</th><th>peak memory</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="soft">{how}.</p>'
    )


def facts_table(facts: Mapping[str, Any]) -> str:
    """List versions, machine, data and options."""
    versions = ", ".join(f"{name} {text}" for name, text in facts["versions"].items())
    options = ", ".join(
        f"{name} {shown(value)}" for name, value in facts["options"].items() if value is not None
    )
    digests = [f"{name}: {text}" for name, text in facts["data"]["sha256"].items()]
    rows = [
        ("versions", escape(versions)),
        ("machine", escape(f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}")),
        ("data", "<br>".join(escape(note) for note in facts["data"]["notes"])),
        ("SHA-256", "<br>".join(f"<code>{escape(text)}</code>" for text in digests)),
        ("options", escape(options)),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def shown(value: Any) -> str:
    """Write an option's value as a command line does."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def summary(result: Mapping[str, Any]) -> str:
    """Lay out the outcome as a short table of text."""
    facts = {dtype: key_figures(result, dtype) for dtype in reversed(DTYPES)}
    lines = [f"{'largest relative difference':<30}" + "".join(f"{dtype:>12}" for dtype in facts)]
    for name in facts["float64"]:
        lines.append(f"{name:<30}" + "".join(f"{facts[dtype][name][0]:>12.1e}" for dtype in facts))
    for side, (label, _) in SIDES.items():
        seen = [result["speed"][dtype][side] for dtype in facts]
        times = "".join(f"{1000 * one['step_seconds']:>9.1f} ms" for one in seen)
        lines.append(f"{label + ', a training step':<30}{times}")
    return "\n".join([*lines, f"verdict: {result['verdict']}"])
