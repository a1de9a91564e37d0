"""What `bench reproduce` shows: per arm and axis what both runs say, and whether it held."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.metrics import Metric
from bench.report import table
from bench.report.compare import environment_lines
from bench.reproduce import Answer, Finding, Reproduction, counted
from bench.stats import Estimate
from bench.verdict import Judgement

_STYLE = {Answer.HELD: "green", Answer.FLIPPED: "bold red", Answer.APART: "bold red", Answer.UNFINISHED: "red"}


def draw(found: Reproduction, console: Console) -> None:
    """Print a line per arm and axis, then what differs between the runs."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("comparison", "arm", "metric", "first run", "second run", "answer"):
        drawn.add_column(name, overflow="fold")
    for finding in found.findings:
        answer = f"[{_STYLE.get(finding.answer, 'yellow')}]{finding.answer}[/]\n[dim]{escape(finding.reason)}[/dim]"
        sides = zip((finding.first, finding.second), finding.verdicts, strict=True)
        said = [escape(_said(finding.metric, *side)) for side in sides]
        drawn.add_row(finding.comparison, escape(finding.arm), finding.metric.name, *said, answer)
    console.print(drawn)
    lines = [f"differs: {text}" for text in found.differing] + [f"left out: {text}" for text in found.damaged]
    for line in lines + environment_lines(found.environment):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(summary(found), markup=False, highlight=False, soft_wrap=True)


def summary(found: Reproduction) -> str:
    """`4 held, 1 FLIPPED`, of all arms and axes."""
    return ", ".join(f"{count} {answer}" for answer, count in counted(found.findings).items())


def as_event(found: Reproduction) -> dict[str, Any]:
    """The last event of a reproduction, for a program."""
    return {
        "event": "reproduction",
        "first": found.folders[0],
        "second": found.folders[1],
        "differing": list(found.differing),
        "environment": [dict(zip(("field", "first", "second"), field, strict=True)) for field in found.environment],
        "damaged": list(found.damaged),
        "findings": [_flat(finding) for finding in found.findings],
        "exit_code": found.exit_code,
    }


def _flat(finding: Finding) -> dict[str, Any]:
    return {
        "comparison": finding.comparison,
        "arm": finding.arm,
        "metric": finding.metric.name,
        "answer": finding.answer,
        "reason": finding.reason,
        **{
            which: {
                "change": estimate.change if estimate else None,
                "low": estimate.low if estimate else None,
                "high": estimate.high if estimate else None,
                "verdict": judgement.verdict if judgement else None,
            }
            for which, estimate, judgement in zip(
                ("first", "second"), (finding.first, finding.second), finding.verdicts, strict=True
            )
        },
    }


def _said(metric: Metric, estimate: Estimate | None, judgement: Judgement | None) -> str:
    if estimate is None:
        return ""
    verdict = f"\n{judgement.verdict}" if judgement else ""
    return f"{table.change(metric, estimate)}{verdict}"
