"""Log-probabilities are of the completion's tokens, all of them and no other ones, however rows are padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import Diverged
from bench.families import completions
from bench.families.completions import SHORT, completion_logprobs, laid_out
from bench.families.preference import (
    Pair,
    Preference,
    PreferenceBatch,
    collate,
)
from bench.families.preference_workload import PreferenceWorkload, length_statistics, starts_at_reference
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.workload import Built

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
EOS = 257


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [
    Pair(prompt=ids(1, 5), chosen=[*ids(2, 6), EOS], rejected=[*ids(3, 3), EOS]),
    Pair(prompt=ids(4, 9), chosen=[*ids(5, 2), EOS], rejected=ids(6, 8)),
    Pair(prompt=ids(7, 1), chosen=ids(8, 1), rejected=[EOS]),
]
EQUAL = [Pair(prompt=ids(n, 6), chosen=ids(n + 50, 4), rejected=ids(n + 90, 4)) for n in range(30)]


def sharpened(name: str) -> Any:
    """Random weights large enough that every mistake shows in the logits."""
    model = Source(name).model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 5
    return model


def one_by_one(model: Any, prompt: list[int], completion: list[int]) -> float:
    """The definition: each token given all before it, without padding."""
    total = 0.0
    for place in range(len(completion)):
        known = torch.tensor([prompt + completion[:place]])
        total += float(model(input_ids=known).logits[0, -1].double().log_softmax(-1)[completion[place]].detach())
    return total


@pytest.mark.parametrize("name", MODELS)
def test_sums_are_the_definitions(name: str):
    model = sharpened(name)
    sums = completion_logprobs(model, collate(PAIRS, "cpu").texts)
    assert sums.shape == (6,)
    assert sums.dtype == torch.float32
    sides = [(p["prompt"], p["chosen"]) for p in PAIRS] + [(p["prompt"], p["rejected"]) for p in PAIRS]
    assert sums.tolist() == pytest.approx([one_by_one(model, *side) for side in sides], abs=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_sums_depend_neither_on_padding_nor_on_order(name: str, monkeypatch: pytest.MonkeyPatch):
    model = sharpened(name)
    together = completion_logprobs(model, collate(PAIRS, "cpu").texts)
    turned = completion_logprobs(model, collate(PAIRS[::-1], "cpu").texts)
    torch.testing.assert_close(turned.view(2, 3).flip(1), together.view(2, 3), atol=1e-4, rtol=1e-5)
    for row, pair in enumerate(PAIRS):
        alone = completion_logprobs(model, collate([pair], "cpu").texts)
        torch.testing.assert_close(alone, together[[row, row + 3]], atol=1e-4, rtol=1e-5)
    monkeypatch.setattr(completions, "PAD", 77)
    torch.testing.assert_close(completion_logprobs(model, collate(PAIRS, "cpu").texts), together)


def test_batch_puts_all_completions_at_one_column():
    batch = collate(PAIRS, "cpu")
    texts = batch.texts
    assert texts.ids.shape == (6, 9 + 8)
    assert texts.attention is not None
    for row, (pair, side) in enumerate([(p, s) for s in ("chosen", "rejected") for p in PAIRS]):
        completion: Any = pair[side]  # type: ignore[literal-required]
        assert texts.ids[row][texts.attention[row]].tolist() == pair["prompt"] + completion
        assert texts.ids[row, 9:][texts.completion[row]].tolist() == completion
        assert int(texts.attention[row, :9].sum()) == len(pair["prompt"])
    assert (batch.pairs, batch.chosen_tokens, batch.rejected_tokens, batch.tokens) == (3, 11, 13, 24)
    # every end-of-text id of a completion is a target, once
    assert int((texts.ids[:, 9:][texts.completion] == EOS).sum()) == 4


def test_chosen_are_the_first_rows():
    batch = collate(PAIRS, "cpu").chosen
    alone = laid_out([pair["prompt"] for pair in PAIRS], [pair["chosen"] for pair in PAIRS], "cpu")
    # no wider than laid out alone: imitation does not pay for the rejected ones
    assert torch.equal(batch.ids, alone.ids)
    assert torch.equal(batch.completion, alone.completion)
    assert batch.attention is not None
    assert alone.attention is not None
    assert torch.equal(batch.attention, alone.attention)


def test_without_padding_there_is_no_mask():
    assert collate(EQUAL[:2], "cpu").texts.attention is None


def test_one_forward_pass_with_logits_of_completions_only():
    model = sharpened("tiny:llama")
    seen = []
    handle = model.register_forward_hook(lambda m, args, out: seen.append(tuple(out.logits.shape)))
    completion_logprobs(model, collate(PAIRS, "cpu").texts)
    handle.remove()
    assert seen == [(6, 8, 264)]


class Products(TorchDispatchMode):
    """Shapes of both sides of every product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}:
            self.seen.append((func.__name__, tuple(args[0].shape), tuple(args[1].shape)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_product_is_one_matrix_times_the_head(name: str):
    model = sharpened(name)
    with Products() as products:
        completion_logprobs(model, collate(PAIRS, "cpu").texts).sum().backward()
    head = [one for one in products.seen if 264 in one[1] + one[2]]
    # never the head once more for every row: forward, and the gradients of hidden states and head
    assert {one[0] for one in head} == {"mm.default"}
    assert head[0][1:] == ((6 * 8, 64), (64, 264))


class Likelihood(Preference):
    """Raises the chosen completion's likelihood and lowers the other's, without bound."""

    explode: bool = False

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.trained(sharpened(sources.target.name))

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        chosen, rejected = completion_logprobs(prepared.model, batch.texts).chunk(2)
        loss = (rejected - chosen).mean()
        return loss + (torch.inf if self.explode else 0)


class Given(PreferenceWorkload):
    """Pairs of one length."""

    def build(self, sources: Sources, seed: int) -> Built:
        heldout = EQUAL[: self.items]
        model = sharpened(sources.target.name)
        return {
            "train": EQUAL[10:],
            "heldout": heldout,
            "train_reference": self.reference_logprobs(model, EQUAL[10:], "cpu"),
            "reference": self.reference_logprobs(model, heldout, "cpu"),
        }


SOURCES = Sources(Source("tiny:llama"))


def test_reference_is_chosen_and_rejected_of_each_pair():
    model = sharpened("tiny:llama")
    # three batches, the last one smaller
    found = Given(batch_size=2).reference_logprobs(model, EQUAL[:5], "cpu")
    for (chosen, rejected), pair in zip(found, EQUAL[:5], strict=True):
        assert chosen == pytest.approx(one_by_one(model, pair["prompt"], pair["chosen"]), abs=2e-4)
        assert rejected == pytest.approx(one_by_one(model, pair["prompt"], pair["rejected"]), abs=2e-4)


def test_quality_is_what_was_gained_over_the_reference():
    workload = Given(batch_size=4, steps=4, items=10)
    built = workload.build(SOURCES, 0)
    technique = Likelihood(learning_rate=1e-3)
    prepared = technique.prepare(SOURCES)
    quality = workload.quality(technique, prepared, built, 0, SOURCES.target, None)
    assert all(gate.passed for gate in quality.gates)
    assert [gate.name for gate in quality.gates] == ["starts_at_reference", "finite"]
    assert len(quality.curves["loss"]) == 4
    assert quality.counts["epochs"] == 16 / 20
    before = sharpened("tiny:llama")
    for item, pair in enumerate(built["heldout"]):
        gains = [
            one_by_one(prepared.model, pair["prompt"], pair[side]) - one_by_one(before, pair["prompt"], pair[side])
            for side in ("chosen", "rejected")
        ]
        margin = gains[0] - gains[1]
        assert quality.metrics["preference_margin"][item] == pytest.approx(margin, abs=1e-3)
        assert quality.metrics["preference_accuracy"][item] == (1.0 if margin > 0 else 0.0)
        for side in ("chosen", "rejected"):
            nll = -one_by_one(prepared.model, pair["prompt"], pair[side]) / len(pair[side])
            assert quality.metrics[f"{side}_nll"][item] == pytest.approx(nll, abs=1e-4)
    for side in ("chosen", "rejected"):
        starts = [-one_by_one(before, p["prompt"], p[side]) / 4 for p in built["heldout"]]
        assert quality.counts[f"{side}_nll_before"] == pytest.approx(sum(starts) / 10, abs=1e-4)
    assert len(set(quality.metrics["preference_margin"])) == 10


def test_exact_tie_is_half_a_point():
    workload = Given(batch_size=4, steps=1, items=4)
    technique = Likelihood(learning_rate=1e-30, warmup_steps=0)
    built = workload.build(SOURCES, 0)
    quality = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, None)
    assert quality.metrics["preference_accuracy"] == [0.5] * 4


def test_gate_fails_where_the_policy_is_not_the_reference():
    workload = Given(batch_size=4, steps=1, items=4)
    built = workload.build(SOURCES, 0)
    built["reference"][2][1] += 0.01
    technique = Likelihood()
    quality = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, None)
    assert not quality.gates[0].passed
    assert "0.0025 nat per token apart" in quality.gates[0].detail


