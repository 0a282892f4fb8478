"""The card of a model: what it is, what it was trained on, how good it was, how to load it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiment.answers import output_names
from experiment.checkpoint import Checkpoint, model_config
from experiment.run_directory import BEST, SUMMARY
from spec import __version__
from spec.config import Architecture
from spec.params import parameter_schema

CARD = """---
library_name: seqduet
tags: [{tags}]
---

# {model}, {task}

{parameters} parameters ({dtype}) of epoch {epoch}, trained in {backend}, seed {seed}; exported by seqduet {version}.

- features of a step: {features}
- {answers}
- data, by SHA-256: {data}

{metrics}
## Use

`model.safetensors` holds the weights under torch's names, `config.json` all the rest: the options of
the model, the scaling of its inputs and targets, the labels. Either framework reads both, and
answers as `predict.py` does:

```python
from experiment.pretrained import from_pretrained

model = from_pretrained("path/to/this/folder", backend="torch")  # or "jax"
answers = model.answer(inputs, lengths)  # readings [N, T, {D}], unscaled; real steps [N]
```

`answers` {shape} are {what}.

## Options of the model

| option | value |
|---|---|
{options}
"""


def model_card(stored: Checkpoint, path: Path) -> str:
    """Write the card of a checkpoint; its test metrics where the run at `path` has them."""
    run, meaning = stored.config, stored.meaning
    model = model_config(run, meaning)
    answers, what = (
        f"targets: {listed(meaning.layout.outputs)}",
        "predictions in the unit of the data",
    )
    if model.outputs_per_target > 1:
        what += f": {listed(output_names(model, meaning))}"
    if meaning.task == "classification":
        answers, what = f"classes: {listed(meaning.classes)}", "the probabilities of the classes"
    names = (item.name for item in fields(Architecture))
    return CARD.format(
        tags=", ".join(["time-series", meaning.task, "pytorch", "jax"]),
        model=run.model,
        task=meaning.task,
        parameters=sum(math.prod(spec.shape) for spec in parameter_schema(model).values()),
        dtype=run.master_dtype + f", computing in {run.dtype}" * (run.dtype != run.master_dtype),
        version=__version__,
        backend=run.backend,
        epoch=stored.progress.epoch,
        seed=run.seed,
        features=listed(meaning.layout.features),
        answers=answers,
        data=listed(stored.sha256.values()),
        metrics=tabulated(stored, path),
        D=model.input_size,
        shape=f"[N, T, {model.output_size}]" if model.every_step else f"[N, {model.output_size}]",
        what=f"{what}, at every step" if model.every_step else what,
        options="\n".join(f"| {name} | {listed([getattr(run, name)])} |" for name in names),
    )


def listed(values: Sequence[Any]) -> str:
    """Write values as code, so that no name of a column or class is taken for Markdown."""
    texts = (json.dumps(value, ensure_ascii=False).strip('"') for value in values)
    return ", ".join(f"`{text.replace(chr(96), chr(39))}`" for text in texts)


def tabulated(stored: Checkpoint, path: Path) -> str:
    """Lay out the metrics of a run's summary beside its baselines', if the checkpoint is its best."""
    try:
        summary = json.loads((path.parent / SUMMARY).read_text())
        if path.name != BEST or summary["best_epoch"] != stored.progress.epoch:
            return ""
        rows: Mapping[str, Any] = {"this model": summary["test"]} | summary["baselines"]
        names = list(summary["test"])
        lines = ["## Test", "", f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for row, values in rows.items():
            cells = [f"{values[name]:.6g}" if name in values else "" for name in names]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return "\n".join([*lines, ""])
    except (OSError, ValueError, KeyError, TypeError):  # the run has not ended, or is not there
        return ""
