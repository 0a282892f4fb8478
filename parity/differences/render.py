"""Render the atlas as Markdown, from the recorded expectations and not from a run."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from parity.differences.entry import DIFFERENCES, GROUPS, Difference, body
from parity.differences.expect import show

DOCUMENT = Path(__file__).parents[2] / "docs" / "differences.md"
COMMAND = "python -m parity.differences"
REPOSITORIES = {
    "flax": "google/flax",
    "haiku": "google-deepmind/dm-haiku",
    "jax": "jax-ml/jax",
    "optax": "google-deepmind/optax",
    "torch": "pytorch/pytorch",
}
OPTAX_PAGES = {
    "losses": "api/losses.html",
    "optimizers": "api/optimizers.html",
    "schedules": "api/optimizer_schedules.html",
    "transformations": "api/transformations.html",
}
INTRODUCTION = f"""\
# Where PyTorch and JAX differ

{{count}} differences between PyTorch and JAX, Flax or Optax, each with the code of both sides, what each
gives, and what to write instead. Every entry runs as a test: snippets, numbers and advice; a version
that changes one fails `parity_tests/test_differences.py`. Rendered by `{COMMAND}` from
`parity/differences/`; edit there. `{COMMAND} NAME` runs one entry.

Snippets run as in a fresh process: on the CPU, one thread, torch's seed 0 and, unless they say
otherwise, JAX's default of 32 bits. They assume

```python
{{imports}}
```

"Same" is code whose two values agree to rounding. "`--inject NAME`" is what the training study
calls the difference.
"""
IMPORTS = """\
import io, math, pickle
import jax, jax.export, jax.numpy as jnp, numpy as np, optax, torch
from flax import linen, nnx, serialization
from jax import lax
from parity.differences import ulp
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import DataLoader

NAN, INF = float("nan"), float("inf")"""


def link(source: str) -> str:
    """Turn `torch.median`, `optimizers#optax.adam`, `flax#3746` or a URL into a Markdown link."""
    if source.startswith("https://"):
        return f"<{source}>"
    if thread := re.fullmatch(r"(\w+)#(\d+)", source):
        return f"[{source}](https://github.com/{REPOSITORIES[thread[1]]}/issues/{thread[2]})"
    if optax := re.fullmatch(r"(\w+)#(optax\..+)", source):
        page = f"https://optax.readthedocs.io/en/latest/{OPTAX_PAGES[optax[1]]}"
        return f"[`{optax[2]}`]({page}#{optax[2]})"
    if source.startswith("torch."):
        return f"[`{source}`](https://docs.pytorch.org/docs/stable/generated/{source}.html)"
    if source.startswith("jax."):
        return f"[`{source}`](https://docs.jax.dev/en/latest/_autosummary/{source}.html)"
    if flax := re.fullmatch(r"flax\.(linen|nnx)\.(\w+)/(\w+)", source):
        section, page, name = flax.groups()
        path = f"flax.nnx/nn/{page}" if section == "nnx" else f"flax.linen/{page}"
        holder = "flax.nnx.nn.recurrent" if page == "recurrent" else f"flax.{section}"
        root = "https://flax.readthedocs.io/en/stable/api_reference"
        return f"[`flax.{section}.{name}`]({root}/{path}.html#{holder}.{name})"
    raise ValueError(f"{source!r} is no known kind of source")


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entry(item: Difference) -> str:
    """Render one difference."""
    parts = [f'### <a id="{item.name}"></a>{item.title}\n']
    if item.text:
        parts.append(f"{item.text}\n")
    for side, snippet, gives in (
        ("PyTorch", item.in_torch, item.torch_gives),
        ("JAX", item.in_jax, item.jax_gives),
    ):
        parts += [f"{side}: {show(gives)}\n", code(body(snippet))]
    parts.append(f"Instead: {item.instead}\n")
    if item.same is not None:
        parts.append("Same:\n\n" + code(body(item.same)))
    notes = [f"`{item.name}`"]
    if item.inject:
        notes.append(f"`--inject {item.inject}`")
    if not item.portable:
        notes.append("depends on the processor")
    if item.since:
        notes.append(item.since)
    notes.append("source: " + ", ".join(map(link, item.source)))
    parts.append(" · ".join(notes) + "\n")
    return "\n".join(parts)


def helpers(module: ModuleType) -> str:
    """Render the functions and constants that the snippets of a group share."""
    shared = getattr(module, "SHARED", ())
    if not shared:
        return ""
    text = "\n\n".join(inspect.getsource(function).strip() for function in shared)
    return f"\nThe snippets of this group share\n\n{code(text)}"


def document() -> str:
    """Render the atlas."""
    contents, sections = [], []
    for group, heading in GROUPS.items():
        module = sys.modules[f"parity.differences.{group}"]
        items = [item for item in DIFFERENCES.values() if item.group == group]
        contents.append(f"- [{heading}](#{anchor(heading)}) ({len(items)})")
        contents += [f"  - [{item.title}](#{item.name})" for item in items]
        extra = getattr(module, "appendix", str)()
        sections.append(
            f"## {heading}\n\n{inspect.cleandoc(module.__doc__)}\n{helpers(module)}\n"
            + "\n".join(entry(item) for item in items)
            + (f"\n{extra}" if extra else "")
        )
    start = INTRODUCTION.format(count=len(DIFFERENCES), imports=IMPORTS)
    return "\n".join([start, *contents, "", *sections])
