"""From records to what they say: one row per arm, with its estimates against the baseline and the verdicts on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench import stats, units
from bench.metrics import GLOSSARY, Metric
from bench.technique import Axis
from bench.verdict import Judgement, Verdict, judge_all

AXES: tuple[Axis, ...] = ("quality", "latency", "memory")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One arm as a line of a table, all its seeds together."""

    records: tuple[Record, ...]
    """One per seed; the first is the one that is timed."""
    estimates: Mapping[str, stats.Estimate]
    """Metric -> estimate, for all that the records hold."""
    groups: Mapping[str, Mapping[str, stats.Estimate]] = field(default_factory=dict)
    """Group of prompts -> metric -> estimate of that group's alone, where the workload tells kinds apart."""
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Primary metric -> verdict, where there is something to judge."""

    @property
    def record(self) -> Record:
        return self.records[0]

    @property
    def arm(self) -> str:
        return str(self.record["arm"])

    @property
    def labels(self) -> str:
        """What stands beside the arm's name, `query-aware, question behind the eviction`; empty for most."""
        own, asked = self.record["technique"].get("labels", ()), self.record["workload"].get("label")
        return ", ".join([*own, asked] if own and asked else own)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record["seed"] for record in self.records)

    @property
    def stamps(self) -> list[str]:
        return sorted({stamp for record in self.records for stamp in record["stamps"]})

    @property
    def is_baseline(self) -> bool:
        return bool(self.record["arm"] == self.record["baseline"])

    @property
    def status(self) -> str:
        """The status of the cells; `invalid` where a gate failed under any seed, `ungated` where none ran."""
        found = [status(record) for record in self.records]
        return next((one for one in found if one not in {"ok", "ungated"}), "ungated" if "ungated" in found else "ok")

    @property
    def reason(self) -> str:
        several = len(self.records) > 1
        told = [(record["seed"], reason(record)) for record in self.records]
        return "; ".join(f"seed {seed}: {text}" if several else text for seed, text in told if text)

    def shown(self, axis: Axis) -> tuple[Metric, stats.Estimate | None, str]:
        """The axis' primary metric, its estimate, and why there is none."""
        metric = GLOSSARY[self.record["primary"][axis]]
        if self.withholds(metric):
            return metric, None, "withheld"
        if axis == "quality" and (self.record["model"] or {}).get("random"):
            return metric, None, "not applicable: random weights"
        estimate = self.estimates.get(metric.name)
        return metric, estimate, "" if estimate else "not measured"

    def withholds(self, metric: Metric) -> bool:
        """A failed gate withholds all but quality: what is wrong has no speed."""
        return metric.axis != "quality" and any(not gate["passed"] for one in self.records for gate in _gates(one))


def status(record: Record) -> str:
    """A cell's status; `invalid` where a gate failed, `ungated` where none ran."""
    gates = _gates(record)
    if record["status"] in {"ok", "skipped"} and not all(gate["passed"] for gate in gates):
        return "invalid"
    return "ungated" if record["status"] == "ok" and not gates else str(record["status"])


def _gates(record: Record) -> list[dict[str, Any]]:
    return (record["quality"] or {}).get("gates") or []


def reason(record: Record) -> str:
    """Why a cell is not `ok`."""
    if status(record) == "invalid":
        failed = [gate for gate in record["quality"]["gates"] if not gate["passed"]]
        return "; ".join(f"gate {gate['name']}: {gate['detail']}" for gate in failed)
    return str(record["reason"])


def rows(records: Iterable[Record]) -> dict[str, list[Row]]:
    """Comparison -> its rows, in the order of the records."""
    grouped: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        grouped.setdefault(record["comparison"], {}).setdefault(record["arm"], []).append(record)
    return _judged({comparison: _rows(arms) for comparison, arms in grouped.items()})


