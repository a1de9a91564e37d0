"""The smoke suite on the embedded model, through the real command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import registry


@pytest.mark.embedded
def test_smoke_suite(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.cli", "run", "smoke", "--out", str(tmp_path)]
    with psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines, resident = [], []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("["):  # a stage begins: a worker is about to run
                resident.append(process.memory_info().rss)
        assert process.wait() == 0, "".join(lines)
    assert len(resident) >= 16, "four families, each built, scored twice and timed"
    assert max(resident) < 320e6, "the parent is in the measurement's way"
    (run,) = (tmp_path / "quick" / "smoke").iterdir()
    records = [json.loads(path.read_text()) for path in (run / "cells").iterdir()]
    assert {r["family"] for r in records} == set(registry.families())
    for record in records:
        assert record["status"] == "ok", record["reason"]
        assert record["model"]["name"] == "smollm2-135m"
        assert record["model"]["origin"]
        assert "quick" in record["stamps"]
        assert record["quality"]["gates"]
        assert record["rounds"][0]["bursts"][0]["samples"]["seconds"]
        assert record["rounds"][0]["memory"]["components"]["weights"] > 100e6
    with (run / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    for axis in ("output_nll", "tpot", "peak_memory", "kv_cache_bytes", "time_per_step", "preference_accuracy"):
        assert any(line["metric"] == axis and line["change"] for line in lines), axis
    report = (run / "report.md").read_text()
    for record in records:
        assert f"| {record['arm']}" in report
