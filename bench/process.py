"""A worker as its parent sees it: started, asked, waited for without spinning, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.errors import WorkerError

MEMORY_SHARE = 0.85
"""A worker on a CPU may take this share of what is available when it starts."""


class CellFailure(Exception):
    """A command ended otherwise than `ok`: the cell's status and the reason."""

    def __init__(self, status: str, reason: str, detail: str = "", curve: list[Any] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.detail, self.curve = status, reason, detail, curve or []


class Worker:
    """One `bench.worker` process."""

    def __init__(self, setting: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._buffer = b""
        self._oom_kills = _oom_kills()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            bufsize=0,
        )
        limit = int(available_memory() * MEMORY_SHARE) if setting["device"] == "cpu" else None
        self._send({**setting, "parent": os.getpid(), "memory_limit": limit})
        self._ready = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self, timeout: float) -> None:
        """Wait until the libraries are loaded.

        Raises:
            CellFailure: it never came up.
        """
        if not self._ready:
            self._receive(timeout)
            self._ready = True

    def ask(self, do: str, timeout: float, **arguments: Any) -> Any:
        """Send one command and wait for its answer.

        Raises:
            CellFailure: the command failed, ran out of time, or took the process with it.
        """
        self._send({"do": do, **arguments})
        return self._receive(timeout)

    def end(self) -> None:
        """Close the pipe, and kill what does not go by itself."""
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return  # it has died; `_receive` says of what

    def _receive(self, timeout: float) -> Any:
        assert self.process.stdout
        deadline = time.monotonic() + timeout
        out = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                self.process.kill()
                self.process.wait()
                raise CellFailure("timeout", f"no answer within {timeout:g} s", self._tail())
            chunk = os.read(out, 1 << 20)
            if not chunk:
                raise self._death()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkerError(f"worker {self.pid} answered outside the protocol: {line[:80]!r}") from error
        if answer["status"] != "ok":
            raise CellFailure(answer["status"], answer["reason"], answer.get("detail", ""), answer.get("curve"))
        return answer["result"]

    def _death(self) -> CellFailure:
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            if -code == signal.SIGKILL and _oom_kills() > self._oom_kills:
                return CellFailure("oom", "killed by the kernel: out of memory", self._tail())
            return CellFailure("failed", f"killed by {name}", self._tail())
        return CellFailure("failed", f"the process ended with exit code {code}", self._tail())

    def _tail(self) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(self.log.tell() - 4000, 0))
        return self.log.read().decode(errors="replace")


_ENVIRONMENT = {
    "USE_HUB_KERNELS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}


def available_memory() -> int:
    """What the kernel could hand out now [B]."""
    import psutil

    return int(psutil.virtual_memory().available)


def _oom_kills() -> int:
    """How often the kernel's OOM killer has struck; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
