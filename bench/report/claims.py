"""The ledger of claims, for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import store
from bench.verify import Finding, Outcome

STYLES = {
    Outcome.REPRODUCED: "green",
    Outcome.HOLDS: "green",
    Outcome.CONTRADICTED: "red",
    Outcome.FAILS: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.UNTESTABLE: "dim",
}
COLUMNS = ("technique", "claim", "holds if", "here", "verdict", "why")
_MARKUP = re.compile(r"([\\`*_\[\]#|~!])")


def tell(findings: Sequence[Finding], out: Path, console: Console, as_json: bool, keep: bool) -> None:
    """Show the ledger, as a table or as lines of JSON.

    Args:
        out: the results folder.
        keep: whether `claims.md` is drawn there.

    Raises:
        StoreError: it cannot be written.
    """
    if as_json:
        for one in findings:
            print(json.dumps(as_event(one, out)), flush=True)
    else:
        draw(findings, console)
    if keep:
        store.write_text(out / "claims.md", as_markdown(findings, out))


def draw(findings: Sequence[Finding], console: Console) -> None:
    """A table, and how often each verdict fell."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for title in COLUMNS:
        drawn.add_column(title, overflow="fold")
    for one in findings:
        verdict = f"[{STYLES[one.outcome]}]{one.outcome}[/]"
        cells = (one.technique, one.claim.name, str(one.claim.expected), figure(one))
        drawn.add_row(*map(escape, cells), verdict, escape(_why(one)))
    console.print(drawn)
    console.print(f"\n{summary(findings)}", markup=False, highlight=False)


def as_markdown(findings: Sequence[Finding], out: Path) -> str:
    """The ledger as a page.

    Args:
        out: the results folder that runs are named from.
    """
    lines = ["# The papers' claims beside what was measured", ""]
    lines += ["Drawn by `bench verify` from the records of the named runs; every interval stands alone.", ""]
    lines += [
        "REPRODUCED and CONTRADICTED are said where the paper's conditions hold, HOLDS HERE and DOES NOT HOLD HERE "
        "elsewhere. What is foreseen was simulated from shapes alone by `bench verify --foresee`: it is no measurement "
        "and no verdict.",
        "",
        f"{_plain(summary(findings))}",
    ]
    technique = ""
    for one in findings:
        if one.technique != technique:
            technique = one.technique
            lines += ["", f"## {_plain(technique)}"]
        lines += [
            "",
            f"**{_plain(one.claim.name)}: {one.outcome}.** {_plain(one.claim.statement)} ({_plain(one.claim.source)})",
            "",
            f"* Figure: {_plain(one.claim.expression)}; holds if {_plain(str(one.claim.expected))}; "
            f"here: {_plain(figure(one))}",
            f"* {_plain(one.reason)}",
        ]
        if one.foreseen:
            lines.append(f"* foreseen: {_plain(one.foreseen)}")
        if one.run is not None:
            lines.append(f"* {_plain(one.subject)}; run {_plain(_named(one.run, out))}")
    return "\n".join(lines) + "\n"


def as_event(one: Finding, out: Path) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        "event": "claim",
        "technique": one.technique,
        "claim": one.claim.name,
        "statement": one.claim.statement,
        "source": one.claim.source,
        "expression": one.claim.expression,
        "expected": str(one.claim.expected),
        "verdict": str(one.outcome),
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "reason": one.reason,
        "foreseen": one.foreseen or None,
        "subject": one.subject,
        "run": None if one.run is None else _named(one.run, out),
    }


def figure(one: Finding) -> str:
    """The value with its interval; a dash where there is none."""
    if one.value is None:
        return "-"
    if one.low is None or one.high is None or one.low == one.high:
        return f"{one.value:.4g}"
    return f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]"


def summary(findings: Iterable[Finding]) -> str:
    counted = Counter(one.outcome for one in findings)
    return ", ".join(f"{counted[outcome]} {outcome}" for outcome in Outcome if counted[outcome]) or "no claims"


def _why(one: Finding) -> str:
    if one.run is None:
        return f"{one.reason}; foreseen: {one.foreseen}" if one.foreseen else one.reason
    return f"{one.reason} ({one.run.name})"


def _named(run: Path, out: Path) -> str:
    return run.relative_to(out).as_posix() if run.is_relative_to(out) else run.name


def _plain(text: str) -> str:
    """Text that stays text: no markup, no link, no HTML, no new line."""
    quoted = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", " ".join(quoted.split()))
