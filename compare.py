"""Run one model in PyTorch and in JAX on the same data, and prove them equal or show what is not.

Both start from the same weights and see the same batches. Compared are, on the first batch, the
forward pass and every gradient, and then a whole training run step by step, in float32 and in float64.
Writes DIR/report.html, which needs no other file, and DIR/parity.json:

    {"verdict": "same", or "chaos: ..", or "different: .." and what differs,
     "float32": {..}, "float64": {
         "forward": {name: {"max_ulp", "rel", "torch_rel", "jax_rel", "tolerance", "worst", "verdict"}},
         "gradients": the same by parameter and of the inputs,
         "training": [{"step", "loss_torch", "loss_jax", "params_rel"}],
         "verdict": as above, for this dtype},
     "drift": {"verdict", "sentence", "dtype", "step", "array", "growth"}, see parity.drift,
     "speed": {dtype: {"torch": {"first_step_seconds", "step_seconds", "peak_mib"}, "jax": {..}}},
     "environment": {"versions", "cpu", "cores", "load", "system", "command", "seed", "data",
         "options", "parameters", "inject": null or {"name", "sentence"}}}

"rel" is ||torch - JAX|| / ||truth||, "torch_rel" and "jax_rel" are each side's distance from the truth,
"worst" the index of the largest difference; "loss" is the batch's before the step, "params_rel" of all
parameters end to end after it. A number that is not finite is null. "chaos": rounding alone, multiplied
at every step, parts the training runs; nothing is wrong.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from experiment.command import run, say

DTYPES = ("float64", "float32")
KEPT = ("max_ulp", "rel", "torch_rel", "jax_rel", "tolerance", "worst", "verdict")


def main(argv: list[str]) -> None:
    from experiment.atomic import check_new_directory, write_new
    from experiment.flags import parse, parser_for
    from experiment.study import StudyConfig, environment
    from spec.errors import ConfigError

    parser = parser_for(StudyConfig, __doc__.splitlines()[0])
    own = parser.add_argument_group("Study")
    own.add_argument("--out", metavar="DIR", help="directory to make and write to")
    own.add_argument("--inject", metavar="NAME", help="give JAX a known fault; list names them all")
    given, flags = parse(parser, StudyConfig, argv)
    name, out = flags.get("inject"), flags.get("out")
    config = StudyConfig(**given)
    if name is not None:
        require_everything()
        from parity.inject import INJECTIONS, listed, unknown

        if name == "list":
            return say(listed())
        if name not in INJECTIONS:
            raise ConfigError(unknown(name))
        config = StudyConfig(**{**INJECTIONS[name].options, **given})
    if not out:
        raise ConfigError("--out: is required; name a directory to make")
    check_new_directory(Path(out))

    from experiment.start import read_dataset

    dataset = read_dataset(config, "float64")
    require_everything()
    for note in dataset.notes:
        say(note)
    result, curves = study(config, dataset, name)
    command = shlex.join(["python", "compare.py", *argv])
    result["environment"] |= environment(command, config, dataset)

    from report.parity_page import page, summary

    def files():  # the numbers are on the disk before the page is drawn
        yield "parity.json", as_json(result).encode()
        yield "report.html", page(result, curves).encode()

    write_new(Path(out), files())
    say(summary(result))
    return say(f"report: {Path(out) / 'report.html'}")


def require_everything() -> None:
    """Raise ConfigError where a package that a comparison takes is not installed."""
    from spec.backend import load_backend
    from spec.errors import ConfigError

    for name in ("torch", "jax"):
        load_backend(name)
    try:
        import report.parity_page  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run: pip install -c constraints/py311.txt -e '.[report]'"
        ) from None


def study(config: Any, dataset: Any, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare everything; return what parity.json holds, and arrays for the figures by dtype."""
    from experiment.checkpoint import model_config
    from experiment.study import alone, batches, counted, speed, steps_of, training
    from parity.drift import drift
    from parity.family import judge_forward, judge_gradients, ulps_by_step
    from parity.inject import INJECTIONS, injected, require_visible
    from spec.config import Execution
    from spec.errors import DivergedError
    from spec.params import init_params, parameter_schema

    model = model_config(config, dataset.meaning)
    start = init_params(parameter_schema(model), config.seed)
    batch = next(batches(config, dataset))
    in_torch, in_jax = (training(side, config, dataset) for side in ("torch", "jax"))
    steps = steps_of(config, dataset)
    fault = None
    if name:
        fault = {"name": name, "sentence": INJECTIONS[name].sentence}
        require_visible(name, model, config, len(dataset.train) % config.batch_size > 0)
    result: dict[str, Any] = {"verdict": ""} | {dtype: {} for dtype in DTYPES}
    curves: dict[str, Any] = {dtype: {} for dtype in DTYPES}
    say(f"comparing one batch, then {steps} steps in both dtypes")
    with injected(name, config.batch_size) if name else nullcontext():
        for dtype in DTYPES:
            place = Execution(dtype=dtype, threads=config.threads, fast=config.fast)
            forward = judge_forward(model, start, batch, place)
            gradients = judge_gradients(model, start, batch, place)
            result[dtype]["forward"] = kept(forward.outputs + gradients.outputs)
            result[dtype]["gradients"] = kept(gradients.gradients)
            curves[dtype]["ulps"] = ulps_by_step(model, start, batch, dtype)
        try:
            runs = drift(in_torch, counted(in_jax, steps), start)
        except ValueError as error:
            raise DivergedError(f"{error}; nothing can be compared, try a smaller --lr") from None
    for dtype in DTYPES:
        losses = (x.tolist() for x in runs.numbers[dtype]["loss"])
        weights = runs.relative(dtype, start).tolist()
        columns = ("step", "loss_torch", "loss_jax", "params_rel")
        rows = zip(range(1, len(weights) + 1), *losses, weights, strict=True)
        result[dtype]["training"] = [dict(zip(columns, row, strict=True)) for row in rows]
        result[dtype]["verdict"] = verdict(result[dtype], runs, dtype)
        curves[dtype]["apart"] = runs.relative(dtype)
        curves[dtype]["explained"] = runs.relative(dtype, bound=True)
    result["verdict"] = gravest(result[dtype]["verdict"] for dtype in DTYPES)
    result["drift"] = runs.as_dict()
    result["speed"] = {
        dtype: {side: alone(speed, side, config, start, dtype) for side in ("torch", "jax")}
        for dtype in reversed(DTYPES)
    }
    result["environment"] = {"inject": fault, "parameters": sum(x.size for x in start.values())}
    return result, curves


