"""From the raw samples of a record to one number per unit.

The unit is the process (time, memory), the item (quality of a given model) or the seed (a trained model), never the
step inside one process.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.metrics import GLOSSARY
from bench.stats import FEWEST, Unit

PERCENTILES = (50, 90, 99)
"""Of the times per token of a process' prompts."""


def prompt_times(samples: Mapping[str, Any]) -> Iterable[tuple[float | None, float, int]]:
    """Per prompt of a burst: prefill (none where an earlier burst read it) [s], the rest [s], tokens of the rest."""
    prefill: float | None = None
    rest, tokens, open_prompt = 0.0, 0, False
    for kind, seconds, emitted in zip(samples["kind"], samples["seconds"], samples["tokens"], strict=True):
        if kind == "prefill":
            if open_prompt:
                yield prefill, rest, tokens
            prefill, rest, tokens, open_prompt = seconds, 0.0, 0, True
        elif kind == "resume":
            open_prompt = True
        elif kind == "decode":
            rest, tokens = rest + seconds, tokens + emitted
    if open_prompt:
        yield prefill, rest, tokens


def _times(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        bursts = [burst["samples"] for burst in part["bursts"] if burst["used"]]
        number = part["round"]
        prompts = [times for samples in bursts for times in prompt_times(samples)]
        steps = [
            seconds
            for samples in bursts
            for kind, seconds in zip(samples["kind"], samples["seconds"], strict=True)
            if kind == "train"
        ]
        if prompts:
            read = [prefill for prefill, _, _ in prompts if prefill is not None]
            if read:
                units.setdefault("ttft", {})[number] = statistics.median(read)
            rest, tokens = sum(rest for _, rest, _ in prompts), sum(tokens for _, _, tokens in prompts)
            if tokens:
                units.setdefault("tpot", {})[number] = rest / tokens
            rates = [rest / tokens for _, rest, tokens in prompts if tokens]
            for percentile in PERCENTILES if len(rates) > 1 else ():
                units.setdefault(f"tpot_p{percentile}", {})[number] = _percentile(rates, percentile)
        if steps:
            units.setdefault("time_per_step", {})[number] = statistics.median(steps)
        whole = sum(
            seconds
            for samples in bursts
            for kind, seconds in zip(samples["kind"], samples["seconds"], strict=True)
            if kind != "resume"
        )
        if whole:
            units.setdefault("throughput", {})[number] = sum(sum(s["tokens"]) for s in bursts) / whole
    return units


def _percentile(values: Sequence[float], percentile: int) -> float:
    """By linear interpolation between the two nearest."""
    return statistics.quantiles(values, n=100, method="inclusive")[percentile - 1]


def _speculation(rounds: Iterable[Mapping[str, Any]], draft_tokens: int) -> dict[str, dict[int, float]]:
    """What the counts of the rounds and the pieces timed on their own say of a way to speculate."""
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        samples = [burst["samples"] for burst in part["bursts"] if burst["used"]]
        counts: Counter[str] = Counter()
        for one in samples:
            for of_prompt in one.get("counts", ()):
                counts.update(of_prompt)
        tried = _tried(counts)
        if not counts["verified"] or not tried:
            continue
        accepted = counts["accepted"] / tried
        length = 1 + counts["accepted"] / counts["verified"]
        found = {"acceptance_rate": accepted, "accepted_length": length}
        calls = {name: statistics.median(seconds) for name, seconds in part.get("calls", {}).items()}
        if {"forward", "draft", "verify"} <= calls.keys():
            share = calls["draft"] / calls["forward"] / draft_tokens
            verify = calls["verify"] / calls["forward"]
            cost = draft_tokens * share + verify
            found |= {"cost_ratio": share, "verification_cost": verify, "predicted_speedup": length / cost}
            run = sum(accepted**place for place in range(draft_tokens + 1))
            found["iid_speedup"] = run / (draft_tokens * share + 1)
            times = [times for one in samples for times in prompt_times(one)]
            measured = sum(rest for _, rest, _ in times) / sum(tokens for _, _, tokens in times)
            found["prediction_reached"] = calls["forward"] * cost / length / measured
            found["formula_reached"] = calls["forward"] / measured / found["iid_speedup"]
        for name, value in found.items():
            units.setdefault(name, {})[part["round"]] = value
    return units


def _attending(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """What the profile pass says of attention when decoding."""
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        profile = part.get("profile") or {}
        decoding = profile.get("kind", []).count("decode")
        attending = (profile.get("phases") or {}).get("attention")
        if decoding and attending:
            units.setdefault("attention_time", {})[part["round"]] = sum(attending) / decoding
    return units


def _choosing(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """What the profile pass says of a cache that lets go behind the prompt."""
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        profile = part.get("profile") or {}
        phases = profile.get("phases") or {}
        if phases.get("choose") and phases.get("prefill"):
            chose = sum(phases["choose"])
            units.setdefault("choosing_cost", {})[part["round"]] = chose / sum(phases["prefill"])
            if "decode" in profile.get("kind", ()):
                units.setdefault("choosing_share", {})[part["round"]] = chose / sum(profile["seconds"])
    return units


def groups(record: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Group of prompts -> metric -> round -> its number, where the prompts of a burst are of several kinds."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for part in record["rounds"]:
        times: dict[str, list[tuple[float, int]]] = {}
        counts: dict[str, Counter[str]] = {}
        for samples in (burst["samples"] for burst in part["bursts"] if burst["used"]):
            prompts = list(prompt_times(samples))
            of_prompts = samples.get("groups", ())
            if not of_prompts or len(prompts) != len(of_prompts):
                continue  # no groups, or prompts that were continued together
            for group, (_, rest, tokens), counted in zip(of_prompts, prompts, samples["counts"], strict=True):
                times.setdefault(group, []).append((rest, tokens))
                counts.setdefault(group, Counter()).update(counted)
        for group, pairs in times.items():
            metrics = found.setdefault(group, {})
            tokens = sum(count for _, count in pairs)
            if tokens:
                metrics.setdefault("tpot", {})[part["round"]] = sum(rest for rest, _ in pairs) / tokens
            tried = _tried(counts[group])
            if tried:
                metrics.setdefault("acceptance_rate", {})[part["round"]] = counts[group]["accepted"] / tried
    return found


def _tried(counts: Mapping[str, int]) -> int:
    """Drafted tokens that were judged."""
    return sum(count for name, count in counts.items() if name.startswith("tried_"))


def _memory(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        memory = part.get("memory")
        if not memory:
            continue
        found = {
            "peak_memory": memory["peak"],
            "reserved_memory": memory["reserved"],
            "process_memory": memory["process"] if isinstance(memory.get("process"), int) else None,
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
    that of training runs is counted in seeds, averaged over the items, where there are enough of them. What a quality
    pass measures of the whole model, as the size of its file, has no items and is counted in seeds.
    """
    rounds = [part for record in records[:1] for part in record["rounds"]]
    found: dict[str, tuple[dict[int, float], Unit]] = {
        name: (values, "rounds")
        for name, values in {
            **_times(rounds),
            **_speculation(rounds, _draft_tokens(records)),
            **_attending(rounds),
            **_choosing(rounds),
            **_memory(rounds),
        }.items()
    }
    scored = [record for record in records if record["quality"]]
    for name in {name: None for record in scored for name in record["quality"]["metrics"]}:
        by_seed = {record["seed"]: _items(record["quality"]["metrics"].get(name, ())) for record in scored}
        by_seed = {seed: items for seed, items in by_seed.items() if items}
        enough = len(by_seed) >= FEWEST["seeds"] and scored[0]["technique"].get("trains")
        if by_seed and (enough or GLOSSARY[name].axis != "quality"):
            found[name] = {seed: statistics.fmean(items.values()) for seed, items in by_seed.items()}, "seeds"
        else:
            shared = set.intersection(*map(set, by_seed.values())) if by_seed else set()
            means = {item: statistics.fmean(items[item] for items in by_seed.values()) for item in sorted(shared)}
            found[name] = means, "items"
    return found


def _draft_tokens(records: Sequence[Mapping[str, Any]]) -> int:
    """What a round drafts at most; 1 where drafting has no such parameter."""
    return int(records[0].get("technique", {}).get("parameters", {}).get("draft_tokens", 1)) if records else 1


def _items(values: Iterable[float | None]) -> dict[int, float]:
    return {index: value for index, value in enumerate(values) if value is not None}
