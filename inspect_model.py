"""Look inside a trained model: what it computes on a few sequences and what its predictions rest on.

Writes report.html, its figures as PNG and SVG, and the numbers behind them as arrays.safetensors.
"""

import shlex
from pathlib import Path

from experiment.command import StopRequest, run, say


def main(argv: list[str]) -> int | None:
    from experiment.atomic import check_new_directory, write_new
    from experiment.flags import parse, parser_for
    from experiment.inspection import InspectConfig
    from spec.errors import ConfigError

    given, _ = parse(parser_for(InspectConfig, __doc__.splitlines()[0]), InspectConfig, argv)
    config = InspectConfig(**given)
    out = Path(config.out)
    check_new_directory(out)
    try:
        from report.model_page import files
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run: pip install -c constraints/py311.txt -e '.[report]'"
        ) from None

    from experiment.inspection import as_tensors, inspect, versions

    found = inspect(config)
    for note in found.source:
        say(note)
    facts = {
        "checkpoint": config.checkpoint,
        "command": shlex.join(["python", "inspect_model.py", *argv]),
        "versions": versions(found.backend),
    }
    content = {"arrays.safetensors": as_tensors(found), **files(found, facts)}
    stop = StopRequest()
    stop.listen()  # What is begun is finished.
    write_new(out, content.items())
    for row in found.summary():
        say(", ".join(f"{name} {text}" for name, text in row.items()))
    say(f"report: {out / 'report.html'}")
    return None if stop.signal is None else 128 + stop.signal


if __name__ == "__main__":
    run(main)
