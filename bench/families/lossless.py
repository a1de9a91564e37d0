"""Whether greedy outputs are the same, and where they are not, whether rounding alone explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.families import cache as kv
from bench.workload import Gate


def first_divergence(a: list[int], b: list[int]) -> int:
    """Index of the first difference; the length of the longer one if there is none."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b)) if len(a) != len(b) else len(a)


@dataclass
class _Ties:
    different: int = 0
    worst: float = 0.0
    allowed: float = 0.0
    bad: list[str] = field(default_factory=list)


@torch.inference_mode()
def greedy_gate(model: Any, prompts: Sequence[Tensor], outputs: list[list[int]], base: list[list[int]]) -> Gate:
    """Greedy outputs equal the baseline's, or differ first where two tokens tie within rounding.

    At the first difference of a prompt the model reads the common text twice, at once and with the last token
    apart; how far the two readings' logits lie from each other is the rounding noise there. The gap between the
    two tokens may be twice that, and never less than four units in the last place of the largest logit.
    """
    ties = _Ties()
    for item, (output, other) in enumerate(zip(outputs, base, strict=True)):
        at = first_divergence(output, other)
        if output == other:
            continue
        ties.different += 1
        if at >= min(len(output), len(other)):
            ties.bad.append(f"prompt {item}: lengths {len(output)} and {len(other)}")
            continue
        prompt = prompts[item]
        ids = torch.cat([prompt, torch.tensor(output[:at], device=prompt.device, dtype=prompt.dtype)])[None]
        at_once = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        cache = kv.preallocated(model.config, ids.shape[1])
        kv.read(model, ids[:, :-1], cache)
        apart = kv.read(model, ids[:, -1:], cache)[0, -1]
        noise = float((at_once.float() - apart.float()).abs().max())
        ulp = torch.finfo(at_once.dtype).eps * float(at_once.abs().max())
        gap = abs(float(at_once[output[at]]) - float(at_once[other[at]]))
        allowed = max(2 * noise, 4 * ulp)
        if gap >= ties.worst:
            ties.worst, ties.allowed = gap, allowed
        if gap > allowed:
            ties.bad.append(
                f"prompt {item}: token {at} is {output[at]} instead of {other[at]}, logits {gap:.3g} apart "
                f"where rounding explains {allowed:.3g}"
            )
    if ties.bad:
        return Gate("lossless", False, "; ".join(ties.bad[:3]))
    if ties.different:
        detail = (
            f"{ties.different} of {len(outputs)} prompts part at a tie: logits at most {ties.worst:.3g} apart, "
            f"rounding explains {ties.allowed:.3g}"
        )
        return Gate("lossless", True, detail)
    return Gate("lossless", True, f"all {len(outputs)} prompts equal the baseline's, token by token")
