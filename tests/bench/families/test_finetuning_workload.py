"""A trained model is scored on what was learnt alone, and looking at it changes nothing."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.errors import Unsupported
from bench.families.finetuning_workload import (
    FinetuningWorkload,
    bits_per_parameter,
    distributions,
    divergence,
    keeps_apart,
    let_go,
    loads_again,
    trained_file,
)
from bench.families.texts import Text, whole
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.workload import Built
from techniques.finetuning.core.lora import LoraLinear, adapter_state
from techniques.finetuning.full import Full
from techniques.finetuning.linear_probe import LinearProbe
from techniques.finetuning.loftq import Loftq
from techniques.finetuning.lora import Lora
from techniques.finetuning.peft_adapter import PeftAdapter
from techniques.finetuning.peft_qlora import PeftQlora
from techniques.finetuning.qlora import Qlora

SOURCE = Source("tiny:llama")
SOURCES = Sources(SOURCE)
MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]


class Counting(FinetuningWorkload):
    """Prompts and answers that can be learnt by counting."""

    def build(self, sources: Sources, seed: int) -> Built:
        texts = [Text(ids=[(3 * n + i) % 200 for i in range(6 + n % 5)], prompt=2 + n % 3) for n in range(24)]
        other = whole([[(200 - 7 * i - n) % 200 for i in range(20)] for n in range(self.other_items)])
        return {"train": texts[:18], "heldout": texts[18:], "other": other}


WORKLOAD = Counting(steps=12, looks=3, batch_size=4, other_items=2)


def quality(technique: Any, workload: FinetuningWorkload = WORKLOAD, **built: Any) -> Any:
    torch.manual_seed(0)
    arm = technique.prepare(SOURCES)
    return workload.quality(technique, arm, workload.build(SOURCES, 0) | built, 0, SOURCE, None)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_of_the_answers_alone(name: str):
    technique = Full()
    arm = technique.prepare(Sources(Source(name)))
    texts = WORKLOAD.build(SOURCES, 0)["heldout"]
    scored = WORKLOAD.score(technique, arm, texts, "cpu")
    model: Any = arm.model
    for number, text in enumerate(texts):
        ids, learnt = text["ids"], range(text["prompt"], len(text["ids"]))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(logits[place - 1, ids[place]]) for place in learnt]
        assert scored.nll[number] == pytest.approx(-sum(expected) / len(expected), abs=1e-4)
        hits = [int(logits[place - 1].argmax()) == ids[place] for place in learnt]
        assert scored.hits[number] == pytest.approx(sum(hits) / len(hits))


def test_heldout_text_is_scored_before_during_and_after():
    found = quality(Full(learning_rate=1e-3))
    curve = found.curves["heldout_nll"]
    assert [point[0] for point in curve] == [0, 4, 8, 12]
    assert curve[0][1] == found.counts["nll_before"]
    assert curve[-1][1] == pytest.approx(sum(found.metrics["nll"]) / len(found.metrics["nll"]))
    assert curve[0][1] > curve[1][1] > curve[-1][1]


def test_looking_changes_nothing():
    technique = Lora(learning_rate=1e-3, dropout=0.3)
    seldom, often = (quality(technique, WORKLOAD.model_copy(update={"looks": looks})) for looks in (1, 12))
    assert seldom.curves["loss"] == often.curves["loss"]
    assert seldom.metrics == often.metrics
    assert len(often.curves["heldout_nll"]) == 13


def test_forgetting_is_measured_on_another_text():
    found = quality(Full(learning_rate=1e-3))
    assert len(found.metrics["other_nll"]) == len(found.metrics["drift"]) == 2
    assert all(value > 1e-3 for value in found.metrics["drift"])
    torch.manual_seed(0)
    technique = Full()
    arm = technique.prepare(SOURCES)
    other = WORKLOAD.build(SOURCES, 0)["other"]
    start = WORKLOAD.score(technique, arm, other, "cpu").nll
    assert found.counts["other_nll_before"] == pytest.approx(sum(start) / 2)
    assert found.metrics["other_nll"] != pytest.approx(start, abs=1e-3)
    # who learns nothing has forgotten nothing
    still = quality(Full(learning_rate=1e-30))
    assert still.metrics["drift"] == pytest.approx([0, 0], abs=1e-6)
    assert still.metrics["other_nll"] == pytest.approx(start, abs=1e-5)
    assert "drift" not in quality(Full(), WORKLOAD.model_copy(update={"other_items": 0})).metrics


def test_divergence_is_of_the_end_from_the_start():
    start = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    end = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(start, end) == pytest.approx(first / 2)
    assert divergence(end, start) != pytest.approx(first / 2, abs=1e-3)
    assert divergence(start, start) == 0
    assert math.isnan(divergence(start, torch.full((2, 2), math.nan)))


def test_distributions_are_those_of_next_tokens():
    technique = PeftAdapter(method="prompt_tuning")
    arm = technique.prepare(SOURCES)
    ids = list(range(40))
    (found,) = distributions(technique, arm, whole([ids]), "cpu")
    logits = technique.logits(arm, torch.tensor([ids]))[0].detach().log_softmax(-1)
    assert found.shape == (16, 264)
    torch.testing.assert_close(found[[0, -1]], logits[[0, -1]])


def test_repetition_is_told():
    found = quality(Full(), Counting(steps=24, batch_size=4, other_items=0))
    assert found.counts["epochs"] == pytest.approx(96 / 18)
    assert any("trained for 5.3 epochs" in note for note in found.notes)
    assert not quality(Full()).notes


def test_packed_rows_are_what_an_epoch_counts():
    workload = Counting(steps=3, batch_size=2, sequence=24, other_items=0)
    rows = [[n, n + 9] for n in range(9)]
    built = workload.build(SOURCES, 0) | {"rows": rows}
    batches = workload.job(built, 0, 5, 0, "cpu").batches
    assert all(batch.ids.shape == (2, 24) for batch in batches)
    # eight of the nine rows, none of them twice
    assert len({int(row[0]) for batch in batches[:4] for row in batch.ids}) == 8
    found = quality(Full(), workload, rows=rows)
    assert found.counts["epochs"] == pytest.approx(6 / 9)
    assert [(gate.name, gate.passed) for gate in found.gates] == [("packing", True), ("finite", True)]


class Leaking(Full):
    """A model that does not look at positions."""

    def packed_logits(self, prepared: TrainedPrepared, ids: Tensor, positions: Tensor) -> Tensor:
        return self.logits(prepared, ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("technique", [Full(), Lora(), PeftAdapter(method="dora"), Leaking()])
def test_texts_of_a_row_are_kept_apart(name: str, technique: Any):
    source = Source(name)
    arm = technique.prepare(Sources(source))
    texts = WORKLOAD.build(SOURCES, 0)["heldout"]
    gate = keeps_apart(technique, arm, [texts[1], texts[0], texts[2]], source)
    assert gate.passed == (not isinstance(technique, Leaking)), gate


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["full", "prompt_tuning", "prefix_tuning"])
def test_answers_are_greedy(name: str, method: Any):
    technique: Any = Full() if method == "full" else PeftAdapter(method=method)
    arm = technique.prepare(Sources(Source(name)))
    prompts = [[5, 6, 7, 8, 9, 10], [20, 21], [33, 34, 35]]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(technique.logits(arm, torch.tensor([ids]))[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert technique.answers(arm, prompts, 6, None) == expected
    end = expected[0][3]
    cut = [row[: row.index(end)] if end in row else row for row in expected]
    assert technique.answers(arm, prompts, 6, end) == cut


def test_adapters_are_sized_as_they_are_stored_and_merged_at_the_end(tmp_path: Path):
    technique = Qlora(learning_rate=1e-2, rank=4)
    arm = technique.prepare(SOURCES)
    built = WORKLOAD.build(SOURCES, 0)
    found = WORKLOAD.quality(technique, arm, built, 0, SOURCE, None)
    # the same training, merged by hand
    again = technique.prepare(SOURCES)
    WORKLOAD.train(technique, again, built, 0)
    save_file(adapter_state(again.model), tmp_path / "adapters.safetensors")
    assert found.metrics["adapter_bytes"] == [(tmp_path / "adapters.safetensors").stat().st_size]
    assert found.metrics["nll"] == pytest.approx(WORKLOAD.score(technique, again, built["heldout"], "cpu").nll)
    ends = distributions(technique, again, built["other"], "cpu")
    with torch.no_grad():
        for module in again.model.modules():
            if isinstance(module, LoraLinear):
                base: Any = module.base
                base.keep(base.weight_in(torch.float32) + module.scale * module.B @ module.A)
                module.enabled = False
    expected = WORKLOAD.score(technique, again, built["heldout"], "cpu").nll
    assert found.metrics["merged_nll"] == pytest.approx(expected, abs=1e-5)
    apart = [
        divergence(a, b) for a, b in zip(ends, distributions(technique, again, built["other"], "cpu"), strict=True)
    ]
    assert found.metrics["merge_divergence"] == pytest.approx(apart, rel=1e-3)
    assert max(abs(a - b) for a, b in zip(expected, found.metrics["nll"], strict=True)) > 1e-3
    assert min(apart) > 1e-5


@pytest.mark.parametrize("technique", [Lora(learning_rate=1e-2), PeftAdapter(method="ia3", learning_rate=1e-2)])
def test_merging_full_weights_changes_nothing_but_rounding(technique: Any):
    found = quality(technique)
    assert found.metrics["merged_nll"] == pytest.approx(found.metrics["nll"], abs=1e-4)
    assert max(found.metrics["merge_divergence"]) < 1e-6


def test_what_has_no_adapters_has_no_size_and_what_cannot_be_merged_is_not():
    assert not {"adapter_bytes", "merged_nll", "merge_divergence"} & set(quality(Full()).metrics)
    prompted = quality(PeftAdapter(method="prompt_tuning")).metrics
    # 16 virtual tokens of 64 numbers
    assert 4 * 16 * 64 < prompted["adapter_bytes"][0] < 4 * 16 * 64 + 500
    assert not {"merged_nll", "merge_divergence"} & set(prompted)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_are_not_packed(method: Any):
    technique = PeftAdapter(method=method)
    arm = technique.prepare(SOURCES)
    texts = WORKLOAD.build(SOURCES, 0)["heldout"]
    with pytest.raises(Unsupported, match="no forward pass for packed texts: set packing=false"):
        keeps_apart(technique, arm, texts[:2], SOURCE)


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2"])
@pytest.mark.parametrize(
    "technique",
    [
        Lora(dropout=0.5),
        Qlora(),
        Loftq(),
        LinearProbe(),
        PeftAdapter(),
        PeftAdapter(method="pissa"),
        PeftAdapter(method="prefix_tuning"),
        PeftQlora(dropout=0.5),
    ],
    ids=["lora", "qlora", "loftq", "linear_probe", "peft", "pissa", "prefix_tuning", "peft_qlora"],
)
def test_what_was_trained_is_saved_and_loaded_into_a_new_model(technique: Any, name: str):
    """What is not in the file, or not as it was, does not come again: of the trained model nothing else is left."""
    source = Source(name)
    torch.manual_seed(4)
    arm = technique.prepare(Sources(source, seed=4))
    arm.model.eval()
    with torch.no_grad():
        for parameter in arm.trainable:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    (text,) = whole([list(range(40))])
    (trained,) = distributions(technique, arm, [text], "cpu")
    saved = trained_file(arm)
    let_go(arm)
    assert not list(arm.model.parameters())
    gate = loads_again(technique, saved, text, trained, source, 4)
    assert gate.passed, gate.detail
    assert "are 0 nat" in gate.detail
    assert "(0 before" not in gate.detail, "what is loaded must show"
    tensors = safetensors.torch.load(saved)
    first = next(iter(tensors))
    rounded = {key: tensor.bfloat16().float() for key, tensor in tensors.items()}
    lacking = {key: tensor for key, tensor in tensors.items() if key != first}
    for spoiled in (rounded, lacking):
        assert not loads_again(technique, safetensors.torch.save(spoiled), text, trained, source, 4).passed


def test_a_new_model_of_another_seed_is_told_where_the_seed_is_in_its_frozen_weights():
    """PiSSA takes from the weights what a seeded decomposition finds: adapters alone do not say what is left."""
    technique = PeftAdapter(method="pissa")
    (text,) = whole([list(range(40))])
    torch.manual_seed(4)
    arm = technique.prepare(Sources(SOURCE, seed=4))
    (trained,) = distributions(technique, arm, [text], "cpu")
    saved = trained_file(arm)
    assert loads_again(technique, saved, text, trained, SOURCE, 4).passed
    assert not loads_again(technique, saved, text, trained, SOURCE, 5).passed


MADE: list[weakref.ref[Any]] = []


class Alone(Qlora):
    """It is built anew only where the model before it is gone: a device may have room for one."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        assert not [model for model in MADE if model() is not None]
        arm = super().prepare(sources)
        MADE.append(weakref.ref(arm.model))
        return arm


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_models_never_live_at_once(checkpointing: bool):
    MADE.clear()
    found = quality(Alone(gradient_checkpointing=checkpointing), Counting(steps=2, batch_size=2))
    assert [gate.passed for gate in found.gates if gate.name == "saved"] == [True]
    assert len(MADE) == 2
    assert not [model for model in MADE if model() is not None], "the new one is let go of, too"


