"""Tables beside the verdicts: by kind of prompt, by place in the draft, by part of a step and of memory, and counts."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.metrics import GLOSSARY
from bench.outcome import Row
from bench.report import table

OF_A_KIND = ("tpot", "acceptance_rate")
UNEXPLAINED = "not explained"


@dataclass(frozen=True)
class Grid:
    """A table of text, one line per arm or arm and metric."""

    caption: str
    columns: tuple[str, ...]
    lines: list[list[str]]


def of(rows: Sequence[Row]) -> list[Grid]:
    """The tables that a comparison's records have something for."""
    found = (_kinds(rows), _places(rows), _pieces(rows), _phases(rows), _components(rows), _counted(rows))
    return [grid for grid in found if grid.lines]


def _kinds(rows: Sequence[Row]) -> Grid:
    kinds = tuple(dict.fromkeys(group for row in rows for group in row.groups))
    lines = []
    for row in rows:
        for name in OF_A_KIND:
            metric = GLOSSARY[name]
            if table.hidden(row, metric) or not any(name in row.groups.get(kind, {}) for kind in kinds):
                continue
            cells = [f"{row.arm}: {name}"]
            for kind in kinds:
                estimate = row.groups.get(kind, {}).get(name)
                if estimate is None:
                    cells.append("not measured")
                    continue
                change = "" if name == "acceptance_rate" else f", {table.change(metric, estimate)}"
                cells.append(table.value(metric, estimate.value) + change)
            lines.append(cells)
    caption = "By kind of prompt: each kind's own time a token, and the share of judged drafts accepted"
    return Grid(caption, ("arm", *kinds), lines)


def _places(rows: Sequence[Row]) -> Grid:
    counted = [(row, _counts(row)) for row in _timed(rows)]
    deepest = max((int(name.partition("_")[2]) for _, found in counted for name in found), default=0)
    lines = []
    for row, found in counted:
        if found:
            cells = [_share(found[f"accepted_{at}"], found[f"tried_{at}"]) for at in range(1, deepest + 1)]
            lines.append([row.arm, *cells])
    caption = "By place in the draft: the share of the tokens judged there that was accepted, and how many were judged"
    return Grid(caption, ("arm", *map(str, range(1, deepest + 1))), lines)


def _pieces(rows: Sequence[Row]) -> Grid:
    timed = [(row, _calls(row)) for row in _timed(rows)]
    names = tuple(dict.fromkeys(name for _, found in timed for name in found))
    lines = []
    for row, found in timed:
        if found:
            one = statistics.median(found[names[0]])
            medians = [statistics.median(found[name]) if name in found else None for name in names]
            cells = [f"{m * 1e3:.3g} ms (x{m / one:.3f})" if m is not None else "not timed" for m in medians]
            lines.append([row.arm, *cells])
    caption = "Pieces of a round, each timed on its own: median, and its ratio to one token of the target"
    return Grid(caption, ("arm", *names), lines)


def _phases(rows: Sequence[Row]) -> Grid:
    profiles = [
        (row, [part["profile"] for part in row.record["rounds"] if part.get("profile")]) for row in _timed(rows)
    ]
    names = tuple(dict.fromkeys(name for _, found in profiles for one in found for name in one["phases"]))
    lines = []
    for row, found in profiles:
        whole, tokens = sum(sum(one["seconds"]) for one in found), sum(sum(one["tokens"]) for one in found)
        if not whole or not tokens:
            continue
        spent = {name: sum(sum(one["phases"].get(name, ())) for one in found) for name in names}
        spent = {**spent, "rest": whole - sum(spent.values())}
        shares = [f"{seconds / tokens * 1e3:.3g} ms ({seconds / whole:.0%})" for seconds in spent.values()]
        lines.append([row.arm, f"{whole / tokens * 1e3:.3g} ms", *shares])
    caption = "By part of a step: time a token of the profile pass, which waits at every mark and so takes longer"
    return Grid(caption, ("arm", "all", *names, "rest"), lines)


def _components(rows: Sequence[Row]) -> Grid:
    metric = GLOSSARY["peak_memory"]
    held = [(row, one) for row in rows if not table.hidden(row, metric) and (one := middle_memory(row))]
    names = tuple(dict.fromkeys(name for _, one in held for name in memory_parts(one)))
    lines = []
    for row, one in held:
        parts = memory_parts(one)
        cells = [table.value(metric, parts[name]) if name in parts else "none" for name in names]
        share = one.get("explained")
        named = "not known" if share is None else f"{share:.1%}"
        lines.append([row.arm, table.value(metric, one["peak"]), *cells, named])
    caption = (
        "What the peak of memory is made of in the round whose peak is the middle one, and how much of it is named"
    )
    return Grid(caption, ("arm", "peak", *names, "named"), lines)


def _counted(rows: Sequence[Row]) -> Grid:
    """Counts of the quality pass, the mean over the seeds: bits per parameter, likelihood before the training ..."""
    found: list[tuple[Row, dict[str, list[float]]]] = []
    for row in rows:
        of_row: dict[str, list[float]] = {}
        for record in row.records:
            for name, count in counts_of(record).items():
                if count is not None and not name.startswith(("tried_", "accepted_")):  # told by place
                    of_row.setdefault(name, []).append(count)
        if of_row and row.status != "invalid":
            found.append((row, of_row))
    names = tuple(dict.fromkeys(name for _, of_row in found for name in of_row))
    lines = [
        [row.arm, *(f"{statistics.mean(of_row[name]):.7g}" if name in of_row else "none" for name in names)]
        for row, of_row in found
    ]
    return Grid("Counted in the quality pass, mean over the seeds", ("arm", *names), lines)


def counts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a quality pass counted beside its metrics, and the seconds that its training took [s]."""
    quality = record["quality"] or {}
    seconds = quality.get("train_seconds")
    return {**(quality.get("counts") or {}), **({} if seconds is None else {"train_seconds": seconds})}


def middle_memory(row: Row) -> Mapping[str, Any] | None:
    """What the memory pass said in the round whose peak is the middle one; None where no peak is known."""
    known = [part["memory"] for part in row.record["rounds"] if (part.get("memory") or {}).get("peak")]
    known.sort(key=lambda one: float(one["peak"]))
    return known[(len(known) - 1) // 2] if known else None


def memory_parts(memory: Mapping[str, Any]) -> dict[str, int]:
    """Component -> bytes, those that are there; a record without parts has components and what it started from."""
    parts = memory.get("parts")
    if parts is None:
        parts = {"runtime": memory.get("runtime"), **(memory.get("components") or {})}
    return {name: int(count) for name, count in {**parts, UNEXPLAINED: memory.get("rest")}.items() if count}


def _timed(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if not table.hidden(row, GLOSSARY["throughput"]))


def _counts(row: Row) -> Counter[str]:
    """How often each place of a draft was judged and accepted, over all bursts."""
    found = Counter[str]()
    for part in row.record["rounds"]:
        for burst in part["bursts"]:
            for counts in burst["samples"].get("counts", ()) if burst["used"] else ():
                if isinstance(counts, dict):
                    found.update({name: n for name, n in counts.items() if name.startswith(("tried_", "accepted_"))})
    return found


def _calls(row: Row) -> dict[str, list[float]]:
    """Seconds of each piece over all rounds."""
    found: dict[str, list[float]] = {}
    for part in row.record["rounds"]:
        for name, seconds in part.get("calls", {}).items():
            found.setdefault(name, []).extend(seconds)
    return found


def _share(accepted: int, judged: int) -> str:
    return f"{accepted / judged:.3f} of {judged}" if judged else "none judged"
