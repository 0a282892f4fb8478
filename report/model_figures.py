"""Figures of what a model computes on one sequence.

Steps and units count from 0, as in the arrays.

Dimensions: n steps of the sequence, T of the longest, D input features, H hidden units.
"""

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiment.inspection import Inspection
from report.parity_page import powers
from spec.introspection import STATES, STEPS, gradient_norms, layer_names

WIDTH = 8.2  # inches, the page's
INK, BLUE, RED, GREY = "#1d2128", "#1f5f99", "#c0283d", "#b9bec6"
LINES = ("#1f5f99", "#c77700", "#2e8b57", "#c0283d", "#6a4c93", "#00798c", "#8a5a44", "#5a6069")
MINUS = "\N{MINUS SIGN}"
ATTENTION = LinearSegmentedColormap.from_list("attention", ["#ffffff", "#ffd08a", "#e8871e"])
OPEN = "rzifo"  # gates, from 0 to 1; what is left has a sign
TITLES = {
    "r": "r  reset",
    "z": "z  keep",
    "n": "n  candidate",
    "i": "i  input",
    "f": "f  forget",
    "g": "g  candidate",
    "o": "o  output",
    "h": "h  hidden",
    "c": "c  cell",
}


def figures(found: Inspection, b: int) -> Iterator[tuple[str, Figure]]:
    """Draw everything of one sequence; yield a short name with each figure."""
    yield "sequence", sequence(found, b)
    yield "gradient", gradient(found, b)
    if found.model.decodes:
        yield "attention", attention_of_forecast(found, b)
    names, both = layer_names(found.model), found.model.directions
    for layer in range(found.model.num_layers):
        own = names[layer * both : (layer + 1) * both]
        if found.model.recurrent:
            yield f"gates-l{layer}", gates(found, b, own)
        else:
            yield f"heads-l{layer}", heads(found, b, own[0])
        yield f"states-l{layer}", states(found, b, own)
    if found.model.self_attention:
        yield "heads-self", heads(found, b, "self_attention")
    if found.model.decodes:
        yield "gates-decoder", gates(found, b, ["decoder"])
        yield "states-decoder", states(found, b, ["decoder"])


def steps_of(found: Inspection, layer: str) -> np.ndarray:
    """Return how many steps a layer runs in each sequence [B]; a decoder those of the forecast."""
    if layer == "decoder":
        return np.full_like(found.lengths, found.model.forecast_steps)
    return found.lengths


def steps_axis(panel, n: int, many: int = 10) -> None:
    """Number the steps, a unit of the axis each."""
    panel.set_xlim(-0.5, n - 0.5)
    panel.xaxis.set_major_locator(whole(many))
    panel.set_xlabel("time step")


def whole(most: int) -> MaxNLocator:
    """Return a locator of whole numbers only."""
    return MaxNLocator(most, integer=True, min_n_ticks=1)


def heat(panel, table: np.ndarray, colours: str, low: float, high: float):
    """Draw [rows, n], a row and a step a unit of its axis each."""
    rows, n = table.shape
    image = panel.imshow(
        table,
        aspect="auto",
        interpolation="none",
        cmap=colours,
        norm=Normalize(low, high),
        extent=(-0.5, n - 0.5, rows - 0.5, -0.5),
    )
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    return image


