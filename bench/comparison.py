"""Two runs side by side, arm by arm: what changed, what differs between them, and whether they may be compared at all.

Verdicts are those of a run, with the first run in the baseline's place: one primary metric per axis, corrected over
all arms. Time and memory are compared between processes that ran at different times, so an interval knows nothing of
a machine that changed in between: the baselines are arms here too, and show it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bench import data_files, manifest, stats, units
from bench.errors import UsageError
from bench.metrics import GLOSSARY, Metric
from bench.outcome import Record, Row
from bench.store import APART, Run
from bench.verdict import Judgement, Verdict, judge_all

FINISHED = {"ok", "ungated", "invalid"}
"""Statuses of arms that were measured to the end."""

Key = tuple[str, str]
"""Comparison and arm."""


class Pair(NamedTuple):
    """One arm in both runs, under the seeds that both have."""

    before: Row
    after: Row

    @property
    def key(self) -> Key:
        return str(self.before.record["comparison"]), self.before.arm

    @property
    def broke(self) -> bool:
        """A gate fails that did not fail in the first run."""
        return self.after.status == "invalid" and self.before.status != "invalid"

    @property
    def lost(self) -> bool:
        """Finished in the first run and not in the second."""
        return self.before.status in FINISHED and self.after.status not in FINISHED


@dataclass(frozen=True)
class Change:
    """One arm on one metric, in the second run against the first."""

    comparison: str
    arm: str
    metric: Metric
    primary: bool
    """Whether the metric stands for its axis: only such are judged."""
    before: float | None
    """The first run's figure, in the metric's unit."""
    estimate: stats.Estimate | None
    """The second run's figure and its change against the first."""
    missing: str = ""
    """Why there is no estimate."""
    judgement: Judgement | None = None

    @property
    def key(self) -> Key:
        return self.comparison, self.arm


@dataclass(frozen=True)
class Contrast:
    """All that there is to say about two runs."""

    folders: tuple[str, str]
    pairs: tuple[Pair, ...]
    changes: tuple[Change, ...]
    obstacles: tuple[str, ...]
    """What stands against comparing them, though it was forced."""
    environment: tuple[tuple[str, Any, Any], ...]
    """Field of the environment, its value in the first and in the second run: what may explain a change."""
    only: tuple[tuple[str, str], ...]
    """Cell, and which of the runs has it alone: `first` or `second`."""
    damaged: tuple[str, ...]
    """Records that could not be read."""


def contrast(a: Run, b: Run, force: bool = False) -> Contrast:
    """The second run against the first.

    Raises:
        UsageError: they have no cell in common, or are not comparable (model, data, device, workload, technique,
            stamps) and `force` is not set.
    """
    damaged: list[str] = []
    first, second = ({record["cell"]: record for record in run.records(damaged)} for run in (a, b))
    paired = pairs(a, b, first, second)
    found = [*differences(paired), *stamped(a, first.values()), *stamped(b, second.values())]
    if found and not force:
        raise UsageError(f"not comparable: {'; '.join(found)} (--force compares all the same)")
    changes = _judged([change for pair in paired for change in _changes(pair)], paired)
    only = [(cell, "first") for cell in first if cell not in second]
    only += [(cell, "second") for cell in second if cell not in first]
    folders = str(a.folder), str(b.folder)
    return Contrast(
        folders, tuple(paired), tuple(changes), tuple(found), tuple(environment(a, b)), tuple(only), tuple(damaged)
    )


def pairs(a: Run, b: Run, first: Mapping[str, Record], second: Mapping[str, Record]) -> list[Pair]:
    """The arms of both runs; a cell, so an arm under a seed, that only one has is left out.

    Raises:
        UsageError: nothing is left.
    """
    arms: dict[Key, tuple[list[Record], list[Record]]] = {}
    for cell, record in first.items():
        if cell in second:
            before, after = arms.setdefault((record["comparison"], record["arm"]), ([], []))
            before.append(record)
            after.append(second[cell])
    if not arms:
        raise UsageError(f"{a.folder} and {b.folder} have no cell in common; give two runs of one config")
    return [Pair(Row(tuple(before), {}), Row(tuple(after), {})) for before, after in arms.values()]


def differences(paired: Iterable[Pair], fields: Collection[str] = ()) -> list[str]:
    """What makes arms of two runs answers to different questions: of these fields, or of all.

    A model or data that a cell did not get to is no difference: its status says so.
    """
    found = []
    for pair in paired:
        for a, b in zip(pair.before.records, pair.after.records, strict=True):
            for name, left, right in _identities(a, b):
                if left != right and None not in (left, right) and (not fields or name in fields):
                    where = {"workload": f" in {pair.key[0]}", "technique": f" in {' '.join(pair.key)}"}.get(name, "")
                    found.append(f"another {name}{where}{_fields(left, right)}")
    return sorted(set(found))


