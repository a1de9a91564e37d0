"""Pairs follow the reward, noise turns round what it says, and fresh openings are not trained on."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import stats
from bench.errors import BenchError, Unsupported, UsageError
from bench.families import training
from bench.models import Source, Sources
from bench.workload import Quality
from benchmarks.preference.controlled_sentiment import FAR_FROM_LOOKS, SHORT_OF_BUDGET, ControlledSentiment
from benchmarks.preference.core import looks, rewards
from benchmarks.preference.core.looks import Look
from techniques.preference.best_of_n import BestOfN
from techniques.preference.dpo import Dpo
from techniques.preference.ppo import Ppo
from techniques.preference.sft_on_chosen import SftOnChosen

SOURCES = Sources(Source("tiny:llama"))
SMALL = ControlledSentiment(
    batch_size=4, steps=8, pairs=32, items=6, fresh=5, samples=2, completion=12, oracle=8, checkpoints=2
)


def worth(ids: list[int]) -> float:
    return rewards.letters(SOURCES.target.tokenizer.decode(ids, skip_special_tokens=True))


def text(ids: list[int]) -> str:
    return str(SOURCES.target.tokenizer.decode(ids))


def test_chosen_is_worth_more_and_no_fresh_opening_is_trained_on():
    built = SMALL.build(SOURCES, 0)
    assert [len(built[name]) for name in ("train", "heldout", "fresh", "oracle")] == [32, 6, 5, 5]
    assert all(worth(p["chosen"]) > worth(p["rejected"]) for name in ("train", "heldout") for p in built[name])
    fresh = {tuple(ids) for ids in built["fresh"]}
    assert {tuple(p["prompt"]) for p in built["heldout"]} <= fresh
    assert not {tuple(p["prompt"]) for p in built["train"]} & fresh
    assert [len(own) for own in built["oracle"]] == [8] * 5
    # special ids but the end are never drawn
    drawn = {i for p in built["train"] for side in ("chosen", "rejected") for i in p[side]}
    assert drawn <= {*range(256), 257}


def test_reference_is_what_the_untrained_model_makes_of_both_sides():
    built = SMALL.build(SOURCES, 0)
    model: Any = SOURCES.target.model()
    for name, known in (("train", "train_reference"), ("heldout", "reference")):
        for pair, values in list(zip(built[name], built[known], strict=True))[:3]:
            for side, value in zip(("chosen", "rejected"), values, strict=True):
                ids = torch.tensor([pair["prompt"] + pair[side]])
                logits = model(ids).logits[0, len(pair["prompt"]) - 1 : -1].detach()
                total = logits.log_softmax(-1).gather(-1, torch.tensor(pair[side])[:, None]).sum()
                assert value == pytest.approx(float(total), abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_noise_turns_round_exactly_its_share_of_training_pairs(noise: float):
    built = SMALL.model_copy(update={"noise": noise}).build(SOURCES, 0)
    turned = sum(worth(p["chosen"]) < worth(p["rejected"]) for p in built["train"])
    assert turned == round(noise * 32)
    assert all(worth(p["chosen"]) > worth(p["rejected"]) for p in built["heldout"])
    # the pairs are the same ones
    sides = [{tuple(p["chosen"]), tuple(p["rejected"])} for p in built["train"]]
    assert sides == [{tuple(p["chosen"]), tuple(p["rejected"])} for p in SMALL.build(SOURCES, 0)["train"]]


def test_build_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = SMALL.build(SOURCES, 3)
    torch.manual_seed(1)
    assert SMALL.build(SOURCES, 3) == first
    assert SMALL.build(SOURCES, 4) != first


def run(technique: Any, built: Any, reference: Quality | None = None, workload: Any = SMALL) -> Quality:
    return workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, reference)


@pytest.mark.parametrize("together", [5, 128])
def test_an_arm_that_learns_nothing_is_the_reference(together: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks, "TOGETHER", together)
    built = SMALL.build(SOURCES, 0)
    quality = run(SftOnChosen(learning_rate=1e-12), built)
    assert quality.metrics["kl"] == pytest.approx([0.0] * 5, abs=1e-5)
    # the end of the training, as the budget is never reached
    assert quality.metrics["reward_at_kl"] == quality.metrics["reward"]
    assert all(gate.passed for gate in quality.gates)
    model = SOURCES.target.model()
    rollout = SMALL.rollout(built, "cpu")
    from bench.families.rollout import sample

    # five prompts, two completions of each: together, or one after the other
    generator, fresh = torch.Generator().manual_seed(0), built["fresh"]
    both = sample(model, fresh * 2, rollout, generator) if together > 5 else []
    drawn = [both[:5], both[5:]] if both else [sample(model, fresh, rollout, generator) for _ in range(2)]
    means = [sum(worth(of[row]) for of in drawn) / 2 for row in range(5)]
    assert quality.metrics["reward"] == pytest.approx(means)
    assert quality.texts[0]["output"] == text(built["fresh"][0]) + SOURCES.target.tokenizer.decode(
        drawn[0][0], skip_special_tokens=True
    )
    assert text(built["fresh"][0]) in quality.texts[0]["prompt"]
    assert built["before"][0] in quality.texts[0]["prompt"]


def test_curves_go_from_the_reference_to_the_end_and_meet_the_metrics():
    built = SMALL.build(SOURCES, 0)
    base = run(SftOnChosen(learning_rate=3e-3), built)
    quality = run(Dpo(learning_rate=5e-3), built, base)
    assert [step for step, _ in quality.curves["reward"]] == [0, 2, 8]
    assert quality.curves["reward_over_kl"] == [
        [kl, reward] for (_, kl), (_, reward) in zip(quality.curves["kl"], quality.curves["reward"], strict=True)
    ]
    before = sum(sum(own) / 8 for own in built["oracle"]) / 5
    assert quality.curves["reward_over_kl"][0] == pytest.approx([0.0, before])
    kl, reward = quality.curves["reward_over_kl"][-1]
    assert kl == pytest.approx(sum(quality.metrics["kl"]) / 5)
    assert kl > 0.05
    assert reward == pytest.approx(sum(quality.metrics["reward"]) / 5)
    for own, other, won in zip(
        quality.metrics["reward"], base.metrics["reward"], quality.metrics["win_rate"], strict=True
    ):
        assert won == (1.0 if own > other else 0.0 if own < other else 0.5)
    # oracle lines once, beside the baseline's
    assert {"reward_over_kl: best of n", "reward_over_kl: tilted reference"} <= set(base.curves)
    assert not any(":" in name for name in quality.curves)
    assert base.metrics["win_rate"] == [0.5] * 5


def test_held_out_pairs_are_scored_along_the_training():
    built = SMALL.build(SOURCES, 0)
    whole = run(Dpo(learning_rate=5e-3), built)
    half = run(Dpo(learning_rate=5e-3), built, workload=SMALL.model_copy(update={"steps": 4, "checkpoints": 1}))
    for name in ("preference_accuracy", "preference_margin", "chosen_gain", "rejected_gain"):
        (first, start), (middle, between), (last, end) = whole.curves[name]
        assert (first, middle, last) == (0, 4, 8)
        assert start == pytest.approx(0.5 if name == "preference_accuracy" else 0.0, abs=1e-4)
        # whoever looks changes nothing: half a training ends there
        assert between == pytest.approx(statistics.fmean(half.metrics[name]), abs=1e-4)
        assert end == pytest.approx(statistics.fmean(whole.metrics[name]))
        assert whole.half_widths[name][-1] == [None, pytest.approx(stats.half_interval(whole.metrics[name]))]


def test_points_of_the_frontier_have_intervals_over_prompts():
    built = SMALL.build(SOURCES, 0)
    quality = run(Dpo(learning_rate=5e-3), built)
    for metric, place in (("kl", 0), ("reward", 1)):
        values = quality.metrics[metric]
        # t with 4 degrees of freedom
        expected = 2.776445 * statistics.stdev(values) / math.sqrt(5)
        assert quality.half_widths["reward_over_kl"][-1][place] == pytest.approx(expected, rel=1e-4)
        assert quality.half_widths[metric][-1] == [None, pytest.approx(expected, rel=1e-4)]
        assert len(quality.half_widths[metric]) == len(quality.curves[metric])
    assert quality.half_widths["reward_over_kl"][0][0] == 0.0


def test_distinct_is_of_one_prompts_completions():
    one = Look(0, [0.0, 0.0], [0.0, 0.0], completions=[[1, 2], [3, 4], [1, 2], [5, 6]])
    assert one.of_prompts(one.completions) == [[[1, 2], [1, 2]], [[3, 4], [5, 6]]]
    built = SMALL.build(SOURCES, 0)
    quality = run(Dpo(learning_rate=5e-3), built)
    assert len(quality.metrics["distinct"]) == 5
    assert 0 < quality.counts["distinct_before"] <= 1


def test_pairs_are_compared_where_the_divergence_meets_the_budget():
    built = SMALL.build(SOURCES, 0)
    technique = Dpo(learning_rate=5e-3)
    whole = run(technique, built)
    (_, start), (_, middle), (_, end) = whole.curves["kl"]
    assert start == 0 < middle
    budget = middle / 4  # half of the way in its root
    quality = run(technique, built, workload=SMALL.model_copy(update={"kl_budget": budget}))
    mean = sum(quality.metrics["reward_at_kl"]) / 5
    rewards_seen = [reward for _, reward in whole.curves["reward"]]
    assert mean == pytest.approx((rewards_seen[0] + rewards_seen[1]) / 2)
    assert end != middle
    # the nearest look is four times as far away, and no claim is decided by what is read there
    assert all("reward_at_kl" in note for note in FAR_FROM_LOOKS)
    assert FAR_FROM_LOOKS.keys() <= quality.notes.keys()
    assert not FAR_FROM_LOOKS.keys() & whole.notes.keys()


def test_arms_are_compared_no_further_away_than_the_baseline_came():
    built = SMALL.build(SOURCES, 0)
    base = run(SftOnChosen(learning_rate=1e-3), built)
    reached = sum(base.metrics["kl"]) / 5
    far = run(Dpo(learning_rate=5e-3), built, base)
    assert reached < sum(far.metrics["kl"]) / 5
    assert base.counts["compared_at_kl"] == pytest.approx(reached)
    assert far.counts["compared_at_kl"] == pytest.approx(reached)
    same = run(Dpo(learning_rate=5e-3), built, workload=SMALL.model_copy(update={"kl_budget": reached}))
    assert base.metrics["reward_at_kl"] == base.metrics["reward"], "it is compared where it ends"
    assert far.metrics["reward_at_kl"] == pytest.approx(same.metrics["reward_at_kl"])
    # which arms ended before is told
    assert not SHORT_OF_BUDGET.keys() & {*base.notes, *far.notes}
    near = run(Dpo(learning_rate=1e-12), built, base)
    assert near.metrics["reward_at_kl"] == near.metrics["reward"]
    assert SHORT_OF_BUDGET.keys() <= near.notes.keys()


def test_the_baselines_technique_again_is_judged_against_the_baseline():
    built = SMALL.build(SOURCES, 0)
    base = run(Dpo(learning_rate=2e-2), built)
    assert base.metrics["win_rate"] == [0.5] * 5
    other = run(SftOnChosen(learning_rate=2e-2), built, base)
    pairs = zip(other.metrics["reward"], base.metrics["reward"], strict=True)
    assert other.metrics["win_rate"] == [0.5 + 0.5 * ((own > of_base) - (own < of_base)) for own, of_base in pairs]
    assert other.metrics["win_rate"] != [0.5] * 5


def test_what_is_not_trained_has_a_bound_and_no_divergence():
    built = SMALL.build(SOURCES, 0)
    technique = BestOfN(n=4)
    quality = run(technique, built)
    assert "kl" not in quality.metrics
    assert not {"kl", "reward", "loss"} & set(quality.curves)
    assert quality.counts["kl_bound"] == pytest.approx(technique.kl_bound)
    assert quality.curves["reward_over_kl"][1][0] == pytest.approx(technique.kl_bound)
    assert quality.curves["reward_over_kl"][1][1] > quality.curves["reward_over_kl"][0][1]
    # it learns nothing of the pairs
    assert "preference_accuracy" not in quality.metrics
    assert all(gate.passed for gate in quality.gates)
    # four of the reference's own, so the budget is out of reach: the whole gain counts
    assert quality.metrics["reward_at_kl"] == quality.metrics["reward"]
    near = run(technique, built, workload=SMALL.model_copy(update={"kl_budget": technique.kl_bound / 4}))
    before, after = (reward for _, reward in near.curves["reward_over_kl"])
    assert sum(near.metrics["reward_at_kl"]) / 5 == pytest.approx((before + after) / 2)


def test_training_towards_letters_is_seen_in_the_reward():
    workload = SMALL.model_copy(update={"batch_size": 8, "pairs": 160, "steps": 20, "samples": 4, "checkpoints": 1})
    built = workload.build(SOURCES, 0)
    technique = Dpo(learning_rate=1e-2, beta=0.05, policy="full", reference="precomputed")
    quality = run(technique, built, workload=workload)
    before, after = (reward for _, reward in quality.curves["reward"])
    assert after > before + 0.3
    assert sum(quality.metrics["kl"]) / 5 > 1
    assert quality.counts["reward_before"] == before


def test_who_writes_texts_of_its_own_trains_for_the_baselines_seconds(monkeypatch: pytest.MonkeyPatch):
    built = SMALL.build(SOURCES, 0)
    base = run(SftOnChosen(), built)
    assert base.train_seconds is not None
    clock = iter(range(10_000))
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))  # 1 s a step
    limited = SMALL.model_copy(update={"time_budget": 2.0})
    base.train_seconds = 2.5
    quality = run(Ppo(), built, base, limited)
    assert quality.counts["steps"] == quality.train_seconds == 5
    assert quality.counts["epochs"] == 5 * 4 / 32
    # looked at as often as the others, the last time at its end
    assert [step for step, _ in quality.curves["reward"]] == [0, 2, 5]
    assert len(quality.curves["loss"]) == 5
    # four texts an update, under the old policy, the reference, and the policy once for each of two epochs
    assert quality.counts["forward_texts_per_update"] == 4 * 4
    assert 4 <= quality.counts["generated_tokens_per_update"] <= 4 * 12
    assert (base.counts["forward_texts_per_update"], base.counts["generated_tokens_per_update"]) == (4, 0)
    early = "training ended before its last step, as another step would have passed its seconds"
    ((told, remedy),) = ((what, do) for what, do in quality.notes.items() if what.startswith(early))
    assert "workload.steps" in remedy
    # who learns from the pairs sees all of them, and without a budget nobody ends early
    for technique, workload in ((Dpo(), limited), (Ppo(), SMALL)):
        whole = run(technique, built, base, workload)
        assert whole.counts["steps"] == 8
        assert told not in whole.notes
    base.train_seconds = None
    with pytest.raises(Unsupported, match=r"time_budget=2 is in seconds of the baseline.* set workload.time_budget=0"):
        run(Ppo(), built, base, limited)


def test_the_plan_counts_what_the_time_budget_leaves():
    base, dpo, ppo = SftOnChosen(), Dpo(), Ppo()
    assert ControlledSentiment(time_budget=2.0).train_work(ppo, base) == 2 * base.train_work < ppo.train_work
    assert ControlledSentiment(time_budget=99.0).train_work(ppo, base) == ppo.train_work
    assert ControlledSentiment().train_work(ppo, base) == ppo.train_work
    assert ControlledSentiment(time_budget=0.1).train_work(dpo, base) == dpo.train_work


def test_a_reward_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rewards, "letters", lambda text: math.nan)
    with pytest.raises(BenchError, match=r"reward of a completion of opening \d+, '.*' is nan"):
        SMALL.build(SOURCES, 0)


def test_openings_of_ones_own(tmp_path: Path):
    own = tmp_path / "own.txt"
    own.write_text("\n".join(f"Opening number {n} is" for n in range(20)) + "\nOpening number 3 is\n")
    workload = SMALL.model_copy(update={"path": str(own)})
    workload.check()
    built = workload.build(SOURCES, 0)
    assert all(text(ids).startswith("Opening number") for ids in built["fresh"])
    own.write_text("One is\nTwo is\n")
    with pytest.raises(UsageError, match=r"own.txt: 2 different openings give 0 fresh ones"):
        workload.check()


def test_the_embedded_openings_are_enough():
    ControlledSentiment().check()
    train, fresh = ControlledSentiment()._openings()
    assert (len(train), len(fresh)) == (72, 24)
    assert not set(train) & set(fresh)
    vader = rewards.vader()
    # an opening says little by itself
    assert sum(abs(vader(opening)) > 0.4 for opening in train + fresh) < 10


def test_work_is_the_size_of_the_run():
    small, large = (ControlledSentiment(checkpoints=n).work()[2] for n in (1, 4))
    assert large.decode == 4 * small.decode > 0
    assert large.train == small.train == 64 * 8 * 2 * 36
