"""The table of pieces, from a file that pytest-benchmark really wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.report import micro

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group of our own suites, timed as briefly as can be."""
    path = tmp_path_factory.mktemp("micro") / "micro.json"
    suite = [str(ROOT / "benchmarks" / "micro" / "test_losses.py") + "::test_loss"]
    brief = ["--benchmark-enable", "--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--benchmark-warmup=off"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *suite, *brief, f"--benchmark-json={path}"],
        cwd=ROOT,
        # of a worker of pytest-xdist, pytest-benchmark would write nothing
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return path


def test_the_suite_of_losses_becomes_a_table(written: Path) -> None:
    stored, pieces = micro.read(written)
    text = micro.as_markdown(stored, pieces)
    assert text.count("## loss of 256 pairs and its gradient") == 1
    by_name = {piece.name: piece for piece in pieces}
    (peer,) = [piece for piece in pieces if piece.peer]
    ratio = by_name["sigmoid"].median / peer.median
    assert f"| {by_name['sigmoid'].rounds} | x{ratio:.2f} |" in text
    raw = {one["params"]["by"]: one["stats"] for one in stored["benchmarks"]}
    assert by_name["sigmoid"].median == raw["sigmoid"]["median"]
    assert by_name["sigmoid"].spread == raw["sigmoid"]["iqr"]
    assert stored["machine_info"]["node"] not in text, "no name of a host in a report"


def fabricated(**changes: Any) -> dict[str, Any]:
    def one(group: str, by: str, median: float, peer: bool) -> dict[str, Any]:
        stats = {"median": median, "iqr": median / 10, "rounds": 7}
        extra = {"peer": True} if peer else {}
        return {"group": group, "name": f"test[{by}]", "params": {"by": by}, "extra_info": extra, "stats": stats}

    return {
        "machine_info": {"node": "secret", "machine": "x86_64", "python_version": "3.11", "cpu": {"brand_raw": "A"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05.678",
        "benchmarks": [one("g", "ours", 3e-3, False), one("g", "theirs", 2e-6, True), one("h", "alone", 1.5, False)],
        **changes,
    }


def test_every_piece_stands_beside_the_peer_of_its_own_group(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    path.write_text(json.dumps(fabricated()))
    text = micro.as_markdown(*micro.read(path))
    assert "| ours | 3 ms | 300 µs | 7 | x1500.00 |" in text
    assert "| theirs | 2 µs | 0.2 µs | 7 | the peer |" in text
    assert "| alone | 1.5 s | 150 ms | 7 | no peer |" in text
    assert "A, Python 3.11; code 0123456789ab with changes; 2026-01-02T03:04:05." in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no file of pytest-benchmark"),
        ("[]", "is no file of pytest-benchmark"),
        ('{"benchmarks": [{}]}', "is no file of pytest-benchmark"),
        (json.dumps(fabricated(machine_info={})), "is no file of pytest-benchmark"),
        (json.dumps(fabricated(benchmarks=[])), "holds no benchmark"),
        (None, "No such file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "micro.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        micro.read(path)
