"""The glossary: every number that a report can show, with its unit, direction, definition and margin."""

from __future__ import annotations

import difflib

from bench.errors import BenchError
from bench.metric import Metric
from bench.quality_metrics import QUALITY

__all__ = ["GLOSSARY", "Metric", "metric"]


def _glossary(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


GLOSSARY = _glossary(
    # latency
    Metric("ttft", "latency", "s", "lower", "Time to the first token: the prefill, one prompt.", 0.03),
    Metric(
        "tpot",
        "latency",
        "s/token",
        "lower",
        "Time per output token after the first: the decoding time of all prompts of a process over their tokens.",
        0.03,
    ),
    *(
        Metric(
            f"tpot_p{percentile}",
            "latency",
            "s/token",
            "lower",
            f"Percentile {percentile} of the prompts' own times per output token after the first.",
            0.03,
        )
        for percentile in (50, 90, 99)
    ),
    Metric(
        "time_per_step",
        "latency",
        "s",
        "lower",
        "One optimiser step, forward to update; the median over a process' steps.",
        0.03,
    ),
    Metric(
        "acceptance_rate",
        "latency",
        "share",
        "higher",
        "Drafted tokens accepted over those judged: a token behind a rejected one is not judged. Under the rule of "
        "speculative sampling this is the mean of sum(min(p, q)).",
        0.01,
        relative=False,
    ),
    Metric(
        "accepted_length", "latency", "tokens", "higher", "Tokens emitted per pass of the target that verifies.", 0.03
    ),
    Metric(
        "cost_ratio",
        "latency",
        "share",
        "lower",
        "One token of the draft over one token of the target, each timed on its own: c.",
        0.03,
        relative=False,
    ),
    Metric(
        "verification_cost",
        "latency",
        "share",
        "lower",
        "One pass of the target over a whole draft over one over a single token, each timed on its own.",
        0.03,
        relative=False,
    ),
    Metric(
        "predicted_speedup",
        "latency",
        "ratio",
        "higher",
        "What the accepted length and the costs promise over one token a pass: "
        "accepted_length / (draft_tokens * cost_ratio + verification_cost).",
        0.03,
    ),
    Metric(
        "iid_speedup",
        "latency",
        "ratio",
        "higher",
        "The same were every drafted token accepted with the acceptance rate a, independently, and a pass over a whole "
        "draft as quick as one over a token: (1 - a^(g+1)) / (1 - a) / (g c + 1) (Leviathan et al. 2023, theorem 3.8).",
        0.03,
    ),
    Metric(
        "prediction_reached",
        "latency",
        "share",
        "higher",
        "Share of the predicted tokens per second that the timed bursts reached.",
        0.03,
        relative=False,
    ),
    Metric(
        "formula_reached",
        "latency",
        "share",
        "higher",
        "Share of iid_speedup that the timed bursts reached, one pass of the target timed on its own as one token.",
        0.03,
        relative=False,
    ),
    Metric(
        "attention_time",
        "latency",
        "s",
        "lower",
        "Attention of all layers in one decoding step, over what the cache holds and without evicting from it; in the "
        "profile pass.",
        0.03,
    ),
    Metric(
        "choosing_cost",
        "latency",
        "share",
        "lower",
        "Choosing what a cache keeps behind the prompt, profiling the heads included, over the rest of the prefill; in "
        "the profile pass.",
        0.01,
        relative=False,
    ),
    Metric(
        "choosing_share",
        "latency",
        "share",
        "lower",
        "The same choosing over the whole generation, prefill and decoding; in the profile pass.",
        0.01,
        relative=False,
    ),
    Metric("throughput", "latency", "tokens/s", "higher", "Tokens over time, all steps of a process.", 0.03),
    # memory
    Metric(
        "peak_memory",
        "memory",
        "B",
        "lower",
        "Highest memory during a burst after warm-up: what the allocator handed out (CUDA), or the "
        "process' high-water mark (CPU).",
        0.01,
    ),
    Metric("reserved_memory", "memory", "B", "lower", "Highest memory the CUDA allocator reserved.", 0.01),
    Metric(
        "process_memory",
        "memory",
        "B",
        "lower",
        "What the driver counts for the process on its GPU behind a burst: all that torch reserved, the context, the "
        "kernels. On a CPU peak_memory is that of the process.",
        0.01,
    ),
    Metric(
        "held_memory",
        "memory",
        "B",
        "lower",
        "Most bytes of the named components together: weights, adapters, optimizer, cache ...",
        0.01,
        exact=True,
    ),
    Metric(
        "kv_cache_bytes",
        "memory",
        "B",
        "lower",
        "Most bytes of storage that the key/value cache held at the end of a step.",
        0.01,
        exact=True,
    ),
    Metric(
        "adapter_bytes",
        "memory",
        "B",
        "lower",
        "Size on disk of what was trained, as a safetensors file, where other weights stay frozen.",
        0.01,
        exact=True,
    ),
    *QUALITY,
)


def metric(name: str) -> Metric:
    """The glossary's entry.

    Raises:
        BenchError: no such metric.
    """
    if name not in GLOSSARY:
        near = difflib.get_close_matches(name, GLOSSARY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BenchError(f"metric {name!r} is not in the glossary{hint}")
    return GLOSSARY[name]
