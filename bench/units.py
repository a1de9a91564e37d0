"""From the raw samples of a record to one number per unit.

The unit is the process (time, memory), the item (quality of a given model) or the seed (a trained model), never the
step inside one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.stats import FEWEST, Unit


def prompt_times(samples: Mapping[str, Any]) -> Iterable[tuple[float, float, int]]:
    """Per prompt of a burst: prefill [s], the rest [s], tokens emitted by the rest."""
    prefill, rest, tokens, open_prompt = 0.0, 0.0, 0, False
    for kind, seconds, emitted in zip(samples["kind"], samples["seconds"], samples["tokens"], strict=True):
        if kind == "prefill":
            if open_prompt:
                yield prefill, rest, tokens
            prefill, rest, tokens, open_prompt = seconds, 0.0, 0, True
        elif kind == "decode":
            rest, tokens = rest + seconds, tokens + emitted
    if open_prompt:
        yield prefill, rest, tokens


def _times(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        bursts = [burst["samples"] for burst in part["bursts"] if burst["used"]]
        number = part["round"]
        prompts = [times for samples in bursts if "prefill" in samples["kind"] for times in prompt_times(samples)]
        steps = [
            seconds
            for samples in bursts
            for kind, seconds in zip(samples["kind"], samples["seconds"], strict=True)
            if kind == "train"
        ]
        if prompts:
            units.setdefault("ttft", {})[number] = statistics.median(prefill for prefill, _, _ in prompts)
            rates = [rest / tokens for _, rest, tokens in prompts if tokens]
            if rates:
                units.setdefault("tpot", {})[number] = statistics.median(rates)
        if steps:
            units.setdefault("time_per_step", {})[number] = statistics.median(steps)
        whole = sum(sum(samples["seconds"]) for samples in bursts)
        if whole:
            units.setdefault("throughput", {})[number] = sum(sum(s["tokens"]) for s in bursts) / whole
    return units


def _memory(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        memory = part.get("memory")
        if not memory:
            continue
        found = {
            "peak_memory": memory["peak"],
            "reserved_memory": memory["reserved"],
            "held_memory": memory["named"],
            "kv_cache_bytes": memory["largest"].get("kv_cache"),
        }
        for name, value in found.items():
            if value is not None:
                units.setdefault(name, {})[part["round"]] = float(value)
    return units


def of(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[dict[int, float], Unit]]:
    """Metric -> unit -> its number, and what the units are, of one arm's records, one per seed.

    Time and memory are those of the first record, in rounds. Quality is counted in items, averaged over the seeds;
    that of training runs is counted in seeds, averaged over the items, where there are enough of them.
    """
    rounds = [part for record in records[:1] for part in record["rounds"]]
    found: dict[str, tuple[dict[int, float], Unit]] = {
        name: (values, "rounds") for name, values in {**_times(rounds), **_memory(rounds)}.items()
    }
    scored = [record for record in records if record["quality"]]
    for name in {name: None for record in scored for name in record["quality"]["metrics"]}:
        by_seed = {record["seed"]: _items(record["quality"]["metrics"].get(name, ())) for record in scored}
        by_seed = {seed: items for seed, items in by_seed.items() if items}
        if len(by_seed) >= FEWEST["seeds"] and scored[0]["technique"].get("trains"):
            found[name] = {seed: statistics.fmean(items.values()) for seed, items in by_seed.items()}, "seeds"
        else:
            shared = set.intersection(*map(set, by_seed.values())) if by_seed else set()
            means = {item: statistics.fmean(items[item] for items in by_seed.values()) for item in sorted(shared)}
            found[name] = means, "items"
    return found


def _items(values: Iterable[float | None]) -> dict[int, float]:
    return {index: value for index, value in enumerate(values) if value is not None}
