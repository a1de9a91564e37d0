"""The order of bursts within a round, with workers that only write down what they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import experiment, store
from bench.runner import Runner
from bench.workers import Workers


class Scribe:
    pid = 0

    def __init__(self, asked: list[tuple[str, str, int]]) -> None:
        self.asked = asked

    def ready(self, timeout: float) -> None: ...

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        if do == "burst":
            self.asked.append((do, arguments["arm"], arguments["index"]))
        return {"quality": {"metrics": {}, "gates": []}} if do == "quality" else {}


def test_bursts_are_interleaved_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {
        "name": "x",
        "model": "tiny:llama",
        "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"], "bursts": 4}],
    }
    checked = experiment.check(raw, "x")
    asked: list[tuple[str, str, int]] = []

    @contextmanager
    def lend(self: Workers, comparison: experiment.Comparison) -> Iterator[Scribe]:
        yield Scribe(asked)

    monkeypatch.setattr(Workers, "lend", lend)
    monkeypatch.setattr("bench.runner.load.between", lambda before, after: {"disturbed": False})
    runner = Runner(checked, None, {"device": {"kind": "cpu"}})
    (comparison,) = checked.comparisons
    runner._group(comparison, list(checked.cells(comparison)), 1, {"built": {}})
    timed = [(arm, index) for _, arm, index in asked if index >= 0]
    a, b = "autoregressive", "prompt_lookup"
    assert timed == [(a, 4), (b, 4), (b, 5), (a, 5), (a, 6), (b, 6), (b, 7), (a, 7)]
    assert [arm for _, arm, index in asked if index < 0] == [a, b], "each is warmed up once, apart"


@pytest.mark.parametrize(("settled_at", "expected"), [(5, 5), (10, 10), (None, 20)])
def test_a_run_that_extends_itself_stops_at_a_look(
    settled_at: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        "name": "x",
        "model": "tiny:llama",
        "bursts": 1,
        "extend": True,
        "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]}],
    }
    checked = experiment.check(raw, "x")
    looked: list[int] = []

    @contextmanager
    def lend(self: Workers, comparison: experiment.Comparison) -> Iterator[Scribe]:
        yield Scribe([])

    def settled(records: list[dict[str, Any]]) -> bool:
        looked.append(len(records[0]["rounds"]))
        return looked[-1] == settled_at

    monkeypatch.setattr(Workers, "lend", lend)
    monkeypatch.setattr("bench.runner.load.between", lambda before, after: {"disturbed": False})
    monkeypatch.setattr("bench.runner.outcome.settled", settled)
    run = store.Run.create(tmp_path, "cpu", None)
    run.write_manifest({"cells": [cell.id for cell in checked.cells()], "config_sha256": checked.hash})
    environment = {"device": {"kind": "cpu", "dtype": "float32"}, "code": {"dirty": False}}
    Runner(checked, run, environment).go()
    records = list(run.records([]))
    assert [len(one["rounds"]) for one in records] == [expected, expected]
    assert looked == [look for look in (5, 10) if look <= expected], "it looks there and nowhere else"
    assert all(one["looks"] == [5, 10, 20] for one in records), "and the intervals know it"
