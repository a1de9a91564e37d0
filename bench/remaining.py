"""What is left of a run, and how long it will take: the plan's figures, corrected by what was measured so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench import plan
from bench.experiment import Experiment
from bench.store import Run


def ahead(experiment: Experiment, device: str, dtype: str, run: Run | None = None) -> dict[str, Any]:
    """What an experiment has to do, or what a run of it has left, as JSON data.

    `comparisons`, `cells` and `finished` cells are counted; `stages` holds the `pieces` left of every stage of every
    comparison and the planned `seconds` of one; `seconds` is their sum. Seconds are None where the size of the model
    is not known before it is read.
    """
    left = _pieces(experiment, run)
    stages = [
        {
            "comparison": stage.comparison,
            "stage": stage.stage,
            "pieces": left[stage.comparison, stage.stage],
            "seconds": None if stage.work is None else stage.total / stage.pieces,
        }
        for stage in plan.stages(experiment, device, dtype)
        if left[stage.comparison, stage.stage]
    ]
    cells = list(experiment.cells())
    return {
        "comparisons": len(experiment.comparisons),
        "cells": len(cells),
        "finished": sum(run.has(cell.id) for cell in cells) if run else 0,
        "stages": stages,
        "seconds": Remaining(stages).seconds(),
    }


def _pieces(experiment: Experiment, run: Run | None) -> Counter[tuple[str, str]]:
    """(comparison, stage) -> how many builds, scorings and rounds are not there yet."""
    left: Counter[tuple[str, str]] = Counter()
    for one in experiment.comparisons:
        cells = [cell for cell in experiment.cells(one) if run is None or not run.has(cell.id)]
        timed = [cell for cell in cells if cell.seed == experiment.settings.seeds[0]]
        left[one.id, "build"] = int(bool(cells) and (run is None or run.inputs(one.id) is None))
        left[one.id, "quality"] = sum(run is None or run.part(cell.id, "quality") is None for cell in cells)
        left[one.id, "timing"] = sum(
            any(run is None or run.part(cell.id, f"round-{number}") is None for cell in timed)
            for number in range(experiment.settings.rounds)
        )
    return left


class Remaining:
    """Estimates the time left of a run, from its stages and from when each piece of them begins.

    Finished pieces scale what is left of their stage by measured over planned time; a stage of which nothing is
    finished takes the ratio of all that is, and 1 before anything is. Pieces without a plan take the mean of those
    finished.
    """

    def __init__(self, stages: Iterable[Mapping[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._left = {(one["comparison"], one["stage"]): one["pieces"] for one in stages}
        self._planned = {(one["comparison"], one["stage"]): one["seconds"] for one in stages}
        self._running: tuple[tuple[str, str], float] | None = None
        self._measured: list[tuple[str, float | None, float]] = []
        """Of every finished piece: its stage, its planned and its measured time [s]."""

    def begin(self, comparison: str, stage: str) -> None:
        """A piece of a stage begins; the one before it is over."""
        self._stop()
        key = comparison, stage
        self._left[key] = max(self._left.get(key, 0) - 1, 0)
        self._running = key, self.clock()

    def finish(self, comparison: str) -> None:
        """A comparison is over, also where it needed fewer pieces than planned."""
        self._stop()
        for key in self._left:
            if key[0] == comparison:
                self._left[key] = 0

    def seconds(self) -> float | None:
        """Time left [s]; None where a piece has no plan and none like it was measured."""
        costs = [(count, self._cost(key)) for key, count in self._left.items() if count]
        if self._running:
            key, since = self._running
            cost = self._cost(key)
            costs.append((1, None if cost is None else max(cost - (self.clock() - since), 0.0)))
        total = 0.0
        for count, cost in costs:
            if cost is None:
                return None
            total += count * cost
        return total

    def _stop(self) -> None:
        if self._running:
            key, since = self._running
            self._measured.append((key[1], self._planned.get(key), self.clock() - since))
            self._running = None

    def _cost(self, key: tuple[str, str]) -> float | None:
        """Seconds of one piece, by what is known now."""
        planned = self._planned.get(key)
        alike = [(plan, took) for stage, plan, took in self._measured if stage == key[1]]
        if planned is None:
            unplanned = [took for plan, took in alike if plan is None]
            return sum(unplanned) / len(unplanned) if unplanned else None
        everything = [(plan, took) for _, plan, took in self._measured]
        for measured in (alike, everything):
            whole = sum(plan for plan, _ in measured if plan is not None)
            if whole:
                return planned * sum(took for plan, took in measured if plan is not None) / whole
        return planned
