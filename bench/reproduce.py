"""A run and its repetition: which verdicts held.

A verdict held where it did not turn from BETTER to WORSE or back and the two intervals overlap. Both are changes
against the run's own baseline: that a figure itself comes again on another machine is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bench import comparison, outcome
from bench.comparison import FINISHED
from bench.errors import UsageError
from bench.metrics import Metric
from bench.outcome import Row
from bench.stats import Estimate
from bench.store import Run
from bench.technique import Axis
from bench.verdict import Judgement, Verdict

DEFINITION = ("model", "workload", "technique")
"""What must be the same for a run to be another's repetition. Data may differ: some is sampled from the model."""


class Answer(StrEnum):
    HELD = "held"
    FLIPPED = "FLIPPED"
    APART = "APART"
    UNFINISHED = "NOT FINISHED"
    OPEN = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """One arm on one axis: what both runs say of it, against their own baselines."""

    comparison: str
    arm: str
    metric: Metric
    first: Estimate | None
    second: Estimate | None
    verdicts: tuple[Judgement | None, Judgement | None]
    answer: Answer
    reason: str


@dataclass(frozen=True)
class Reproduction:
    """All that there is to say about a run and its repetition."""

    folders: tuple[str, str]
    findings: tuple[Finding, ...]
    differing: tuple[str, ...]
    """Data, device and stamps that are not the same."""
    environment: tuple[tuple[str, Any, Any], ...]
    """Field of the environment, its value in the first and in the second run."""
    damaged: tuple[str, ...]
    """Records that could not be read."""

    @property
    def exit_code(self) -> int:
        """1 where a verdict flipped or its intervals lie apart, 3 where a cell did not finish, else 0."""
        answers = {finding.answer for finding in self.findings}
        if answers & {Answer.FLIPPED, Answer.APART}:
            return 1
        return 3 if Answer.UNFINISHED in answers else 0


def against(first: Run, second: Run) -> Reproduction:
    """Which of a run's verdicts held in another.

    Raises:
        UsageError: they are one run, have no cell in common, or are not the same question.
    """
    if first.folder.resolve() == second.folder.resolve():
        raise UsageError(f"{first.folder} is no repetition of itself; give another run with --against")
    damaged: list[str] = []
    a, b = ({record["cell"]: record for record in run.records(damaged)} for run in (first, second))
    paired = comparison.pairs(first, second, a, b)
    other = comparison.differences(paired, DEFINITION)
    if other:
        raise UsageError(f"{second.folder} does not repeat {first.folder}: {'; '.join(other)}")
    differing = comparison.differences(paired, ("data", "device"))
    differing += [*comparison.stamped(first, a.values()), *comparison.stamped(second, b.values())]
    return Reproduction(
        (str(first.folder), str(second.folder)),
        tuple(findings(outcome.rows(a.values()), outcome.rows(b.values()))),
        tuple(differing),
        tuple(comparison.environment(first, second)),
        tuple(damaged),
    )


def findings(first: Mapping[str, Sequence[Row]], second: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """Every arm of the first run on its three axes; of a baseline only whether it finished and is valid."""
    there = {(name, row.arm): row for name, rows in second.items() for row in rows}
    for name, rows in first.items():
        for row in rows:
            yield from _arm(name, row, there.get((name, row.arm)))


def _arm(name: str, row: Row, other: Row | None) -> Iterator[Finding]:
    for axis in outcome.AXES:
        metric, first, missing = row.shown(axis)
        second, missing_too = None, "not in the second run"
        if other is not None:
            theirs, second, missing_too = other.shown(axis)
            if theirs != metric:
                second, missing_too = None, f"the second run judges {theirs.name} instead"
        verdicts = row.judgements.get(metric.name), other.judgements.get(metric.name) if other else None
        answer = _by_status(row, other) or _by_figures(row, metric, axis, first, second, verdicts)
        if answer is None:
            continue
        said, reason = answer
        yield Finding(name, row.arm, metric, first, second, verdicts, said, reason or missing or missing_too)


def _by_status(row: Row, other: Row | None) -> tuple[Answer, str] | None:
    """What the cells' statuses decide before any figure does."""
    if row.status == "unsupported" and other is not None and other.status == "unsupported":
        return Answer.HELD, "unsupported in both"
    if row.status not in FINISHED:
        return Answer.OPEN, f"{row.status} in the first run"
    if other is None:
        return Answer.UNFINISHED, "not in the second run"
    if set(row.seeds) - set(other.seeds):
        lacking = ", ".join(map(str, sorted(set(row.seeds) - set(other.seeds))))
        return Answer.UNFINISHED, f"the second run lacks seeds: {lacking}"
    if other.status not in FINISHED:
        return Answer.UNFINISHED, f"{other.status} in the second run: {other.reason}"
    if "invalid" in {row.status, other.status} and row.status != other.status:
        which, why = ("first", row.reason) if row.status == "invalid" else ("second", other.reason)
        return Answer.FLIPPED, f"invalid in the {which} run alone: {why}"
    return None


def _by_figures(
    row: Row,
    metric: Metric,
    axis: Axis,
    first: Estimate | None,
    second: Estimate | None,
    verdicts: tuple[Judgement | None, Judgement | None],
) -> tuple[Answer, str] | None:
    if row.withholds(metric):
        return Answer.HELD, "invalid in both"
    if row.is_baseline:
        return None
    if first is None or second is None or first.change is None or second.change is None:
        which, one = ("first", first) if first is None or first.change is None else ("second", second)
        return Answer.OPEN, "" if one is None else f"{one.reason} in the {which} run"
    said = {judgement.verdict for judgement in verdicts if judgement}
    if said == {Verdict.BETTER, Verdict.WORSE}:
        return Answer.FLIPPED, ""
    return _overlap(metric, first, second)


def _overlap(metric: Metric, first: Estimate, second: Estimate) -> tuple[Answer, str]:
    """Whether two intervals have a value in common, or the changes lie within the metric's margin of each other."""
    assert first.change is not None
    assert second.change is not None
    apart = math.log(second.change / first.change) if metric.relative else second.change - first.change
    margin = math.log1p(metric.margin) if metric.relative else metric.margin
    close = abs(apart) <= margin
    if metric.exact and not first.spread and not second.spread:
        return (Answer.HELD, "exact") if close else (Answer.APART, "an exact figure differs by more than its margin")
    for one in (first, second):
        if one.unit == "rounds" and one.refusal:
            return Answer.OPEN, one.refusal
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Answer.OPEN, f"{(first if first.low is None else second).reason}"
    if close:
        return Answer.HELD, "within the margin of each other"
    if max(first.low, second.low) <= min(first.high, second.high):
        return Answer.HELD, "the intervals overlap"
    return Answer.APART, "the intervals have no value in common"


def counted(found: Iterable[Finding]) -> dict[Answer, int]:
    """How often each answer was given; an arm and axis counts once."""
    answers = [finding.answer for finding in found]
    return {answer: answers.count(answer) for answer in Answer if answer in answers}
