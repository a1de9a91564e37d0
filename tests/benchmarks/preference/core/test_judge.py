"""A judge prefers what its scores prefer, whichever answer comes first, and says what it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from bench.byte_tokenizer import byte_tokenizer
from bench.errors import UsageError
from bench.models import Source
from benchmarks.preference.core import judge as judges

JUDGED = Source("tiny:llama")


def saved(folder: Path, labels: int = 1) -> str:
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=0,
    )
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_reward_model_compares_its_scores(tmp_path: Path):
    name = saved(tmp_path)
    judge = judges.named(name, JUDGED, 9.0)[0]
    network = LlamaForSequenceClassification.from_pretrained(name).eval()

    def score(text: str) -> float:
        return float(network(torch.tensor([byte_tokenizer()(text)["input_ids"]])).logits.detach()[0, 0])

    expected = score("Why? Because.") - score("Why? Never ever.")
    assert abs(expected) > 1e-4
    assert judge([("Why?", " Because.", " Never ever.")]) == [pytest.approx(expected, abs=1e-5)]
    assert judge([("Why?", " Never ever.", " Because.")]) == [pytest.approx(-expected, abs=1e-5)]


def test_more_labels_than_one_are_no_reward(tmp_path: Path):
    with pytest.raises(UsageError, match=r"has 2 labels; a reward model has one"):
        judges.named(saved(tmp_path, labels=2), JUDGED, 9.0)


def test_weights_that_could_run_code_are_not_read(tmp_path: Path):
    saved(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights as"):
        judges.named(str(tmp_path), JUDGED, 9.0)


def test_a_language_model_is_asked_in_both_orders():
    judge, name = judges.named("tiny:llama", JUDGED, 9.0)
    assert name == f"tiny:llama, sha256 {JUDGED.fingerprint}"
    source = Source("tiny:llama")
    letters = [byte_tokenizer()(letter, add_special_tokens=False)["input_ids"] for letter in (" A", " B")]

    def odds(first: str, second: str) -> float:
        asked = judges.QUESTION.format(prompt="Why?", first=first, second=second)
        ids = byte_tokenizer()(asked)["input_ids"] + letters[0][:-1]
        laws = source.model()(torch.tensor([ids])).logits.detach()[0, -1].log_softmax(-1)
        return float(laws[letters[0][-1]] - laws[letters[1][-1]])

    one, other = odds("Because.", "Never."), odds("Never.", "Because.")
    # a network of random weights likes a letter, whatever is asked
    assert abs(one + other) > 1e-4
    assert judge([("Why?", "Because.", "Never.")]) == [pytest.approx((one - other) / 2, abs=1e-5)]
    assert judge([("Why?", "Never.", "Because.")]) == [pytest.approx((other - one) / 2, abs=1e-5)]
    assert judge([("Why?", "Never.", "Never.")]) == [pytest.approx(0.0, abs=1e-6)]


def test_wins_are_counted_and_ties_are_half():
    judge = lambda questions: [float(len(first) - len(second)) for _, first, second in questions]  # noqa: E731
    assert judges.wins(judge, ["", "", ""], ["aaa", "b", "cc"], ["a", "bbb", "dd"]) == [1.0, 0.0, 0.5]


def test_a_name_that_nothing_can_have_is_refused():
    with pytest.raises(UsageError, match="unknown model"):
        judges.named("somebody", JUDGED, 9.0)
