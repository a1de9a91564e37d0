"""What to bear in mind about a run's figures, and what to do about it: all warnings in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench import stats
from bench.metrics import GLOSSARY
from bench.outcome import Row
from bench.report import table
from bench.report.overview import label

EXPLAINED = 0.9
"""The parts of a peak must make up at least this share of it."""
STAMPS = {
    "quick": "run again without --quick",
    "inline": "run again without inline: every arm then has a process of its own",
    "dirty": "commit the changes and run again: the figures are of code that nobody else has",
    "disturbed": "stop what else runs on the machine and run again; bench doctor names it",
}
STATUSES = {
    "invalid": "its output is wrong: mend the technique; its speed and memory are withheld until then",
    "ungated": "nothing checked its output: do not rely on its speed before a gate has",
    "oom": "give it a smaller workload, or a device with more memory",
    "failed": "the reason is beside its name; bench run with --resume tries it again",
    "timeout": "raise cell_timeout, or give it a smaller workload",
    "unsupported": "choose a model or a setting that it supports",
    "skipped": "bench run with --resume goes on",
}


@dataclass(frozen=True)
class Caution:
    """One warning."""

    what: str
    remedy: str
    arms: tuple[str, ...] = ()
    """Whom it concerns; all of the run if empty."""


def of(comparisons: Mapping[str, list[Row]], manifest: Mapping[str, Any] | None = None) -> list[Caution]:
    """All warnings of a run, each with the arms that it concerns; without a manifest those on its arms alone."""
    found: dict[tuple[str, str], list[str]] = {}
    for comparison, rows in comparisons.items():
        for row in rows:
            for what, remedy, detail in _of_arm(row):
                arm = f"{comparison} {row.arm}{f' ({detail})' if detail else ''}"
                found.setdefault((what, remedy), []).append(arm)
    general = []
    there = {record["cell"] for rows in comparisons.values() for row in rows for record in row.records}
    missing = [cell for cell in (manifest or {}).get("cells", ()) if cell not in there]
    if missing:
        general.append(
            Caution(
                "unfinished: the run was interrupted, and this report is of what was done until then",
                STATUSES["skipped"],
                tuple(missing),
            )
        )
    if manifest is not None and not manifest.get("calibration"):
        general.append(
            Caution(
                "not calibrated: how small a difference this machine can resolve is not known",
                "bench doctor --calibrate finds out",
            )
        )
    return [*general, *(Caution(what, remedy, tuple(arms)) for (what, remedy), arms in found.items())]


def _of_arm(row: Row) -> Iterator[tuple[str, str, str]]:
    """Warning, what to do, and the arm's own figure or reason."""
    if row.status in STATUSES:
        yield label(row.status), STATUSES[row.status], row.reason
    for stamp in row.stamps:
        yield f"stamped {stamp}: not publishable", STAMPS.get(stamp, "run again without it"), ""
    notes = [(record["quality"] or {}).get("notes") or {} for record in row.records]
    # of all seeds: they share the items, but a training may end early under one of them
    yield from ((what, remedy, "") for what, remedy in {w: r for one in notes for w, r in one.items()}.items())
    repeated = sum(not burst["used"] for part in row.record["rounds"] for burst in part["bursts"])
    if repeated:
        what = "disturbed bursts were repeated and not counted"
        yield what, "leave the machine alone while it runs", str(repeated)
    if row.record["technique"].get("trains") and len(row.records) < stats.FEWEST["seeds"]:
        yield (
            f"trained under fewer than {stats.FEWEST['seeds']} seeds: another training run may give another quality",
            f"--set seeds={','.join(map(str, range(stats.FEWEST['seeds'])))}",
            f"seed{'s' if len(row.seeds) > 1 else ''} {', '.join(map(str, row.seeds))}",
        )
    if not row.withholds(GLOSSARY["peak_memory"]):
        yield from _of_memory(row)


def _of_memory(row: Row) -> Iterator[tuple[str, str, str]]:
    memories = [part["memory"] for part in row.record["rounds"] if part.get("memory")]
    shares = [share for share in map(explained, memories) if share is not None]
    if shares and min(shares) < EXPLAINED:
        yield (
            f"less than {EXPLAINED:.0%} of the peak of memory is explained",
            "name what the technique holds in its holdings()",
            f"{min(shares):.0%}",
        )
    leaks = [memory["leak"] for memory in memories if memory.get("leak")]
    if leaks:
        size = table.value(GLOSSARY["peak_memory"], max(leaks))
        yield "memory that no component names grows", "find what is kept from step to step", f"{size} a step"
    unknown = {str(memory["leak_reason"]) for memory in memories if memory.get("leak_reason")}
    for reason in sorted(unknown):
        yield "whether memory leaks is not known", reason, ""


def explained(memory: Mapping[str, Any]) -> float | None:
    """Share of a peak that its parts make up; None where it is not known."""
    if memory.get("explained") is not None:
        return float(memory["explained"])
    if memory.get("peak") and memory.get("rest") is not None:
        return 1 - float(memory["rest"]) / float(memory["peak"])
    return None
