"""The peer is TRL's: its losses and gradients are ours where its definition agrees, and training goes the same way."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bench.errors import Unsupported
from bench.families.preference import Pair, PreferenceJob, collate
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from techniques.finetuning.core.lora import adapter_state
from techniques.preference.core import losses
from techniques.preference.dpo import Dpo
from techniques.preference.trl_dpo import TrlDpo

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: the extra `trl`")
OURS = {
    "sigmoid": {},
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "hinge": {"loss": "hinge"},
    "sppo_hard": {"loss": "sppo"},
    "apo_zero": {"loss": "apo_zero"},
    "apo_down": {"loss": "apo_down"},
    "discopop": {"loss": "discopop"},
}


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


# prompts and completions of several lengths: padded left by us, right by the trainer
PAIRS = [Pair(prompt=ids(n, 3 + 2 * n), chosen=ids(n + 20, 7 - n), rejected=ids(n + 40, 3 + n)) for n in range(4)]
KNOWN = [[-30.0 - n, -20.0 + n] for n in range(4)]


def pair_of_arms(model: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[tuple[Any, TrainedPrepared]]:
    """Peer and ours with the same adapters, moved a little off their start."""
    sources = Sources(Source(model, dtype="float32"))
    both = [(technique, technique.prepare(sources)) for technique in (TrlDpo(**theirs), Dpo(**ours))]
    start, moved = torch.Generator().manual_seed(1), {}
    for name, tensor in adapter_state(both[1][1].model).items():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=start))
        layer, _, part = name.rpartition(".")
        moved[f"base_model.model.{layer}.lora_{part}.default.weight"] = tensor
    found = dict(both[0][1].model.named_parameters())
    for name, tensor in moved.items():
        found[name].data.copy_(tensor)
    assert len(moved) == len(both[0][1].trainable)
    return both


def at_a_batch(technique: Any, prepared: TrainedPrepared) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one batch."""
    batch = collate(PAIRS, "cpu", KNOWN)
    if isinstance(technique, TrlDpo):
        batch = technique._collated(prepared.state, batch)
    else:
        batch = technique.referred(prepared, batch)
    loss = technique.batch_loss(prepared, batch)
    return loss.detach(), list(torch.autograd.grad(loss, prepared.trainable))


@needs_trl
@pytest.mark.parametrize("name", OURS)
def test_loss_and_gradient_are_ours(name: str):
    theirs = {"loss": name, "label_smoothing": OURS[name].get("label_smoothing", 0.0)}
    (loss, gradients), (own, others) = (at_a_batch(*arm) for arm in pair_of_arms("tiny:llama", theirs, OURS[name]))
    torch.testing.assert_close(loss, own, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@needs_trl
@pytest.mark.parametrize("model", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
@pytest.mark.parametrize("reference", ["adapters_off", "precomputed"])
def test_trains_as_ours_does(model: str, reference: str):
    given: dict[str, Any] = {"reference": reference, "learning_rate": 1e-3}
    job = PreferenceJob(batches=(collate(PAIRS, "cpu", KNOWN), collate(PAIRS[:2], "cpu", KNOWN[:2])) * 2)
    curves = [
        [float(step.outputs[0]) for step in technique.steps(prepared, job)]
        for technique, prepared in pair_of_arms(model, given, given)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][2] < curves[0][0] - 1e-3


@needs_trl
def test_a_full_policy_is_held_to_its_copy():
    sources = Sources(Source("tiny:llama", dtype="float32"))
    given: dict[str, Any] = {"policy": "full", "reference": "copy", "learning_rate": 1e-3}
    job = PreferenceJob(batches=(collate(PAIRS, "cpu"),) * 3)
    curves = []
    for technique in (TrlDpo(**given), Dpo(**given)):
        prepared = technique.prepare(sources)
        assert len(prepared.helpers) == 1
        curves.append([float(step.outputs[0]) for step in technique.steps(prepared, job)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@needs_trl
def test_ipo_divides_by_the_lengths_where_ours_sums():
    theirs, (ours, own) = pair_of_arms("tiny:llama", {"loss": "ipo"}, {"loss": "ipo"})
    batch = ours.referred(own, collate(PAIRS, "cpu"))
    gained = ours.logprobs(own, batch.texts) - batch.held_to
    sums, means = (losses.ipo(*ratios.chunk(2), 0.1).mean() for ratios in (gained, gained / batch.texts.tokens))
    assert abs(float(sums - means)) > 0.1
    torch.testing.assert_close(at_a_batch(ours, own)[0], sums, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at_a_batch(*theirs)[0], means, atol=1e-5, rtol=1e-5)


@needs_trl
def test_no_step_lays_out_a_batch(monkeypatch: pytest.MonkeyPatch):
    (technique, prepared), (ours, own) = pair_of_arms("tiny:llama", {}, {})
    job = PreferenceJob(batches=(collate(PAIRS, "cpu"),) * 2)
    both = technique.steps(prepared, job), ours.steps(own, job)

    def late(*_: Any, **__: Any) -> None:
        pytest.fail("a batch is laid out on the clock")

    monkeypatch.setattr(prepared.state, "data_collator", late)
    for module in ("bench.families.completions", "bench.families.preference"):
        monkeypatch.setattr(f"{module}.laid_out", late)
    assert [len(list(steps)) for steps in both] == [2, 2]


@needs_trl
def test_nothing_is_kept_of_a_step_and_no_second_network():
    (technique, prepared), _ = pair_of_arms("tiny:llama", {}, {})
    list(technique.steps(prepared, PreferenceJob(batches=(collate(PAIRS, "cpu"),) * 2)))
    assert not prepared.state._metrics["train"]
    assert "helper_weights" not in prepared.holdings()
    assert not prepared.model.training


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(Unsupported, match="needs the package trl"):
        TrlDpo().prepare(Sources(Source("tiny:llama")))


def test_what_the_trainer_cannot_do_is_refused():
    with pytest.raises(ValidationError, match="needs policy=full"):
        TrlDpo(reference="copy")
    with pytest.raises(ValidationError, match="label_smoothing is for robust"):
        TrlDpo(label_smoothing=0.1)
