"""What a run's folder holds for people: `table.csv`, `report.md` and `report.html`, drawn from its records."""

from __future__ import annotations

from bench import outcome
from bench.report import table
from bench.report.markdown import as_markdown
from bench.store import Run, write_text


def write(run: Run) -> list[str]:
    """Write the three files into the run's folder; returns what could not be read."""
    damaged: list[str] = []
    comparisons = outcome.rows(run.records(damaged))
    write_text(run.folder / "table.csv", table.as_csv(table.flat(comparisons), table.COLUMNS))
    write_text(run.folder / "report.md", as_markdown(run.manifest, comparisons, damaged))
    from bench.report.html import as_html  # brings a template engine and a plotting library

    write_text(run.folder / "report.html", as_html(run.manifest, comparisons, damaged))
    return damaged
