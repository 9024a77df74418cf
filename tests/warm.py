"""Python programs under test, started where torch and Lightning are imported already: that takes longer than most of these programs run.

A server of processes (the standard library's "forkserver") imports them once in a test session. A program is a copy of it in which nothing has
run yet, with a session, folder, environment and output of its own. Ranks and jobs that the program starts are started as everywhere.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "lightning.pytorch",
        "explainode.jobs.train",
        "explainode.cli.train",
        "matplotlib.pyplot",
    ]
)


def _python(words: Sequence[str], folder: str, environment: Mapping[str, str], output: str, errors: str) -> None:
    """What `python WORDS` does, from the first statement of its program on."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.path.insert(0, folder if words[0].startswith("-") else str(Path(words[0]).parent))
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        # The end of an interpreter, in its order; `multiprocessing` leaves out the second. joblib ends its workers in one, W&B its service.
        threading._shutdown()
        atexit._run_exitfuncs()


class Program:
    """A running `python WORDS`; WORDS begin with -m or with the path of a script."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        output: Path = Path(os.devnull),
        errors: Path | None = None,
    ) -> None:
        self._process = _SERVER.Process(
            target=_python,
            args=(words, str(folder), dict(os.environ if environment is None else environment), str(output), str(errors or output)),
        )  # fmt: skip
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The status, as `subprocess` writes it, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The status at the end.

        Raises:
            subprocess.TimeoutExpired: if it runs longer.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def end(self) -> None:
        """End it with all processes that it started."""
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()


def run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end."""
    with tempfile.TemporaryDirectory() as said:
        output, errors = Path(said, "stdout"), Path(said, "stderr")
        program = Program(words, folder, environment, output, errors)
        try:
            status = program.wait(timeout)
        finally:
            program.end()
        return subprocess.CompletedProcess(list(words), status, output.read_text(), errors.read_text())
