"""The page of an inspection: one HTML file with its figures inside, for the screen and for paper."""

import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiment.inspection import UNKNOWN, Inspection
from report.model_figures import figures
from report.parity_page import CSS, HTML, SIDES, STYLE, inline, number, row_of, svg_of
from spec.config import ModelConfig

OWN_CSS = Path(__file__).with_suffix(".css")
READING = {
    "sequence": """{attention}Saliency: how much the explained output changes with each reading,
    |d output / d reading|. Integrated gradients: each reading's share in what sets the output apart from
    that of a sequence at the training mean; blue raises it, red lowers it.""",
    "gates": """Units from top to bottom, time steps from left to right{back}. {gates} blue above 0 and
    red below. One scale a column.""",
    "attention": """What each step of the forecast attends to, a row each; a row adds up to 1.""",
    "heads": """How much each step attends to each, head by head; a row adds up to 1.""",
    "states": """Every unit over time, in colour the five that move most, by number. Right: the way of
    the {state} through the plane in which these sequences' states differ most (principal
    components, with their part of the variance); grey: the other sequences.""",
    "gradient": """‖d output / d state‖ at each step: how much the explained output depends on what
    the network holds there.{fading}{dashed} One axis for all sequences.""",
}
UNITS = """Explained: the output whose gradients are shown. Inside, readings{targets} are in standard
deviations from the mean of the training part{logits}. Nothing is dropped out. Steps, units and layers count
from 0, as in <code>arrays.safetensors</code>, which holds the numbers behind the figures."""


