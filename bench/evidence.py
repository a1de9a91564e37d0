"""A claim's expression read from stored records: its value with an interval, or why these records have none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench import manifest, outcome, stats, units
from bench.claim import Claim, Figure
from bench.metrics import Metric
from bench.outcome import Record

_PLAIN = Metric("count", "memory", "", "lower", "A number that is the same in every repeat.", 0.0, exact=True)


class NoFigure(Exception):
    """These records hold nothing that the claim is about; the text says what would be needed."""


class Broken(NoFigure):
    """They would, had an arm not failed: that is something to know."""


def estimate(claim: Claim, operands: Sequence[list[Record]]) -> tuple[stats.Estimate, bool]:
    """The expression's value with its interval, and whether it is the same in every repeat.

    Of trained models too few to be the units themselves, the interval covers both what other items and what other
    trainings would have given.

    Raises:
        NoFigure: a record has no such figure, or it is withheld.
    """
    expression = claim.parsed
    for figure, arm in zip(expression.figures, operands, strict=True):
        _check(figure, arm)
    arms = _under_one_seed(operands)
    if len(arms) == 2 and arms[0][0]["arm"] != arms[1][0]["arm"]:
        if manifest.lasting_differences(arms[0][0]["environment"], arms[1][0]["environment"]):
            raise NoFigure("its arms were measured in two environments; measure them in one run")
        arms[0], arms[1] = outcome.side_by_side(arms[0], arms[1])
        if operands[1][0]["rounds"] and not arms[1][0]["rounds"] and any(map(_in_rounds, expression.figures)):
            raise NoFigure("its arms share no round; measure them in turn, in one run")
    read = [_values(figure, arm) for figure, arm in zip(expression.figures, arms, strict=True)]
    own, unit = read[0]
    if len(read) == 2 and read[1][1] != unit:
        raise NoFigure(f"one figure is in {unit}, the other in {read[1][1]}; run both arms under the same seeds")
    base = read[1][0] if len(read) == 2 else dict.fromkeys(own, 0.0)
    form = replace(expression.figures[0].metric or _PLAIN, relative=expression.operator == "/")
    found = stats.compare(form, own, base, unit, outcome.confidence_of(arms[0][0], unit))
    if found is not None and unit == "items" and any(arm[0]["technique"].get("trains") for arm in arms):
        ours, *theirs = (_of_trainings(figure, arm) for figure, arm in zip(expression.figures, arms, strict=True))
        trainings = stats.compare(form, ours, theirs[0] if theirs else dict.fromkeys(ours, 0.0), "seeds")
        found = _covering(found, trainings)
    if found is None:
        raise NoFigure(f"{words(expression.figures[0])} has no {expression.figures[0].quantity}")
    declared = all(figure.metric is None or figure.metric.exact for figure in expression.figures)
    return found, declared and not found.spread


def _of_trainings(figure: Figure, arm: Sequence[Record]) -> dict[int, float]:
    """Seed -> the mean over the items of the model trained under it."""
    return {record["seed"]: statistics.fmean(_values(figure, [record])[0].values()) for record in arm}


def _covering(items: stats.Estimate, seeds: stats.Estimate | None) -> stats.Estimate:
    """An estimate over items with an interval that holds the one over trainings as well, where there is one."""
    if items.low is None or items.high is None or seeds is None or seeds.low is None or seeds.high is None:
        return items
    return replace(items, low=min(items.low, seeds.low), high=max(items.high, seeds.high))


def best(figure: Figure, arms: Sequence[list[Record]]) -> list[Record]:
    """The arm with the best mean of a figure; the first where none has one."""

    def rank(arm: list[Record]) -> float:
        try:
            _check(figure, arm)
            mean = statistics.fmean(_values(figure, arm)[0].values())
        except NoFigure:
            return math.inf
        return -mean if figure.metric is not None and figure.metric.better == "higher" else mean

    return min(arms, key=rank)


def _under_one_seed(operands: Sequence[list[Record]]) -> list[list[Record]]:
    """The arms with the records of the seeds that all of them have.

    Raises:
        NoFigure: there is no such seed.
    """
    shared = set.intersection(*({record["seed"] for record in arm} for arm in operands))
    if not shared:
        raise NoFigure("its arms have no seed in common; run them under the same seeds")
    return [[record for record in arm if record["seed"] in shared] for arm in operands]


def _in_rounds(figure: Figure) -> bool:
    """Whether it is counted in rounds of processes: time and memory are."""
    return figure.kind == "held" or (figure.metric is not None and figure.metric.axis != "quality")


def _check(figure: Figure, arm: Sequence[Record]) -> None:
    for record in arm:
        status, metric = outcome.status(record), figure.metric
        if status not in {"ok", "ungated", "invalid", "skipped"}:
            raise Broken(f"{record['arm']} ended as {status}: {outcome.reason(record)}")
        if status == "invalid" and figure.kind != "gates" and (metric is None or metric.axis != "quality"):
            raise Broken(f"{record['arm']} is invalid, its speed and memory are withheld: {outcome.reason(record)}")
        if metric is not None and metric.axis == "quality" and (record["model"] or {}).get("random"):
            raise NoFigure("random weights have no quality; run it on a trained model")
        for note in (record["quality"] or {}).get("notes") or {}:
            if figure.quantity in note:
                raise NoFigure(f"{record['arm']} under seed {record['seed']}: {note}")


def _values(figure: Figure, arm: Sequence[Record]) -> tuple[dict[int, float], stats.Unit]:
    """Unit -> value of one figure.

    Raises:
        NoFigure: the records have none.
    """
    if figure.kind == "metric":
        found = units.of(arm).get(figure.quantity)
        if found is None or not found[0]:
            raise NoFigure(f"{words(figure)} has no {figure.quantity} in these records")
        return found
    name = figure.quantity.partition(".")[2]
    if figure.kind == "held":
        largest = {part["round"]: part["memory"]["largest"] for part in arm[0]["rounds"] if part.get("memory")}
        values = {number: float(held[name]) for number, held in largest.items() if held.get(name) is not None}
        unit: stats.Unit = "rounds"
    else:
        quality = {record["seed"]: record["quality"] or {} for record in arm}
        read = {seed: (_passed if figure.kind == "gates" else _counted)(name, one) for seed, one in quality.items()}
        values = {seed: value for seed, value in read.items() if value is not None}
        unit = "seeds"
    if not values:
        raise NoFigure(f"{words(figure)} has no {figure.quantity} in these records")
    return values, unit


def _passed(name: str, quality: Mapping[str, Any]) -> float | None:
    passed = [gate["passed"] for gate in quality.get("gates") or [] if gate["name"] == name]
    return float(all(passed)) if passed else None


def _counted(name: str, quality: Mapping[str, Any]) -> float | None:
    value = quality.get("counts", {}).get(name)
    return None if value is None else float(value)


def words(figure: Figure) -> str:
    given = ", ".join(f"{key}={value}" for key, value in figure.parameters.items())
    return f"{figure.arm} ({given})" if given else figure.arm
