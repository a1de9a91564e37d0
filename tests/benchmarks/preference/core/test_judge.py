"""A judge prefers what its scores prefer, whichever answer comes first, and says what it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from bench.byte_tokenizer import byte_tokenizer
from bench.conversation import Asked
from bench.errors import UsageError
from bench.models import Source
from benchmarks.preference.core import judge as judges

JUDGED = Source("tiny:llama")
TEMPLATE = "<bos>{% for turn in messages %}{{ turn['role'] + '=' + turn['content'] + ';' }}{% endfor %}"
WHY = Asked((), "Why?")
TALK = Asked((("user", "Why?"), ("assistant", "How?"), ("user", "So?")), "a transcript\n\nAssistant:")


def saved(folder: Path, labels: int = 1, template: str | None = None) -> str:
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
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("template", "asked", "read"),
    [
        (None, WHY, "Why? {}"),
        (None, TALK, "a transcript\n\nAssistant: {}"),
        (TEMPLATE, WHY, "<bos>user=Why?;assistant={};"),
        (TEMPLATE, TALK, "<bos>user=Why?;assistant=How?;user=So?;assistant={};"),
    ],
)
def test_a_reward_model_compares_its_scores(tmp_path: Path, template: str | None, asked: Asked, read: str):
    name = saved(tmp_path, template=template)
    judge = judges.named(name, JUDGED, 9.0)[0]
    network = LlamaForSequenceClassification.from_pretrained(name).eval()

    def score(answer: str) -> float:
        ids = byte_tokenizer()(read.format(answer), add_special_tokens=False)["input_ids"]
        return float(network(torch.tensor([ids])).logits.detach()[0, 0])

    expected = score("Because.") - score("Never ever.")
    assert abs(expected) > 1e-4
    assert judge([(asked, " Because.", " Never ever.")]) == [pytest.approx(expected, abs=1e-5)]
    assert judge([(asked, " Never ever.", " Because.")]) == [pytest.approx(-expected, abs=1e-5)]


def test_a_template_that_takes_no_conversation_is_named(tmp_path: Path):
    judge = judges.named(saved(tmp_path, template="{{ raise_exception('no roles') }}"), JUDGED, 9.0)[0]
    with pytest.raises(UsageError, match=r"its chat template refuses a conversation \(no roles\)"):
        judge([(WHY, "Because.", "Never.")])


def test_more_labels_than_one_are_no_reward(tmp_path: Path):
    with pytest.raises(UsageError, match=r"has 2 labels; a reward model has one"):
        judges.named(saved(tmp_path, labels=2), JUDGED, 9.0)


def test_weights_that_could_run_code_are_not_read(tmp_path: Path):
    saved(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights as"):
        judges.named(str(tmp_path), JUDGED, 9.0)


@pytest.mark.parametrize("template", [None, TEMPLATE + "{% if add_generation_prompt %}assistant={% endif %}"])
def test_a_language_model_is_asked_in_both_orders(monkeypatch: pytest.MonkeyPatch, template: str | None):
    source = Source("tiny:llama")
    monkeypatch.setattr(source.tokenizer, "chat_template", template)
    monkeypatch.setattr(judges, "Source", lambda *given, **also: source)
    judge, name = judges.named("tiny:llama", JUDGED, 9.0)
    assert name == f"tiny:llama, sha256 {JUDGED.fingerprint}"
    letters = [byte_tokenizer()(letter, add_special_tokens=False)["input_ids"] for letter in (" A", " B")]

    def odds(first: str, second: str) -> float:
        asked = judges.QUESTION.format(prompt="Why?", first=first, second=second)
        read = f"<bos>user={asked};assistant={judges.REPLY}" if template else f"{asked} {judges.REPLY}"
        ids = byte_tokenizer()(read)["input_ids"] + letters[0][:-1]
        laws = source.model()(torch.tensor([ids])).logits.detach()[0, -1].log_softmax(-1)
        return float(laws[letters[0][-1]] - laws[letters[1][-1]])

    one, other = odds("Because.", "Never."), odds("Never.", "Because.")
    # a network of random weights likes a letter, whatever is asked
    assert abs(one + other) > 1e-4
    assert judge([(WHY, "Because.", "Never.")]) == [pytest.approx((one - other) / 2, abs=1e-5)]
    assert judge([(WHY, "Never.", "Because.")]) == [pytest.approx((other - one) / 2, abs=1e-5)]
    assert judge([(WHY, "Never.", "Never.")]) == [pytest.approx(0.0, abs=1e-6)]


def test_wins_are_counted_and_ties_are_half():
    judge = lambda questions: [float(len(first) - len(second)) for _, first, second in questions]  # noqa: E731
    assert judges.wins(judge, [WHY] * 3, ["aaa", "b", "cc"], ["a", "bbb", "dd"]) == [1.0, 0.0, 0.5]


def test_a_name_that_nothing_can_have_is_refused():
    with pytest.raises(UsageError, match="unknown model"):
        judges.named("somebody", JUDGED, 9.0)
