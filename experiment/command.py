"""What every command shares: exit codes, one-line errors, signals and a stdout that may vanish."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from spec.errors import SeqduetError

SIGNALS = (signal.SIGINT, signal.SIGTERM) + ((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())


class StopRequest:
    """Turns the first signal into a request to stop, the second into an end at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def listen(self) -> None:
        """Take over from `stop_at_once`."""
        for number in SIGNALS:
            signal.signal(number, self)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """End without a traceback; used while there is nothing to save."""
    os.write(2, b"interrupted; nothing was lost\n")
    os._exit(128 + number)


def say(text: str = "") -> None:
    """Print a line; a closed or full stdout ends the printing, not the work."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a command's main function and exit with its code."""
    for number in SIGNALS:
        signal.signal(number, stop_at_once)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:]) or 0
    except SystemExit as exit:  # --help and --version
        code = int(exit.code or 0)
    except BaseException as error:
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, SeqduetError)
        text = str(error) if known else f"{type(error).__name__}: {error}; --debug shows where"
        say_error(" ".join(text.splitlines()))
        code = error.exit_code if known else 1
    say_nothing_more()
    sys.exit(code)


def say_error(text: str) -> None:
    """Print one line on stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {text}", file=sys.stderr, flush=True)


def say_nothing_more() -> None:
    """Flush stdout; what cannot be written is dropped without a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
