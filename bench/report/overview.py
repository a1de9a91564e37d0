"""The overview: what every arm saves and costs, in words, from the verdicts on its primary metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import stats
from bench.metrics import Metric
from bench.outcome import AXES, Row
from bench.technique import Axis
from bench.verdict import Judgement, Verdict

NOUNS = {
    "ttft": "time to the first token",
    "tpot": "time a token",
    "time_per_step": "time a step",
    "peak_memory": "peak memory",
    "kv_cache_bytes": "key/value cache",
}
FINISHED = frozenset({"ok", "ungated", "invalid"})


@dataclass(frozen=True)
class Answer:
    """What there is to say on one axis."""

    axis: Axis
    word: str
    """A verdict, or why there is none."""
    text: str
    """The finding: `46 % peak memory`; empty where nothing is known to differ."""
    reason: str
    more: bool = False
    """Whether more of it is better: it is gained and lost, not saved and paid."""

    @property
    def verb(self) -> str:
        """What was done to it, where that is known."""
        verbs = {Verdict.BETTER.value: ("saves", "gains"), Verdict.WORSE.value: ("costs", "loses")}
        return verbs[self.word][self.more] if self.word in verbs else ""


@dataclass(frozen=True)
class Line:
    """One arm of the overview."""

    family: str
    comparison: str
    arm: str
    baseline: str
    status: str
    reason: str
    gate: str
    answers: tuple[Answer, ...]
    labels: str = ""
    """What stands beside the arm's name: `query-aware`."""
    where: str = ""
    """What tells its comparison from the family's others, as `context 512`; empty for the only one."""

    @property
    def place(self) -> str:
        """The family, and the comparison where there are several."""
        return f"{self.family}, {self.where}" if self.where else self.family

    @property
    def saves(self) -> list[str]:
        return [_listed(answer) for answer in self.answers if answer.word == Verdict.BETTER]

    @property
    def costs(self) -> list[str]:
        return [_listed(answer) for answer in self.answers if answer.word == Verdict.WORSE]

    @property
    def sentence(self) -> str:
        """The line in words, the arm's name left out."""
        if self.arm == self.baseline:
            return f"{label(self.status)}, the baseline{_because(self.reason)}"
        if self.status not in FINISHED:
            return f"{label(self.status)}{_because(self.reason)}"
        parts = [f"{label(self.status)}{_because(self.reason)}"] if self.status == "invalid" else []
        for verb in ("gains", "saves", "loses", "costs"):
            found = [f"{one.text} ({one.word}, {one.reason})" for one in self.answers if one.verb == verb]
            parts += [f"{verb} {', '.join(found)}"] if found else []
        others: dict[str, list[str]] = {}
        for one in self.answers:
            if one.word not in {Verdict.BETTER, Verdict.WORSE}:
                others.setdefault(f"{one.word}{f' ({one.reason})' if one.reason else ''}", []).append(one.axis)
        parts += [f"{', '.join(axes)}: {said}" for said, axes in others.items()]
        if self.status == "ungated":
            parts.append("UNGATED: nothing checked its output")
        if self.labels:
            parts.append(self.labels)
        return "; ".join(parts)


def lines(comparisons: Mapping[str, list[Row]]) -> list[Line]:
    """All arms but baselines that are well, in the order of the records."""
    where = _where(comparisons)
    return [
        Line(
            str(row.record["family"]),
            comparison,
            row.arm,
            str(row.record["baseline"]),
            row.status,
            row.reason,
            gate(row),
            tuple(_answer(row, axis) for axis in AXES),
            row.labels,
            where.get(comparison, ""),
        )
        for comparison, rows in comparisons.items()
        for row in rows
        if not row.is_baseline or row.status != "ok"
    ]


def _where(comparisons: Mapping[str, list[Row]]) -> dict[str, str]:
    """Comparison -> what tells it from the others of its family: the workload's name, or the parameters that differ."""
    families: dict[str, dict[str, Mapping[str, Any]]] = {}
    for comparison, rows in comparisons.items():
        families.setdefault(str(rows[0].record["family"]), {})[comparison] = rows[0].record["workload"]
    found: dict[str, str] = {}
    for workloads in families.values():
        named = len({workload["name"] for workload in workloads.values()}) > 1
        fields = {name for workload in workloads.values() for name in workload["parameters"]}
        told: dict[str, list[str]] = {one: [str(workloads[one]["name"])] if named else [] for one in workloads}
        for name in sorted(fields):
            values = {one: workload["parameters"].get(name) for one, workload in workloads.items()}
            if not named and len(set(map(str, values.values()))) > 1:
                for one, value in values.items():
                    told[one].append(f"{name} {value}")
        found |= {one: " ".join(parts) for one, parts in told.items() if len(workloads) > 1}
    return found


def label(status: str) -> str:
    """A status as reports print it: what nobody may overlook in capitals."""
    return status.upper() if status in {"invalid", "ungated"} else status


def gate(row: Row) -> str:
    """How an arm's gates ended, under all its seeds."""
    if row.status not in FINISHED:
        return "not finished"
    gates = [gate for record in row.records for gate in (record["quality"] or {}).get("gates") or []]
    if not gates:
        return "none ran"
    failed = dict.fromkeys(str(gate["name"]) for gate in gates if not gate["passed"])
    passed = dict.fromkeys(str(gate["name"]) for gate in gates)
    return f"FAILED: {', '.join(failed)}" if failed else f"passed: {', '.join(passed)}"


def _answer(row: Row, axis: Axis) -> Answer:
    metric, estimate, missing = row.shown(axis)
    if estimate is None:
        return Answer(axis, missing, "", "")
    judgement = row.judgements.get(metric.name)
    if judgement is None:
        return Answer(axis, "not compared", "", estimate.reason if row.status in FINISHED else "")
    more = metric.better == "higher"
    return Answer(axis, judgement.verdict.value, _finding(metric, estimate, judgement), judgement.reason, more)


def _listed(answer: Answer) -> str:
    return f"{answer.verb} {answer.text}" if answer.more else answer.text


def _finding(metric: Metric, estimate: stats.Estimate, judgement: Judgement) -> str:
    noun = NOUNS.get(metric.name, metric.name.replace("_", " "))
    if estimate.change is None or judgement.verdict not in {Verdict.BETTER, Verdict.WORSE}:
        return ""
    if not metric.relative:
        unit = "" if metric.unit == "share" or noun.startswith(metric.unit) else f" {metric.unit}"
        return f"{abs(estimate.change):.3f}{unit} {noun}"
    if estimate.change >= 10:
        return f"x{estimate.change:.3g} {noun}"
    share = abs(estimate.change - 1)
    return f"{share * 100:.{0 if share >= 0.1 else 1}f} % {noun}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def cells(found: Iterable[Line]) -> list[tuple[str, str, str, str, str]]:
    """Arm, what it saves, what it costs, verdicts, gate: one row per line."""
    return [
        (
            (f"{one.arm} (baseline)" if one.arm == one.baseline else f"{one.arm} against {one.baseline}")
            + (f", {one.where}" if one.where else ""),
            ", ".join(one.saves) or "-",
            ", ".join(one.costs) or "-",
            f"{label(one.status)}{_because(one.reason)}"
            if one.status not in FINISHED
            else "; ".join(f"{answer.axis} {answer.word}" for answer in one.answers),
            one.gate,
        )
        for one in found
    ]


COLUMNS = ("arm", "saves", "costs", "verdicts", "gate")
