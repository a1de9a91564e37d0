"""What `compare` shows in its formats; the figures are those of chosen records."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from fabricated import ENVIRONMENT, record, run
from rich.console import Console

from bench.comparison import Contrast, contrast
from bench.errors import UsageError
from bench.limits import Check, examine, parse
from bench.report import compare
from bench.store import Run


@pytest.fixture
def shown(tmp_path: Path) -> tuple[Contrast, list[Check]]:
    """An arm that is slower, one that became invalid, one that is gone, another version of torch."""
    first = [record("base"), record("=arm"), record("wrong"), record("gone")]
    second = [record("base"), record("=arm", seconds=1.2, salt="b"), record("wrong", gate=False)]
    a = run(tmp_path / "a", first)
    b = run(tmp_path / "b", second, {**ENVIRONMENT, "versions": {"torch": "2.1"}})
    found = contrast(a, b)
    return found, examine(parse("throughput<-5%"), found)


def test_the_table_says_all_that_a_reader_needs(shown: tuple[Contrast, list[Check]]) -> None:
    console = Console(width=200, file=io.StringIO())
    compare.draw(*shown, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line in (
        "WORSE at least x1.",
        "withheld: invalid in the second run",
        "c wrong: invalid in the second run: gate true: it is not",
        "only in the first run: c.gone.seed0",
        "environment: versions.torch: 2.0 -> 2.1",
        "FAILS throughput<-5%: c =arm: between -1",
        "HOLDS throughput<-5%: c base",
        "CANNOT TELL throughput<-5%: c wrong: withheld",
    ):
        assert line in text


def test_markdown_holds_the_same(shown: tuple[Contrast, list[Check]]) -> None:
    text = compare.as_markdown(*shown)
    (slower,) = [line for line in text.splitlines() if line.startswith("| c | =arm | time_per_step")]
    assert "| WORSE (at least x1." in slower
    assert slower.count("|") == 8
    assert "* only in the first run: c.gone.seed0" in text
    assert "* FAILS throughput&lt;-5%: c =arm" in text


def test_csv_holds_every_metric_and_no_formula(shown: tuple[Contrast, list[Check]]) -> None:
    lines = list(csv.DictReader(io.StringIO(compare.as_csv(*shown))))
    (slower,) = [line for line in lines if line["arm"] == "'=arm" and line["metric"] == "throughput"]
    assert float(slower["change"]) == pytest.approx(1 / 1.2, rel=0.01)
    assert float(slower["low"]) < float(slower["change"]) < float(slower["high"])
    assert (slower["primary"], slower["verdict"]) == ("False", "")
    assert slower["limits"] == "FAILS throughput<-5%"
    (withheld,) = [line for line in lines if line["arm"] == "wrong" and line["metric"] == "throughput"]
    assert (withheld["first"], withheld["second"], withheld["change"]) == ("", "", "")
    assert withheld["missing"] == "withheld: invalid in the second run"


def test_json_holds_everything(shown: tuple[Contrast, list[Check]]) -> None:
    data = json.loads(compare.as_json(*shown))
    assert data["environment"] == [{"field": "versions.torch", "first": "2.0", "second": "2.1"}]
    assert data["only"] == [{"cell": "c.gone.seed0", "run": "first"}]
    assert [arm["after"]["status"] for arm in data["arms"]] == ["ok", "ok", "invalid"]
    assert {(one["arm"], one["answer"]) for one in data["limits"]} == {
        ("base", "HOLDS"),
        ("=arm", "FAILS"),
        ("wrong", "CANNOT TELL"),
    }
    assert len(data["changes"]) == 3 * 5


def stamped(source: Path, target: Path, stamps: list[str], cells: int = 2) -> Run:
    """A copy of a run, its first cells with these stamps, the others with none."""
    shutil.copytree(source, target)
    for number, path in enumerate(sorted((target / "cells").iterdir())):
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "stamps": stamps if number < cells else []}))
    return Run(target)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return run(tmp_path / "plain", [record("base"), record("arm")]).folder


@pytest.mark.parametrize("stamp", ["quick", "inline", "dirty", "disturbed"])
def test_a_stamped_run_is_refused_unless_forced(plain: Path, tmp_path: Path, stamp: str) -> None:
    clean = stamped(plain, tmp_path / "clean", [])
    other = stamped(plain, tmp_path / "other", [stamp])
    assert contrast(clean, stamped(plain, tmp_path / "again", [])).obstacles == ()
    for pair in ((clean, other), (other, clean)):
        with pytest.raises(UsageError, match=rf"other is stamped {stamp} \(--force"):
            contrast(*pair)
        found = contrast(*pair, force=True)
        assert found.changes
        assert found.obstacles == (f"{other.folder} is stamped {stamp}",)
        assert f"compared all the same:** {other.folder} is stamped {stamp}" in compare.as_markdown(found, [])


def test_one_stamped_cell_stamps_the_run_though_it_is_not_shared(plain: Path, tmp_path: Path) -> None:
    other = stamped(plain, tmp_path / "other", ["disturbed"], cells=1)
    clean = stamped(plain, tmp_path / "clean", [])
    sorted((clean.folder / "cells").iterdir())[0].unlink()
    with pytest.raises(UsageError, match="other is stamped disturbed"):
        contrast(clean, other)
