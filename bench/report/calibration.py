"""What `bench doctor --calibrate` shows: what was planted, what was seen, and what this machine can resolve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import stats
from bench.metrics import GLOSSARY
from bench.report import table

_STYLE = {True: "green", False: "bold red", None: "yellow"}


def draw(report: Mapping[str, Any], console: Console) -> None:
    """Print a calibration."""
    device = report["device"]
    console.print(f"\n[bold]calibration · {escape(device['name'])} · {device['dtype']}[/bold]")
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("planted", "metric", "truth", "seen", "verdict"):
        drawn.add_column(name, overflow="fold")
    for fault in report["seen"]:
        metric = GLOSSARY[fault["metric"]]
        for look in fault["looks"]:
            estimate = stats.Estimate(0.0, look["change"], look["low"], look["high"], look["units"])
            drawn.add_row(
                escape(fault["arm"]),
                metric.name,
                f"x{fault['truth']:.3f}" if metric.relative else f"{fault['truth']:+.3f}",
                f"{table.change(metric, estimate)} from {look['units']} {look['counted_in']}",
                f"[{_STYLE[look['right']]}]{look['verdict']}[/]",
            )
    console.print(drawn)
    for line in sentences(report):
        console.print(f"  {escape(line)}", highlight=False)
    for line in report["failed"]:
        console.print(f"  {escape(line)}", style="red")
    if report["stamps"]:
        console.print(f"  stamped {', '.join(report['stamps'])}", style="yellow")


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What this machine can resolve, a line per metric and number of rounds."""
    return [
        f"{one['metric']}: {one['rounds']} rounds, about {one['minutes']:.0f} min for two arms: "
        f"differences below {one['smallest']:.1%} cannot be seen here"
        + (
            ""
            if one["same_within_margin"]
            else f", nor that arms are the same within {GLOSSARY[one['metric']].margin:.0%}"
        )
        for one in report["resolution"]
    ]
