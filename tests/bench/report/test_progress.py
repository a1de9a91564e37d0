"""What a run shows while it goes on, from events made up here: on a terminal, in a log, on the way to its end."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fabricated import record, run
from rich.console import Console

from bench import experiment, runner
from bench.errors import StoreError
from bench.report.progress import Progress
from bench.store import Run


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def events(folder: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Seconds and what is told then, of a comparison of two arms, planned at 100 s and twice as slow, and one left."""
    stages = [
        {"comparison": name, "stage": stage, "pieces": pieces, "seconds": seconds}
        for name in ("c", "later")
        for stage, pieces, seconds in (("build", 1, 10.0), ("quality", 2, 15.0), ("timing", 2, 30.0))
    ]
    counts = {"comparisons": 2, "cells": 4, "finished": 0, "stages": stages, "seconds": 200.0}
    about = {"event": "stage", "comparison": "c", "arm": None, "seed": None, "round": None, "rounds": 2}
    burst = {"event": "burst", "comparison": "c", "burst": 1, "bursts": 8, "try": 0}
    yield 0, {"event": "note", "text": "fetched"}
    yield 0, {"event": "start", "folder": str(folder), **counts}
    yield 0, {**about, "stage": "build"}
    yield 20, {**about, "stage": "quality", "arm": "base", "seed": 0}
    yield 50, {**about, "stage": "quality", "arm": "arm", "seed": 0}
    yield 80, {**about, "stage": "timing", "round": 0}
    yield 90, {**burst, "arm": "base"}
    yield 95, {**burst, "arm": "arm", "try": 1}
    yield 140, {**about, "stage": "timing", "round": 1}
    yield 200, {"event": "cell", "cell": "c.base.seed0", "status": "ok", "reason": ""}
    yield 200, {"event": "cell", "cell": "c.arm.seed0", "status": "oom", "reason": "too [large]"}
    yield 200, {"event": "comparison", "comparison": "c", "family": "f"}
    yield 200, {**about, "comparison": "later", "stage": "build"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run(tmp_path / "run", [record("base"), record("arm", seconds=0.8)]).folder


def shown(folder: Path, progress: Progress, clock: Clock, until: float = 1e9) -> None:
    for at, event in events(folder):
        if at > until:
            return
        clock.now = at
        progress(event)


def test_a_log_has_plain_lines_with_the_time_left(folder: Path) -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=200), clock=clock) as progress:
        shown(folder, progress, clock)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[:7] == [
        "fetched",
        f"{folder}: 4 of 4 cells to do in about 3:20",
        "[0:00, about 3:20 left] c: build",
        "[0:20, about 6:20 left] c: quality of base, seed 0 (1 of 2)",
        "[0:50, about 5:50 left] c: quality of arm, seed 0 (2 of 2)",
        "[1:20, about 5:20 left] c: round 1 of 2",
        "[2:20, about 4:20 left] c: round 2 of 2",
    ]
    assert lines[7] == "[3:20, about 3:20 left] c.arm.seed0: oom: too [large]"
    assert "burst" not in text
    assert lines[-1] == "[3:20, about 3:20 left] later: build"
    assert any(line.startswith("arm ") and "BETTER" in text for line in lines[8:-1]), "its table, when it is over"


def test_a_terminal_has_a_status_below_the_results_and_is_left_clean(folder: Path) -> None:
    out, clock, threads = io.StringIO(), Clock(), threading.active_count()
    with Progress(Console(file=out, width=100, force_terminal=True), clock=clock) as progress:
        shown(folder, progress, clock, until=90)
        assert screen(out)[-2:] == [
            "c: round 1 of 2, burst 2 of 8: base",
            "0 of 2 comparisons, 0 of 4 cells done [1:30, about 5:10 left]",
        ]
        assert threading.active_count() == threads, "nobody draws in the background"
        before = out.getvalue()
        clock.now = 94
        assert out.getvalue() == before
        shown(folder, progress, clock)
        lines = screen(out)
        assert lines[-2:] == [
            "later: build",
            "1 of 2 comparisons, 2 of 4 cells done [3:20, about 3:20 left]",
        ]
        assert "burst 2 of 8: arm, once more: others disturbed it" in out.getvalue()
    left = screen(out)
    assert left == lines[:-2], "the status is gone, nothing else is"
    assert left[:2] == ["fetched", f"{folder}: 4 of 4 cells to do in about 3:20"]
    assert not [line for line in left if "round" in line and "of 2" in line], "no status stands between results"
    assert any("x0.800" in line for line in left)
    assert out.getvalue().endswith("\x1b[2K")


