"""What every command shares: exit codes, one-line errors, signals and a stdout that may vanish."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from spec.errors import SeqduetError

SIGNALS = (signal.SIGINT, signal.SIGTERM) + ((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())
LONGEST_ERROR = 1000  # characters; what lies in the middle of a longer one is left out


class StopRequest:
    """Turns the first signal into a request to stop, the second into an end at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def listen(self) -> None:
        """Take over from `stop_at_once`: from now on there is something to save."""
        for number in SIGNALS:
            signal.signal(number, self)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """End without a traceback; used while there is nothing to save."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted; nothing was lost\n")
    os._exit(128 + number)


def stop_at_once_on_signals() -> None:
    """Install `stop_at_once`."""
    for number in SIGNALS:
        signal.signal(number, stop_at_once)


def say(text: str = "") -> None:
    """Print a line; a closed or full stdout ends the printing, not the work."""
    with contextlib.suppress(OSError, ValueError):
        print(text)
    flush()


def flush() -> None:
    """Empty the buffer of stdout, into nothing where stdout takes no more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        # Under Python's own buffer, so that what it still holds cannot fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a command's main function and exit with its code."""
    stop_at_once_on_signals()
    occupy_standard_descriptors()
    # torch's idle threads spin for milliseconds, which on a busy machine keeps the others from
    # working: 20 times slower. So short a spin costs 15 % on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's is not, and takes all of Unicode
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:]) or 0
    except SystemExit as exit:  # --help and --version
        code = int(exit.code or 0)
    except BaseException as error:
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, SeqduetError)
        reason = " ".join(str(error).splitlines())
        say_error(str(error) if known else f"{type(error).__name__}: {reason}; --debug shows where")
        code = error.exit_code if known else 1
    flush()
    sys.exit(code)


def occupy_standard_descriptors() -> None:
    """Open what the caller closed of 0, 1, 2, so that no checkpoint gets the number of stdout."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def say_error(text: str) -> None:
    """Print one line on stderr, without the control characters that a file's name may hold."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > LONGEST_ERROR:
        text = f"{text[: LONGEST_ERROR // 2]} .. {text[-LONGEST_ERROR // 2 :]}"
    if sys.stderr is not None:  # print would turn to stdout
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {text}", file=sys.stderr, flush=True)
