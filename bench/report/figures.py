"""What is drawn: the numbers of every figure and what it says in words. Withheld figures are in none of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench import stats
from bench.metrics import GLOSSARY, Metric
from bench.outcome import Row
from bench.report import grids, table
from bench.report.overview import label
from bench.technique import Axis

DRAWN = frozenset({"ok", "ungated"})
MOST_POINTS = 400
"""A longer curve is thinned to about so many."""


@dataclass(frozen=True)
class Drawing:
    """One figure, before it is drawn."""

    name: str
    """Unique in a report."""
    kind: Literal["scatter", "stack", "curve"]
    title: str
    subject: str
    """Comparison, model, its size, device."""
    x: str
    y: str
    lines: tuple[Mapping[str, Any], ...]
    """Its numbers, as its CSV holds them."""
    words: str
    """What it shows, for who cannot see it."""
    note: str = ""
    """How to read it."""
    missing: str = ""
    """Why it is not drawn."""
    left_out: tuple[str, ...] = ()
    """Arms that are not in it, and why."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """Curve -> the arm that it is a seed of: its seeds look alike, and stand in the legend once."""

    @property
    def columns(self) -> list[str]:
        return list(self.lines[0]) if self.lines else []

    @property
    def csv(self) -> str:
        return table.as_csv(self.lines, self.columns)


def of(comparison: str, rows: list[Row]) -> list[Drawing]:
    """All figures of a comparison."""
    return [
        _scatter(comparison, rows, "memory"),
        _scatter(comparison, rows, "latency"),
        _stack(comparison, rows),
        *_curves(comparison, rows),
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
        _subject(comparison, rows),
        _axis_title(across, baseline),
        _axis_title(up, baseline),
        lines,
        "; ".join(_point_words(point, across, up, rows) for point in points)
        + f". No arm beats on both: {', '.join(front)}.",
        f"Pareto front by the point figures, dotted: {', '.join(front)}.",
        "" if len(points) > 1 else "fewer than two arms have both figures",
        tuple(left_out),
    )


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
        _subject(comparison, rows),
        "bytes at the peak, lower is better",
        "",
        tuple(lines),
        f"{'; '.join(words)}.",
        "Of the round whose peak is the middle one.",
        "" if lines else "no arm's memory was measured",
        tuple(left_out),
    )


def _curves(comparison: str, rows: list[Row]) -> Iterator[Drawing]:
    """One figure per curve that any record has; a failed training run's losses until it failed.

    A curve called `reward_over_tokens` says what lies along its horizontal axis; else that is the step. One called
    `reward_over_tokens: best of n` is drawn into the same figure as a line of that name, which is no arm's. Where the
    half widths of a point's intervals are known, the bounds stand beside it.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    widths: dict[tuple[str, str], list[Any]] = {}
    seeds: dict[str, str] = {}
    for row in rows:
        if row.status == "invalid":
            continue
        for record in row.records:
            quality = record["quality"] or {}
            curves = dict(quality.get("curves") or {})
            half_widths = dict(quality.get("half_widths") or {})
            _along_seconds(row, curves, half_widths)
            if record.get("curve"):
                curves.setdefault("loss", record["curve"])
            name = f"{row.arm} (seed {record['seed']})" if len(row.records) > 1 else row.arm
            seeds[name] = row.arm
            for curve, points in curves.items():
                figure, _, line = curve.partition(": ")
                widths[figure, line or name] = half_widths.get(curve) or []
                if points:
                    found.setdefault(figure, {}).setdefault(line or name, points)
    invalid = tuple(f"{row.arm}: {label(row.status)}" for row in rows if row.status == "invalid")
    for curve, several in found.items():
        # lines of no arm last: an arm looks the same in all figures
        arms = dict(sorted(several.items(), key=lambda one: one[0] not in seeds))
        y, _, x = curve.partition("_over_")
        x = x or "step"
        step = -(-max(map(len, arms.values())) // MOST_POINTS)
        lines = [
            {"arm": arm, x: point[0], y: point[1]} for arm, points in arms.items() for point in _thinned(points, step)
        ]
        known = [
            width
            for arm, points in arms.items()
            for width in _thinned(widths[curve, arm] or [[None, None]] * len(points), step)
        ]
        notes = [f"One point in {step} is drawn; the records hold all."] if step > 1 else []
        for place, name in enumerate((x, y)):
            halves = [width[place] for width in known]
            if any(half is not None for half in halves):
                lines = [line | _bounds(line, name, half) for line, half in zip(lines, halves, strict=True)]
        if len(lines[0]) > len(("arm", x, y)):
            notes.append("Bars are 95 % intervals over the items, each of one trained model.")
        words = "; ".join(
            f"{arm}: from {_short(points[0][1])} to {_short(points[-1][1])}" for arm, points in arms.items()
        )
        yield Drawing(
            f"{comparison}.{curve}",
            "curve",
            f"{y.replace('_', ' ').capitalize()} by {x.replace('_', ' ')}",
            _subject(comparison, rows),
            x,
            y,
            tuple(lines),
            f"{words}.",
            " ".join(notes),
            left_out=invalid,
            arms={name: seeds.get(name, name) for name in arms},
        )


def _along_seconds(row: Row, curves: dict[str, Any], half_widths: dict[str, Any]) -> None:
    """Add `reward_over_seconds`, of a step's measured time: arms whose steps cost unlike are read at one cost."""
    step = row.estimates.get("time_per_step")
    if "reward" in curves and step and row.status in DRAWN:
        curves["reward_over_seconds"] = [[at * step.value, reward] for at, reward in curves["reward"]]
        if "reward" in half_widths:
            half_widths["reward_over_seconds"] = half_widths["reward"]


def _thinned(points: list[Any], step: int) -> list[Any]:
    return [*points[:-1:step], points[-1]]


def _bounds(line: Mapping[str, Any], name: str, half: float | None) -> dict[str, float | None]:
    """Of one coordinate of a point; None where its half width is not known."""
    if half is None or line[name] is None:
        return {f"{name}_low": None, f"{name}_high": None}
    return {f"{name}_low": line[name] - half, f"{name}_high": line[name] + half}


def _subject(comparison: str, rows: list[Row]) -> str:
    return f"{comparison}: {table.subject(rows)}"


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.3g}"
