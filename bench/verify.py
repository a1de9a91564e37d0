"""Claims held against records: what a paper says, beside what was measured here.

A claim is decided by records of one comparison of one run, so all its arms saw the same inputs on the same machine.
REPRODUCED and CONTRADICTED are said only where the paper's conditions hold, and of identities and theorems, which have
none; elsewhere a claim HOLDS HERE or DOES NOT HOLD HERE, with the conditions that are not met. Every interval stands
alone: over many claims, one in twenty of those that are just true reads as false.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench import claim as claims
from bench import evidence, registry, stats, store
from bench.claim import Claim, Figure
from bench.errors import StoreError
from bench.outcome import Record
from bench.store import Run
from bench.technique import Technique

TRAININGS = 3
"""Trained models of an arm at least: what one training came to says little of the next."""
CLOCKED = {"s", "s/token", "tokens/s"}
"""Units of what a clock measured: it never reads the same twice."""


class Outcome(StrEnum):
    REPRODUCED = "REPRODUCED"
    CONTRADICTED = "CONTRADICTED"
    HOLDS = "HOLDS HERE"
    FAILS = "DOES NOT HOLD HERE"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNTESTABLE = "NOT TESTABLE HERE"


@dataclass(frozen=True)
class Finding:
    """A claim, and what some records say of it."""

    technique: str
    claim: Claim
    outcome: Outcome
    reason: str
    value: float | None = None
    """Of the expression; None where there is none."""
    low: float | None = None
    high: float | None = None
    subject: str = ""
    """Arms, model, workload and device."""
    run: Path | None = None
    foreseen: str = ""
    """What simulation says where no record does; '' where it says nothing."""
    thin: bool = False
    """Whether the records are too few to decide anything, or are not of what the claim speaks of."""


def ledger(
    entries: Iterable[registry.Entry[Technique]],
    runs: Iterable[Run],
    foreseen: Mapping[tuple[str, str], str] | None = None,
) -> list[Finding]:
    """Every claim of these techniques, once for each setting in which it was looked at: the newest run of a setting,
    but for one that says nothing or has too few repeats beside an older one that has enough.

    Settings that agree on an exact figure count as one, and so do those that say nothing.

    Args:
        runs: newest first. Those that cannot be read are left out.
        foreseen: technique and claim -> what simulation says, for claims that no record decides.
    """
    stored = [(run, comparisons) for run in runs if (comparisons := _comparisons(run))]
    found: list[Finding] = []
    for entry in entries:
        for claim in entry.cls.claims:
            seen: dict[str, Finding] = {}
            for run, comparisons in stored:
                for records in comparisons:
                    for finding in examine(entry.name, claim, records):
                        newer = seen.get(finding.subject)
                        if newer is None or (newer.thin and not finding.thin):
                            seen[finding.subject] = replace(finding, run=run.folder)
            said = (foreseen or {}).get((entry.name, claim.name), "")
            unseen = Finding(entry.name, claim, Outcome.UNTESTABLE, missing(claim), foreseen=said)
            found += _folded(seen.values()) or [unseen]
    return found


def _folded(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for all settings in which an exact figure reads the same, as a repeat is no more evidence; and one
    for all that say nothing, if none says more."""
    groups: dict[Any, list[Finding]] = {}
    for one in findings:
        exact = one.value is not None and one.low is not None and one.low == one.high
        key = (one.outcome, one.reason, f"{one.value:.4g}") if exact else one.subject
        groups.setdefault(one.outcome if _says_nothing(one) else key, []).append(one)
    if len(groups) > 1:
        groups.pop(Outcome.UNTESTABLE, None)
    return [replace(first, reason=f"{first.reason}{_more(first, len(more))}") for first, *more in groups.values()]


def _says_nothing(finding: Finding) -> bool:
    return finding.thin and finding.outcome is Outcome.UNTESTABLE


def _more(first: Finding, count: int) -> str:
    if not count:
        return ""
    settings = f"{count} more setting{'s' if count > 1 else ''}"
    if _says_nothing(first):
        return f"; {settings} {'say' if count > 1 else 'says'} nothing either"
    return f", and so in {settings}"


