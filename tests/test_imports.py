"""Which way imports go: techniques -> bench <- benchmarks, and what works without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bench
import benchmarks
import techniques

ROOT = Path(bench.__file__).parent.parent


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    return list((ROOT / package).rglob("*.py"))


def test_bench_names_no_technique_and_no_workload() -> None:
    for file in files("bench"):
        wrong = {name for name in imported(file) if name.partition(".")[0] in {"techniques", "benchmarks"}}
        assert not wrong, file


def test_a_technique_imports_no_workload() -> None:
    for file in files("techniques"):
        assert not {name for name in imported(file) if name.partition(".")[0] == "benchmarks"}, file
    for file in files("benchmarks"):
        if "micro" not in file.parts:
            assert not {name for name in imported(file) if name.partition(".")[0] == "techniques"}, file


def test_packages_lie_in_the_checkout() -> None:
    for package in (bench, techniques, benchmarks):
        assert Path(package.__file__).resolve().parent.parent == Path(__file__).resolve().parent.parent


def test_files_hold_one_idea() -> None:
    for package in ("bench", "techniques", "benchmarks"):
        for file in files(package):
            assert len(file.read_text().splitlines()) <= 360, file
            assert file.stem not in {"utils", "helpers", "misc", "common"}


BLOCK = (
    "import sys; sys.modules['torch'] = None; sys.argv = ['bench', *{arguments!r}]; from bench.cli import main; main()"
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["report", "{run}"], ["compare", "{run}", "{run}", "--force"]]
)
def test_works_without_torch(arguments: list[str], finished_run: Path) -> None:
    words = [word.format(run=finished_run) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(arguments=words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
