"""The README's tables, drawn from committed runs: `python -m bench.report.readme` draws them anew.

A table stands between `<!-- table: results/EXPERIMENT/RUN -->` and `<!-- end of table -->`, the claims with a headline
that records speak of between `<!-- ledger: results -->` and `<!-- end of ledger -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bench import outcome, registry, verify
from bench.errors import BenchError, UsageError
from bench.manifest import ROOT
from bench.report import claims, overview, table
from bench.report.markdown import cell, grid
from bench.store import Run, write_text
from bench.technique import Axis

MARKED = re.compile(r"(<!-- table: (?P<run>\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
LEDGER = re.compile(r"(<!-- ledger: (?P<out>\S+) -->\n).*?(<!-- end of ledger -->)", re.DOTALL)


def drawn(text: str, root: Path) -> str:
    """The text with every table in it drawn anew.

    Args:
        root: the folder that the runs' paths start from.

    Raises:
        UsageError: no table is marked, or a marked one's run is not there.
    """
    if not MARKED.search(text):
        raise UsageError("no table is marked: write <!-- table: results/EXPERIMENT/RUN --> and <!-- end of table -->")
    text = LEDGER.sub(lambda found: f"{found[1]}{_ledger(found['out'], root)}\n{found[3]}", text)
    return MARKED.sub(lambda found: f"{found[1]}{_table(found['run'], root)}\n{found[3]}", text)


def _ledger(out: str, root: Path) -> str:
    """The claims with a headline, one line for each verdict on one, and how many claims there are in all."""
    registry.load_plugins()
    found = verify.ledger(verify.with_claims([]), verify.published(root / out))
    decided: dict[tuple[str, str], dict[str, list[verify.Finding]]] = {}
    for one in found:
        if one.run is not None and one.value is not None and one.claim.headline:
            decided.setdefault((one.technique, one.claim.name), {}).setdefault(one.outcome, []).append(one)
    lines = [
        (
            f"{one.claim.headline} ({one.claim.source.partition(',')[0]})",
            str(one.claim.expected),
            claims.figure(one),
            f"{verdict}{f', and {len(more)} more' if more else ''}",
            _where(one, root),
        )
        for verdicts in decided.values()
        for verdict, (one, *more) in verdicts.items()
    ]
    columns = ("what the paper says", "holds if", "here", "verdict", "where")
    count = len({(one.technique, one.claim.name) for one in found})
    told = f"All {count} claims, in every setting that was measured: [`{out}/claims.md`]({out}/claims.md)."
    return "\n".join([*grid(columns, lines), "", told])


def _where(one: verify.Finding, root: Path) -> str:
    """The model and the run, of a subject `ARM (ITS PARAMETERS) against ARM (..); MODEL, WORKLOAD (..); MACHINE`."""
    assert one.run is not None
    model = one.subject.split("; ")[1].partition(", ")[0]
    path = one.run.resolve().relative_to(root.resolve()).as_posix()
    return f"{model}: [records]({path}/report.md)"


def _table(run: str, root: Path) -> str:
    opened = Run.open(root / run)
    comparisons = outcome.rows(opened.records())
    manifest = opened.manifest
    models = [row.record["model"] for rows in comparisons.values() for row in rows if row.record["model"]]
    origins = dict.fromkeys(str(model["origin"]) for model in models)
    lead = f"{table.headline(manifest, comparisons)} ({'; '.join(origins)}); records: [`{run}`]({run}/report.md)"
    lines = [
        (_name(row), *(_axis(row, axis) for axis in outcome.AXES), _status(row))
        for rows in comparisons.values()
        for row in rows
        if not row.is_baseline
    ]
    return "\n".join([cell(lead), "", *grid(("technique, against its baseline", *outcome.AXES, "gates"), lines)])


def _name(row: outcome.Row) -> str:
    """The arm and its baseline, with what decides the meaning of its figures."""
    return f"`{row.arm}` against `{row.record['baseline']}`{f' ({row.labels})' if row.labels else ''}"


def _axis(row: outcome.Row, axis: Axis) -> str:
    metric, estimate, missing = row.shown(axis)
    if estimate is None:
        return missing
    judgement = row.judgements.get(metric.name)
    noun = overview.NOUNS.get(metric.name, metric.name.replace("_", " "))
    unit = "" if metric.relative or metric.unit == "share" else f" {metric.unit}"
    return f"{noun} {table.change(metric, estimate)}{unit}{f' {judgement.verdict}' if judgement else ''}"


def _status(row: outcome.Row) -> str:
    return overview.gate(row) if row.status == "ok" else f"{overview.label(row.status)} {row.reason}".strip()


def main() -> None:
    """Draw the tables of the checkout's README."""
    path = ROOT / "README.md"
    try:
        write_text(path, drawn(path.read_text(encoding="utf-8"), ROOT))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
