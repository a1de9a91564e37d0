"""Tables over comparisons that differ in one size: how an arm's figures grow with it, and from where the arm pays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.metrics import GLOSSARY, Metric
from bench.outcome import AXES, Row
from bench.report import table
from bench.report.grids import Grid
from bench.verdict import Verdict

BESIDE = ("ttft",)
"""Shown beside the primary metrics, without a verdict."""

Sized = Sequence[tuple[float, list[Row]]]
"""Comparisons by the size in which they differ, the smallest first."""


def of(comparisons: Mapping[str, list[Row]]) -> list[Grid]:
    """A table for every number of a workload in which some comparisons differ and in nothing else."""
    groups: dict[tuple[str, str], dict[float, list[Row]]] = {}
    for rows in comparisons.values():
        for name, value, rest in _sizes(rows[0].record):
            known = groups.setdefault((name, rest), {}).setdefault(value, [])
            known += [row for row in rows if row.arm not in {one.arm for one in known}]
    return [_grid(name, sorted(found.items())) for (name, _), found in groups.items() if len(found) > 1]


def _sizes(record: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Every number of a comparison: its name, its value, and all else that it has to share with others."""
    workload = record["workload"]
    others = [record["family"], record["baseline"], record["model"], record["environment"]["device"], workload["name"]]
    for name, value in workload["parameters"].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            rest = {key: other for key, other in workload["parameters"].items() if key != name}
            yield name, value, json.dumps([*others, rest], sort_keys=True)


def _grid(name: str, sized: Sized) -> Grid:
    first = sized[0][1][0].record
    primary = [GLOSSARY[first["primary"][axis]] for axis in AXES]
    beside = [GLOSSARY[metric] for metric in BESIDE if metric not in first["primary"].values()]
    arms = dict.fromkeys(row.arm for _, rows in sized for row in rows)
    lines = []
    for metric in [*primary, *beside]:
        for arm in arms:
            there = [(size, row) for size, rows in sized for row in rows if row.arm == arm]
            cells = {size: _cell(row, metric) for size, row in there}
            if any(metric.name in row.estimates for _, row in there):
                judged = metric in primary and metric.axis != "quality"
                last = pays_from(there, metric) if judged else "no verdict"
                texts = [cells.get(size, "not measured") for size, _ in sized]
                lines.append([f"{arm}: {metric.name}", *texts, last])
    columns = ("arm", *(f"{name} {size:,}" for size, _ in sized), "pays from")
    caption = (
        f"{first['workload']['name']} by {name}: an arm pays from where it is BETTER than {first['baseline']}, there "
        f"and at every larger {name}"
    )
    return Grid(caption, columns, lines)


def _cell(row: Row, metric: Metric) -> str:
    estimate = row.estimates.get(metric.name)
    missing = table.hidden(row, metric) or ("" if estimate else "not measured")
    if missing or estimate is None:
        return missing
    return ", ".join(filter(None, (table.value(metric, estimate.value), table.change(metric, estimate))))


def pays_from(there: Sequence[tuple[float, Row]], metric: Metric) -> str:
    """In words, the least size from which on an arm's verdict is BETTER, by the verdicts at its sizes in order."""
    if there[0][1].is_baseline:
        return "the baseline"
    better = [
        (judgement := row.judgements.get(metric.name)) is not None
        and judgement.verdict is Verdict.BETTER
        and not table.hidden(row, metric)
        for _, row in there
    ]
    sizes = [size for size, _ in there]
    if not better[-1]:
        return f"not seen up to {sizes[-1]:,}"
    start = next((at for at in range(len(better), 0, -1) if not better[at - 1]), 0)
    return f"between {sizes[start - 1]:,} and {sizes[start]:,}" if start else f"{sizes[0]:,} at the latest"