class Helped(Lora):
    """A technique with a second network, as one that learns from a teacher."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        arm = super().prepare(sources)
        arm.helpers = (sources.get("teacher").model(),)
        return arm


def test_a_technique_with_helpers_is_not_built_anew_without_them():
    workload = Counting(steps=2, batch_size=2, other_items=0)
    technique = Helped()
    arm = technique.prepare(Sources(SOURCE, {"teacher": SOURCE}))
    found = workload.quality(technique, arm, workload.build(SOURCES, 0), 0, SOURCE, None)
    assert [gate.name for gate in found.gates] == ["finite", "frozen"]
    assert found.metrics["adapter_bytes"]


def test_adapted_arms_have_the_gate():
    found = quality(Lora(), Counting(steps=2, batch_size=2, other_items=0))
    assert [gate.name for gate in found.gates if gate.passed] == ["finite", "frozen", "saved"]
    assert "saved" not in {gate.name for gate in quality(Full()).gates}


@pytest.mark.parametrize(
    ("technique", "bits"), [(Full(precision="pure"), 16), (Full(precision="float32"), 32), (Lora(), 16)]
)
def test_bits_are_those_of_the_model_without_its_adapters(technique: Any, bits: int):
    """Adapters are of 32 bits here, and no part of it."""
    arm = technique.prepare(Sources(Source("tiny:llama", dtype="bfloat16")))
    assert bits_per_parameter(arm) == bits


def test_a_technique_that_quantises_says_its_own_bits():
    found = quality(Qlora(double_quantisation=False), Counting(steps=2, batch_size=2, other_items=0))
    assert found.counts["bits_per_parameter"] == pytest.approx(4.5, abs=0.1)
