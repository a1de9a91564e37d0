"""Locks: two runs never time at once on a machine, and never write into one folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import Busy, UsageError


def default_path() -> Path:
    """One file for all users and jobs of a machine, whatever their own temporary folders."""
    shared = Path("/tmp")
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / "llm-efficiency-bench.lock"


@contextlib.contextmanager
def machine_lock(owner: str, path: Path | None = None) -> Iterator[None]:
    """Hold the machine while timing.

    Raises:
        Busy: another run holds it; says whose.
        UsageError: the lock's file cannot be opened.
    """
    with _held(path or default_path(), owner, "timing on this machine"):
        yield


@contextlib.contextmanager
def folder_lock(folder: Path, owner: str) -> Iterator[Path]:
    """Hold a run's folder while writing into it, from whichever machine; yields the lock's file.

    Raises:
        Busy: another run holds it; says whose.
        UsageError: the lock's file cannot be opened.
    """
    path = folder / ".lock"
    with _held(path, owner, f"writing into {folder}"):
        yield path


@contextlib.contextmanager
def _held(path: Path, owner: str, doing: str) -> Iterator[None]:
    """The kernel lets go of a lock when its process ends, however it ends."""
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "unknown"
            raise Busy(f"another run is {doing} ({holder}); wait for it to end") from error
        os.truncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk takes the holder's name, not the lock
            os.pwrite(descriptor, f"pid {os.getpid()}, {owner}, since {time.strftime('%H:%M:%S')}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            return os.open(path, flags)  # another user's file in a shared folder opens only without O_CREAT
        except FileNotFoundError:
            descriptor = os.open(path, flags | os.O_CREAT, 0o666)
            os.fchmod(descriptor, 0o666)  # other users' runs must be able to open it, whatever our umask
            return descriptor
    except OSError as error:
        raise UsageError(f"cannot open the lock {path}: {error.strerror}; remove it, or run as its owner") from error