def files(found: Inspection, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw everything: report.html, and each figure as PNG and SVG.

    Args:
      found: what was inspected.
      facts: "checkpoint", "command", and "versions": name -> text.
    """
    drawn: dict[str, bytes] = {}
    sections = []
    for b, row in enumerate(found.summary()):
        parts = [f'<h2 class="sequence">{heading(row)}</h2>']
        with matplotlib.rc_context(STYLE):
            for kind, figure in figures(found, b):
                name = f"line{row['line']}-{kind}"
                text = " ".join(caption(found, b, kind).split())
                svg, png = svg_of(figure, name), io.BytesIO()
                figure.set_layout_engine("none")  # It is laid out: that takes longest.
                figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
                drawn |= {f"{name}.svg": svg.encode(), f"{name}.png": png.getvalue()}
                about = title(found, kind)
                label = f"Line {row['line']}: {about[:1].lower()}{about[1:]}"
                parts += [f"<h3>{about}</h3>", inline(svg, label, text)]
        sections.append("\n".join(parts))
    return drawn | {"report.html": page(found, facts, sections).encode()}


def page(found: Inspection, facts: Mapping[str, Any], sections: list[str]) -> str:
    """Put the page together."""
    model = found.model
    name = f"{model.model}, seen from inside"
    count = sum(array.size for array in found.params.values())
    about = [facts["checkpoint"], SIDES[found.backend][0], found.run.dtype, f"{count:,} parameters"]
    labelled = model.task == "classification"
    units = UNITS.format(
        targets="" if labelled else " and targets",
        logits=", outputs are logits" if labelled else "",
    )
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(" · ".join(about))}</p>',
        f"<h2>Predictions</h2>{predictions(found)}<p class='soft'>{units}</p>",
        *sections,
        f'<h2 class="sequence">Parameters</h2>{parameters(found.params)}',
        f"<h2>How to repeat this</h2><pre><code>{escape(facts['command'])}</code></pre>",
        facts_table(found, facts),
    ]
    css = CSS.read_text() + OWN_CSS.read_text()
    head = f"<title>{escape(name)}</title>\n<style>\n{css}</style>"
    return HTML.format(head=head, body="\n".join(body))


def heading(row: Mapping[str, str]) -> str:
    """Say which sequence it is and what was made of it."""
    text = f"Line {row['line']}: predicted {row['prediction']}"
    known = row.get("truth", UNKNOWN) != UNKNOWN
    return escape(f"{text}, true {row['truth']}" if known else text)


def title(found: Inspection, kind: str) -> str:
    """Name a figure."""
    kind, _, layer = kind.partition("-")
    model = found.model
    parts = {"decoder": "the decoder", "self": "the last layer's outputs to each other"}
    where = parts.get(layer, f"layer {layer[1:]}")
    gated = "States" if model.cell == "rnn" else "Gates and states"
    seen = "The sequence" + (", its attention" if model.attends or not model.recurrent else "")
    words = {
        "sequence": f"{seen} and what the prediction rests on",
        "gradient": "Gradient through time" if model.recurrent else "Gradient at each step",
        "attention": "Attention at each step of the forecast",
        "gates": f"{gated} of {where}",
        "heads": f"Attention of {where}",
        "states": f"{'State trajectories' if model.recurrent else 'Residual stream'} of {where}",
    }
    return words[kind]


def caption(found: Inspection, b: int, kind: str) -> str:
    """Say how to read a figure, beside the first of its kind, and what the shares add up to."""
    model, text = found.model, ""
    if b == 0 and not kind.endswith(("decoder", *(f"l{n}" for n in range(1, model.num_layers)))):
        text = READING[kind.partition("-")[0]].format(
            attention=shading(model),
            gates="The state is"
            if model.cell == "rnn"
            else "A gate is open at 1 (dark) and shut at 0; candidates and states are",
            state="hidden state" if model.recurrent else "residual stream",
            back=", of the reverse direction too, which runs from right to left"
            if model.bidirectional
            else "",
            fading=" Falling away from the prediction it vanishes, rising it explodes."
            if model.recurrent
            else "",
            dashed=" Dashed: the cell state." if model.cell == "lstm" else "",
        )
    if b == 0 and kind == "gradient" and model.decodes:
        text += " Right of the line: the steps of the forecast."
    if b == 0 and kind.endswith("decoder"):
        text = "As above, over the steps of the forecast, from 0 for the first."
    if kind == "sequence":
        a = found.attribution
        kinds = "logit of class" if model.task == "classification" else "prediction of"
        text += (
            f" The {kinds} {found.outputs[found.explained[b]]} is {a.prediction[b]:.4g}, at the "
            f"training mean {a.baseline[b]:.4g}; the shares add up to the difference but for "
            f"{number(abs(float(a.gap[b])))}."
        )
    return text


def shading(model: ModelConfig) -> str:
    """Say what stands behind the sequence."""
    if model.recurrent and not model.attends:
        return ""
    what = "the attention weight of each step"
    if model.decodes:
        what += ", at the step of the forecast explained"
    elif model.self_attention:
        what += ", there a mix of all steps by self-attention"
    elif not model.attends:
        what = "the last layer's attention on each step, mean of all heads and steps"
    return f"Shaded, white for the least: {what}. "


def predictions(found: Inspection) -> str:
    """Compare prediction and truth of each sequence."""
    rows = found.summary()

    def cell(text: str) -> str:
        return escape(text).replace(" / ", "&nbsp;/ ")  # no line of a path begins with its stroke

    heads = "".join(f'<th class="text">{name}</th>' for name in rows[0])
    body = "".join(row_of((cell(text), "text") for text in row.values()) for row in rows)
    return (
        f'<div class="scroll"><table class="whole"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def parameters(params: Mapping[str, np.ndarray]) -> str:
    """List shape, count, norm, root mean square and largest size of each parameter."""

    def cells(name: str, shape: str, arrays: Iterable[np.ndarray]) -> list[tuple[str, str]]:
        flat = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
        norm = np.linalg.norm(flat)
        sizes = (norm, norm / np.sqrt(flat.size), np.abs(flat).max())
        texts = [f"<code>{escape(name)}</code>", shape, f"{flat.size:,}"]
        return [(text, "") for text in texts + [f"{size:.4g}" for size in sizes]]

    rows, parts = [], {name.partition(".")[0] for name in params}
    for part in sorted(parts, key=lambda p: [n.partition(".")[0] for n in params].index(p)):
        rows.append(f'<tr class="part"><td colspan="6">{escape(part)}</td></tr>')
        for name, array in params.items():
            if name.partition(".")[0] == part:
                shape = " x ".join(map(str, array.shape))
                rows.append(row_of(cells(name, shape, [array])))
    total = row_of(cells("all", "", params.values())).replace("<tr>", '<tr class="total">')
    heads = ("parameter", "shape", "count", "norm", "root mean square", "largest")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}{total}</tbody></table></div>"
    )


def facts_table(found: Inspection, facts: Mapping[str, Any]) -> str:
    """List versions, data and the model's options."""
    versions = ", ".join(f"{name} {text}" for name, text in facts["versions"].items())
    options = ", ".join(f"{name} {value}" for name, value in vars(found.model).items())
    rows = [
        ("versions", escape(versions)),
        ("data", "<br>".join(escape(note) for note in found.source)),
        ("model", escape(options)),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'
