from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from known_answers.leaks import Leaks
from known_answers.still import Still
from torch import nn

from bench.families.decoding import DecodingJob
from bench.families.finetuning import FinetuningJob, TextBatch
from bench.models import Source, Sources
from bench.probes.leak import leak
from bench.probes.memory import MemoryProbe
from bench.technique import Prepared, Step, Technique
from techniques.decoding.autoregressive import Autoregressive
from techniques.finetuning.lora import Lora

MIB = 1 << 20
KIB = 1 << 10


def test_a_steady_growth_is_its_slope() -> None:
    assert leak([n * MIB for n in range(8)]) == (MIB, "")
    assert leak([n * MIB + 5000 * (n % 3) for n in range(90)])[0] == pytest.approx(MIB, rel=0.01)


@pytest.mark.parametrize(
    "readings",
    [
        [7 * MIB] * 8,
        [0, 90 * MIB, *[90 * MIB] * 6],  # one buffer, made in the second step
        [n % 4 * MIB for n in range(16)],  # let go every four steps
        [n * 64 * KIB for n in range(8)],
        [n // 3 * 9 * MIB for n in range(9)],  # a prompt's buffers: not in most steps
    ],
)
def test_no_steady_growth_is_no_leak(readings: list[int]) -> None:
    assert leak(readings) == (0, "")


def test_too_few_steps_are_unknown() -> None:
    found, reason = leak([0, MIB, 2 * MIB])
    assert found is None
    assert "from 4 steps on, this burst has 3" in reason


def followed(technique: Technique, job: Any, prepared: Prepared | None = None) -> dict[str, Any]:
    prepared = prepared or technique.prepare(Sources(Source("tiny:llama")))
    probe = MemoryProbe(prepared, "cpu")
    probe.follow(technique.steps(prepared, replace(job, phase=probe.phase)))
    return probe.read()


TEXT = DecodingJob(prompts=(torch.arange(9), torch.arange(20)), max_new_tokens=6)


def test_a_planted_leak_is_reported() -> None:
    assert followed(Leaks(), TEXT)["leak"] == pytest.approx(MIB, rel=0.01)


def test_a_technique_that_keeps_nothing_does_not_leak() -> None:
    assert followed(Still(), TEXT)["leak"] == 0


def test_a_cache_that_is_named_is_no_leak() -> None:
    report = followed(Autoregressive(), TEXT)
    assert (report["leak"], report["leak_reason"]) == (0, "")


class LeakyLora(Lora):
    """Keeps 1 MiB more for every batch."""

    def batch_loss(self, prepared: Any, batch: Any) -> torch.Tensor:
        prepared.state = [*(prepared.state or []), torch.ones(MIB, dtype=torch.uint8)]
        return super().batch_loss(prepared, batch)


def batches(count: int) -> FinetuningJob:
    ids = torch.arange(32).view(2, 16)
    return FinetuningJob(batches=tuple(TextBatch(ids, ids, 30) for _ in range(count)))


def test_a_training_technique_that_leaks() -> None:
    assert followed(LeakyLora(), batches(5))["leak"] == pytest.approx(MIB, rel=0.01)
    assert followed(Lora(), batches(5))["leak"] == 0
    report = followed(Lora(), batches(2))
    assert report["leak"] is None
    assert "2" in report["leak_reason"]


def written(step: Any) -> dict[str, Any]:
    prepared = Prepared(nn.Linear(2, 2), state=[])
    prepared.components["cache"] = lambda: prepared.state
    probe = MemoryProbe(prepared, "cpu")
    probe.follow(step(prepared) for _ in range(8))
    return probe.read()


def test_what_a_component_names_may_grow() -> None:
    def step(prepared: Prepared) -> Step:
        prepared.state.append(torch.ones(MIB, dtype=torch.uint8))
        return Step("decode", 1)

    report = written(step)
    assert report["leak"] == 0
    assert report["components"]["cache"] == 8 * MIB


def test_what_the_harness_keeps_is_no_leak() -> None:
    kept: list[torch.Tensor] = []

    def step(prepared: Prepared) -> Step:
        kept.append(torch.ones(MIB, dtype=torch.uint8))
        return Step("decode", 1, (kept[-1],))

    assert written(step)["leak"] == 0


def test_garbage_in_cycles_is_no_leak() -> None:
    def step(prepared: Prepared) -> Step:
        cycle: list[Any] = [torch.ones(MIB, dtype=torch.uint8)]
        cycle.append(cycle)
        return Step("decode", 1)

    assert written(step)["leak"] == 0
