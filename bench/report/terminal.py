"""What the terminal shows of results: one table per comparison, the overview, the warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from bench import outcome
from bench.report import cautions, overview, table
from bench.verdict import Judgement

_STYLE = {"ok": "green", "ungated": "yellow", "unsupported": "yellow", "skipped": "yellow"}


def draw(comparisons: Mapping[str, list[outcome.Row]], manifest: Mapping[str, Any], console: Console) -> None:
    """Print the overview, then every comparison's table, then the warnings."""
    _draw_overview(overview.lines(comparisons), console)
    for comparison, rows in comparisons.items():
        draw_one(comparison, rows, console)
    _draw_cautions(cautions.of(comparisons, manifest), console)


def draw_end(comparisons: Mapping[str, list[outcome.Row]], manifest: Mapping[str, Any], console: Console) -> None:
    """Print what a run comes to, its tables having been shown as they came: the overview and the warnings."""
    _draw_overview(overview.lines(comparisons), console)
    _draw_cautions(cautions.of(comparisons, manifest), console)


def _draw_overview(lines: list[overview.Line], console: Console) -> None:
    """What every arm saves and costs: a table and a sentence each."""
    if not lines:
        return
    console.print("\n[bold]overview[/bold]")
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in overview.COLUMNS:
        drawn.add_column(name, overflow="fold")
    for line, cells in zip(lines, overview.cells(lines), strict=True):
        arm, *others = map(escape, cells)
        style = "" if line.status == "ok" else _STYLE.get(line.status, "red")
        drawn.add_row(arm, *(text.replace("; ", "\n") for text in others), style=style)
    console.print(drawn)
    for line in lines:
        where = f" ({line.where})" if line.where else ""
        _tell(f"[bold]{escape(line.arm)}[/bold]{escape(where)}: {escape(line.sentence)}", console)


def _draw_cautions(found: list[cautions.Caution], console: Console) -> None:
    if found:
        console.print("\n[bold]warnings[/bold]")
    for one in found:
        _tell(f"[yellow]{escape(one.what)} -> {escape(one.remedy)}[/yellow]", console)
        _tell(f"[dim]{escape(', '.join(one.arms) or 'all')}[/dim]", console, indent=4)


def _tell(markup: str, console: Console, indent: int = 2) -> None:
    """Print a sentence; its further lines begin where the first does."""
    console.print(Padding(markup, (0, 0, 0, indent)), highlight=False)


def draw_one(comparison: str, rows: list[outcome.Row], console: Console) -> None:
    """Print one comparison's table and what there is to say about its arms."""
    console.print(f"\n[bold]{escape(f'{comparison} · {table.subject(rows)}')}[/bold]", highlight=False)
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("arm", "status", *outcome.AXES):
        drawn.add_column(name, overflow="fold")
    for row in rows:
        arm = escape(row.arm) + (f"\n[dim]{escape(row.labels)}[/dim]" if row.labels else "")
        cells = [arm, f"[{_STYLE.get(row.status, 'red')}]{overview.label(row.status)}[/]"]
        for axis in outcome.AXES:
            metric, estimate, missing = row.shown(axis)
            if estimate is None:
                cells.append(missing)
            else:
                figure = table.value(metric, estimate.value)
                change = escape(table.change(metric, estimate))
                cells.append(f"{figure} {metric.name}\n[dim]{change}[/dim]{verdict(row.judgements.get(metric.name))}")
        drawn.add_row(*cells)
    console.print(drawn)
    for row in rows:
        if row.reason:
            console.print(f"  {escape(row.arm)}: {overview.label(row.status)}: {escape(row.reason)}", style="red")
    stamps = sorted({stamp for row in rows for stamp in row.stamps})
    if stamps:
        console.print(f"  stamped {', '.join(stamps)}: not publishable", style="yellow")


def verdict(judgement: Judgement | None) -> str:
    """A verdict and its reason, on a line of its own; nothing where there is none."""
    if judgement is None:
        return ""
    style = {"BETTER": "bold green", "WORSE": "bold red", "SAME": "bold"}.get(judgement.verdict, "yellow")
    return f"\n[{style}]{judgement.verdict}[/] [dim]{escape(judgement.reason)}[/dim]"
