"""What the terminal shows: one table per comparison, lines while a run goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report import table
from bench.report.compare import Change
from bench.verdict import Judgement

_STYLE = {"ok": "green", "ungated": "yellow", "unsupported": "yellow", "skipped": "yellow"}


def draw(comparisons: Mapping[str, list[table.Row]], console: Console) -> None:
    """Print every comparison's table and what there is to say about its arms."""
    for comparison, rows in comparisons.items():
        draw_one(comparison, rows, console)


def draw_one(comparison: str, rows: list[table.Row], console: Console) -> None:
    record = rows[0].record
    model = (record["model"] or {}).get("name", "model not loaded")
    device = record["environment"]["device"]
    title = f"{comparison} · {model} · {device['name']} · {device['dtype']}"
    console.print(f"\n[bold]{escape(title)}[/bold]")
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("arm", "status", *table.AXES):
        drawn.add_column(name, overflow="fold")
    for row in rows:
        seed = f" (seed {row.record['seed']})" if any(r.record["seed"] != record["seed"] for r in rows) else ""
        cells = [escape(row.record["arm"] + seed), f"[{_STYLE.get(row.status, 'red')}]{row.status}[/]"]
        for axis in table.AXES:
            metric, estimate, missing = row.shown(axis)
            if estimate is None:
                cells.append(missing)
            else:
                figure = table.value(metric, estimate.value)
                change = escape(table.change(metric, estimate))
                cells.append(f"{figure} {metric.name}\n[dim]{change}[/dim]{_verdict(row.judgements.get(metric.name))}")
        drawn.add_row(*cells)
    console.print(drawn)
    for row in rows:
        if row.reason:
            console.print(f"  {escape(row.record['arm'])}: {row.status}: {escape(row.reason)}", style="red")
    stamps = sorted({stamp for row in rows for stamp in row.record["stamps"]})
    if stamps:
        console.print(f"  stamped {', '.join(stamps)}: not publishable", style="yellow")


def _verdict(judgement: Judgement | None) -> str:
    if judgement is None:
        return ""
    style = {"BETTER": "bold green", "WORSE": "bold red", "SAME": "bold"}.get(judgement.verdict, "yellow")
    return f"\n[{style}]{judgement.verdict}[/] [dim]{escape(judgement.reason)}[/dim]"


def draw_changes(changes: Iterable[Change], console: Console) -> None:
    """Print what `compare` found, a line per arm and axis."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("comparison", "arm", "metric", "second run", "change"):
        drawn.add_column(name, overflow="fold")
    for one in changes:
        figure, change = "not measured", ""
        if one.estimate is not None:
            figure = table.value(one.metric, one.estimate.value)
            change = table.change(one.metric, one.estimate)
        drawn.add_row(one.comparison, escape(one.arm), one.metric.name, figure, escape(change))
    console.print(drawn)


class Progress:
    """Says what runs and what is left, one line at a time; nothing is drawn while a burst runs."""

    def __init__(self, console: Console, as_json: bool) -> None:
        self.console = console
        self.as_json = as_json
        self.started = time.monotonic()
        self.expected = 0.0
        self.folder = ""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            self.started, self.expected, self.folder = time.monotonic(), event["seconds"], event["folder"]
        if self.as_json:
            print(json.dumps(event), flush=True)
            return
        line = self._line(event)
        if line:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        sys.stdout.flush()

    def _line(self, event: dict[str, Any]) -> str:
        clock = f"[{_minutes(time.monotonic() - self.started)} of ~{_minutes(self.expected)}]"
        match event["event"]:
            case "note":
                return str(event["text"])
            case "start":
                return f"{event['folder']}: about {_minutes(event['seconds'])}"
            case "stage" if event["stage"] == "timing":
                return f"{clock} {event['comparison']}: round {event['round'] + 1} of {event['rounds']}"
            case "stage":
                arm = f" {event['arm']}" if event["arm"] else ""
                return f"{clock} {event['comparison']}:{arm} {event['stage']}"
            case "cell" if event["status"] != "ok":
                return f"{clock} {event['cell']}: {event['status']}: {event['reason']}"
        return ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
