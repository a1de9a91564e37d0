"""What is kept of a cell: who it is, what was measured, on what, and what stands against publishing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.experiment import Cell
from bench.settings import Settings


def assemble(
    cell: Cell,
    settings: Settings,
    quality: dict[str, Any],
    rounds: list[dict[str, Any]],
    inputs: dict[str, Any],
    environment: dict[str, Any],
    beside: dict[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """A cell's record, but for how it ended.

    Args:
        quality: answer of the quality pass; empty if it did not come to that.
        rounds: what was measured in each round that the cell finished.
        beside: arm -> rounds of arms that were finished before and were run once more, beside this one.
        inputs: what the comparison's arms shared.
    """
    return {
        **identity(cell),
        "detail": "",
        "curve": [],
        "model": inputs.get("model"),
        "inputs_sha256": inputs.get("sha256"),
        "data": inputs.get("data", {}),
        "quality": quality.get("quality"),
        "quality_peak": quality.get("peak"),
        "prepared": quality.get("prepared"),
        "rounds": rounds,
        "beside": beside or {},
        "looks": list(settings.looks),
        "rounds_reason": "" if rounds else _why_untimed(cell, settings),
        "stamps": stamps(settings, rounds, environment),
        "environment": environment,
    }


def parts(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a record was put together from, by the names of its parts: the cell can go on from them."""
    if record["quality"]:
        yield "quality", {"quality": record["quality"], "peak": record["quality_peak"], "prepared": record["prepared"]}
    for part in record["rounds"]:
        yield f"round-{part['round']}", part
    again: dict[int, dict[str, Any]] = {}
    for arm, rounds in record.get("beside", {}).items():
        for part in rounds:
            again.setdefault(part["round"], {})[arm] = part
    for number, arms in again.items():
        yield f"beside-{number}", arms


def identity(cell: Cell) -> dict[str, Any]:
    """Names and parameters of technique and workload."""
    technique, workload = cell.arm.technique, cell.comparison.workload
    return {
        "cell": cell.id,
        "comparison": cell.comparison.id,
        "family": cell.comparison.family,
        "arm": cell.arm.label,
        "baseline": cell.comparison.baseline.label,
        "technique": {
            "name": cell.arm.name,
            "registered": cell.arm.registered,
            "parameters": technique.model_dump(mode="json"),
            "source": technique.source,
            "peer": technique.peer,
            "labels": list(technique.labels),
            "trains": technique.trains and workload.trains,
        },
        "workload": {
            "name": cell.comparison.workload_name,
            "parameters": workload.model_dump(mode="json"),
            "source": workload.source,
            "label": workload.label,
        },
        "primary": {**technique.primary, **workload.primary},
        "seed": cell.seed,
    }


def _why_untimed(cell: Cell, settings: Settings) -> str:
    first = settings.seeds[0]
    return f"timed under seed {first}" if cell.seed != first else "no round was finished"


def stamps(settings: Settings, rounds: list[dict[str, Any]], environment: dict[str, Any]) -> list[str]:
    """What stands against publishing: before the first round, what is known of the run."""
    used = [burst for part in rounds for burst in part["bursts"] if burst["used"]]
    found = {
        "quick": settings.quick,
        "inline": settings.inline,
        "dirty": environment["code"]["dirty"] is not False,
        "disturbed": any(burst["load"]["disturbed"] for burst in used),
    }
    return [name for name, holds in found.items() if holds]
