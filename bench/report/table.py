"""Figures and tables as text: what every output shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import stats
from bench.metrics import GLOSSARY, Metric
from bench.outcome import Row


def value(metric: Metric, number: float) -> str:
    """A figure with its unit, three significant digits."""
    if metric.unit == "B":
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(number) >= size:
                return f"{number / size:.3g} {unit}" if abs(number) < 1000 * size else f"{number / size:.0f} {unit}"
        return f"{number:.0f} B"
    if metric.unit in {"s", "s/token"} and abs(number) < 1:
        return f"{number * 1e3:.3g} m{metric.unit}"
    digits = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"
    if metric.unit.startswith("nat") or metric.unit == "share":
        digits = f"{number:.3f}"
    return digits if metric.unit == "share" else f"{digits} {metric.unit}"


def change(metric: Metric, estimate: stats.Estimate) -> str:
    """The change against the baseline with its interval: `x0.71 [0.69, 0.73]` or `+0.143 [+0.136, +0.150]`."""
    if estimate.change is None:
        return "baseline" if estimate.reason == stats.THE_BASELINE else estimate.reason
    form = "{:.3f}" if metric.relative else "{:+.3f}"
    text = ("x" if metric.relative else "") + form.format(estimate.change)
    if estimate.low is None or estimate.high is None:
        return f"{text} ({estimate.reason})" if estimate.reason else text
    if metric.exact and estimate.low == estimate.high:
        return f"{text} exact"
    return f"{text} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def counted(metric: Metric, estimate: stats.Estimate) -> str:
    """What an estimate rests on: `5 rounds, 95%`, or `1 seed, exact` where no chance is in it."""
    sure = "exact" if metric.exact and not estimate.spread else f"{estimate.confidence:.0%}"
    return f"{stats.counted(estimate.units, estimate.unit)}, {sure}"


def hidden(row: Row, metric: Metric) -> str:
    """Why no output shows a figure that the records hold; empty where it is shown."""
    if row.withholds(metric):
        return "withheld"
    if metric.axis == "quality" and (row.record["model"] or {}).get("random"):
        return "not applicable: random weights"
    return ""


def headline(manifest: Mapping[str, Any], comparisons: Mapping[str, list[Row]]) -> str:
    """What ran, on which models of which size, on which device."""
    models = dict.fromkeys(model(rows) for rows in comparisons.values())
    return f"{manifest['experiment']}: {' and '.join(models) or 'no record yet'} on {device(manifest)}"


def subject(rows: Iterable[Row]) -> str:
    """Model, its size, and the device that a comparison ran on."""
    found = list(rows)
    return f"{model(found)} on {device(found[0].record)}"


def device(record: Mapping[str, Any]) -> str:
    """Name and number format of the device of a record or a manifest."""
    found = record["environment"]["device"]
    return f"{found['name']}, {found['dtype']}"


def model(rows: Iterable[Row]) -> str:
    """Name and size of the model that a comparison loaded."""
    loaded = [row.record["model"] for row in rows if row.record["model"]]
    return _model(loaded[0]) if loaded else "model not loaded"


def _model(model: Mapping[str, Any]) -> str:
    size = model.get("parameters")
    text = f"{size / 1e9:.3g}B" if size and size >= 1e9 else f"{size / 1e6:.3g}M" if size else "unknown number of"
    return f"{model.get('name', 'unknown model')} ({text} parameters)"


def about(rows: Iterable[Row]) -> str:
    """Where the weights come from, and the workload with its parameters."""
    records = [row.record for row in rows]
    origin = next((record["model"].get("origin") for record in records if record["model"]), None)
    parameters = ", ".join(f"{k}={v}" for k, v in records[0]["workload"]["parameters"].items() if v not in ("", []))
    return f"Weights: {origin or 'unknown'}. Workload {records[0]['workload']['name']}: {parameters}."


def as_csv(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A spreadsheet may not take a cell for a formula: such text is quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _plain(value) for key, value in line.items()})
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value


def flat(comparisons: Mapping[str, list[Row]]) -> list[dict[str, Any]]:
    """One line per arm and metric, and one more per group of prompts: what `table.csv` holds and a DataFrame takes."""
    lines = []
    for comparison, members in comparisons.items():
        for row in members:
            head = {
                "comparison": comparison,
                "family": row.record["family"],
                "arm": row.arm,
                "baseline": row.record["baseline"],
                "seeds": " ".join(map(str, row.seeds)),
                "status": row.status,
                "reason": row.reason,
                "stamps": " ".join(row.stamps),
            }
            if not row.estimates:
                lines.append({**head, **dict.fromkeys(_FIELDS)})
            for name, estimate in row.estimates.items():
                metric, judgement = GLOSSARY[name], row.judgements.get(name)
                line: dict[str, Any] = {
                    **_named(metric),
                    "counted_in": estimate.unit,
                    "verdict": judgement.verdict.value if judgement else None,
                    "verdict_reason": judgement.reason if judgement else None,
                }
                if not hidden(row, metric):
                    line |= {key: getattr(estimate, key) for key in _FIGURES}
                lines.append({**head, **dict.fromkeys(_FIELDS), **line})
            for group, estimates in row.groups.items():
                for name, estimate in estimates.items():
                    metric = GLOSSARY[name]
                    line = {"group": group, **_named(metric), "counted_in": estimate.unit}
                    if not hidden(row, metric):
                        line |= {key: getattr(estimate, key) for key in _FIGURES}
                    lines.append({**head, **dict.fromkeys(_FIELDS), **line})
    return lines


def _named(metric: Metric) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "compared_as": "ratio" if metric.relative else "difference",
    }


_FIGURES = ("value", "change", "low", "high", "confidence", "units")
_FIELDS = ("group", "metric", "unit", "compared_as", *_FIGURES, "counted_in", "verdict", "verdict_reason")
COLUMNS = ("comparison", "family", "arm", "baseline", "seeds", "status", "reason", "stamps", *_FIELDS)
