"""The report as Markdown: the overview first, then the details of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench import outcome
from bench.metrics import GLOSSARY
from bench.report import cautions, grids, overview, scaling, table
from bench.report.calibration import sentences


def as_markdown(manifest: Mapping[str, Any], comparisons: Mapping[str, list[outcome.Row]], damaged: list[str]) -> str:
    """The report as Markdown."""
    lines = [f"# {cell(table.headline(manifest, comparisons))}", ""]
    if manifest["config"].get("description"):
        lines += [cell(manifest["config"]["description"]), ""]
    code = manifest["environment"]["code"]
    lines.append(
        f"Started {manifest['started']}; code {(code['commit'] or 'unknown')[:12]}"
        f"{' with changes' if code['dirty'] else ''}; "
        f"config {manifest['config_sha256'][:12]}."
    )
    lines += ["", *_overview(comparisons)]
    for one in scaling.of(comparisons):
        lines += ["", f"{cell(one.caption)}.", "", *grid(one.columns, one.lines)]
    found = cautions.of(comparisons, manifest)
    if found:
        lines += ["", "## Warnings", ""]
        lines += grid(
            ("warning", "what to do", "arms"), ((one.what, one.remedy, ", ".join(one.arms) or "all") for one in found)
        )
    if manifest.get("calibration"):
        lines += ["", *_resolution(manifest["calibration"])]
    for comparison, rows in comparisons.items():
        lines += ["", *_comparison(comparison, rows)]
    if damaged:
        lines += ["", "## Left out", "", *(f"* {cell(line)}" for line in damaged)]
    lines += ["", *_glossary(comparisons)]
    return "\n".join(lines) + "\n"


def _overview(comparisons: Mapping[str, list[outcome.Row]]) -> list[str]:
    found = overview.lines(comparisons)
    if not found:
        return ["## Overview", "", "No arm but baselines has finished."]
    words = [f"* **{cell(line.arm)}** ({line.place}): {cell(line.sentence)}." for line in found]
    return ["## Overview", "", *words, "", *grid(overview.COLUMNS, overview.cells(found))]


def _comparison(comparison: str, rows: list[outcome.Row]) -> list[str]:
    lines = [f"## {cell(comparison)}", "", cell(f"{table.subject(rows)}. {table.about(rows)}"), ""]
    cells, notes = [], []
    for row in rows:
        found = [f"{row.arm} ({row.labels})" if row.labels else row.arm, overview.label(row.status)]
        for axis in outcome.AXES:
            metric, estimate, missing = row.shown(axis)
            if estimate is None:
                found.append(missing)
            else:
                figure = f"{table.value(metric, estimate.value)} {metric.name}, {table.change(metric, estimate)}"
                judgement = row.judgements.get(metric.name)
                found.append(f"{figure}: {judgement.verdict} ({judgement.reason})" if judgement else figure)
        cells.append(found)
        if row.reason:
            notes.append(f"* {cell(row.arm)}: {overview.label(row.status)}: {cell(row.reason)}")
        notes += [
            f"* {cell(row.arm)}: {cell(gate['name'])}: {cell(gate['detail'])}"
            for gate in (row.record["quality"] or {}).get("gates") or []
            if gate["passed"]
        ]
    lines += [*grid(("arm", "status", *outcome.AXES), cells), "", *notes]
    others = list(_others(rows))
    if others:
        lines += ["", "What else was measured, and its change; none of it is judged.", ""]
        lines += grid(("metric", *(row.arm for row in rows)), others)
    for one in grids.of(rows):
        lines += ["", f"{one.caption}.", "", *grid(one.columns, one.lines)]
    return lines


def _others(rows: Sequence[outcome.Row]) -> Iterator[list[str]]:
    """A line per metric that is primary on no axis, a cell per arm."""
    primary = {rows[0].record["primary"][axis] for axis in outcome.AXES}
    for name in dict.fromkeys(name for row in rows for name in row.estimates if name not in primary):
        metric, cells = GLOSSARY[name], []
        for row in rows:
            estimate, missing = row.estimates.get(name), table.hidden(row, metric)
            if estimate is None or missing:
                cells.append(missing or "not measured")
            else:
                cells.append(f"{table.value(metric, estimate.value)}, {table.change(metric, estimate)}")
        yield [name, *cells]


def _resolution(calibration: Mapping[str, Any]) -> list[str]:
    """What differences the machine can resolve."""
    return [
        f"Calibrated {calibration['made']} on this device with these versions:",
        "",
        *(f"* {cell(line)}" for line in sentences(calibration)),
    ]


def _glossary(comparisons: Mapping[str, list[outcome.Row]]) -> list[str]:
    every = [row for rows in comparisons.values() for row in rows]
    used = {row.record["primary"][axis] for row in every for axis in outcome.AXES}.union(*(r.estimates for r in every))
    lines = ["## Glossary", "", "A change is a ratio to the baseline (x) or a difference from it (+/-), with its"]
    lines += ["interval over rounds of processes (latency, memory), items or training seeds (quality).", ""]
    for name in sorted(used):
        metric = GLOSSARY[name]
        lines.append(f"* **{name}** [{metric.unit}, {metric.better} is better]: {metric.definition}")
    return lines


def grid(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table."""
    rule = f"|{'---|' * len(columns)}"
    return [f"| {' | '.join(map(cell, columns))} |", rule, *(f"| {' | '.join(map(cell, line))} |" for line in lines)]


def cell(text: str) -> str:
    """Text inside a Markdown table: no markup of its own."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