def published(out: Path) -> list[Run]:
    """The runs of a results folder that can be published, newest first."""
    places = [place for place in out.glob("*") if place.name not in store.APART.values()]
    folders = [path.parent for place in places for path in place.glob("*/manifest.json")]
    return [Run(folder) for folder in sorted(folders, key=lambda folder: folder.name, reverse=True)]


def with_claims(names: Sequence[str]) -> list[registry.Entry[Technique]]:
    """The techniques of these names, or all that have claims.

    Raises:
        UsageError: no such technique.
    """
    wanted = [registry.techniques[name] for name in names] or list(registry.techniques.values())
    chosen = {registry.stem(entry.cls): registry.techniques[registry.stem(entry.cls)] for entry in wanted}
    return [entry for entry in chosen.values() if entry.cls.claims]


def missing(claim: Claim) -> str:
    """What would be needed to look at a claim of which no record is there."""
    arms = list(dict.fromkeys(evidence.words(figure) for figure in claim.parsed.figures))
    wanted = {**claim.conditions, **claim.needs}
    where = ", ".join(f"{name} {pattern.replace('|', ' or ')}" for name, pattern in wanted.items())
    parts = [f"needs a record of {' beside '.join(arms)}", where and f"the paper: {where}", claim.out_of_reach]
    return "; ".join(filter(None, parts))


def examine(technique: str, claim: Claim, records: Sequence[Record]) -> Iterator[Finding]:
    """What the records of one comparison say of a claim: one finding for each choice of arms that it speaks of.

    Where the claim leaves parameters free, each side is the best of its arms, as each is tuned for itself.
    """
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["arm"], []).append(record)
    fitting = [_fitting(claim, figure, grouped.values()) for figure in claim.parsed.figures]
    alike = [operands for operands in itertools.product(*fitting) if _alike(claim, operands)]
    for operands, tried in _tuned(claim, alike) if claim.free else ((operands, "") for operands in alike):
        finding = _decide(technique, claim, operands)
        yield replace(finding, reason="; ".join(filter(None, [finding.reason, tried])), subject=_subject(operands))


def _tuned(claim: Claim, choices: Iterable[Sequence[list[Record]]]) -> Iterator[tuple[Sequence[list[Record]], str]]:
    """Of choices that differ in free parameters alone the best arm for each figure, and how many there were."""
    groups: dict[str, list[Sequence[list[Record]]]] = {}
    for operands in choices:
        given = [arm[0]["technique"].get("parameters", {}) for arm in operands]
        held = [{key: value for key, value in one.items() if key not in claim.free} for one in given]
        groups.setdefault(json.dumps(held, sort_keys=True), []).append(operands)
    for group in groups.values():
        sides = [list({arm[0]["arm"]: arm for arm in side}.values()) for side in zip(*group, strict=True)]
        counts = [f"{len(side)} of {_registered(side[0][0]['technique'])}" for side in sides]
        tried = f"each the best of its settings: {', '.join(counts)}" if max(map(len, sides)) > 1 else ""
        yield [evidence.best(figure, side) for figure, side in zip(claim.parsed.figures, sides, strict=True)], tried


def _comparisons(run: Run) -> list[list[Record]]:
    grouped: dict[str, list[Record]] = {}
    try:
        for record in run.records(damaged=[]):
            grouped.setdefault(record["comparison"], []).append(record)
    except StoreError:
        return []
    return list(grouped.values())


def _fitting(claim: Claim, figure: Figure, arms: Iterable[list[Record]]) -> list[list[Record]]:
    """The arms that a figure speaks of; where none is to be the best, the comparison's baseline alone if it is one."""
    fitting = [arm for arm in arms if _fits(figure, arm[0])]
    if claim.free:
        return fitting
    return [arm for arm in fitting if arm[0]["arm"] == arm[0]["baseline"]] or fitting


def _fits(figure: Figure, record: Record) -> bool:
    technique = record["technique"]
    given = technique.get("parameters", {})
    return _registered(technique) == figure.arm and all(
        given.get(key, ...) == value for key, value in figure.parameters.items()
    )


def _alike(claim: Claim, operands: Sequence[Sequence[Record]]) -> bool:
    """Whether arms that have a parameter in common agree on it.

    But for those that the claim names or leaves free, and those that a preset among them sets.
    """
    figures = claim.parsed.figures
    presets = [registry.techniques[figure.arm].parameters for figure in figures if figure.arm in registry.techniques]
    apart = {*claim.free}.union(*(figure.parameters for figure in figures), *presets)
    given = [arm[0]["technique"].get("parameters", {}) for arm in operands]
    shared = set(given[0]).intersection(*given) - apart
    return all(one[key] == given[0][key] for one in given for key in shared)


