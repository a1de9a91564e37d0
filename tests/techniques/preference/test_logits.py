"""Only the completions' logits are made, by every technique that trains on pairs: memory does not grow with prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.families.preference import Pair, Preference, PreferenceJob, collate
from bench.families.rollout import Rollout
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
WIDEST = 6
"""Of the completions below [tokens]."""
ARMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("sft_on_chosen", "rpo", "kto", "orpo", "simpo", "unlikelihood", "ppo")),
    *(("dpo", {"reference": reference}) for reference in ("adapters_off", "copy", "precomputed")),
]


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Laws(TorchDispatchMode):
    """Tokens for which any operation made as many numbers as the vocabulary has ids, at the most."""

    def __init__(self, prepared: TrainedPrepared) -> None:
        super().__init__()
        networks: Any = (prepared.model, *prepared.helpers)
        self.vocabulary: int = networks[0].config.vocab_size
        self.weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
        self.tokens = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            wide = isinstance(one, Tensor) and one.shape[-1:] == (self.vocabulary,)
            if wide and one.untyped_storage().data_ptr() not in self.weights:
                self.tokens = max(self.tokens, one.numel() // self.vocabulary)
        return made


def test_every_technique_that_trains_is_looked_at():
    own = {
        name
        for name, entry in registry.techniques.items()
        if issubclass(entry.cls, Preference) and entry.cls.trains and not entry.cls.peer and not entry.is_preset
    }
    assert own == {name for name, _ in ARMS} - {"rpo"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("technique", "values"), ARMS)
@pytest.mark.parametrize("length", [5, 40])
def test_no_logits_are_made_for_prompts(name: str, technique: str, values: dict[str, Any], length: int):
    entry = registry.techniques[technique]
    arm: Any = entry.cls(**{**entry.parameters, **values})
    prepared = arm.prepare(Sources(Source(name)))
    pairs = [Pair(prompt=ids(n, length), chosen=ids(n + 20, WIDEST), rejected=ids(n + 40, 4)) for n in range(2)]
    batch = collate(pairs, "cpu", [[-9.0, -9.0]] * 2)
    job = PreferenceJob(batches=(batch,), rollout=Rollout(WIDEST, None, torch.tensor([256]), lambda text: len(text)))
    with Laws(prepared) as laws:
        list(arm.steps(prepared, job))
    # four texts at most go through together, however long their prompts are
    assert 0 < laws.tokens <= 4 * WIDEST
