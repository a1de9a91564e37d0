"""LoRA trains its adapters and nothing else, step by step as peft does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.families.finetuning import FinetuningJob, TextBatch
from bench.models import Source, Sources
from techniques.finetuning.lora import Lora

IDS = torch.randint(256, (2, 11), generator=torch.Generator().manual_seed(3))
JOB = FinetuningJob(batches=(TextBatch(IDS, IDS, 20),) * 6)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
def test_training_is_pefts(name: str):
    from peft import LoraConfig, get_peft_model

    technique = Lora(learning_rate=5e-3, warmup_steps=0, rank=8, alpha=16)
    prepared = technique.prepare(Sources(Source(name), seed=4))
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    peer: Any = get_peft_model(Source(name).model(), config)
    ours = {own: p for own, p in prepared.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for own, parameter in ours.items():
            layer, _, part = own.rpartition(".")
            theirs = peer.base_model.model.get_submodule(layer)
            (theirs.lora_A if part == "A" else theirs.lora_B)["default"].weight.copy_(parameter)
    adamw = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    for step in technique.steps(prepared, JOB):
        loss = peer(IDS, labels=IDS).loss
        assert float(step.outputs[0]) == pytest.approx(float(loss.detach()), abs=2e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
    assert float(step.outputs[0]) < 5.3


def test_only_adapters_are_trained_and_held_apart():
    technique = Lora()
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    before = {name: p.detach().clone() for name, p in prepared.model.named_parameters()}
    list(technique.steps(prepared, JOB))
    for name, parameter in prepared.model.named_parameters():
        assert torch.equal(before[name], parameter) != name.endswith((".A", ".B"))
    held = {name: sum(t.numel() for t in tensors) for name, tensors in prepared.holdings().items()}
    adapters = sum(p.numel() for n, p in prepared.model.named_parameters() if n.endswith((".A", ".B")))
    assert held["adapters"] == adapters
    weights = {p for n, p in prepared.model.named_parameters() if not n.endswith((".A", ".B"))}
    assert held["weights"] == sum(p.numel() for p in weights) + sum(b.numel() for b in prepared.model.buffers())
    moments = [p for p in prepared.model.parameters() if p.requires_grad]
    assert held["optimizer"] == 2 * adapters + len(moments)


def test_adapters_start_from_the_runs_seed():
    def first(seed: int) -> torch.Tensor:
        return Lora().prepare(Sources(Source("tiny:llama"), seed=seed)).trainable[0].detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_dropout_is_on_while_training_and_off_while_scoring():
    technique = Lora(dropout=0.5, learning_rate=1e-2)
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    list(technique.steps(prepared, JOB))
    first, again = technique.logprobs(prepared, IDS), technique.logprobs(prepared, IDS)
    assert torch.equal(first, again)
    still = Lora(learning_rate=1e-2)
    other = still.prepare(Sources(Source("tiny:llama")))
    list(still.steps(other, JOB))
    assert not torch.equal(still.logprobs(other, IDS), first)


def test_parameters_survive_json():
    for technique in (Lora(), Lora(targets=("q_proj", "v_proj"), rank=4)):
        assert Lora.model_validate_json(technique.model_dump_json()) == technique
