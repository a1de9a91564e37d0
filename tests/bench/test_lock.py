from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import Busy, UsageError
from bench.lock import machine_lock

HOLD = """
import sys, pathlib
from bench.lock import machine_lock
with machine_lock("the other", pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_never_time_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"pid {other.pid}, the other"), machine_lock("us", path):
        pass
    other.kill()
    other.wait()
    with machine_lock("us", path):
        assert "us" in path.read_text()


def test_an_error_inside_passes_and_frees(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(OSError, match="inside"), machine_lock("us", path):
        raise OSError("inside")
    with machine_lock("us", path):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(UsageError, match="cannot open the lock"), machine_lock("us", tmp_path / "link"):
        pass
    assert not (tmp_path / "target").exists()
