"""A busy loop planted beside a run: noticed, repeated, kept, marked; and what comes of it if nobody looks."""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench import api, experiment, record
from bench.probes import load
from bench.runner import TRIES, Runner
from bench.settings import Settings

ALONE, IGNORED, JUDGED = range(3)
"""The rounds: nothing is planted; loops are, and nobody looks; loops are, and the program does what it does."""
LOOPS_PER_CORE = 3


class Loops:
    """Processes of nobody's run that spin on all cores, from the second round until all is timed."""

    def __init__(self) -> None:
        self.round = ALONE
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "stage" and event["stage"] == "timing":
            self.round = event["round"]
            if self.round == IGNORED:
                spin = [sys.executable, "-S", "-c", "while True: pass"]
                self.processes += [subprocess.Popen(spin) for _ in range(LOOPS_PER_CORE * (os.cpu_count() or 1))]
        elif event["event"] == "cell":
            self.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def between(self, before: load.Reading, after: load.Reading) -> dict[str, Any]:
        """What the program would find, and `undisturbed` in every round but the last."""
        found = judged(before, after)
        return found if self.round == JUDGED else {**found, "disturbed": False}


judged = load.between


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of `computes`, one burst a round, from the real runner."""
    plugin = "known_answers.computes"
    importlib.import_module(plugin)
    small = {"name": "grounded_chat", "new_tokens": 8, "items": 2, "timed_prompts": 3, "burst_prompts": 1}
    config = {
        "name": "planted",
        "model": "tiny:llama",
        "dtype": "float32",
        "inline": True,
        "bursts": 1,
        "replicates": 3,
        "comparisons": [{"workload": {**small, "passage_words": 20}, "arms": ["computes"]}],
    }
    out = tmp_path_factory.mktemp("planted")
    with contextlib.closing(Loops()) as loops, pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "between", loops.between)
        patch.setenv("OMP_NUM_THREADS", "1")  # more threads of a tiny network only wait for one another
        done = api.run(config, out=out, plugins=(plugin,), lock=out / "lock", max_time="1h", say=loops)
    (found,) = done.records()
    assert found["status"] == "ok", found
    return found


def decoding(burst: dict[str, Any]) -> list[float]:
    samples = zip(burst["samples"]["seconds"], burst["samples"]["kind"], strict=True)
    return [taken for taken, kind in samples if kind == "decode"]


def test_a_planted_busy_loop_is_noticed_repeated_kept_and_marked(planted: dict[str, Any]) -> None:
    bursts = planted["rounds"][JUDGED]["bursts"]
    assert [burst["try"] for burst in bursts] == list(range(TRIES))
    assert [burst["used"] for burst in bursts] == [False] * (TRIES - 1) + [True]
    assert {burst["index"] for burst in bursts} == {JUDGED}, "the same prompts again"
    for burst in bursts:
        assert burst["load"]["disturbed"] is True
        assert "others" in burst["load"]["by"]
        assert len(burst["samples"]["seconds"]) == 8
    assert "disturbed" in planted["stamps"]


def test_with_the_load_ignored_the_loop_goes_unmarked_and_the_figure_is_wrong(planted: dict[str, Any]) -> None:
    rounds = [planted["rounds"][number] for number in (ALONE, IGNORED)]
    ((alone,), (beside,)) = (part["bursts"] for part in rounds)
    assert record.stamps(Settings(name="x"), rounds, {"code": {"dirty": False}}) == []
    assert "others" in beside["load"]["by"], "whoever looks sees it"
    # the quickest step of those alone: whatever else runs on this machine makes a step slower, never quicker
    assert statistics.median(decoding(beside)) > 1.5 * min(decoding(alone))


# what follows is decided by readings made up here: whatever else this machine does changes nothing

QUIET = load.Reading(wall=0.0, busy=0.0, stolen=0.0, ours=0.0, pressure={"cpu": 0.0, "memory": 0.0, "io": 0.0})


def later(reading: load.Reading, others: float) -> load.Reading:
    """A second later, in which we used one core and others so many."""
    return replace(reading, wall=reading.wall + 1, busy=reading.busy + 1 + others, ours=reading.ours + 1)


class Counter:
    """A worker whose samples tell which try they are of."""

    asked = 0

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        self.asked += 1
        return {"seconds": [float(self.asked)], "kind": ["decode"]}


def tries(
    monkeypatch: pytest.MonkeyPatch, others: list[float], **settings: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """The tries of one burst beside which others used these cores, one number a try, and the record's stamps."""
    raw = {
        "name": "x",
        "model": "tiny:llama",
        "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]}],
        **settings,
    }
    checked = experiment.check(raw, "x")

    def readings() -> Iterator[load.Reading]:
        now = QUIET
        for used in others:
            yield now
            now = later(now, used)
            yield now

    told = readings()
    monkeypatch.setattr(load, "read", lambda pids, gpu=False: next(told))
    runner = Runner(checked, None, {"device": {"kind": "cpu"}})
    cell = next(iter(checked.cells()))
    bursts = list(runner._burst(cell, Counter(), 3, [1]))
    rounds = [{"round": 0, "bursts": bursts}]
    made = record.assemble(cell, checked.settings, {}, rounds, {}, {"code": {"dirty": False}})
    return bursts, made["stamps"]


def test_an_undisturbed_burst_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bursts, stamps = tries(monkeypatch, [0.0, 0.0, 0.0])
    assert [(burst["try"], burst["used"], burst["load"]["disturbed"]) for burst in bursts] == [(0, True, False)]
    assert stamps == []


def test_a_loop_that_ends_after_the_first_try_leaves_a_good_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bursts, stamps = tries(monkeypatch, [1.5, 0.0, 0.0])
    assert [(burst["try"], burst["used"], burst["load"]["disturbed"]) for burst in bursts] == [
        (0, False, True),
        (1, True, False),
    ]
    assert [burst["samples"]["seconds"] for burst in bursts] == [[1.0], [2.0]], "the disturbed try is kept"
    assert stamps == []


def test_a_loop_that_stays_is_given_up_after_all_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    bursts, stamps = tries(monkeypatch, [1.5] * (TRIES + 2))
    assert len(bursts) == TRIES
    assert [burst["used"] for burst in bursts] == [False] * (TRIES - 1) + [True]
    assert stamps == ["disturbed"]


def test_a_quick_run_repeats_nothing_and_is_marked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bursts, stamps = tries(monkeypatch, [1.5, 0.0], quick=True)
    assert len(bursts) == 1
    assert "disturbed" in stamps
