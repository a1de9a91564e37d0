"""For every claim, figures that fulfil it and figures that contradict it, and records that hold them.

Written by hand from the papers' sentences, not from the claims' bounds: a ratio upside down is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fabricated

from bench import registry
from bench.claim import Claim, Figure

Figures = Mapping[str, float]
"""Arm, as the claim's expression writes it -> the value of its quantity; `held` apart where two are of one arm."""

GIB = 2.0**30
PLANTED: Mapping[tuple[str, str], tuple[Figures, Figures]] = {
    # finetuning
    ("qlora", "bits"): (
        {"qlora[quant_type=nf4,block_size=64,double_quantisation=true]": 4.127},
        {"qlora[quant_type=nf4,block_size=64,double_quantisation=true]": 4.5},
    ),
    ("qlora", "nf4_over_fp4"): (
        {"qlora[quant_type=nf4]": 2.7, "qlora[quant_type=fp4]": 2.8},
        {"qlora[quant_type=nf4]": 2.8, "qlora[quant_type=fp4]": 2.7},
    ),
    ("qlora", "fp4_over_int4"): (
        {"qlora[quant_type=fp4]": 2.8, "qlora[quant_type=int4,backend=reference]": 2.9},
        {"qlora[quant_type=fp4]": 2.9, "qlora[quant_type=int4,backend=reference]": 2.8},
    ),
    ("qlora", "double_quantisation_is_free"): (
        {
            "qlora[quant_type=nf4,double_quantisation=true]": 2.7,
            "qlora[quant_type=nf4,double_quantisation=false]": 2.7,
        },
        {
            "qlora[quant_type=nf4,double_quantisation=true]": 2.8,
            "qlora[quant_type=nf4,double_quantisation=false]": 2.7,
        },
    ),
    ("qlora", "equals_16_bits"): (
        {"qlora[quant_type=nf4,double_quantisation=true]": 0.531, "lora": 0.53},
        {"qlora[quant_type=nf4,double_quantisation=true]": 0.5, "lora": 0.53},
    ),
    ("qlora", "65b_in_48_gb"): (
        {"qlora[gradient_checkpointing=true,rank=64]": 46e9},
        {"qlora[gradient_checkpointing=true,rank=64]": 52e9},
    ),
    ("qlora", "rank_without_effect"): (
        {"qlora[rank=64,targets=all-linear]": 2.7, "qlora[rank=8,targets=all-linear]": 2.7},
        {"qlora[rank=64,targets=all-linear]": 2.7, "qlora[rank=8,targets=all-linear]": 2.8},
    ),
    ("mezo", "memory_of_inference"): (
        {"held_memory(mezo)": 2 * GIB, "held.weights(mezo)": 2 * GIB},
        {"held_memory(mezo)": 4 * GIB, "held.weights(mezo)": 2 * GIB},
    ),
    ("mezo", "memory_below_full"): ({"full": 12 * GIB, "mezo": GIB}, {"full": GIB, "mezo": 12 * GIB}),
    # decoding
    ("speculative", "lossless"): ({"speculative": 1.0}, {"speculative": 0.0}),
    ("speculative", "formula"): ({"speculative": 0.98}, {"speculative": 0.5}),
    ("speculative", "speed"): (
        {"autoregressive": 0.05, "speculative": 0.02},
        {"autoregressive": 0.02, "speculative": 0.05},
    ),
    ("block_verification", "tokens_over_token_rule"): (
        {"block_verification": 2.58, "speculative": 2.45},
        {"block_verification": 2.45, "speculative": 2.58},
    ),
    ("block_verification", "speed_over_token_rule"): (
        {"block_verification": 1.0, "speculative": 1.065},
        {"block_verification": 1.065, "speculative": 1.0},
    ),
    ("spectr", "tokens_over_one_draft"): ({"spectr": 4.0, "speculative": 2.9}, {"spectr": 2.9, "speculative": 4.0}),
    ("spectr", "speed_over_one_draft"): ({"spectr": 1.0, "speculative": 1.37}, {"spectr": 1.37, "speculative": 1.0}),
    ("spectr", "speed"): ({"spectr": 1.0, "autoregressive": 2.13}, {"spectr": 2.13, "autoregressive": 1.0}),
    ("bild", "speed"): ({"bild": 1.0, "autoregressive": 2.12}, {"bild": 2.12, "autoregressive": 1.0}),
    ("bild", "quality"): ({"bild": 1.21, "autoregressive": 1.2}, {"bild": 1.6, "autoregressive": 1.2}),
    # key/value caches
    ("fastgen", "recovery"): (
        {"fastgen[recovery=0.98]": 2.501, "full_cache": 2.5},
        {"fastgen[recovery=0.98]": 2.6, "full_cache": 2.5},
    ),
    ("fastgen", "pruned"): (
        {"fastgen[recovery=0.95]": 0.602 * GIB, "full_cache": GIB},
        {"fastgen[recovery=0.95]": 0.398 * GIB, "full_cache": GIB},
    ),
    ("fastgen", "pruned_at_91"): (
        {"fastgen[recovery=0.91]": 0.434 * GIB, "full_cache": GIB},
        {"fastgen[recovery=0.91]": 0.566 * GIB, "full_cache": GIB},
    ),
    ("fastgen", "pruned_at_98"): (
        {"fastgen[recovery=0.98]": 0.831 * GIB, "full_cache": GIB},
        {"fastgen[recovery=0.98]": 0.169 * GIB, "full_cache": GIB},
    ),
    ("fastgen", "profiling_cost"): ({"fastgen": 0.0021}, {"fastgen": 0.021}),
    ("fastgen", "frequent_prunes_most"): (
        {"fastgen_without_frequent[recovery=0.98]": 0.787 * GIB, "fastgen[recovery=0.98]": 0.64 * GIB},
        {"fastgen_without_frequent[recovery=0.98]": 0.64 * GIB, "fastgen[recovery=0.98]": 0.64 * GIB},
    ),
    ("fastgen", "frequent_before_punctuation"): (
        {
            "fastgen_without_frequent[recovery=0.98]": 0.787 * GIB,
            "fastgen_without_punctuation[recovery=0.98]": 0.658 * GIB,
        },
        {
            "fastgen_without_frequent[recovery=0.98]": 0.658 * GIB,
            "fastgen_without_punctuation[recovery=0.98]": 0.787 * GIB,
        },
    ),
    ("fastgen", "frequent_before_local"): (
        {"fastgen_without_frequent[recovery=0.98]": 0.787 * GIB, "fastgen_without_local[recovery=0.98]": 0.698 * GIB},
        {"fastgen_without_frequent[recovery=0.98]": 0.698 * GIB, "fastgen_without_local[recovery=0.98]": 0.787 * GIB},
    ),
    ("fastgen", "local_before_special"): (
        {"fastgen_without_local[recovery=0.98]": 0.698 * GIB, "fastgen_without_special[recovery=0.98]": 0.688 * GIB},
        {"fastgen_without_local[recovery=0.98]": 0.688 * GIB, "fastgen_without_special[recovery=0.98]": 0.698 * GIB},
    ),
    ("fastgen", "special_before_punctuation"): (
        {
            "fastgen_without_special[recovery=0.98]": 0.688 * GIB,
            "fastgen_without_punctuation[recovery=0.98]": 0.658 * GIB,
        },
        {
            "fastgen_without_special[recovery=0.98]": 0.658 * GIB,
            "fastgen_without_punctuation[recovery=0.98]": 0.688 * GIB,
        },
    ),
    ("h2o", "fifth_is_enough"): (
        {"h2o[ratio=0.2]": 2.5, "full_cache": 2.5},
        {"h2o[ratio=0.2]": 3.0, "full_cache": 2.5},
    ),
    ("h2o", "speed"): ({"h2o[ratio=0.2]": 1.0, "full_cache": 1.9}, {"h2o[ratio=0.2]": 1.9, "full_cache": 1.0}),
    ("snapkv", "speed_at_16k"): (
        {"snapkv[ratio=0.125]": 1.0, "full_cache": 3.6},
        {"snapkv[ratio=0.125]": 3.6, "full_cache": 1.0},
    ),
    ("snapkv", "quality_at_16k"): (
        {"snapkv[ratio=0.125]": 2.5, "full_cache": 2.5},
        {"snapkv[ratio=0.125]": 2.7, "full_cache": 2.5},
    ),
    ("streaming_llm", "sinks_over_window"): (
        {"streaming_llm": 1.7, "window_attention": 8.5},
        {"streaming_llm": 8.5, "window_attention": 1.7},
    ),
    ("streaming_llm", "stable_beyond_the_window"): (
        {"streaming_llm[window=124]": 0.02, "full_cache": 0.0},
        {"streaming_llm[window=124]": 3.0, "full_cache": 0.0},
    ),
    ("kivi", "peak"): (
        {"kivi[bits=2,group=32,residual=128]": GIB, "full_cache": 2.6 * GIB},
        {"kivi[bits=2,group=32,residual=128]": 2.6 * GIB, "full_cache": GIB},
    ),
    ("kivi", "bytes"): (
        {"kivi[bits=2,group=32,residual=128]": GIB, "full_cache": 5.3 * GIB},
        {"kivi[bits=2,group=32,residual=128]": GIB, "full_cache": 2 * GIB},
    ),
    ("kivi", "quality"): (
        {"kivi[bits=2,group=32,residual=128]": 2.5, "full_cache": 2.5},
        {"kivi[bits=2,group=32,residual=128]": 2.6, "full_cache": 2.5},
    ),
    # preference
    ("dpo", "frontier_above_preferred_ft"): ({"dpo": 0.8, "sft_on_chosen": 0.6}, {"dpo": 0.6, "sft_on_chosen": 0.8}),
    ("dpo", "frontier_above_ppo"): ({"dpo": 0.8, "ppo": 0.6}, {"dpo": 0.6, "ppo": 0.8}),
    ("dpo", "less_work_than_ppo"): ({"dpo": 2.9, "ppo": 9.0}, {"dpo": 9.0, "ppo": 2.9}),
    ("dpo", "robust_to_wrong_labels"): (
        {"robust[label_smoothing=0.3]": 0.8, "dpo": 0.6},
        {"robust[label_smoothing=0.3]": 0.6, "dpo": 0.8},
    ),
    ("dpo", "robust_near_the_optimum"): (
        {"robust[label_smoothing=0.3]": 0.2, "dpo": 0.5},
        {"robust[label_smoothing=0.3]": 0.5, "dpo": 0.2},
    ),
}

