"""What is drawn: the numbers of every figure and what it says in words. Withheld figures are in none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench import stats
from bench.metrics import GLOSSARY, Metric
from bench.outcome import Row
from bench.report import curves, grids, table
from bench.report.drawing import DRAWN, Drawing, subject
from bench.report.overview import label
from bench.technique import Axis


def of(comparison: str, rows: list[Row]) -> list[Drawing]:
    """All figures of a comparison."""
    return [
        _scatter(comparison, rows, "memory"),
        _scatter(comparison, rows, "latency"),
        _stack(comparison, rows),
        *curves.of(comparison, rows),
    ]


def _scatter(comparison: str, rows: list[Row], axis: Axis) -> Drawing:
    """Quality against another axis, as changes against the baseline, with the arms that no other arm beats."""
    baseline = str(rows[0].record["baseline"])
    across, up = (GLOSSARY[rows[0].record["primary"][one]] for one in (axis, "quality"))
    points: list[dict[str, Any]] = []
    left_out = []
    for row in rows:
        estimates = [row.shown(one) for one in (axis, "quality")]
        reason = next((missing for _, estimate, missing in estimates if estimate is None), "")
        if row.status not in DRAWN:
            reason = label(row.status)
        found = [(metric, estimate) for metric, estimate, _ in estimates if estimate is not None]
        if not reason and not row.is_baseline:
            reason = next((one.reason or "not compared" for _, one in found if one.change is None), "")
        if reason:
            left_out.append(f"{row.arm}: {reason}")
            continue
        point: dict[str, Any] = {"arm": row.arm}
        for metric, estimate in found:
            point |= _place(metric, estimate, row.is_baseline)
        points.append(point)
    front = _front(points, across, up)
    lines = tuple({**point, "on_front": point["arm"] in front} for point in points)
    return Drawing(
        f"{comparison}.quality-{axis}",
        "scatter",
        f"Quality against {axis}",
        subject(comparison, rows),
        _axis_title(across, baseline),
        _axis_title(up, baseline),
        lines,
        "; ".join(_point_words(point, across, up, rows) for point in points)
        + f". No arm beats on both: {', '.join(front)}.",
        f"Pareto front by the point figures, dotted: {', '.join(front)}.{_labels(rows)}",
        "" if len(points) > 1 else "fewer than two arms have both figures",
        tuple(left_out),
    )


def _labels(rows: Iterable[Row]) -> str:
    """What decides the meaning of figures, with the techniques that it stands beside."""
    named: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.labels:
            named.setdefault(row.labels, {})[str(row.record["technique"].get("registered", row.arm))] = None
    return "".join(f" {labels.capitalize()}: {', '.join(names)}." for labels, names in named.items())


def _place(metric: Metric, estimate: stats.Estimate, is_baseline: bool) -> dict[str, float | None]:
    if is_baseline:
        return {metric.name: 1.0 if metric.relative else 0.0, f"{metric.name}_low": None, f"{metric.name}_high": None}
    return {metric.name: estimate.change, f"{metric.name}_low": estimate.low, f"{metric.name}_high": estimate.high}


def _front(points: Iterable[Mapping[str, Any]], across: Metric, up: Metric) -> list[str]:
    """Arms that no other is at least as good as on both axes and better on one (Pareto), by their point figures."""
    placed = [
        (str(point["arm"]), *(point[m.name] * (1 if m.better == "lower" else -1) for m in (across, up)))
        for point in points
    ]
    return [
        arm
        for arm, x, y in placed
        if not any(u <= x and v <= y and (u < x or v < y) for other, u, v in placed if other != arm)
    ]


def _axis_title(metric: Metric, baseline: str) -> str:
    compared = f"ratio to {baseline}" if metric.relative else f"difference from {baseline}"
    unit = "" if metric.relative or metric.unit == "share" else f" [{metric.unit}]"
    return f"{metric.name}{unit}, {compared}, {metric.better} is better"


def _point_words(point: Mapping[str, Any], across: Metric, up: Metric, rows: list[Row]) -> str:
    row = next(row for row in rows if row.arm == point["arm"])
    if row.is_baseline:
        return f"{row.arm} is the baseline"
    changes = [f"{metric.name} {table.change(metric, row.estimates[metric.name])}" for metric in (across, up)]
    return f"{row.arm}: {' and '.join(changes)}"


def _stack(comparison: str, rows: list[Row]) -> Drawing:
    """What the peak of memory is made of, in the round whose peak is the middle one."""
    lines: list[dict[str, Any]] = []
    words, left_out = [], []
    for row in rows:
        if row.status not in DRAWN:
            left_out.append(f"{row.arm}: {label(row.status)}")
            continue
        middle = grids.middle_memory(row)
        if middle is None:
            memories = [part["memory"] for part in row.record["rounds"] if part.get("memory")]
            reason = next((one.get("reason") for one in memories if one.get("reason")), "")
            left_out.append(f"{row.arm}: not measured{f', {reason}' if reason else ''}")
            continue
        parts = grids.memory_parts(middle)
        lines += [
            {"arm": row.arm, "component": name, "bytes": count, "peak_bytes": middle["peak"]}
            for name, count in parts.items()
        ]
        told = ", ".join(f"{name} {table.value(GLOSSARY['peak_memory'], count)}" for name, count in parts.items())
        words.append(f"{row.arm}: {table.value(GLOSSARY['peak_memory'], middle['peak'])}, of which {told}")
    return Drawing(
        f"{comparison}.memory",
        "stack",
        "What the peak of memory is made of",
        subject(comparison, rows),
        "bytes at the peak, lower is better",
        "",
        tuple(lines),
        f"{'; '.join(words)}.",
        "Of the round whose peak is the middle one.",
        "" if lines else "no arm's memory was measured",
        tuple(left_out),
    )
