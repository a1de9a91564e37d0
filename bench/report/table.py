"""Rows of arms x (quality, latency, memory) with the change against the baseline: what every output shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench import stats
from bench.metrics import GLOSSARY, Metric
from bench.technique import Axis
from bench.verdict import Judgement, judge_all

AXES: tuple[Axis, ...] = ("quality", "latency", "memory")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One cell as a line of a table."""

    record: Record
    estimates: Mapping[str, stats.Estimate]
    """Metric -> estimate, for all that the record holds."""
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Primary metric -> verdict, where there is something to judge."""

    @property
    def is_baseline(self) -> bool:
        return bool(self.record["arm"] == self.record["baseline"])

    @property
    def status(self) -> str:
        """The cell's status; `invalid` where a gate failed, `ungated` where none ran."""
        if self.record["status"] != "ok":
            return str(self.record["status"])
        gates = (self.record["quality"] or {}).get("gates") or []
        if not gates:
            return "ungated"
        return "ok" if all(gate["passed"] for gate in gates) else "invalid"

    @property
    def reason(self) -> str:
        if self.status == "invalid":
            failed = [gate for gate in self.record["quality"]["gates"] if not gate["passed"]]
            return "; ".join(f"gate {gate['name']}: {gate['detail']}" for gate in failed)
        return str(self.record["reason"])

    def shown(self, axis: Axis) -> tuple[Metric, stats.Estimate | None, str]:
        """The axis' primary metric, its estimate, and why there is none."""
        metric = GLOSSARY[self.record["primary"][axis]]
        if self.status == "invalid" and axis != "quality":
            return metric, None, "withheld"
        if axis == "quality" and (self.record["model"] or {}).get("random"):
            return metric, None, "not applicable: random weights"
        estimate = self.estimates.get(metric.name)
        return metric, estimate, "" if estimate else "not measured"


def rows(records: Iterable[Record]) -> dict[str, list[Row]]:
    """Comparison -> its rows, the baseline of each seed first."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["comparison"], []).append(record)
    return _judged({comparison: _rows(members) for comparison, members in grouped.items()})


def _judged(comparisons: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Verdicts on the primary metrics, each metric's arms corrected together; random weights have no quality."""
    asked: dict[str, dict[str, stats.Estimate]] = {}
    for rows in comparisons.values():
        for row in rows:
            for axis in AXES:
                metric, estimate, _ = row.shown(axis)
                if estimate is not None and row.record["status"] == "ok":
                    asked.setdefault(metric.name, {})[row.record["cell"]] = estimate
    verdicts = {name: judge_all(GLOSSARY[name], estimates) for name, estimates in asked.items()}
    return {
        comparison: [
            replace(row, judgements={n: v[row.record["cell"]] for n, v in verdicts.items() if row.record["cell"] in v})
            for row in rows
        ]
        for comparison, rows in comparisons.items()
    }


def _rows(records: list[Record]) -> list[Row]:
    bases = {r["seed"]: stats.units(r) for r in records if r["arm"] == r["baseline"] and r["status"] == "ok"}
    found = []
    for record in records:
        own = stats.units(record)
        base = None if record["arm"] == record["baseline"] else bases.get(record["seed"], {})
        estimates = {}
        for name, values in own.items():
            estimate = stats.compare(GLOSSARY[name], values, None if base is None else base.get(name, {}))
            if estimate is not None:
                estimates[name] = estimate
        found.append(Row(record, estimates))
    return found


def value(metric: Metric, number: float) -> str:
    """A figure with its unit, three significant digits."""
    if metric.unit == "B":
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(number) >= size:
                return f"{number / size:.3g} {unit}" if abs(number) < 1000 * size else f"{number / size:.0f} {unit}"
        return f"{number:.0f} B"
    if metric.unit in {"s", "s/token"} and abs(number) < 1:
        return f"{number * 1e3:.3g} m{metric.unit}"
    digits = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"
    if metric.unit.startswith("nat") or metric.unit == "share":
        digits = f"{number:.3f}"
    return digits if metric.unit == "share" else f"{digits} {metric.unit}"


def change(metric: Metric, estimate: stats.Estimate) -> str:
    """The change against the baseline with its interval: `x0.71 [0.69, 0.73]` or `+0.143 [+0.136, +0.150]`."""
    if estimate.change is None:
        return estimate.reason and ("baseline" if "baseline" in estimate.reason else estimate.reason)
    form = "{:.3f}" if metric.relative else "{:+.3f}"
    text = ("x" if metric.relative else "") + form.format(estimate.change)
    if estimate.low is None or estimate.high is None:
        return text
    if metric.exact and estimate.low == estimate.high:
        return f"{text} exact"
    return f"{text} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def flat(comparisons: Mapping[str, list[Row]]) -> list[dict[str, Any]]:
    """One line per cell and metric: what `table.csv` holds and a DataFrame takes."""
    lines = []
    for comparison, members in comparisons.items():
        for row in members:
            head = {
                "comparison": comparison,
                "family": row.record["family"],
                "arm": row.record["arm"],
                "baseline": row.record["baseline"],
                "seed": row.record["seed"],
                "status": row.status,
                "reason": row.reason,
                "stamps": " ".join(row.record["stamps"]),
            }
            if not row.estimates:
                lines.append({**head, **dict.fromkeys(_FIELDS)})
            for name, estimate in row.estimates.items():
                metric = GLOSSARY[name]
                withheld = row.status == "invalid" and metric.axis != "quality"
                figures = (estimate.value, estimate.change, estimate.low, estimate.high, estimate.units)
                judgement = row.judgements.get(name)
                lines.append(
                    {
                        **head,
                        "verdict": judgement.verdict.value if judgement else None,
                        "verdict_reason": judgement.reason if judgement else None,
                        "metric": name,
                        "unit": metric.unit,
                        "compared_as": "ratio" if metric.relative else "difference",
                        **dict(zip(_FIELDS[3:8], (None,) * 5 if withheld else figures, strict=True)),
                    }
                )
    return lines


_FIELDS = ("metric", "unit", "compared_as", "value", "change", "low", "high", "units", "verdict", "verdict_reason")
COLUMNS = ("comparison", "family", "arm", "baseline", "seed", "status", "reason", "stamps", *_FIELDS)
