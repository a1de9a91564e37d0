"""What this machine can resolve: known faults planted in arms, seen by the real runner, judged by the real verdicts.

A baseline is compared with its twin and with arms that are slower, hold more or predict worse by known amounts. What
comes out is kept in the user's cache, and later runs on the same device with the same versions carry it.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import api, embedded, outcome, stats, units
from bench.metrics import GLOSSARY
from bench.runner import Say
from bench.verdict import Verdict

EXPERIMENTS = Path(__file__).parent / "data" / "calibration"
PLANTED = ("bench.planted.spoiled_decoding", "bench.planted.spoiled_cache")
ROUNDS = (5, 10, 20)
KIND = "calibration"
POWER = 0.8
"""Chance to find a difference of the stated size."""
MIB = float(1 << 20)


@dataclass(frozen=True)
class Fault:
    """What was planted in an arm, on one metric."""

    arm: str
    metric: str
    truth: float
    """As the metric is compared: a ratio to the baseline, or a difference from it."""
    expected: Verdict
    """The right verdict; INCONCLUSIVE is no false one."""


def faults(base_memory: float) -> list[Fault]:
    """All that is planted.

    Args:
        base_memory: peak of the baseline [B], to turn bytes into a ratio.
    """
    return [
        Fault("twin", "tpot", 1.0, Verdict.SAME),
        Fault("5 % slower", "tpot", 1.05, Verdict.WORSE),
        Fault("10 % slower", "tpot", 1.10, Verdict.WORSE),
        Fault("twin", "peak_memory", 1.0, Verdict.SAME),
        Fault("64 MiB more", "peak_memory", 1 + 64 * MIB / base_memory, Verdict.WORSE),
        Fault("twin", "nll", 0.0, Verdict.SAME),
        Fault("0.05 nat worse", "nll", 0.05, Verdict.WORSE),
    ]


def calibrate(facts: Mapping[str, Any], say: Say = lambda event: None, **settings: Any) -> dict[str, Any]:
    """Run the planted comparisons and say what was seen.

    Args:
        facts: the environment, as the manifest has it.
        settings: replace those of both experiments; tests make them small.

    Raises:
        Busy: another run is timing on this machine.
        UsageError: a setting is wrong.
    """
    for module in PLANTED:
        importlib.import_module(module)
    out = embedded.cache() / "calibration"
    records: list[dict[str, Any]] = []
    started = time.monotonic()
    minutes = 0.0
    for name in ("time", "quality"):
        done = api.run(EXPERIMENTS / f"{name}.yaml", out=out, say=say, plugins=PLANTED, **settings)
        records += done.records()
        if name == "time":
            minutes = (time.monotonic() - started) / 60
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{name: facts[name] for name in ("device", "versions", "code")},
        "threads": facts["cpu"]["threads"],
        "minutes": (time.monotonic() - started) / 60,
        "stamps": sorted({stamp for record in records for stamp in record["stamps"]}),
        "failed": [f"{r['arm']}: {r['status']}: {r['reason']}" for r in records if r["status"] != "ok"],
        "seen": list(_seen(records)),
        "resolution": list(resolutions(records, minutes)),
    }


def _seen(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every fault with what the verdicts make of it, after the first five rounds and after all."""
    known = units.of([record for record in records if "peak_memory" in record["primary"].values()][:1])
    base_memory = statistics.median(known["peak_memory"][0].values()) if "peak_memory" in known else math.inf
    counts = sorted({min(stats.FEWEST["rounds"], len(r["rounds"])) for r in records if r["rounds"]} | {0})
    for fault in faults(base_memory):
        looked: list[dict[str, Any]] = []
        for first in [count for count in counts if count] + [0]:
            rows = _rows(records, first)
            row = next((row for row in rows if row.arm == fault.arm and fault.metric in row.judgements), None)
            if row is None:
                continue
            estimate, judgement = row.estimates[fault.metric], row.judgements[fault.metric]
            seen = {
                "units": estimate.units,
                "counted_in": estimate.unit,
                "change": estimate.change,
                "low": estimate.low,
                "high": estimate.high,
                "verdict": judgement.verdict.value,
                "right": right(fault, judgement.verdict),
            }
            if seen not in looked:
                looked.append(seen)
        yield {**asdict(fault), "expected": fault.expected.value, "looks": looked}


def right(fault: Fault, verdict: Verdict) -> bool | None:
    """Whether a verdict is true of what was planted; None where it says nothing."""
    if verdict is Verdict.INCONCLUSIVE:
        return None
    return verdict is fault.expected


def _rows(records: list[dict[str, Any]], first: int) -> list[outcome.Row]:
    """Each arm judged by itself, from its first rounds; 0: from all."""
    cut = [{**r, "rounds": r["rounds"][: first or None]} for r in records]
    rows = [row for members in outcome.rows(cut).values() for row in members]
    alone = [outcome.rows([r for r in cut if r["arm"] in {row.arm, row.record["baseline"]}]) for row in rows]
    return [
        replace(row, judgements=next(o for o in own[row.record["comparison"]] if o.arm == row.arm).judgements)
        for row, own in zip(rows, alone, strict=True)
    ]


def resolutions(records: Iterable[Mapping[str, Any]], minutes: float) -> Iterator[dict[str, Any]]:
    """Per metric and number of rounds: the smallest difference that is found four times in five, and the minutes.

    The spread between rounds is pooled over the planted arms: a known fault shifts their mean alone.
    """
    members = [record for record in records if "tpot" in record["primary"].values() and record["rounds"]]
    rows = [row for one in outcome.rows([r for r in members if r["family"] == "decoding"]).values() for row in one]
    rounds = max((len(row.record["rounds"]) for row in rows), default=0)
    for name in ("tpot", "peak_memory"):
        spreads = [row.estimates[name].spread for row in rows if name in row.estimates]
        known = [spread for spread in spreads if spread is not None]
        if not known:
            continue
        spread = math.sqrt(statistics.fmean(one**2 for one in known))
        for count in ROUNDS:
            least = smallest(spread, count)
            yield {
                "metric": name,
                "rounds": count,
                "spread": spread,
                "smallest": least,
                "same_within_margin": stats.half_width(spread, count) < math.log1p(GLOSSARY[name].margin),
                # two arms of those that ran
                "minutes": minutes / rounds / len(rows) * 2 * count,
            }


def smallest(spread: float, rounds: int) -> float:
    """Smallest true difference, as a share, that this many rounds find with the stated power.

    Args:
        spread: standard deviation of the rounds' log-ratios.
    """
    quantile = stats.t_quantile(rounds - 1) + stats.t_quantile(rounds - 1, 2 * POWER - 1)
    return math.expm1(quantile * spread / math.sqrt(rounds))


def exit_code(report: Mapping[str, Any]) -> int:
    """1 if a verdict was false, 3 if an arm did not finish, else 0."""
    if any(look["right"] is False for fault in report["seen"] for look in fault["looks"]):
        return 1
    return 3 if report["failed"] else 0
