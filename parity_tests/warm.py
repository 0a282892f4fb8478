"""Runs of pytest that start warm: the frameworks are imported once, and each run is a fork.

    python parity_tests/warm.py serve SOCKET
    python parity_tests/warm.py run SOCKET [arguments of pytest]

`run` prints what pytest does and ends with its exit code; the tests are those of its working
directory. Nothing is computed before the fork: threads and devices do not survive one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
LIMIT = 3600  # seconds of one run, should whoever asked for it be gone


def serve(path: str) -> None:
    """Wait for runs until killed."""
    sys.path.pop(0)  # this folder, which holds no packages
    import flax.linen  # noqa: F401
    import optax  # noqa: F401
    import pytest
    import torch  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are reaped unasked
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            run, _ = server.accept()
            with run:
                folder, output, *arguments = json.loads(run.makefile().readline())
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # tests wait for their own
                    signal.alarm(LIMIT)
                    os.dup2(os.open(output, os.O_WRONLY), 1)
                    os.chdir(folder)
                    sys.path.insert(0, folder)
                    code = pytest.main(arguments)
                    sys.stdout.flush()
                    run.sendall(bytes([code]))
                    os._exit(0)


def run(path: str, arguments: list[str]) -> int:
    """Have a run done; one that crashed has failed."""
    with tempfile.NamedTemporaryFile() as output, socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = [os.getcwd(), output.name, *arguments]
        server.sendall(json.dumps(request).encode() + b"\n")
        code = server.recv(1)
        print(output.read().decode())
    return code[0] if code else 1


@contextmanager
def warm_pytest() -> Iterator[list[str]]:
    """Keep a server; yield the command that has it run pytest.

    What JAX compiles is kept for all runs: one side of each comparison is never mutated.
    """
    program = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as name:
        path = f"{name}/socket"
        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{name}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        server = subprocess.Popen([*program, "serve", path], env=QUIET | cache)
        try:
            while not Path(path).exists():
                time.sleep(0.1)
            yield [*program, "run", path]
            if server.poll() is not None:
                raise RuntimeError(
                    "the server ended early: runs that it cut off seem to have failed"
                )
        finally:
            server.kill()


if __name__ == "__main__":
    command, path, *arguments = sys.argv[1:]
    sys.exit(serve(path) if command == "serve" else run(path, arguments))
