"""Predict with a trained model, in PyTorch or in JAX, whichever trained it."""

from experiment.command import StopRequest, run, say


def main(argv: list[str]) -> int | None:
    from experiment.config import PredictConfig
    from experiment.flags import parse, parser_for

    given, _ = parse(parser_for(PredictConfig, __doc__), PredictConfig, argv)
    config = PredictConfig(**given)

    from pathlib import Path

    from experiment import atomic
    from experiment.predictions import predict

    report = predict(config)
    for note in report.notes:
        say(note)
    stop = StopRequest()
    stop.listen()  # A file begun is finished.
    atomic.write_all([(Path(path), content) for path, content in report.files])
    for path, _ in report.files:
        say(f"{report.rows} rows: {path}")
    measured = report.metrics or {}
    width = max([10, *(len(name) + 1 for name in measured)])
    for name, value in measured.items():
        say(f"{name:>{width}} {value:.6g}")
    return None if stop.signal is None else 128 + stop.signal


if __name__ == "__main__":
    run(main)