def test_gate_allows_the_rounding_of_its_dtype():
    reference = torch.full((2, 2), -20.0)
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.03125)):
        assert starts_at_reference(reference + 3.9 * allowed, reference, EQUAL[:2], dtype).passed
        assert not starts_at_reference(reference + 4.1 * allowed, reference, EQUAL[:2], dtype).passed


def test_divergence_is_raised_from_quality():
    workload = Given(batch_size=4, items=4)
    technique = Likelihood(explode=True)
    with pytest.raises(Diverged, match="step 0"):
        workload.quality(technique, technique.prepare(SOURCES), workload.build(SOURCES, 0), 0, SOURCES.target, None)


def test_dropout_is_off_while_training():
    technique = Likelihood()
    prepared = technique.prepare(SOURCES)
    workload = Given(batch_size=4, items=4)
    for _ in technique.steps(prepared, workload.burst(workload.build(SOURCES, 0), 0, 0, "cpu")):
        assert not prepared.model.training


def test_bursts_count_tokens_of_both_sides_and_differ_by_index():
    workload = Given(batch_size=4, items=4)
    built = workload.build(SOURCES, 0)
    jobs = [workload.burst(built, index, 0, "cpu") for index in (-1, 0)]
    rows = [tuple(row) for job in jobs for batch in job.batches for row in batch.texts.ids[:4].tolist()]
    assert len(set(rows)) == 16
    technique = Likelihood()
    steps = list(technique.steps(technique.prepare(SOURCES), jobs[1]))
    assert [step.tokens for step in steps] == [2 * 4 * 4] * 2


