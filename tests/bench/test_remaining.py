"""The estimate of the time left, by a clock that only moves when told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import experiment
from bench.remaining import Remaining, ahead
from bench.store import Run

PIECES = {"build": (1, 10.0), "quality": (4, 20.0), "timing": (5, 30.0)}
"""Of each comparison: how many, and the planned seconds of one."""
PLANNED = sum(count * each for count, each in PIECES.values())


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def stages(*comparisons: str, **seconds: float | None) -> list[dict[str, Any]]:
    return [
        {"comparison": one, "stage": stage, "pieces": pieces, "seconds": seconds.get(stage, each)}
        for one in comparisons
        for stage, (pieces, each) in PIECES.items()
    ]


def go(left: Remaining, clock: Clock, comparison: str, slower: dict[str, float]) -> list[float]:
    """Run a comparison, each stage so many times slower than planned; the estimates at every begin and midway."""
    seen = []
    for stage, (pieces, each) in PIECES.items():
        for _ in range(pieces):
            left.begin(comparison, stage)
            for _ in range(2):
                seen.append(known(left))
                clock.now += each * slower[stage] / 2
    left.finish(comparison)
    return [*seen, known(left)]


def known(left: Remaining) -> float:
    seconds = left.seconds()
    assert seconds is not None
    return seconds


def test_a_run_twice_as_slow_as_planned_is_estimated_right_after_its_first_comparison() -> None:
    clock = Clock()
    left = Remaining(stages("a", "b", "c"), clock)
    twice = dict.fromkeys(PIECES, 2.0)
    assert left.seconds() == pytest.approx(3 * PLANNED)
    first = go(left, clock, "a", twice)
    assert min(first) > 0
    assert first[-1] == pytest.approx(2 * 2 * PLANNED)
    rest = [*go(left, clock, "b", twice), *go(left, clock, "c", twice)]
    truth = 2 * 2 * PLANNED
    assert rest[0] == pytest.approx(truth)
    assert rest == sorted(rest, reverse=True), "it only goes down"
    assert rest[-1] == 0
    assert min(rest) >= 0


def test_each_stage_has_a_pace_of_its_own() -> None:
    clock = Clock()
    more = {"comparison": "b", "stage": "timing", "pieces": 4, "seconds": 40.0}
    left = Remaining([*stages("a"), more], clock)
    go(left, clock, "a", {"build": 1.0, "quality": 0.5, "timing": 3.0})
    assert left.seconds() == pytest.approx(3.0 * 160)


def test_a_stage_that_was_not_measured_yet_goes_at_the_pace_of_all() -> None:
    clock = Clock()
    left = Remaining(stages("a"), clock)
    left.begin("a", "build")
    assert left.seconds() == pytest.approx(PLANNED)
    clock.now += 30  # three times the plan
    left.begin("a", "quality")
    assert left.seconds() == pytest.approx(3 * (PLANNED - 10))


def test_a_piece_that_takes_too_long_counts_for_nothing_and_never_below() -> None:
    clock = Clock()
    left = Remaining([{"comparison": "a", "stage": "build", "pieces": 1, "seconds": 10.0}], clock)
    left.begin("a", "build")
    clock.now += 60
    assert left.seconds() == 0


def test_what_a_comparison_did_not_need_is_dropped() -> None:
    clock = Clock()
    left = Remaining(stages("a", "b"), clock)
    left.begin("a", "timing")
    clock.now += 30
    left.finish("a")
    assert left.seconds() == pytest.approx(PLANNED)


def test_without_a_plan_nothing_is_guessed_until_the_like_was_measured() -> None:
    clock = Clock()
    left = Remaining(stages("a", "b", build=None, quality=None, timing=None), clock)
    assert left.seconds() is None
    left.begin("a", "build")
    clock.now += 7
    left.begin("a", "quality")
    clock.now += 5
    left.begin("a", "timing")
    assert left.seconds() is None, "no round was measured yet"
    clock.now += 11
    left.finish("a")
    assert left.seconds() == pytest.approx(7 + 4 * 5 + 5 * 11)


CONFIG = {
    "name": "x",
    "model": "tiny:llama",
    "replicates": 3,
    "seeds": [0, 1],
    "comparisons": [
        {"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]},
        {"workload": "embedded_text", "arms": ["full", "lora"]},
    ],
}


def test_a_resumed_run_has_left_what_is_not_there(tmp_path: Path) -> None:
    checked = experiment.check(CONFIG, "x")
    first, second = checked.comparisons
    whole = ahead(checked, "cpu", "float32")
    assert (whole["comparisons"], whole["cells"], whole["finished"]) == (2, 8, 0)
    assert pieces(whole) == {
        (one.id, stage): count for one in (first, second) for stage, count in PLANNED_PIECES.items()
    }

    run = Run(tmp_path)
    for cell in checked.cells(first):
        run.finish(cell.id, {"cell": cell.id, "status": "ok"})
    done, *others = checked.cells(second)
    run.write_inputs(second.id, {"built": {}})
    for cell in (done, *others):
        if cell.seed == 0:
            run.write_part(cell.id, "quality", {"peak": 1})
            run.write_part(cell.id, "round-0", {"bursts": []})
    run.write_part(done.id, "round-1", {"bursts": []})  # its round is run again, for the arm that misses it
    left = ahead(checked, "cpu", "float32", run)
    assert left["finished"] == 4
    assert pieces(left) == {(second.id, "quality"): 2, (second.id, "timing"): 2}
    each = {(one["comparison"], one["stage"]): one["seconds"] for one in whole["stages"]}
    assert left["seconds"] == pytest.approx(2 * each[second.id, "quality"] + 2 * each[second.id, "timing"])


PLANNED_PIECES = {"build": 1, "quality": 4, "timing": 3}


def pieces(told: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(one["comparison"], one["stage"]): one["pieces"] for one in told["stages"]}


def test_the_size_of_a_model_on_a_hub_is_not_known_before() -> None:
    checked = experiment.check({**CONFIG, "model": "somebody/something"}, "x")
    assert ahead(checked, "cpu", "float32")["seconds"] is None
