"""Predict with a trained model, in PyTorch or in JAX, whichever trained it."""

from experiment.command import run, say


def main(argv: list[str]) -> None:

    from experiment.flags import parse, parser_for
    from experiment.predictions import PredictConfig

    given, _ = parse(parser_for(PredictConfig, __doc__), PredictConfig, argv)
    config = PredictConfig(**given)

    from experiment import predictions

    report = predictions.predict(config)
    for note in report.notes:
        say(note)
    say(f"{report.rows} predictions: {config.out}")
    if config.attention:
        say(f"attention weights: {config.attention}")
    for name, value in (report.metrics or {}).items():
        say(f"{name:>10} {value:.6g}")


if __name__ == "__main__":
    run(main)