def _decide(technique: str, claim: Claim, operands: Sequence[list[Record]]) -> Finding:
    found = claims.facts(operands[0][0])
    lacking = claims.unmet(claim.needs, found)
    if lacking:
        return Finding(technique, claim, Outcome.UNTESTABLE, "; ".join(lacking), thin=True)
    try:
        estimate, exact = evidence.estimate(claim, operands)
    except evidence.NoFigure as error:
        thin = not isinstance(error, evidence.Broken)
        return Finding(technique, claim, Outcome.UNTESTABLE, str(error), thin=thin)
    low, high = (estimate.change, estimate.change) if exact else (estimate.low, estimate.high)
    finding = Finding(technique, claim, Outcome.INCONCLUSIVE, "", estimate.change, low, high)
    if low is None or high is None or (estimate.refusal and not exact):
        return replace(finding, reason=estimate.refusal or estimate.reason, thin=True)
    metric = claim.parsed.figures[0].metric
    if metric is not None and metric.unit in CLOCKED and estimate.spread == 0:
        return replace(finding, reason="all times alike to the last digit: the clock is suspicious")
    holds = claim.expected.holds(low, high)
    note = _note(estimate, exact, operands)
    if estimate.unit == "items" and operands[0][0]["technique"].get("trains") and len(operands[0]) < TRAININGS:
        return replace(finding, reason=f"{note}, {TRAININGS} trainings at least say more than chance", thin=True)
    if holds is None:
        return replace(finding, reason=f"the interval is on both sides of {claim.expected}; {note}")
    elsewhere = [*claims.unmet(claim.conditions, found), *filter(None, [claim.out_of_reach])]
    if elsewhere:
        outcome_ = Outcome.HOLDS if holds else Outcome.FAILS
        return replace(finding, outcome=outcome_, reason="; ".join([*elsewhere, note]))
    return replace(finding, outcome=Outcome.REPRODUCED if holds else Outcome.CONTRADICTED, reason=note)


def _note(estimate: stats.Estimate, exact: bool, operands: Sequence[Sequence[Record]]) -> str:
    """What a figure rests on."""
    words = "exact" if exact else stats.counted(estimate.units, estimate.unit)
    first = operands[0][0]
    if first["technique"].get("trains") and estimate.unit == "items":
        models = f"{len(operands[0])} trained models, its interval covers both"
        words += f" of {models if len(operands[0]) > 1 else '1 trained model'}"
    stamped = sorted({stamp for arm in operands for record in arm for stamp in record["stamps"]})
    return f"{words}, {', '.join(stamped)}" if stamped else words


def _subject(operands: Sequence[Sequence[Record]]) -> str:
    """What was compared, in one line: it names a setting."""
    first = operands[0][0]
    found = claims.facts(first)
    arms = " against ".join(dict.fromkeys(_arm(arm[0]) for arm in operands))
    helpers = "".join(f", {role} {name}" for role, name in sorted(set().union(*map(_helpers, operands))))
    return f"{arms}; {found['model']} ({found['dtype']}){helpers}, {_workload(first)}; {found['machine']}"


def _helpers(arm: Sequence[Record]) -> set[tuple[str, str]]:
    """Role and name of the networks beside the target that an arm has read: a draft, a reference."""
    read = (arm[0].get("prepared") or {}).get("reads") or []
    return {(one["role"], one["name"]) for one in read if one["role"] != "target"}


def _arm(record: Record) -> str:
    given = _told(record["technique"].get("parameters", {}))
    return f"{record['arm']} ({given})" if given else str(record["arm"])


def _workload(record: Record) -> str:
    given = _told(record["workload"].get("parameters", {}))
    return f"{record['workload'].get('name')} ({given})" if given else str(record["workload"].get("name"))


def _registered(technique: Mapping[str, Any]) -> str:
    """The name that an arm was asked for by: that of a technique or of a preset."""
    return str(technique.get("registered", technique.get("name")))


def _told(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(parameters.items()) if value not in ("", None, []))