def bar_of(drawn: Figure, image, panels, label: str):
    """Put a slim colour bar beside panels, and return it."""
    bar = drawn.colorbar(image, ax=panels, label=label, aspect=18, pad=0.01, fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    return bar


def sequence(found: Inspection, b: int) -> Figure:
    """Draw the sequence over its attention, and below what the prediction rests on."""
    n, D = found.lengths[b], found.readings.shape[2]
    height = 1.5 if D == 1 else min(0.9 + 0.1 * D, 3.0)
    drawn = Figure(figsize=(WIDTH, 2.2 + 2 * height), layout="constrained")
    ratios = {"height_ratios": [2.1, height, height]}
    top, middle, bottom = drawn.subplots(3, 1, sharex=True, gridspec_kw=ratios)
    names = found.meaning.layout.features
    scaled = found.arrays["inputs"][b, :n]
    if D == 1:
        lines, unit = found.readings[b, :n], names[0]
    else:
        lines, unit = scaled, "standard deviations"
    for d in range(D):
        line, colour = lines[:, d], feature_colours(D)[d]
        top.plot(np.arange(n), line, color=colour, lw=1.3, marker=dot(line))
    top.set_ylabel(unit)
    if (over := attention_over(found, b)) is not None:
        label, weights = over
        low, high = top.get_ylim()
        image = top.imshow(
            weights[None],
            aspect="auto",
            interpolation="none",
            cmap=ATTENTION,
            norm=Normalize(*shades(weights)),
            extent=(-0.5, n - 0.5, low, high),
            alpha=0.6,  # the lines stay readable
            zorder=0,
        )
        bar_of(drawn, image, top, label)
    for panel, name, label in (
        (middle, "saliency", "saliency"),
        (bottom, "integrated gradients", "integrated\ngradients"),
    ):
        attributed(drawn, panel, found.arrays[name][b, :n], label, names)
    steps_axis(bottom, n)
    return drawn


def attention_over(found: Inspection, b: int) -> tuple[str, np.ndarray] | None:
    """Return what to call it and the attention on each step [n]; None without attention."""
    n = found.lengths[b]
    if found.model.decodes:
        step = found.explained[b] // len(found.model.fed_back)
        return "attention", found.arrays["attention.weights"][b, step, :n]
    if found.model.attends:
        return "attention", found.arrays["attention.weights"][b, :n]
    if found.model.recurrent:
        return None
    last = layer_names(found.model)[-1]
    return "attention received", found.arrays[f"{last}.weights"][b, :, :n, :n].mean(axis=(0, 1))


def feature_colours(D: int) -> list:
    """Return a colour for each feature."""
    if D == 1:
        return [INK]
    return list(0.8 * matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, D))[:, :3])


def dot(line: np.ndarray) -> str | None:
    """Return the marker of a line, which a single point needs."""
    return "o" if np.isfinite(line).sum() == 1 else None


def shades(weights: np.ndarray) -> tuple[float, float]:
    """Return which attention is white and which darkest: 2 % apart or more, lest rounding shows."""
    return weights.min(), max(weights.max(), 1.02 * weights.min())


def attributed(drawn: Figure, panel, table: np.ndarray, label: str, names: tuple[str, ...]) -> None:
    """Draw a number for each reading [n, D]: bars of one feature, a heat map of several."""
    n, D = table.shape
    if D == 1:
        colours = np.where(table[:, 0] < 0, RED, BLUE)
        panel.bar(np.arange(n), table[:, 0], width=0.8, color=colours)
        panel.axhline(0, color="#8a8f98", lw=0.8)
        panel.set_ylabel(label)
        return
    size = np.abs(table).max() or 1.0
    signed = (table < 0).any()
    image = heat(panel, table.T, "RdBu" if signed else "YlGnBu", -size if signed else 0, size)
    if D <= 16:
        panel.set_yticks(np.arange(D), names, fontsize=7)
        for text, colour in zip(panel.get_yticklabels(), feature_colours(D), strict=True):
            text.set_color(colour)
    else:
        panel.set_ylabel("feature")
        panel.yaxis.set_major_locator(whole(5))
    bar_of(drawn, image, panel, label)


