"""A comparison by the groups of its prompts: time a token of each, and how much of the drafts is accepted there."""

from __future__ import annotations

from collections.abc import Sequence

from bench.metrics import GLOSSARY
from bench.outcome import Row
from bench.report import table

METRICS = ("tpot", "acceptance_rate")


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The arms' column and one per group; nothing where prompts have no groups."""
    groups = dict.fromkeys(group for row in rows for group in row.groups)
    return ("arm", *groups) if groups else ()


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """One line per arm that was timed and one per arm whose drafts were judged, as text."""
    groups = columns(rows)[1:]
    found = []
    for row in rows:
        for name in METRICS:
            metric = GLOSSARY[name]
            if table.hidden(row, metric) or not any(name in row.groups.get(group, {}) for group in groups):
                continue
            cells = [f"{row.arm}: {name}"]
            for group in groups:
                estimate = row.groups.get(group, {}).get(name)
                if estimate is None:
                    cells.append("not measured")
                    continue
                change = "" if name == "acceptance_rate" else f", {table.change(metric, estimate)}"
                cells.append(table.value(metric, estimate.value) + change)
            found.append(cells)
    return found
