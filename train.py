"""Train a sequence model on a CSV, in PyTorch or in JAX."""

from experiment.command import StopRequest, run, say


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

    from experiment.conclude import conclude, table
    from experiment.console import Reporter
    from experiment.start import begin, resume

    out = flags.get("out")
    if "resume" in flags:
        training = resume(given, flags["resume"] or out, "allow_data_change" in flags)
    else:
        training = begin(config, out)
    for note in training.dataset.notes:
        say(note)
    say(f"run: {training.directory.path}")

    stop = StopRequest()
    stop.listen()
    progress = training.progress
    history = training.directory.begin_metrics(progress.epoch)
    reporter = Reporter(progress.epoch, training.config.epochs)
    for entry in training.epochs(lambda: stop.signal is not None):
        history.append(entry)
        reporter.show(entry)
    reporter.close()
    if stop.signal is not None:
        say(
            f"stopped after step {training.progress.step}; continue with "
            f"--resume {training.directory.path}"
        )
        return 128 + stop.signal
    say(table(conclude(training, history)))
    return None


if __name__ == "__main__":
    run(main)