def gates(found: Inspection, b: int, layers: list[str]) -> Figure:
    """Draw each gate and state of a layer's directions, units by steps."""
    n, names = steps_of(found, layers[0])[b], STEPS[found.model.cell]._fields
    drawn = Figure(figsize=(WIDTH, 0.7 + 1.75 * len(layers)), layout="constrained")
    panels = drawn.subplots(len(layers), len(names), squeeze=False, sharex=True, sharey=True)
    for column, name in enumerate(names):
        tables = [found.arrays[f"{layer}.{name}"][b, :n].T for layer in layers]
        if name in OPEN:
            colours, low, high = "YlGnBu", 0.0, 1.0
        else:
            high = max(np.abs(table).max() for table in tables) or 1.0
            colours, low = "RdBu", -high
        for panel, table in zip(panels[:, column], tables, strict=True):
            image = heat(panel, table, colours, low, high)
        panels[0, column].set_title(TITLES[name], fontsize=9, loc="left")
        steps_axis(panels[-1, column], n, 4)
        bar = drawn.colorbar(
            image, ax=list(panels[:, column]), orientation="horizontal", pad=0.02, aspect=14
        )
        bar.outline.set_visible(False)
        bar.set_ticks([low, high], labels=[f"{x:.2g}".replace("-", MINUS) for x in (low, high)])
        bar.ax.tick_params(labelsize=7)
    for panel, layer in zip(panels[:, 0], layers, strict=True):
        panel.set_ylabel(f"{layer}\nunit")
        panel.yaxis.set_major_locator(whole(4))
    return drawn


