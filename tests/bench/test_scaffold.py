"""`bench new` in a copy of the checkout, as a new user would: what it writes runs as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry, scaffold
from bench.errors import UsageError

ROOT = Path(__file__).parents[2]
FAMILIES = ["decoding", "finetuning", "kv_cache", "preference"]
WRITTEN = ["techniques/{0}/my_{0}.py", "tests/techniques/{0}/test_my_{0}.py", "configs/my_{0}.yaml"]

ONE_AFTER_THE_OTHER = """
import sys
from bench import cli
for call in {calls}:
    sys.argv = ["bench", *call]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
"""


def python(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)


def new(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(checkout, "-m", "bench.cli", "new", "technique", *arguments)


def files(checkout: Path) -> set[str]:
    found = (path for path in checkout.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(checkout).as_posix() for path in found}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, with a new technique in every family."""
    copy = tmp_path_factory.mktemp("checkout")
    left = shutil.ignore_patterns("__pycache__")
    for name in ("bench", "techniques", "benchmarks", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=left)
    shutil.copy(ROOT / "pyproject.toml", copy)
    before = files(copy)
    calls = [["new", "technique", f"my_{family}", "--family", family] for family in FAMILIES]
    done = python(copy, "-c", ONE_AFTER_THE_OTHER.format(calls=calls))
    assert done.returncode == 0, done.stderr
    for family in FAMILIES:
        assert f"bench run my_{family} --quick" in done.stdout
    assert files(copy) - before == {path.format(family) for family in FAMILIES for path in WRITTEN}
    return copy


def test_every_family_has_templates() -> None:
    assert scaffold.families() == registry.families() == FAMILIES


def test_what_is_written_passes_its_tests_and_the_contract(checkout: Path) -> None:
    own = [WRITTEN[1].format(family) for family in FAMILIES]
    done = python(
        checkout, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "-k", "my_", "tests/test_contract.py", *own
    )
    assert done.returncode == 0, done.stdout
    for family, name in zip(FAMILIES, own, strict=True):
        assert f"{name}::" in done.stdout
        assert f"test_runs_on_two_architectures[my_{family}] PASSED" in done.stdout


def test_the_written_configs_are_valid(checkout: Path) -> None:
    configs = [WRITTEN[2].format(family) for family in FAMILIES]
    done = python(checkout, "-m", "bench.cli", "validate", *configs)
    assert done.returncode == 0, done.stderr
    for config in configs:
        assert f"{config}: " in done.stdout


IN_THIS_PROCESS = """
from pathlib import Path
from bench import api
run = api.run({names}, out="out", lock=Path("lock"), model="tiny:llama", quick=True, inline=True)
for record in run.store.records():
    print(record["family"], record["arm"], record["status"], len(record["rounds"]), record["reason"])
"""


def test_the_written_configs_run_as_they_are(checkout: Path) -> None:
    done = python(checkout, "-c", IN_THIS_PROCESS.format(names=[f"my_{family}" for family in FAMILIES]))
    assert done.returncode == 0, done.stderr
    for family in FAMILIES:
        assert f"{family} my_{family} ok 1" in done.stdout
    assert all(" ok 1" in line for line in done.stdout.splitlines()), "their baselines too"


def test_what_is_written_passes_the_linter(checkout: Path) -> None:
    own = [path.format(family) for family in FAMILIES for path in WRITTEN[:2]]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = python(checkout, "-m", "ruff", *command, *own)
        assert done.returncode == 0, done.stdout


def test_a_mistake_is_one_line_and_nothing_is_written(checkout: Path) -> None:
    before = files(checkout)
    done = new(checkout, "my_decoding", "--family", "kv_cache")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'my_decoding' is the name of a technique already")
    assert done.stderr.count("\n") == 1
    assert files(checkout) == before


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UsageError, match="--family 'decodin' is no family; did you mean 'decoding'"):
        scaffold.technique("my_way", "decodin")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ipo", "'ipo' is the name of a technique already"),
        ("long_document", "'long_document' is the name of a workload already"),
        ("smoke", "'smoke' is the name of a config already"),
        ("decoding", "'decoding' is the name of a config already"),
        ("class", "is no name"),
        ("my__way", "is no name"),
        ("../my_way", "is no name"),
        ("2_ways", "is no name"),
        ("my_way\n", "is no name"),
    ],
)
def test_names_that_are_refused(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "ROOT", _templates_in(tmp_path))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=message):
        scaffold.technique(name, "decoding")
    assert files(tmp_path) == before


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "ROOT", _templates_in(tmp_path))
    there = tmp_path / "tests/techniques/decoding/test_my_way.py"
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    with pytest.raises(UsageError, match=r"test_my_way\.py exists already"):
        scaffold.technique("my_way", "decoding")
    assert there.read_text() == "mine"
    assert not (tmp_path / "techniques/decoding/my_way.py").exists()


def _templates_in(folder: Path) -> Path:
    for family in FAMILIES:
        below = f"techniques/{family}/core/template"
        shutil.copytree(ROOT / below, folder / below)
    return folder