ITEMS = 400


def records(claim: Claim, figures: Figures, fits: bool = True) -> list[dict[str, Any]]:
    """Records of one comparison whose arms have these figures.

    Args:
        fits: whether they were measured where the paper's conditions hold.
    """
    made: dict[str, dict[str, Any]] = {}
    for figure in claim.parsed.figures:
        written = _written(figure)
        value = figures.get(f"{figure.quantity}({written})", figures.get(written))
        assert value is not None, f"{claim.name}: no figure is planted for {written}"
        record = made.setdefault(written, _arm(figure, claim, fits))
        _plant(record, figure, value)
    # one training says little of the next: what is trained is trained three times
    return [
        {**record, "seed": seed, "cell": f"{record['cell']}.seed{seed}"}
        for record in made.values()
        for seed in range(3 if record["technique"]["trains"] else 1)
    ]


def _written(figure: Figure) -> str:
    given = ",".join(f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in figure.parameters.items())
    return f"{figure.arm}[{given}]" if given else figure.arm


def _arm(figure: Figure, claim: Claim, fits: bool) -> dict[str, Any]:
    wanted = {**claim.needs, **(claim.conditions if fits else {})}
    fact = {name: _example(pattern) for name, pattern in wanted.items()}
    device = {"kind": fact.get("device", "cpu"), "name": fact.get("machine", "A machine"), "dtype": "bfloat16"}
    entry = registry.techniques[figure.arm]
    technique = entry.cls(**{**entry.parameters, **figure.parameters})
    return fabricated.record(
        _written(figure),
        cell=f"c.{_written(figure)}",
        baseline="another",
        technique={
            "name": registry.stem(entry.cls),
            "registered": figure.arm,
            "parameters": technique.model_dump(mode="json"),
            "trains": entry.cls.trains,
        },
        model={"name": fact.get("model", "small"), "origin": "trained", "random": False},
        workload={
            "name": fact.get("workload", "another"),
            "parameters": {k.removeprefix("workload."): v for k, v in fact.items() if k.startswith("workload.")},
        },
        environment={**fabricated.ENVIRONMENT, "device": device},
    )


