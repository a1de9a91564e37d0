"""`table.csv` and `report.md`, drawn from stored records."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from bench.metrics import GLOSSARY
from bench.report import table
from bench.store import Run, write_text


def write(run: Run) -> list[str]:
    """Write both files into the run's folder; returns what could not be read."""
    damaged: list[str] = []
    comparisons = table.rows(run.records(damaged))
    write_text(run.folder / "table.csv", as_csv(table.flat(comparisons)))
    write_text(run.folder / "report.md", as_markdown(run.manifest, comparisons, damaged))
    return damaged


def as_csv(lines: list[dict[str, Any]]) -> str:
    """A spreadsheet may not take a cell for a formula: such text is quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, table.COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _plain(value) for key, value in line.items()})
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value


def headline(manifest: Mapping[str, Any]) -> str:
    device = manifest["environment"]["device"]
    return f"{manifest['experiment']} on {device['name']}"


def as_markdown(manifest: Mapping[str, Any], comparisons: Mapping[str, list[table.Row]], damaged: list[str]) -> str:
    """The report as Markdown."""
    lines = [f"# {_cell(headline(manifest))}", ""]
    if manifest["config"].get("description"):
        lines += [_cell(manifest["config"]["description"]), ""]
    code = manifest["environment"]["code"]
    lines.append(
        f"Started {manifest['started']}; code {(code['commit'] or 'unknown')[:12]}"
        f"{' with changes' if code['dirty'] else ''}; {manifest['environment']['device']['dtype']}; "
        f"config {manifest['config_sha256'][:12]}."
    )
    used: set[str] = set()
    for comparison, rows in comparisons.items():
        lines += ["", f"## {comparison}", "", _about(rows[0].record), ""]
        lines += ["| arm | status | quality | latency | memory |", "|---|---|---|---|---|"]
        notes = []
        for row in rows:
            cells = [f"{row.record['arm']} (seed {row.record['seed']})", row.status]
            for axis in table.AXES:
                metric, estimate, missing = row.shown(axis)
                used.add(metric.name)
                if estimate is None:
                    cells.append(missing)
                else:
                    figure = f"{table.value(metric, estimate.value)} {metric.name}, {table.change(metric, estimate)}"
                    judgement = row.judgements.get(metric.name)
                    cells.append(f"{figure}: {judgement.verdict} ({judgement.reason})" if judgement else figure)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
            if row.reason:
                notes.append(f"* {_cell(row.record['arm'])}: {row.status}: {_cell(row.reason)}")
            notes += [
                f"* {_cell(row.record['arm'])}: {gate['name']}: {_cell(gate['detail'])}"
                for gate in (row.record["quality"] or {}).get("gates") or []
                if gate["passed"]
            ]
            if row.record["stamps"]:
                notes.append(f"* {_cell(row.record['arm'])}: stamped {', '.join(row.record['stamps'])}")
        lines += ["", *notes]
    if damaged:
        lines += ["", "## Left out", "", *(f"* {_cell(line)}" for line in damaged)]
    lines += ["", "## Glossary", "", "A change is a ratio to the baseline (x) or a difference from it (+/-), with its"]
    lines += ["95 % interval over processes (latency, memory) or items (quality).", ""]
    for name in sorted(used):
        metric = GLOSSARY[name]
        lines.append(f"* **{name}** [{metric.unit}, {metric.better} is better]: {metric.definition}")
    return "\n".join(lines) + "\n"


def _about(record: Mapping[str, Any]) -> str:
    model = record["model"] or {}
    size = f", {model['parameters'] / 1e6:.0f}M parameters" if model.get("parameters") else ""
    parameters = ", ".join(f"{k}={v}" for k, v in record["workload"]["parameters"].items())
    return f"Model: {model.get('name', 'unknown')}{size} ({model.get('origin', 'unknown')}). Workload: {parameters}."


def _cell(text: str) -> str:
    """Text inside a Markdown table: no markup of its own."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
