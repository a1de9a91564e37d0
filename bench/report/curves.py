"""What is drawn of curves: one figure for each that any record has, an arm's seeds averaged where that says more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import stats
from bench.outcome import Row
from bench.report.drawing import DRAWN, Drawing, subject
from bench.report.overview import label

MOST_POINTS = 400
"""A longer curve is thinned to about so many."""
Pair = Sequence[float | None]
"""Of one point: its coordinates (x, y), or half the widths of their intervals, None where not known."""
OVER_ITEMS = "Bars are 95 % intervals over the items, each of one trained model."
OVER_SEEDS = "Bars are 95 % intervals over the seeds, which are the unit."
MEANS = "An arm's line is the mean of its seeds."
SINGLE = "Thin lines are the single seeds."
MOST_LINES = 12
"""With more of them the single seeds are not drawn beside their means."""
LONG_BARS = "A bar that leaves the figure has its bounds in the CSV."


@dataclass(frozen=True)
class Line:
    """One line of a figure."""

    points: Sequence[Pair]
    halves: Sequence[Pair] = ()
    """Of as many points; none where no interval is known."""


def of(comparison: str, rows: list[Row]) -> Iterator[Drawing]:
    """One figure per curve that any record has; a failed training run's losses until it failed.

    A curve called `reward_over_tokens` says what lies along its horizontal axis; else that is the step. One called
    `reward_over_tokens: best of n` is drawn into the same figure as a line of that name, which is no arm's. Where the
    half widths of a point's intervals are known, the bounds stand beside it.
    """
    found: dict[str, dict[str, Line]] = {}
    seeds: dict[str, str] = {}
    for row in rows:
        if row.status != "invalid":
            names = {_name(row, record): record for record in row.records}
            seeds |= dict.fromkeys([row.arm, *names], row.arm)
            for curve, lines in _of_arm(row, names).items():
                # of a line that is no arm's the first is as good as any
                found[curve] = lines | found.get(curve, {})
    invalid = tuple(f"{row.arm}: {label(row.status)}" for row in rows if row.status == "invalid")
    order = list(seeds)
    for curve, several in found.items():
        # lines of no arm last: an arm looks the same in all figures
        lines = dict(sorted(several.items(), key=lambda one: order.index(one[0]) if one[0] in seeds else len(order)))
        yield _drawing(comparison, rows, curve, lines, {name: seeds.get(name, name) for name in lines}, invalid)


def _name(row: Row, record: Mapping[str, Any]) -> str:
    return f"{row.arm} (seed {record['seed']})" if len(row.records) > 1 else row.arm


def _of_arm(row: Row, records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """Figure -> name -> line, of an arm's seeds and, before them, of their mean."""
    found: dict[str, dict[str, Line]] = {}
    for name, record in records.items():
        quality = record["quality"] or {}
        curves = dict(quality.get("curves") or {})
        half_widths = dict(quality.get("half_widths") or {})
        _along_seconds(row, curves, half_widths)
        if record.get("curve"):
            curves.setdefault("loss", record["curve"])
        for curve, points in curves.items():
            figure, _, line = curve.partition(": ")
            if points:
                found.setdefault(figure, {}).setdefault(line or name, Line(points, half_widths.get(curve) or ()))
    for figure, lines in found.items():
        mean = over_seeds([lines[name] for name in records if name in lines])
        if mean:
            alone = {name: Line(line.points) if name in records else line for name, line in lines.items()}
            found[figure] = {row.arm: mean, **alone}
    return found


def over_seeds(seeds: Sequence[Line]) -> Line | None:
    """The mean of an arm's seeds, look by look, with 95 % intervals over the seeds where the looks have any.

    A trained model is one draw of a training: what is said of an arm has the seeds as its unit, however many items each
    of its models was looked at on. None under two seeds, and where they were not looked at equally often; of curves
    without intervals (a loss at every step) the mean ends where the first seed ends.
    """
    estimated = all(one.halves for one in seeds)
    if len(seeds) < 2 or (estimated and len({len(one.points) for one in seeds}) > 1):
        return None
    points: list[Pair] = []
    halves: list[Pair] = []
    for place in range(min(len(one.points) for one in seeds)):
        values = [[value for one in seeds if (value := one.points[place][axis]) is not None] for axis in (0, 1)]
        if any(len(of_axis) < len(seeds) for of_axis in values):
            return None
        points.append([stats.fmean(of_axis) for of_axis in values])
        if estimated:
            known = [all(one.halves[place][axis] is not None for one in seeds) for axis in (0, 1)]
            halves.append([stats.half_interval(values[axis]) if known[axis] else None for axis in (0, 1)])
    return Line(points, halves)


def _drawing(
    comparison: str,
    rows: list[Row],
    curve: str,
    named: Mapping[str, Line],
    arms: Mapping[str, str],
    left_out: tuple[str, ...],
) -> Drawing:
    y, _, x = curve.partition("_over_")
    x = x or "step"
    step = -(-max(len(line.points) for line in named.values()) // MOST_POINTS)
    lines: list[dict[str, Any]] = [
        {"arm": name, x: point[0], y: point[1]} for name, line in named.items() for point in _thinned(line.points, step)
    ]
    known = [
        width for line in named.values() for width in _thinned(line.halves or [(None, None)] * len(line.points), step)
    ]
    notes = [f"One point in {step} is drawn; the records hold all."] if step > 1 else []
    for place, name in enumerate((x, y)):
        halves = [width[place] for width in known]
        if any(half is not None for half in halves):
            lines = [line | _bounds(line, name, half) for line, half in zip(lines, halves, strict=True)]
    told = {name: line for name, line in named.items() if name == arms[name] or arms[name] not in named}
    if told != named:
        notes += [MEANS, SINGLE if len(named) <= MOST_LINES else "The CSV has the single seeds, too."]
    drawn = named if len(named) <= MOST_LINES else told
    if len(lines[0]) > len(("arm", x, y)):
        notes += [OVER_SEEDS if told != named else OVER_ITEMS, LONG_BARS]
    words = "; ".join(
        f"{name}: from {_short(line.points[0][1])} to {_short(line.points[-1][1])}" for name, line in told.items()
    )
    return Drawing(
        f"{comparison}.{curve}",
        "curve",
        f"{_word(y)[:1].upper()}{_word(y)[1:]} by {_word(x)}",
        subject(comparison, rows),
        x,
        y,
        tuple(lines),
        f"{words}.",
        " ".join(notes),
        left_out=left_out,
        arms={name: arms[name] for name in drawn},
    )


def _along_seconds(row: Row, curves: dict[str, Any], half_widths: dict[str, Any]) -> None:
    """Add `reward_over_seconds`, of a step's measured time: arms whose steps cost unlike are read at one cost."""
    step = row.estimates.get("time_per_step")
    if "reward" in curves and step and row.status in DRAWN:
        curves["reward_over_seconds"] = [[at * step.value, reward] for at, reward in curves["reward"]]
        if "reward" in half_widths:
            half_widths["reward_over_seconds"] = half_widths["reward"]


def _thinned(points: Sequence[Pair], step: int) -> list[Pair]:
    return [*points[:-1:step], points[-1]]


def _bounds(line: Mapping[str, Any], name: str, half: float | None) -> dict[str, float | None]:
    """Of one coordinate of a point; None where its half width is not known."""
    if half is None or line[name] is None:
        return {f"{name}_low": None, f"{name}_high": None}
    return {f"{name}_low": line[name] - half, f"{name}_high": line[name] + half}


def _word(name: str) -> str:
    return "KL divergence" if name == "kl" else name.replace("_", " ")


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.3g}"