def _example(pattern: str) -> str:
    """A value that fits a pattern."""
    return pattern.removeprefix(">=").split("|")[0].replace("*", "")


def _plant(record: dict[str, Any], figure: Figure, value: float) -> None:
    quality, rounds, name = record["quality"], record["rounds"], figure.quantity.partition(".")[2]
    salt = f"{record['arm']} {figure.quantity}"
    if figure.kind == "gates":
        quality["gates"] = [{"name": name, "passed": bool(value), "detail": "planted"}]
    elif figure.kind == "counts":
        quality.setdefault("counts", {})[name] = value
    elif figure.kind == "held":
        for part in rounds:
            part["memory"]["largest"][name] = value
    elif figure.quantity == "held_memory":
        for part in rounds:
            part["memory"]["named"] = value
    elif figure.quantity == "kv_cache_bytes":
        for part in rounds:
            part["memory"]["largest"]["kv_cache"] = value
    elif figure.quantity == "reserved_memory":
        for part, reserved in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            part["memory"]["reserved"] = reserved
    elif figure.quantity == "peak_memory":
        for part, peak in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            part["memory"]["peak"] = peak
    elif figure.quantity == "tpot":
        for part, seconds in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            part["bursts"][0]["samples"] = {"kind": ["prefill", "decode"], "seconds": [1.0, seconds], "tokens": [1, 1]}
    elif figure.quantity == "time_per_step":
        for part, seconds in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            part["bursts"][0]["samples"] = {"kind": ["train"], "seconds": [seconds], "tokens": [1]}
    elif figure.quantity == "choosing_share":
        for part, share in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            phases = {"prefill": [0.4], "choose": [2 * share]}
            part["profile"] = {"phases": phases, "kind": ["prefill", "decode"], "seconds": [0.5, 1.5], "tokens": [1, 1]}
    elif figure.quantity == "accepted_length":
        for number, part in enumerate(rounds):
            verified = 10_000
            accepted = round((value - 1) * verified) + number % 3
            part["bursts"][0]["samples"] = _counted(accepted, verified, 1.0)
    elif figure.quantity == "formula_reached":
        # the draft is free and half of the first drafted tokens are accepted: 1 + 1/2 + 1/4 ... tokens a pass
        drafted = record["technique"]["parameters"]["draft_tokens"]
        for part, share in zip(rounds, fabricated.noisy(value, salt, len(rounds)), strict=True):
            part["bursts"][0]["samples"] = _counted(5_000, 10_000, 0.04 / (2 - 0.5**drafted) / share)
            part["calls"] = {"forward": [0.04], "draft": [0.0], "verify": [0.04]}
    else:
        assert figure.metric is not None
        assert figure.metric.axis == "quality", f"say how to plant {figure.quantity}"
        quality["metrics"][figure.quantity] = [
            value + noise for noise in fabricated.noisy(0.001, f"{salt} items", ITEMS, 1.0)
        ]


def _counted(accepted: int, verified: int, seconds: float) -> dict[str, Any]:
    """A burst of one prompt that speculated."""
    return {
        "kind": ["prefill", "decode"],
        "seconds": [1.0, seconds],
        "tokens": [1, 1],
        "counts": [{"accepted": accepted, "verified": verified, "tried_1": verified}],
    }
