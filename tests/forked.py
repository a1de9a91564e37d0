"""Workers that are forks of the tests' own process, which has imported everything: the same code, seconds sooner.

That `python -m bench.worker` starts is shown by `tests/bench/test_worker.py` and by the runs of `tests/test_smoke.py`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from bench import worker


class Forked:
    """What `bench.process.Worker` needs of a `Popen`."""

    def __init__(self, command: list[str], *, stderr: IO[bytes], env: dict[str, str], **_: Any) -> None:
        assert command == [sys.executable, "-m", "bench.worker"]
        (commands, asked), (answers, answered) = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _work(commands, answered, stderr.fileno(), env)
        os.close(commands)
        os.close(answered)
        self.stdin, self.stdout = os.fdopen(asked, "wb", 0), os.fdopen(answers, "rb", 0)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + timeout if timeout is not None else None
        while (code := self._ended(os.WNOHANG if deadline else 0)) is None:
            if time.monotonic() > (deadline or 0):
                raise subprocess.TimeoutExpired("bench.worker", timeout or 0)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _work(commands: int, answers: int, log: int, environment: dict[str, str]) -> NoReturn:
    code = 1
    try:
        for descriptor, place in ((commands, 0), (answers, 1), (log, 2)):
            os.dup2(descriptor, place)
        os.closerange(3, 1 << 16)  # above all the pipes of other workers, which would not see their ends
        os.environ.update(environment)
        gc.freeze()  # a worker collects its own garbage, not all that pytest holds
        sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(2, "w", closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        worker.main()
        code = 0
    finally:
        os._exit(code)


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """Within, every worker is a fork; of a process without garbage, so that later forks are no smaller."""
    gc.collect()
    own = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.process.subprocess", own)
        yield
