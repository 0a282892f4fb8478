"""Train a sequence model on a CSV, in PyTorch or in JAX."""

from experiment.command import StopRequest, run, say, stop_at_once_on_signals


def main(argv: list[str]) -> int | None:
    from experiment.config import RunConfig
    from experiment.flags import parse, parser_for, read_yaml, to_yaml

    parser = parser_for(RunConfig, __doc__)
    own = parser.add_argument_group("Run")
    own.add_argument("--out", metavar="DIR", help="directory of the run [runs/NAME-N]")
    own.add_argument(
        "--resume", nargs="?", const="", metavar="DIR", help="continue the run in --out, or in DIR"
    )
    own.add_argument(
        "--allow_data_change", action="store_true", help="resume although the data changed"
    )
    own.add_argument("--config", metavar="FILE", help="YAML file of options; flags override it")
    own.add_argument("--print_config", action="store_true", help="print every option and stop")
    given, flags = parse(parser, RunConfig, argv)
    if "config" in flags:
        given = read_yaml(flags["config"], RunConfig) | given
    config = RunConfig(**given)
    if "print_config" in flags:
        return say(to_yaml(config).rstrip())

    from contextlib import closing

    from experiment.conclude import conclude, report
    from experiment.console import Reporter
    from experiment.start import begin, resume

    stop = StopRequest()
    if "resume" in flags:
        where = (flags["resume"], flags.get("out"))
        training = resume(given, *where, "allow_data_change" in flags, stop.listen)
    else:
        training = begin(config, flags.get("out"), stop.listen)
    for note in training.dataset.notes:
        say(note)
    say(f"run: {training.directory.path}")

    history = training.directory.begin_metrics(training.progress.epoch)
    with closing(Reporter(training)) as reporter:

        def stopped() -> bool:
            reporter.step(training.progress.step)
            return stop.signal is not None

        for entry in training.epochs(stopped):
            history.append(entry)
            reporter.epoch(entry)
    stop_at_once_on_signals()
    if stop.signal is not None:
        say(
            f"stopped after step {training.progress.step}; continue with "
            f"--resume {training.directory.path}"
        )
        return 128 + stop.signal
    say(report(conclude(training, history), training))
    return None


if __name__ == "__main__":
    run(main)
