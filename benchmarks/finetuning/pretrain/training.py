"""Next-token training of a network from random weights; it goes on from its checkpoint."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import UsageError
from bench.families.training import order

WARM_UP = 0.03
"""Share of the steps over which the rate rises."""
EVERY = 50
"""Steps between two looks at held-out text, and between two checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """What decides a training, with the corpus."""

    tokens: int = 2_600_000
    """Trained on, rows counted again each time they are read."""
    rows: int = 4
    """Of a step."""
    length: int = 512
    """Of a row, and the context of the network [tokens]."""
    rate: float = 2e-3
    """Highest learning rate; it rises first and falls by a cosine to a twentieth."""
    weight_decay: float = 0.1
    seed: int = 0
    """Of the first weights and of the order in which rows are read."""

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / (self.rows * self.length))

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        done = step / self.steps
        if done < WARM_UP:
            return self.rate * (0.05 + 0.95 * done / WARM_UP)
        return self.rate * (0.05 + 0.95 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2)


def network(shape: Mapping[str, Any], seed: int) -> nn.Module:
    """A network of that shape with random weights, float32."""
    torch.manual_seed(seed)
    values = dict(shape)
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
    )  # a second and a half that a list of workloads does not need

    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    return model


def loss_of(model: Any, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of all tokens of `(rows, length)` behind the first, `()`."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def heldout_nll(model: nn.Module, rows: Tensor) -> float:
    """The same over held-out rows, a few at a time [nat/token]."""
    return sum(float(loss_of(model, part)) * len(part) for part in rows.split(4)) / len(rows)


def train(
    model: nn.Module,
    rows: Tensor,
    heldout: Tensor,
    recipe: Recipe,
    checkpoint: Path,
    log: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train until the recipe's tokens are spent; go on from the checkpoint if there is one.

    Args:
        rows: `(rows, length)`, the training text.
        log: takes a record every `EVERY` steps.

    Returns:
        What it took: steps, tokens and seconds, those before the checkpoint too.

    Raises:
        UsageError: the checkpoint is of another recipe or text.
    """
    made = {**asdict(recipe), "text": hashlib.sha256(rows.numpy().tobytes()).hexdigest()}
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=True)
    first, seconds = 0, 0.0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        if kept["made"] != made:
            raise UsageError(f"{checkpoint} is of another training; remove it, or name another folder by --work")
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first, seconds = kept["step"], kept["seconds"]
    losses: list[float] = []
    batches = order(len(rows), recipe.rows, recipe.seed, first, recipe.steps - first)
    for step, chosen in enumerate(batches, first):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss = loss_of(model, rows[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds += time.perf_counter() - began
        if (step + 1) % EVERY == 0 or step + 1 == recipe.steps:
            part = checkpoint.with_suffix(".part")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "made": made, "step": step + 1, "seconds": seconds}, part)
            os.replace(part, checkpoint)
            found = {"loss": sum(losses) / len(losses), "heldout_nll": heldout_nll(model, heldout)}
            losses = []
            log({"step": step + 1, "seconds": round(seconds, 1), **{k: round(v, 4) for k, v in found.items()}})
    return {"steps": recipe.steps, "tokens": recipe.steps * recipe.rows * recipe.length, "seconds": round(seconds, 1)}
