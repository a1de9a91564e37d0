"""What sampled texts are held against: the law of every text that can come out, and how far counts lie from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.families.decoding import DecodingJob
from bench.models import Source


@dataclass(frozen=True)
class Near(Source):
    """The same model with noise on its head: its drafts are sometimes right."""

    def model(self, **options: Any) -> Any:
        model = super().model(**options)
        weight = model.lm_head.weight.data
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        head = nn.Linear(*reversed(weight.shape), bias=False)
        head.weight.data = weight + 0.5 * weight.std() * noise
        model.lm_head = head
        return model


def law_of(target: str, prompt: torch.Tensor, options: Mapping[str, Any]) -> dict[tuple[int, ...], float]:
    """Every text that can come out, and how probable it is: the model asked once per prefix, without a cache.

    Args:
        options: of the job, the length and those of sampling.
    """
    model = Source(target).model()
    reference = DecodingJob(prompts=(prompt,), **options)
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(options["max_new_tokens"]):
        longer = {}
        with torch.inference_mode():
            ids = torch.stack([torch.cat([prompt, torch.tensor(text, dtype=torch.long)]) for text in texts])
            p = reference.distribution(model(ids).logits[:, -1])
        for row, (text, mass) in enumerate(texts.items()):
            for token in p[row].nonzero()[:, 0].tolist():
                longer[(*text, token)] = mass * float(p[row, token])
        texts = longer
    return texts


def z_of(seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], draws: int) -> float:
    """How far the counts lie from the law: chi-square, rare texts pooled, as a normal deviate (Wilson-Hilferty)."""
    cells: list[tuple[float, float]] = []
    rare = [0.0, 0.0]
    for text, p in expected.items():
        if draws * p < 5:
            rare = [rare[0] + seen[text], rare[1] + draws * p]
        else:
            cells.append((seen[text], draws * p))
    if rare[1] >= 5:
        cells.append((rare[0], rare[1]))
    chi2 = sum((count - mean) ** 2 / mean for count, mean in cells)
    degrees = len(cells) - 1
    return ((chi2 / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
