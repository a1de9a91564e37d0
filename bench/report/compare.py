"""What `bench compare` shows: a table for the terminal or a pull request, every metric as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.comparison import Change, Contrast, moved_baselines
from bench.limits import Answer, Check
from bench.report import table
from bench.report.terminal import verdict

_STYLE = {Answer.FAILS: "bold red", Answer.HOLDS: "green", Answer.OPEN: "yellow"}
_TITLES = ("comparison", "arm", "metric", "first run", "second run", "change", "verdict")


def draw(found: Contrast, checks: Sequence[Check], console: Console) -> None:
    """Print the arms' primary metrics, what differs between the runs, and how the limits fare."""
    for line in (f"compared all the same: {text}" for text in found.obstacles):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in _TITLES[:-1]:
        drawn.add_column(name, overflow="fold")
    for change in _primary(found):
        *cells, _ = _cells(change)
        drawn.add_row(*map(escape, cells[:-1]), escape(cells[-1]) + verdict(change.judgement))
    console.print(drawn)
    for line in notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for check in checks:
        console.print(limit_line(check), style=_STYLE[check.answer], markup=False, highlight=False, soft_wrap=True)


def notes(found: Contrast) -> list[str]:
    """What a reader must know beside the figures."""
    lines = []
    for pair in found.pairs:
        for row, which in ((pair.before, "first"), (pair.after, "second")):
            if row.status != "ok":
                reason = f": {row.reason}" if row.reason else ""
                lines.append(f"{' '.join(pair.key)}: {row.status} in the {which} run{reason}")
    lines += [f"only in the {which} run: {cell}" for cell, which in found.only]
    lines += [f"left out: {text}" for text in found.damaged]
    lines += moved_baselines(found)
    return lines + environment_lines(found.environment)


def environment_lines(environment: Iterable[tuple[str, Any, Any]]) -> list[str]:
    """A line per field of the environment that differs."""
    return [f"environment: {field}: {_text(first)} -> {_text(second)}" for field, first, second in environment]


def limit_line(check: Check) -> str:
    """How one arm fares under one limit."""
    return f"{check.answer} {check.limit.text}: {' '.join(check.change.key)}: {check.reason}"


def as_markdown(found: Contrast, checks: Sequence[Check]) -> str:
    """The same as `draw`, for a pull request."""
    lines = [f"Second run: `{found.folders[1]}`, against the first: `{found.folders[0]}`.", ""]
    lines += [*(f"* **compared all the same:** {_cell(text)}" for text in found.obstacles), ""]
    lines += ["| " + " | ".join(_TITLES) + " |", "|" + "---|" * len(_TITLES)]
    lines += ["| " + " | ".join(map(_cell, _cells(change))) + " |" for change in _primary(found)]
    lines += ["", *(f"* {_cell(line)}" for line in notes(found))]
    lines += ["", *(f"* {_cell(limit_line(check))}" for check in checks)]
    return "\n".join(lines).rstrip("\n") + "\n"


def as_csv(found: Contrast, checks: Sequence[Check]) -> str:
    """A line per arm and metric, with the limits that stand on it."""
    lines = flat(found)
    for line in lines:
        mine = [check for check in checks if check.change.key == (line["comparison"], line["arm"])]
        told = [f"{check.answer} {check.limit.text}" for check in mine if check.change.metric.name == line["metric"]]
        line["limits"] = "; ".join(told)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _plain(value) for key, value in line.items()})
    return out.getvalue()


def as_json(found: Contrast, checks: Sequence[Check]) -> str:
    """Everything, for a program."""
    data = {
        "first": found.folders[0],
        "second": found.folders[1],
        "forced": list(found.obstacles),
        "environment": [dict(zip(("field", "first", "second"), field, strict=True)) for field in found.environment],
        "arms": [
            {
                "comparison": pair.key[0],
                "arm": pair.key[1],
                **{
                    name: {"status": row.status, "reason": row.reason, "stamps": row.stamps}
                    for name, row in pair._asdict().items()
                },
            }
            for pair in found.pairs
        ],
        "only": [{"cell": cell, "run": which} for cell, which in found.only],
        "damaged": list(found.damaged),
        "changes": flat(found),
        "limits": [
            {
                "limit": check.limit.text,
                "comparison": check.change.comparison,
                "arm": check.change.arm,
                "answer": check.answer,
                "reason": check.reason,
            }
            for check in checks
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def flat(found: Contrast) -> list[dict[str, Any]]:
    """One mapping per arm and metric, primary or not."""
    return [
        {
            "comparison": change.comparison,
            "arm": change.arm,
            "metric": change.metric.name,
            "unit": change.metric.unit,
            "primary": change.primary,
            "compared_as": "ratio" if change.metric.relative else "difference",
            "first": change.before,
            "second": change.estimate.value if change.estimate else None,
            **{
                key: getattr(change.estimate, key) if change.estimate else None
                for key in ("change", "low", "high", "confidence", "units")
            },
            "counted_in": change.estimate.unit if change.estimate else None,
            "missing": change.missing or (change.estimate.reason if change.estimate else ""),
            "verdict": change.judgement.verdict if change.judgement else None,
            "verdict_reason": change.judgement.reason if change.judgement else None,
        }
        for change in found.changes
    ]


def _primary(found: Contrast) -> list[Change]:
    return [change for change in found.changes if change.primary]


def _cells(change: Change) -> list[str]:
    """A line of the table, in the order of `_TITLES`."""
    head = [change.comparison, change.arm, change.metric.name]
    if change.estimate is None:
        return [*head, "", "", change.missing, ""]
    before = "" if change.before is None else table.value(change.metric, change.before)
    said = f"{change.judgement.verdict} ({change.judgement.reason})" if change.judgement else ""
    after = table.value(change.metric, change.estimate.value)
    return [*head, before, after, table.change(change.metric, change.estimate), said]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A spreadsheet may not take a cell for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value


def _cell(text: str) -> str:
    """Text inside a Markdown table: no markup of its own."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
