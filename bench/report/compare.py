"""Two runs side by side, arm by arm: what changed, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench import stats
from bench.errors import UsageError
from bench.metrics import GLOSSARY, Metric
from bench.report import table
from bench.store import Run
from bench.technique import Axis

UNPUBLISHABLE = ("quick", "dirty", "disturbed")


class Change(NamedTuple):
    """One arm on one axis, in the second run against the first."""

    comparison: str
    arm: str
    seed: int
    axis: Axis
    metric: Metric
    estimate: stats.Estimate | None


def changes(a: Run, b: Run, force: bool = False) -> tuple[list[Change], list[str]]:
    """What changed on the primary metrics, and what differs between the runs.

    Raises:
        UsageError: the runs are not comparable (model, data, device, workload, stamps) and `force` is not set.
    """
    left, right = ({r["cell"]: r for r in run.records([])} for run in (a, b))
    shared = [cell for cell in left if cell in right]
    if not shared:
        raise UsageError(f"{a.folder} and {b.folder} have no cell in common")
    differing = sorted({text for cell in shared for text in _differences(left[cell], right[cell])})
    if differing and not force:
        raise UsageError(f"not comparable: {'; '.join(differing)} (--force compares all the same)")
    return [change for cell in shared for change in _cell(left[cell], right[cell])], differing


def _cell(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    rows = [table.Row(record, {}) for record in (a, b)]
    invalid = any(row.status == "invalid" for row in rows)
    units = [stats.units(record) for record in (a, b)]
    for axis in table.AXES:
        metric = GLOSSARY[a["primary"][axis]]
        estimate = None
        if not (invalid and axis != "quality"):
            estimate = stats.compare_runs(
                metric, units[0].get(metric.name, {}), units[1].get(metric.name, {}), paired=axis == "quality"
            )
        yield Change(a["comparison"], a["arm"], a["seed"], axis, metric, estimate)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    fields = {
        "model": ((a["model"] or {}).get("sha256"), (b["model"] or {}).get("sha256")),
        "data": (a["inputs_sha256"], b["inputs_sha256"]),
        "device": (a["environment"]["device"], b["environment"]["device"]),
        "workload": (a["workload"], b["workload"]),
        "technique": (a["technique"], b["technique"]),
    }
    for name, (left, right) in fields.items():
        if left != right:
            yield f"another {name} in {a['comparison']} {a['arm']}" if name == "technique" else f"another {name}"
    for record in (a, b):
        for stamp in set(record["stamps"]) & set(UNPUBLISHABLE):
            yield f"a run is stamped {stamp}"
