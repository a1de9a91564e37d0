"""A figure before it is drawn: its numbers and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.outcome import Row
from bench.report import table

DRAWN = frozenset({"ok", "ungated"})
"""Whose figures may be seen."""


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
    """Drawn curve -> the arm that it is of: an arm's seeds look like their mean, and stand in the legend once."""

    @property
    def columns(self) -> list[str]:
        return list(self.lines[0]) if self.lines else []

    @property
    def csv(self) -> str:
        return table.as_csv(self.lines, self.columns)


def subject(comparison: str, rows: list[Row]) -> str:
    """What the figures of a comparison are about."""
    return f"{comparison}: {table.subject(rows)}"