def heads(found: Inspection, b: int, layer: str) -> Figure:
    """Draw the attention of each head of a layer, queries by keys."""
    n = found.lengths[b]
    weights = found.arrays[f"{layer}.weights"][b, :, :n, :n]
    columns = min(4, len(weights))
    rows = -(-len(weights) // columns)
    drawn = Figure(figsize=(WIDTH, 0.4 + 2.1 * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.ravel()[len(weights) :]:
        panel.set_axis_off()
    for head, table in enumerate(weights):
        panel = panels.ravel()[head]
        image = heat(panel, table, ATTENTION, *shades(weights))
        panel.set_title(f"head {head}", fontsize=9, loc="left")
        steps_axis(panel, n, 5)
        panel.set_xlabel("attends to step")
        panel.yaxis.set_major_locator(whole(5))
    for panel in panels[:, 0]:
        panel.set_ylabel("at step")
    bar_of(drawn, image, list(panels.ravel()), "weight")
    return drawn


def attention_of_forecast(found: Inspection, b: int) -> Figure:
    """Draw what each step of a forecast attends to, a row each."""
    table = found.arrays["attention.weights"][b, :, : found.lengths[b]]
    K, n = table.shape
    drawn = Figure(figsize=(WIDTH, 1.1 + min(0.22 * K, 4.0)), layout="constrained")
    panel = drawn.subplots()
    image = heat(panel, table, ATTENTION, *shades(table))
    panel.yaxis.set_major_locator(whole(10))
    panel.yaxis.set_major_formatter(lambda k, _: f"{k + 1:.0f}")
    panel.set_ylabel("steps ahead")
    steps_axis(panel, n)
    bar_of(drawn, image, panel, "weight")
    return drawn


def states(found: Inspection, b: int, layers: list[str]) -> Figure:
    """Draw the states of a layer's directions over time, and the first in its plane."""
    n = steps_of(found, layers[0])[b]
    names = [name for name in STATES if f"{layers[0]}.{name}" in found.arrays]
    drawn = Figure(figsize=(WIDTH, 0.3 + 2.3 * len(layers)), dpi=200, layout="constrained")
    ratios = {"width_ratios": [1.6 / len(names)] * len(names) + [1]}
    panels = drawn.subplots(len(layers), len(names) + 1, squeeze=False, gridspec_kw=ratios)
    for row, layer in zip(panels, layers, strict=True):
        for panel, name in zip(row, names, strict=False):
            table = found.arrays[f"{layer}.{name}"][b, :n]
            units_over_time(panel, table, f"{layer}.{name}")
        plane(drawn, row[-1], found, b, f"{layer}.{names[0]}")
    for panel in panels[-1, : len(names)]:
        panel.set_xlabel("time step")
    return drawn


def units_over_time(panel, table: np.ndarray, title: str) -> None:
    """Draw each unit as a line [n, H]; those that move most in colour."""
    steps = np.arange(len(table))
    marker = dot(table[:, 0])
    moving = np.argsort(-np.ptp(table, axis=0), kind="stable")[:5]
    many = table.size > 20_000  # as paths they would make the page too heavy to scroll
    panel.plot(steps, table, color=GREY, lw=0.5, marker=marker, ms=3, rasterized=many)
    for unit, colour in zip(moving, LINES, strict=False):
        panel.plot(
            steps, table[:, unit], color=colour, lw=1.2, marker=marker, ms=3, label=f"{unit}"
        )
    panel.axhline(0, color="#dfe2e7", lw=0.8, zorder=0)
    panel.set_title(title, fontsize=9, loc="left", pad=15)
    panel.xaxis.set_major_locator(whole(5))
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(-0.03, 0.96),
        borderpad=0.1,
        ncols=5,
        fontsize=7,
        handlelength=0.8,
        columnspacing=0.8,
        handletextpad=0.3,
    )


def principal_plane(states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean [H], two axes [2, H] and the part of the variance along each [2] of [M, H].

    An axis points where its largest entry is positive, so that it is the same on any machine.
    """
    mean = states.mean(axis=0)
    _, sizes, axes = np.linalg.svd(states - mean, full_matrices=False)
    axes = axes[:2]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = np.where(largest < 0, -axes, axes)
    return mean, axes, (sizes**2 / ((sizes**2).sum() or 1.0))[:2]


def plane(drawn: Figure, panel, found: Inspection, b: int, name: str) -> None:
    """Draw the way of a state through the plane in which the sequences' states differ most."""
    arrays = found.arrays[name].astype(np.float64)
    many = steps_of(found, name.rpartition(".")[0])
    ways = [array[:n] for array, n in zip(arrays, many, strict=True)]
    together = np.concatenate(ways)
    if min(together.shape) < 2:
        panel.set_axis_off()
        return
    mean, axes, parts = principal_plane(together)
    for number, way in enumerate(ways):
        x, y = axes @ (way - mean).T
        panel.plot(
            x, y, color=GREY if number != b else INK, lw=0.6 if number != b else 0.8, zorder=1
        )
        if number == b:
            dots = panel.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=11, zorder=2)
    panel.set_xlabel(f"first axis, {parts[0]:.0%}", fontsize=8)
    panel.set_ylabel(f"second, {parts[1]:.0%}", fontsize=8)
    panel.set_title(f"{name} in its plane", fontsize=9, loc="left", pad=15)
    bar_of(drawn, dots, panel, "time step").ax.yaxis.set_major_locator(whole(4))


def gradient(found: Inspection, b: int) -> Figure:
    """Draw the size of the gradient by each state over time, on a logarithmic axis.

    The steps of a forecast follow those of the sequence.
    """
    n, norms = found.lengths[b], gradient_norms(found.arrays)
    ahead = found.model.forecast_steps if found.model.decodes else 0
    drawn = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    panel = drawn.subplots()
    layers = [*layer_names(found.model), "decoder"]
    for name, norm in norms.items():
        layer, _, state = name.rpartition(".")
        many = steps_of(found, layer)[b]
        size = np.where(norm[b, :many] > 0, norm[b, :many], np.nan)  # 0 has no logarithm
        panel.plot(
            np.arange(many) + n * (layer == "decoder"),
            size,
            color=LINES[layers.index(layer) % len(LINES)],
            lw=1.0 if state == "c" else 1.6,
            ls=(0, (3, 2)) if state == "c" else "-",
            marker=dot(size),
            mfc="none" if state == "c" else None,
            label=name,
        )
    panel.set_yscale("log")
    if ahead:
        panel.axvline(n - 0.5, color="#8a8f98", lw=0.8)
    sizes = np.concatenate([norm[norm > 0] for norm in norms.values()] or [np.ones(1)])
    low, high = (np.log10(sizes.min()), np.log10(sizes.max())) if sizes.size else (0, 0)
    panel.set_ylim(10 ** (np.floor(low) - 0.1), 10 ** (np.ceil(high) + 0.1))
    powers(panel.yaxis)
    panel.set_ylabel("gradient norm")
    panel.grid(axis="y", color="#eceef1", lw=0.8)
    steps_axis(panel, n + ahead)
    drawn.legend(loc="outside right upper", fontsize=8)
    return drawn
