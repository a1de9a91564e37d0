"""A package of somebody else's, installed beside ours, is seen and run: nothing here knows its names."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugin"
LOCK = "lock"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into; offline, and its source is left as it is."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = "--quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check --target"
    command = [sys.executable, "-m", "pip", "install", *options.split(), str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


def bench(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    # with a lock of its own: this shows that it runs, and measures nothing that another run could disturb
    block = f"from pathlib import Path; from bench import cli, lock; lock.default_path = lambda: Path({LOCK!r})"
    command = [sys.executable, "-c", f"{block}; cli.main()", *arguments]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, timeout=300)


def test_it_is_an_ordinary_package(installed: Path) -> None:
    (distribution,) = importlib.metadata.distributions(name="bench-example", path=[str(installed)])
    assert [(p.group, p.value) for p in distribution.entry_points] == [("bench.plugins", "bench_example")]
    assert "repeat_last" not in registry.techniques, "it must not be found without being installed"
    for file in PACKAGE.rglob("*.py"):
        assert "techniques." not in file.read_text()
        assert "benchmarks." not in file.read_text()


def test_its_plugins_are_listed_and_shown(installed: Path) -> None:
    done = bench(installed, "list")
    assert done.returncode == 0, done.stderr
    assert "repeat_last" in done.stdout
    assert "? stutter" in done.stdout
    assert "could not be imported" not in done.stdout
    done = bench(installed, "show", "repeat_last")
    assert ">= 1, <= 16" in done.stdout


def test_its_technique_is_run_against_our_baseline_on_its_workload(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(
        "name: own\nmodel: tiny:llama\nreplicates: 2\nbursts: 1\ncomparisons:\n"
        "  - workload: stutter\n    arms: [autoregressive, {technique: repeat_last, draft_tokens: 3}]\n"
    )
    done = bench(installed, "run", str(config), "--quick", "--device", "cpu", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = (tmp_path / "out").rglob("table.csv")
    with table.open() as file:
        lines = [line for line in csv.DictReader(file) if line["arm"].startswith("repeat_last")]
    assert {line["status"] for line in lines} == {"ok"}
    assert {line["comparison"] for line in lines} == {"decoding.stutter"}
    times = [float(line["value"]) for line in lines if line["metric"] == "tpot" and line["value"]]
    assert times
    assert min(times) > 0