def test_work_is_the_size_of_the_jobs():
    build, burst, quality = Given(batch_size=4, steps=6, burst_steps=2, items=3).work()
    assert build.prefill == (6 * 4 + 3) * 512
    assert burst.train == 2 * 4 * 512
    assert quality.train == 6 * 4 * 512
    # the reference once, and two looks at the policy
    assert quality.prefill == (1 + 2) * 3 * 512


def test_length_statistics_show_a_bias():
    lengths = torch.tensor([[5, 3], [4, 4], [2, 8], [9, 1]])
    found = length_statistics(lengths, [2.0, 0.0, -6.0, 8.0])
    assert found["chosen_tokens"] == 5.0
    assert found["rejected_tokens"] == 4.0
    assert found["chosen_longer"] == (1 + 0.5 + 0 + 1) / 4
    assert found["margin_length_correlation"] == pytest.approx(1.0)
    # nothing varies: it is not known, not 0
    assert "margin_length_correlation" not in length_statistics(torch.tensor([[4, 4], [3, 3]]), [1.0, 2.0])
    assert "margin_length_correlation" not in length_statistics(lengths, [1.0] * 4)


def test_short_texts_attend_by_products_and_the_same_for_policy_and_reference():
    model: Any = Source("tiny:llama").model()
    flash: list[bool] = []
    handle = model.register_forward_pre_hook(lambda *_: flash.append(torch.backends.cuda.flash_sdp_enabled()))
    short = laid_out([ids(1, SHORT - 8)], [ids(2, 8)], "cpu")
    long = laid_out([ids(1, SHORT - 7)], [ids(2, 8)], "cpu")
    whole = completion_logprobs(model, short)
    with torch.no_grad():
        assert torch.equal(completion_logprobs(model, short), whole)
        completion_logprobs(model, long)
    assert flash == [False, False, True]
    assert torch.backends.cuda.flash_sdp_enabled()
    handle.remove()
    logits = model(short.ids).logits[0, SHORT - 9 : -1].log_softmax(-1)
    expected = logits.gather(-1, short.ids[0, -8:, None]).sum()
    torch.testing.assert_close(whole[0], expected, atol=1e-4, rtol=1e-5)
