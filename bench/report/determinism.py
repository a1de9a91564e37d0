"""What `bench doctor --determinism` shows: a line per arm while it goes on, a table at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.determinism import NOT_RUN
from bench.difference import DIFFERENT, EQUAL, WITHIN

_STYLE = {EQUAL: "green", WITHIN: "yellow", DIFFERENT: "bold red", NOT_RUN: "yellow"}


def tell(event: Mapping[str, Any], console: Console, as_json: bool) -> None:
    """Print one event as a line."""
    if as_json:
        print(json.dumps(event), flush=True)
    else:
        console.print(_line(event), highlight=False, markup=False, soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    if event["event"] == "note":
        return str(event["text"])
    what = f"{event['comparison']}: {event['arm'] or 'build'}"
    if event["event"] == "stage":
        changed = f", changed: {event['change']}" if event["change"] else ""
        return f"{what}: twice{changed} ..."
    why = f" ({event['cause']})" if event["cause"] else ""
    return f"{what}: {answer(event)}{why}"


def answer(row: Mapping[str, Any]) -> str:
    """A row's answer in words, with the figure."""
    if row["answer"] == WITHIN:
        return f"{WITHIN} {row['relative']:.2g}"
    if row["answer"] == DIFFERENT and row["relative"] is not None:
        return f"{DIFFERENT} by {row['relative']:.2g}"
    return f"{row['answer']}: {row['status']}" if row["answer"] == NOT_RUN else str(row["answer"])


def draw(report: Mapping[str, Any], console: Console) -> None:
    """Print a report: a row per `build` and per arm."""
    device = report["device"]
    title = f"same seed ({report['seed']}) twice · {report['experiment']} · {device['name']} · {device['dtype']}"
    console.print(f"\n[bold]{escape(title)}[/bold]")
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("comparison", "arm", "answer", "where", "cause"):
        drawn.add_column(name, overflow="fold")
    for row in report["rows"]:
        where = ": ".join(filter(None, (row["metric"], row["detail"], row["reason"])))
        drawn.add_row(
            row["comparison"],
            escape(row["arm"]) if row["arm"] else f"[dim]build {(row['sha256'][0] or '')[:12]}[/dim]",
            f"[{_STYLE[row['answer']]}]{answer(row)}[/]",
            escape(where),
            escape(row["cause"]),
        )
    console.print(drawn)
    console.print(
        f"Figures may differ by {report['bound']:g} of the largest of their metric; ids, texts and builds not at all.",
        style="dim",
    )