def kept(arrays: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return what the judge measured, by name."""
    return {a.name.removeprefix("d "): {key: getattr(a, key) for key in KEPT} for a in arrays}


def verdict(section: Mapping[str, Any], runs: Any, dtype: str) -> str:
    """Put together what a dtype's parts found."""
    found = [
        f"{name} ({part}): {entry['verdict']}"
        for part in ("forward", "gradients")
        for name, entry in section[part].items()
        if entry["verdict"] != "both within rounding"
    ]
    if len(found) > 3:
        found = [*found[:3], f"{len(found) - 3} more arrays"]
    if runs.dtype == dtype:
        found.append(f"training: {runs.sentence}")
    elif runs.parted[dtype]:
        found.append(f"training: from step {runs.parted[dtype]} on by more than rounding")
    if found:
        return f"different: {'; '.join(found)}"
    return f"chaos: {runs.sentence}" if runs.verdict == "chaos" else "same"


def gravest(verdicts: Iterable[str]) -> str:
    """Return the first that tells a difference, or else the first that is not "same"."""
    ranks = ("different", "chaos", "same")
    return min(verdicts, key=lambda text: ranks.index(text.partition(":")[0]))


def as_json(result: Mapping[str, Any]) -> str:
    """Write as JSON, null for what is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, Real) and not isinstance(value, Integral):
            return float(value) if math.isfinite(value) else None
        return value

    return json.dumps(plain(result), indent=1) + "\n"


if __name__ == "__main__":
    run(main)
