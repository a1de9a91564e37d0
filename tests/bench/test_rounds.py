"""The order of bursts within a round, with workers that only write down what they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench import experiment
from bench.runner import Runner


class Scribe:
    pid = 0

    def __init__(self, asked: list[tuple[str, str, int]]) -> None:
        self.asked = asked

    def ready(self, timeout: float) -> None: ...

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        if do == "burst":
            self.asked.append((do, arguments["arm"], arguments["index"]))
        return {}


def test_bursts_are_interleaved_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {
        "name": "x",
        "model": "tiny:llama",
        "bursts": 4,
        "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]}],
    }
    checked = experiment.check(raw, "x")
    asked: list[tuple[str, str, int]] = []

    @contextmanager
    def lend(self: Runner, comparison: experiment.Comparison) -> Iterator[Scribe]:
        yield Scribe(asked)

    monkeypatch.setattr(Runner, "_lend", lend)
    monkeypatch.setattr("bench.runner.load.between", lambda before, after: {"disturbed": False})
    runner = Runner(checked, None, {"device": {"kind": "cpu"}})
    (comparison,) = checked.comparisons
    runner._group(comparison, list(checked.cells(comparison)), 1, {"built": {}})
    timed = [(arm, index) for _, arm, index in asked if index >= 0]
    a, b = "autoregressive", "prompt_lookup"
    assert timed == [(a, 4), (b, 4), (b, 5), (a, 5), (a, 6), (b, 6), (b, 7), (a, 7)]
    assert [arm for _, arm, index in asked if index < 0] == [a, b], "each is warmed up once, apart"
