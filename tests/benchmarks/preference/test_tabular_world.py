"""The best policy is known, the gap to it is exact, and DPO closes it where imitation cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.errors import Unsupported
from bench.models import Source, Sources
from bench.workload import Quality
from benchmarks.preference.tabular_world import TabularWorld
from techniques.preference.best_of_n import BestOfN
from techniques.preference.dpo import Dpo
from techniques.preference.ppo import Ppo
from techniques.preference.sft_on_chosen import SftOnChosen

SOURCES = Sources(Source("tiny:llama"))
SMALL = TabularWorld(openings=3, answers=4, pairs=640, batch_size=16, steps=40, items=8, beta=0.4)


def run(technique: Any, workload: TabularWorld = SMALL, seed: int = 0) -> tuple[Quality, Any]:
    built = workload.build(SOURCES, seed)
    prepared = technique.prepare(SOURCES)
    return workload.quality(technique, prepared, built, seed, SOURCES.target, None), (built, prepared)


def test_pairs_are_labelled_by_bradley_and_terry():
    built = SMALL.model_copy(update={"pairs": 6000}).build(SOURCES, 0)
    worth = dict(zip(built["answers"], built["rewards"], strict=True))
    wins: dict[tuple[int, int], list[float]] = {}
    for pair in built["train"]:
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert chosen != rejected
        low, high = sorted((chosen, rejected))
        wins.setdefault((low, high), []).append(float(chosen == low))
    assert len(wins) == 6, "every two answers"
    for (low, high), won in wins.items():
        expected = float(torch.sigmoid(torch.tensor(worth[low] - worth[high])))
        assert sum(won) / len(won) == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(won)) ** 0.5)
    turned = SMALL.model_copy(update={"noise": 0.3, "pairs": 100}).build(SOURCES, 0)["train"]
    same = SMALL.model_copy(update={"pairs": 100}).build(SOURCES, 0)["train"]
    assert sum(one["chosen"] != other["chosen"] for one, other in zip(turned, same, strict=True)) == 30


def test_the_gap_is_beta_times_the_divergence_from_the_best_policy():
    workload = SMALL.model_copy(update={"steps": 4, "checkpoints": 2, "beta": 0.7})
    found, (built, prepared) = run(Dpo(policy="full", reference="copy", learning_rate=5e-3), workload)
    rewards = torch.tensor(built["rewards"], dtype=torch.float64)
    start: Any = SOURCES.target.model()
    for row, prompt in enumerate(built["prompts"]):
        own, given = (
            model(torch.tensor([prompt])).logits[0, -1, built["answers"]].detach().double().log_softmax(-1)
            for model in (prepared.model, start)
        )
        best = (given + rewards / 0.7).log_softmax(-1)
        gap = 0.7 * float((own.exp() * (own - best)).sum())
        assert found.metrics["optimum_gap"][row] == pytest.approx(gap, abs=1e-5)
        assert found.metrics["reward"][row] == pytest.approx(float((own.exp() * rewards).sum()), abs=1e-5)
        assert found.metrics["kl"][row] == pytest.approx(float((own.exp() * (own - given)).sum()), abs=1e-5)
    assert [point[0] for point in found.curves["optimum_gap"]] == [0.0, 2.0, 4.0]
    assert found.curves["optimum_gap"][0][1] == found.counts["optimum_gap_before"]


def test_dpo_and_ppo_close_the_gap_and_imitation_does_not():
    full: dict[str, Any] = {"policy": "full"}
    dpo, _ = run(Dpo(**full, reference="copy", learning_rate=5e-3, beta=0.4))
    ppo, _ = run(Ppo(**full, reference="copy", learning_rate=5e-3, beta=0.4, kl_gain=0.0))
    sft, _ = run(SftOnChosen(**full, learning_rate=5e-3))
    before = dpo.counts["optimum_gap_before"]
    ends = {name: one.curves["optimum_gap"][-1][1] for name, one in (("dpo", dpo), ("ppo", ppo), ("sft", sft))}
    assert ends["dpo"] < 0.05 * before, ends
    assert ends["ppo"] < 0.1 * before, ends
    assert ends["sft"] > 0.15 * before, ends
    # held to another strength, it ends elsewhere
    held, _ = run(Dpo(**full, reference="copy", learning_rate=5e-3, beta=2.0))
    assert held.curves["optimum_gap"][-1][1] > 0.15 * before


def test_what_trains_nothing_has_no_law_of_its_own():
    with pytest.raises(Unsupported, match="nothing is trained"):
        run(BestOfN())
