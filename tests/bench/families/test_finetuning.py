"""What is learnt and what is scored are the next tokens, no other ones."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bench.errors import Diverged
from bench.families import finetuning
from bench.families.finetuning import Finetuning, FinetuningJob
from bench.families.finetuning_workload import FinetuningWorkload
from bench.families.texts import IGNORED, TextBatch, whole
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.workload import Built

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]


class Everything(Finetuning):
    """Trains all weights."""

    broken_at: int | None = None
    calls: ClassVar[int] = 0

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.trained(sharpened(sources.target))

    def batch_loss(self, prepared: TrainedPrepared, batch: TextBatch) -> Tensor:
        type(self).calls += 1
        loss = super().batch_loss(prepared, batch)
        return loss * torch.nan if type(self).calls - 1 == self.broken_at else loss


class Numbers(FinetuningWorkload):
    """Sequences that can be learnt by counting."""

    def build(self, sources: Sources, seed: int) -> Built:
        count = [[(start + i) % 200 for i in range(self.sequence)] for start in range(0, 60, 3)]
        return {"train": whole(count[:14]), "heldout": whole(count[14 : 14 + self.items])}


def sharpened(source: Source) -> Any:
    """Random weights large enough that every mistake shows in the logits."""
    model = source.model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 5
    return model


def arm(name: str = "tiny:llama", **values: Any) -> tuple[Everything, TrainedPrepared]:
    Everything.calls = 0
    technique = Everything(**values)
    return technique, technique.prepare(Sources(Source(name)))


@pytest.mark.parametrize("name", MODELS)
def test_loss_is_the_librarys(name: str):
    technique, prepared = arm(name)
    ids = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :5] = IGNORED
    labels[2, -4:] = IGNORED
    model: Any = prepared.model
    for target in (ids, labels):
        ours = technique.batch_loss(prepared, TextBatch(ids, target, 0))
        torch.testing.assert_close(ours, model(input_ids=ids, labels=target).loss)


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_of_each_next_token(name: str, monkeypatch: pytest.MonkeyPatch):
    technique, prepared = arm(name)
    model: Any = prepared.model
    ids = torch.randint(256, (5, 9), generator=torch.Generator().manual_seed(1))
    scores = technique.score(prepared, ids)
    assert not scores.logprobs.requires_grad
    assert scores.logprobs.shape == scores.hits.shape == (5, 8)
    for row in range(5):
        for place in range(8):
            logits = model(input_ids=ids[row : row + 1, : place + 1]).logits[0, -1]
            expected = float(logits.detach().log_softmax(-1)[ids[row, place + 1]])
            assert float(scores.logprobs[row, place]) == pytest.approx(expected, abs=2e-5)
            assert bool(scores.hits[row, place]) == (int(logits.argmax()) == int(ids[row, place + 1]))
    monkeypatch.setattr(finetuning, "SCORED_LOGITS", 2 * 9 * 264)
    torch.testing.assert_close(technique.logprobs(prepared, ids), scores.logprobs)


def test_job_counts_the_targets():
    workload = Numbers(sequence=12, batch_size=3)
    built = workload.build(Sources(Source("tiny:llama")), 0)
    job = workload.burst(built, 0, 0, "cpu")
    assert isinstance(job, FinetuningJob)
    for batch in job.batches:
        assert batch.ids.shape == (3, 12)
        assert batch.tokens == int((batch.labels[:, 1:] != IGNORED).sum()) == 33
    technique, prepared = arm()
    assert [step.tokens for step in technique.steps(prepared, job)] == [33, 33]
    assert all(step.kind == "train" for step in technique.steps(prepared, job))


def test_bursts_differ_by_index_and_not_by_arm():
    workload = Numbers(sequence=12, batch_size=3)
    built = workload.build(Sources(Source("tiny:llama")), 0)
    rows = [
        tuple(row)
        for index in (-1, 0)
        for batch in workload.burst(built, index, 7, "cpu").batches
        for row in batch.ids.tolist()
    ]
    assert len(set(rows)) == len(rows) == 12
    first, again = (workload.burst(built, 3, 7, "cpu") for _ in range(2))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first.batches, again.batches, strict=True))


def test_quality_is_the_heldout_likelihood_before_and_after():
    source = Source("tiny:llama")
    workload = Numbers(sequence=16, batch_size=4, steps=40, items=3)
    built = workload.build(Sources(source), 0)
    technique, prepared = arm(learning_rate=3e-3)
    heldout = torch.tensor([text["ids"] for text in built["heldout"]])
    start = float(-technique.logprobs(prepared, heldout).mean())
    prepared.facts["bits_per_parameter"] = 4.5
    quality = workload.quality(technique, prepared, built, 0, source, None)
    assert quality.counts["bits_per_parameter"] == 4.5
    assert quality.counts["trained_weights"] == source.parameters
    assert quality.counts["nll_before"] == pytest.approx(start)
    assert quality.counts["epochs"] == pytest.approx(160 / 14)
    end = (-technique.logprobs(prepared, heldout).mean(-1)).tolist()
    assert quality.metrics["nll"] == pytest.approx(end)
    assert sum(end) / 3 < start - 1
    hits = technique.score(prepared, heldout).hits.float().mean(-1).tolist()
    assert quality.metrics["next_token_accuracy"] == pytest.approx(hits)
    assert [point[0] for point in quality.curves["loss"]] == list(range(40))
    assert quality.curves["loss"][-1][1] < quality.curves["loss"][0][1] - 1
    assert [gate.name for gate in quality.gates] == ["finite"]
    assert all(gate.passed for gate in quality.gates)


def test_quality_depends_on_the_seed_alone():
    source = Source("tiny:llama")
    workload = Numbers(sequence=16, batch_size=4, steps=4, items=3)
    built = workload.build(Sources(source), 0)

    def curve(seed: int) -> list[list[float]]:
        technique, prepared = arm()
        return workload.quality(technique, prepared, built, seed, source, None).curves["loss"]

    assert curve(0) == curve(0)
    assert curve(0) != curve(1)


def test_divergence_is_raised_from_quality():
    source = Source("tiny:llama")
    workload = Numbers(sequence=16, steps=6, items=3)
    technique, prepared = arm(broken_at=2)
    with pytest.raises(Diverged) as caught:
        workload.quality(technique, prepared, workload.build(Sources(source), 0), 0, source, None)
    assert caught.value.step == 2
    assert len(caught.value.losses) == 2


def test_work_is_the_size_of_the_jobs():
    build, burst, quality = Numbers(sequence=16, batch_size=4, steps=6, burst_steps=2, items=3).work()
    assert build.train == 0
    assert burst.train == 2 * 4 * 16
    assert quality.train == 6 * 4 * 16
    assert quality.prefill == 6 * 3 * 16 + 5 * 8 * 16
