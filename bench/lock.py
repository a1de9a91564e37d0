"""One lock for the machine: two runs never time at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import Busy


def default_path() -> Path:
    return Path(tempfile.gettempdir()) / "llm-efficiency-bench.lock"


@contextlib.contextmanager
def machine_lock(owner: str, path: Path | None = None) -> Iterator[None]:
    """Hold the lock while timing. The kernel lets go of it when the process ends, however it ends.

    Raises:
        Busy: another run holds it; says whose.
    """
    path = path or default_path()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().strip() or "unknown"
            raise Busy(f"another run is timing on this machine ({holder}); wait for it to end") from error
        with contextlib.suppress(OSError):
            os.chmod(path, 0o666)  # other users' runs must be able to open it, whatever our umask
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()}, {owner}, since {time.strftime('%H:%M:%S')}")
        file.flush()
        yield