def _judged(comparisons: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Verdicts on the primary metrics, each metric's arms corrected together; random weights have no quality."""
    asked: dict[str, dict[tuple[str, str], stats.Estimate]] = {}
    for comparison, members in comparisons.items():
        for row in members:
            for axis in AXES:
                metric, estimate, _ = row.shown(axis)
                if estimate is not None and row.status in {"ok", "ungated", "invalid", "skipped"}:
                    asked.setdefault(metric.name, {})[comparison, row.arm] = estimate
    verdicts = {name: judge_all(GLOSSARY[name], estimates) for name, estimates in asked.items()}
    return {
        comparison: [
            replace(
                row,
                judgements={
                    name: _worded(row, GLOSSARY[name], found[comparison, row.arm])
                    for name, found in verdicts.items()
                    if (comparison, row.arm) in found
                },
            )
            for row in members
        ]
        for comparison, members in comparisons.items()
    }


def _worded(row: Row, metric: Metric, judgement: Judgement) -> Judgement:
    """A trained model's quality over too few seeds is that of these models, and says so."""
    if metric.axis != "quality" or not row.record["technique"].get("trains"):
        return judgement
    if row.estimates[metric.name].unit == "seeds":
        return judgement
    models = "this trained model" if len(row.records) == 1 else f"these {len(row.records)} trained models"
    return replace(judgement, reason=f"{judgement.reason}; of {models}, {stats.FEWEST['seeds']} seeds would say more")


def _rows(arms: Mapping[str, list[Record]]) -> list[Row]:
    found = []
    for records in arms.values():
        first = records[0]
        own, base = list(records), None
        grouped: dict[str, dict[str, dict[int, float]]] = {}
        if first["arm"] != first["baseline"]:
            own, others = side_by_side(own, _matching(arms.get(first["baseline"], []), records))
            base = units.of(others)
            grouped = units.groups(others[0]) if others else {}
        confidence = confidence_of(first, "rounds")
        estimates = {}
        for name, (values, unit) in units.of(own).items():
            other = None if base is None else base.get(name, ({}, unit))[0]
            estimate = stats.compare(GLOSSARY[name], values, other, unit, confidence_of(first, unit))
            if estimate is not None:
                estimates[name] = estimate
        groups: dict[str, dict[str, stats.Estimate]] = {}
        for group, metrics in units.groups(own[0]).items():
            for name, values in metrics.items():
                other = None if base is None else grouped.get(group, {}).get(name, {})
                estimate = stats.compare(GLOSSARY[name], values, other, "rounds", confidence)
                if estimate is not None:
                    groups.setdefault(group, {})[name] = estimate
        found.append(Row(tuple(records), estimates, groups))
    return found


def _matching(base: list[Record], records: list[Record]) -> list[Record]:
    """The baseline's valid records, under the seeds that the arm finished."""
    seeds = {record["seed"] for record in records if record["status"] == "ok"}
    return [one for one in base if status(one) in {"ok", "ungated"} and (one["seed"] in seeds or not seeds)]


def side_by_side(arm: list[Record], base: list[Record]) -> tuple[list[Record], list[Record]]:
    """Both with only the rounds that they ran in turn with each other: between two times, a machine is another.

    An arm that was finished later than its baseline, or earlier, keeps the other's rounds of that time beside its own.
    Where no round is shared, the arm keeps its own and the baseline none.
    """
    if not base:
        return arm, base
    own, other = _rounds(arm[0], base[0]), _rounds(base[0], arm[0])
    shared = sorted(own.keys() & other.keys(), key=lambda key: key[0])
    kept = [own[key] for key in shared] or arm[0]["rounds"]
    return (
        [{**arm[0], "rounds": kept}, *arm[1:]],
        [{**base[0], "rounds": [other[key] for key in shared]}, *base[1:]],
    )


def _rounds(record: Record, other: Record) -> dict[tuple[int, float | None], Record]:
    """An arm's rounds by number and time, whichever of two records holds them."""
    again = other.get("beside", {}).get(record["arm"], ())
    return {(part["round"], part.get("started")): part for part in (*record["rounds"], *again)}


def confidence_of(record: Record, unit: stats.Unit) -> float:
    """A run that looked more than once shows wider intervals where it could have gone on."""
    return stats.LOOK_CONFIDENCE if unit == "rounds" and record.get("looks") else stats.CONFIDENCE


def settled(records: Iterable[Record]) -> bool:
    """Whether more rounds would change nothing: no verdict on time or memory is inconclusive."""
    return not any(
        judgement.verdict is Verdict.INCONCLUSIVE and row.estimates[name].unit == "rounds"
        for members in rows(records).values()
        for row in members
        for name, judgement in row.judgements.items()
    )