def test_results_are_not_printed_above_the_status_of_what_is_over(folder: Path) -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=100, force_terminal=True), clock=clock) as progress:
        for clock.now, event in events(folder):
            before = len(out.getvalue())
            progress(event)
            if event["event"] == "comparison":
                assert "x0.800" in out.getvalue()[before:]
                assert "round 2 of 2" not in out.getvalue()[before:]


def test_a_status_is_cut_where_the_window_ends(folder: Path) -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=30, force_terminal=True), clock=clock) as progress:
        shown(folder, progress, clock, until=90)
        assert screen(out)[-2:] == ["c: round 1 of 2, burst 2 of 8…", "0 of 2 comparisons, 0 of 4 ce…"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError, RuntimeError])
def test_every_exit_shows_the_cursor_and_takes_the_status_away(folder: Path, error: type[BaseException]) -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(Console(file=out, width=100, force_terminal=True), clock=clock)
    with contextlib.suppress(error), progress:
        shown(folder, progress, clock, until=90)
        assert screen(out)[-1].startswith("0 of 2 comparisons")
        raise error
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l") >= 0
    assert screen(out) == ["fetched", f"{folder}: 4 of 4 cells to do in about 3:20"]


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (KeyboardInterrupt(), 130), (StoreError("full"), 3), (RuntimeError(), 1)]
)
def test_the_last_line_of_json_has_the_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int
) -> None:
    clock = Clock()
    progress = Progress(Console(), as_json=True, clock=clock)
    with contextlib.suppress(KeyboardInterrupt, StoreError, RuntimeError), progress:
        shown(folder, progress, clock, until=20)
        progress({"event": "end", "folder": "moved"})
        clock.now = 21
        if error:
            raise error
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["note", "start", "stage", "stage", "end"]
    assert lines[-1] == {"event": "end", "at": 21, "folder": "moved", "exit_code": code}


def test_a_burst_is_told_before_it_runs_and_nothing_while_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"workload": "grounded_chat", "arms": ["autoregressive"], "bursts": 3}
    checked = experiment.check({"name": "x", "model": "tiny:llama", "comparisons": [block]}, "x")
    happened: list[Any] = []

    class Worker:
        def ask(self, do: str, *_: object, **__: object) -> dict[str, Any]:
            happened.append(do)
            return {}

    found = {"disturbed": True}
    monkeypatch.setattr(runner.load, "between", lambda *_: found)
    monkeypatch.setattr(runner.load, "read", lambda *_: happened.append("read"))
    one = runner.Runner(checked, Run(tmp_path), {"device": {"kind": "cpu"}}, say=happened.append)
    (cell,) = checked.cells()
    list(one._burst(cell, Worker(), index=4, pids=[]))  # type: ignore[arg-type]
    told = {"event": "burst", "comparison": cell.comparison.id, "arm": "autoregressive", "burst": 1, "bursts": 3}
    assert happened == [
        step for attempt in range(runner.TRIES) for step in ({**told, "try": attempt}, "read", "burst", "read")
    ]


def screen(out: io.StringIO) -> list[str]:
    """The lines that a terminal shows after these bytes, without empty ones at the end."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", out.getvalue()):
        if part == "\r":
            continue  # what follows is an erasure or a new line
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("K"):
            lines[row] = ""
        elif part.endswith("A"):
            row -= int(part[2:-1])
        elif not part.startswith("\x1b"):
            lines[row] += part
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]
