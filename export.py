"""Export a trained model to ONNX, TorchScript, torch.export, StableHLO or a safetensors folder."""

from experiment.command import StopRequest, run, say


def main(argv: list[str]) -> int | None:
    from experiment.config import ExportConfig
    from experiment.flags import parse, parser_for

    given, _ = parse(parser_for(ExportConfig, __doc__), ExportConfig, argv)
    config = ExportConfig(**given)

    from pathlib import Path

    from experiment import atomic
    from experiment.exports import export

    exported = export(config)
    say(exported.check)
    stop = StopRequest()
    stop.listen()  # A file begun is finished.
    atomic.write_all([(Path(path), content) for path, content in exported.files])
    for path, _ in exported.files:
        say(f"{config.format}: {path}")
    return None if stop.signal is None else 128 + stop.signal


if __name__ == "__main__":
    run(main)