def _fields(left: Any, right: Any) -> str:
    """What differs between two mappings; nothing to say of anything else."""
    if not isinstance(left, Mapping):
        return ""
    return f" ({', '.join(f'{key} {a} -> {b}' for key, a, b in manifest.differences(left, right))})"


def _identities(a: Record, b: Record) -> Iterator[tuple[str, Any, Any]]:
    def workload(record: Record) -> dict[str, Any]:
        parameters = record["workload"]["parameters"]
        return {
            "name": record["workload"]["name"],
            **{k: v for k, v in parameters.items() if k not in data_files.FIELDS},
        }

    def technique(record: Record) -> dict[str, Any]:
        return {"name": record["technique"]["name"], **record["technique"]["parameters"]}

    yield "model", (a["model"] or {}).get("sha256"), (b["model"] or {}).get("sha256")
    yield "data", a["inputs_sha256"], b["inputs_sha256"]
    yield "device", a["environment"]["device"], b["environment"]["device"]
    yield "workload", workload(a), workload(b)
    yield "technique", technique(a), technique(b)


def stamped(run: Run, records: Iterable[Record]) -> list[str]:
    """What keeps a run from being compared, though it were on a cell that the other run lacks."""
    found = {stamp for record in records for stamp in record["stamps"]}
    return [f"{run.folder} is stamped {stamp}" for stamp in APART if stamp in found]


def environment(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """The fields in which the environments of two runs differ, with both values."""
    found = manifest.differences(a.manifest["environment"], b.manifest["environment"])
    return [field for field in found if not field[0].startswith(manifest.CHANGING)]


def _changes(pair: Pair) -> Iterator[Change]:
    before, after = units.of(pair.before.records), units.of(pair.after.records)
    primary = set(pair.before.record["primary"].values())
    for name in GLOSSARY:
        if name not in {*primary, *before, *after}:
            continue
        metric = GLOSSARY[name]
        (a, _), (b, unit) = before.get(name, ({}, "rounds")), after.get(name, ({}, "rounds"))
        missing = _missing(pair, metric, bool(a), bool(b))
        estimate = None if missing else stats.compare_runs(metric, a, b, unit)
        figure = stats.centre(metric, a.values()) if a and not missing else None
        yield Change(*pair.key, metric, name in primary, figure, estimate, missing)


def _missing(pair: Pair, metric: Metric, first: bool, second: bool) -> str:
    """Why nothing is said of this arm on this metric."""
    for row, which in ((pair.before, "first"), (pair.after, "second")):
        if row.status not in FINISHED:
            return f"{row.status} in the {which} run"
        if row.withholds(metric):
            return f"withheld: invalid in the {which} run"
    if metric.axis == "quality" and (pair.before.record["model"] or {}).get("random"):
        return "not applicable: random weights"
    runs = [which for which, measured in (("first", first), ("second", second)) if not measured]
    return f"not measured in the {' and the '.join(runs)} run" if runs else ""


def _judged(changes: list[Change], paired: Iterable[Pair]) -> list[Change]:
    """With verdicts on the primary metrics, each metric's arms corrected together."""
    asked: dict[str, dict[Key, stats.Estimate]] = {}
    for change in changes:
        if change.primary and change.estimate is not None:
            asked.setdefault(change.metric.name, {})[change.key] = change.estimate
    verdicts = {name: judge_all(GLOSSARY[name], estimates) for name, estimates in asked.items()}
    rows = {pair.key: pair.after for pair in paired}
    return [
        replace(change, judgement=_worded(change, verdicts[change.metric.name].get(change.key), rows[change.key]))
        if change.primary and change.estimate is not None
        else change
        for change in changes
    ]


def _worded(change: Change, judgement: Judgement | None, row: Row) -> Judgement | None:
    """A trained model's quality over too few seeds is that of these models, and says so."""
    trained = change.metric.axis == "quality" and row.record["technique"].get("trains")
    if judgement is None or change.estimate is None or not trained or change.estimate.unit == "seeds":
        return judgement
    count = len(row.records)
    models = "one trained model" if count == 1 else f"{count} trained models"
    reason = f"{judgement.reason}; of {models} per run, {stats.FEWEST['seeds']} seeds would say more"
    return replace(judgement, reason=reason)


def moved_baselines(found: Contrast) -> list[str]:
    """Baselines that changed themselves: the arms' changes need not be the techniques'."""
    baselines = {pair.key for pair in found.pairs if pair.after.is_baseline}
    return [
        f"{change.comparison}: the baseline {change.arm} itself is {change.judgement.verdict} on "
        f"{change.metric.name}: look at the machine and its libraries first"
        for change in found.changes
        if change.judgement and change.key in baselines and change.judgement.verdict in {Verdict.BETTER, Verdict.WORSE}
    ]
