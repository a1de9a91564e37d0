"""`report.html`: one page that needs nothing but itself, drawn from stored records."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from bench import stats
from bench.metrics import GLOSSARY
from bench.outcome import AXES, Row
from bench.report import calibration, cautions, figures, grids, overview, plots, scaling, table
from bench.report.drawing import DRAWN, Drawing
from bench.verdict import Verdict

SYMBOLS = {
    Verdict.BETTER: "▲",
    Verdict.WORSE: "▼",
    Verdict.SAME: "=",
    Verdict.INCONCLUSIVE: "?",
}
"""Beside each verdict's word, so that no colour is needed."""


def as_html(manifest: Mapping[str, Any], comparisons: Mapping[str, list[Row]], damaged: list[str]) -> str:
    """The report as one page. Every text of the records is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(axes=AXES, label=overview.label, symbols=SYMBOLS)
    sections = [_section(number, comparison, rows) for number, (comparison, rows) in enumerate(comparisons.items())]
    used = sorted({block["metric"].name for section in sections for block in section["blocks"]})
    return environment.get_template("report.html").render(
        title=table.headline(manifest, comparisons),
        manifest=manifest,
        code=manifest["environment"]["code"],
        lines=overview.lines(comparisons),
        scaled=scaling.of(comparisons),
        cautions=cautions.of(comparisons, manifest),
        resolution=calibration.sentences(manifest["calibration"]) if manifest.get("calibration") else [],
        sections=sections,
        glossary=[GLOSSARY[name] for name in used],
        damaged=damaged,
        whole_manifest=json.dumps(manifest, indent=1, ensure_ascii=False),
    )


def _section(number: int, comparison: str, rows: list[Row]) -> dict[str, Any]:
    return {
        "id": f"comparison-{number}",
        "comparison": comparison,
        "subject": table.subject(rows),
        "about": table.about(rows),
        "rows": rows,
        "gates": {row.arm: _gates(row) for row in rows},
        "blocks": _blocks(rows),
        "grids": grids.of(rows),
        "figures": [_figure(drawing) for drawing in figures.of(comparison, rows)],
        "counted": _counted(rows),
        "samples": _samples(rows),
    }


def _gates(row: Row) -> list[dict[str, Any]]:
    several = len(row.records) > 1
    return [
        {**gate, "name": f"{gate['name']} (seed {record['seed']})" if several else gate["name"]}
        for record in row.records
        for gate in (record["quality"] or {}).get("gates") or []
    ]


def _blocks(rows: list[Row]) -> list[dict[str, Any]]:
    """One block of lines per metric that any arm was asked for or has."""
    primary = [rows[0].record["primary"][axis] for axis in AXES]
    names = dict.fromkeys([*primary, *(name for row in rows for name in row.estimates)])
    return [
        {
            "metric": GLOSSARY[name],
            "primary": name in primary,
            "cells": [_cell(row, name) for row in rows],
        }
        for name in names
    ]


def _cell(row: Row, name: str) -> dict[str, Any]:
    metric, estimate, judgement = GLOSSARY[name], row.estimates.get(name), row.judgements.get(name)
    missing = table.hidden(row, metric) or ("" if estimate else "not measured")
    cell: dict[str, Any] = {
        "arm": row.arm,
        "labels": row.labels,
        "status": row.status,
        "missing": missing,
        "verdict": None,
        "reason": "",
    }
    if missing or estimate is None:
        return cell
    return {
        **cell,
        "value": table.value(metric, estimate.value),
        "change": table.change(metric, estimate),
        "units": "" if row.is_baseline else table.counted(metric, estimate),
        "verdict": judgement.verdict if judgement else None,
        "reason": judgement.reason if judgement else estimate.refusal,
    }


def _figure(drawing: Drawing) -> dict[str, Any]:
    from markupsafe import Markup

    data = base64.b64encode(drawing.csv.encode()).decode()
    return {
        "drawing": drawing,
        "svg": "" if drawing.missing else Markup(plots.svg(drawing)),
        "csv": f"data:text/csv;charset=utf-8;base64,{data}",
    }


def _counted(rows: list[Row]) -> list[dict[str, Any]]:
    """What the quality pass counted beside its metrics -> of every arm, the mean over its seeds that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for record in row.records if row.status in DRAWN else ():
            for name, count in grids.counts_of(record).items():
                found.setdefault(name, {}).setdefault(row.arm, []).append(count)
    return [
        {
            "name": name.replace("_", " "),
            "cells": [f"{stats.fmean(arms[row.arm]):.4g}" if row.arm in arms else "" for row in rows],
        }
        for name, arms in found.items()
    ]


def _samples(rows: list[Row]) -> list[dict[str, Any]]:
    """Prompt -> what every arm made of it, those of the first seed."""
    texts = {row.arm: (row.record["quality"] or {}).get("texts") or [] for row in rows}
    return [
        {
            "prompt": next(one["prompt"] for one in same if one),
            "outputs": [(arm, one["output"] if one else "no sample") for arm, one in zip(texts, same, strict=True)],
        }
        for same in zip_longest(*texts.values())
    ]
