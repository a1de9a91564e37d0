"""The draft's training on tiny networks: what is read, what is learnt, and what is stored."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bench import embedded_draft
from bench.byte_tokenizer import byte_tokenizer
from bench.models import Source
from techniques.decoding.distil import corpus, costs, measuring, prompts, training, writing
from techniques.decoding.distil.loss import agreement
from techniques.decoding.distil.network import DraftNetwork, RidgeFit
from techniques.decoding.distil.stored import restore, store
from techniques.decoding.distil.subjects import HELD_OUT, NOUNS, SUBJECTS, held_out
from techniques.decoding.distil.texts import Evaluation, asked, straight
from techniques.decoding.distil.writing import Shard

KEPT = next(subject for subject in SUBJECTS if held_out(subject))
TAUGHT = next(subject for subject in SUBJECTS if not held_out(subject))


@pytest.fixture
def target() -> Any:
    """A tiny model with opinions: weights large enough that its texts are not uniform noise."""
    model = Source("tiny:llama").model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture
def texts(target: Any, tmp_path: Path) -> corpus.Corpus:
    files = []
    for index in range(8):
        generator = torch.Generator().manual_seed(index)
        asking = torch.randint(0, 256, (8, 12), generator=generator)
        ids, hidden = writing.continued(target, asking, 16, greedy=False, own=False, generator=generator)
        file = tmp_path / f"{index}.safetensors"
        Shard(ids.int(), hidden, ["chat"] * 8, [KEPT, *[TAUGHT] * 7], greedy=False).save(file)
        files.append(file)
    return corpus.gather(files)


def test_a_text_is_read_up_to_where_it_goes_in_circles() -> None:
    assert straight(list(range(100))) == 100
    assert straight([*range(40), *[7, 8, 9] * 30]) == 48  # the circle begins inside the third block
    assert straight([*range(64), *range(64)]) == 64
    assert straight([1, 2, 3, 4]) == 4
    assert straight([5] * 40) == 0


def test_what_the_user_says_and_what_training_shares_with_it() -> None:
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    user = "one two three four five six seven eight nine"
    chat = f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nAnd"
    assert asked(chat) == [user, "And"]
    assert asked("no chat") == ["no chat"]
    evaluation = Evaluation({"a": ["Two, three four FIVE six seven eight nine!", "of its own"], "b": ["one two three"]})
    assert evaluation.shares(user)
    assert not evaluation.shares("two three four five six seven eight ten")
    assert evaluation.overlap([user]) == {
        "a": {"prompts": 2, "overlapping": 1},
        "b": {"prompts": 1, "overlapping": 0},
    }


def test_one_subject_in_sixteen_is_kept_apart_whatever_is_asked_about_it() -> None:
    share = sum(held_out(f"subject {index}") for index in range(4000)) / 4000
    assert share == pytest.approx(1 / HELD_OUT, rel=0.3)
    draw = random.Random(0)
    for _ in range(400):
        prompt = prompts.chat(draw)
        named = {subject for subject in SUBJECTS if f" {subject}" in prompt.text and subject in prompt.text.split(" ")}
        assert {held_out(subject) for subject in named} <= {held_out(prompt.subject)}, prompt.text
        fact = prompts.fact(draw)
        named = {noun for noun in NOUNS if re.search(rf"\b{noun}\b", fact.text)}
        named -= {short for short in named for noun in named if short != noun and short in noun}
        assert fact.subject in named
        assert {held_out(noun) for noun in named} == {held_out(fact.subject)}, fact.text


def test_two_passages_of_one_prompt_are_of_the_same_split() -> None:
    draw = random.Random(0)
    passages = [prompts.Passage(subject, f"All that is known of {subject}.") for subject in SUBJECTS]
    seen = set()
    for _ in range(400):
        prompt = prompts.together(draw, passages)
        about = [passage.subject for passage in passages if passage.text in prompt.text]
        assert prompt.subject in about
        assert {held_out(subject) for subject in about} == {held_out(prompt.subject)}
        seen.add(held_out(prompt.subject))
    assert seen == {True, False}


def test_rows_go_where_their_subject_says(target: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (4, 80), generator=generator).int()
    ids[2, 10:] = 7  # goes in circles
    ids[1, 10 + 48 :] = 7  # does so later
    Shard(ids, torch.zeros(4, 70, 64), ["chat"] * 4, [KEPT, TAUGHT, TAUGHT, TAUGHT], greedy=True).save(tmp_path / "a")
    unwanted = ids[3].tolist()
    found = corpus.gather([tmp_path / "a"], lambda text: text == unwanted)
    assert found.held_out == [(tmp_path / "a", [0])]
    assert found.training == [(tmp_path / "a", [1])]
    assert found.texts == {"training": 1, "held_out": 1, "left_out_looping": 1, "left_out_overlapping": 1}
    assert sum(found.counts.values()) == 48
    assert corpus.read(tmp_path / "a", [0, 1]).straight.sum(1).tolist() == [70, 48]
    assert found.counts[found.frequent(1)[0]] == max(found.counts.values())


@torch.no_grad()
def test_hidden_states_are_those_that_chose_the_tokens(target: Any) -> None:
    asking = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(1))
    ids, hidden = writing.continued(target, asking, 6, greedy=True, own=False, generator=torch.Generator())
    assert ids.shape == (3, 15)
    assert torch.equal(target.lm_head(hidden).argmax(-1), ids[:, 9:])
    whole = target.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[:, -6:]
    assert torch.allclose(whole, hidden, atol=1e-5)


def test_writing_goes_on_where_it_stopped(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS", 3)
    orders = [series.order for series in prompts.SERIES]
    monkeypatch.setattr(writing, "SERIES", [replace(series, new=8) for series in prompts.SERIES])
    monkeypatch.setattr(writing, "LONGEST", 1200)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    said: list[str] = []
    files = writing.write(target, tokenizer, tmp_path / "a", 8 * 3 * 7, 0, said.append)
    assert len(files) == len(said) == 7
    assert [Shard.load(file).kinds[0] in ("own", "begun") for file in files] == [
        sort in ("own", "begun") for sort in (*orders[0], orders[0][0])
    ]
    assert all(subject.startswith(tuple(prompts.OPENINGS)) for subject in Shard.load(files[0]).subjects)
    before = [Shard.load(file) for file in files]
    files[5].unlink()
    again = writing.write(target, tokenizer, tmp_path / "a", 8 * 3 * 7, 0, said.append)
    assert len(said) == 8
    for old, new in zip(before, map(Shard.load, again), strict=True):
        assert torch.equal(old.ids, new.ids)
        assert (old.kinds, old.subjects, old.greedy) == (new.kinds, new.subjects, new.greedy)


def test_the_map_is_the_least_squares_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(200, 6, generator=generator) for _ in range(2))
    fit = RidgeFit(6)
    for part in (slice(0, 90), slice(90, 200)):
        fit.add(inputs[part], outputs[part])
    expected, *_ = np.linalg.lstsq(inputs.numpy(), outputs.numpy(), rcond=None)
    assert np.allclose(fit.solve(ridge=0.0).numpy().T, expected, atol=1e-5)
    assert fit.solve(ridge=1.0).norm() < fit.solve(ridge=0.0).norm()


@pytest.mark.parametrize("kl_share", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_the_loss(kl_share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 11, generator=generator) * 2
    draft = (torch.randn(5, 11, generator=generator) * 2).requires_grad_()
    p, log_q = target.softmax(-1), draft.log_softmax(-1)
    accepted = torch.minimum(p, log_q.exp()).sum(-1)
    kl = (p * (p.log() - log_q)).sum(-1)
    (kl_share * kl - (1 - kl_share) * accepted.log()).sum().backward()
    compared = agreement(target, draft.detach(), kl_share)
    assert torch.allclose(compared.accepted, accepted.detach(), atol=1e-6)
    assert torch.allclose(compared.gradient, draft.grad, atol=1e-6)
    assert agreement(target, target).accepted.allclose(torch.ones(5))


def test_training_makes_the_draft_more_acceptable_and_can_be_interrupted(
    target: Any, texts: corpus.Corpus, tmp_path: Path
) -> None:
    head = target.lm_head.weight.detach()
    recipe = training.Recipe(tokens=12_000, rate=5e-3, vocabulary=264)

    def trained(checkpoint: Path, stop: int | None) -> DraftNetwork:
        network = DraftNetwork(target, 1)

        def log(record: dict[str, Any]) -> None:
            if record["step"] == stop:
                raise KeyboardInterrupt

        training.train(network, texts, head, recipe, checkpoint, log, dict, every=20)
        return network

    def accepted(network: DraftNetwork) -> float:
        share: float = measuring.acceptance(network, texts.held_out, head)["all"]["accepted"]
        return share

    start = accepted(DraftNetwork(target, 1))
    network = trained(tmp_path / "whole.pt", None)
    assert accepted(network) > start + 0.03
    fitted = DraftNetwork(target, 1)
    training.fit_map(fitted, texts, 0)
    assert accepted(fitted) > start + 0.03
    assert network.body.embed_tokens.weight.equal(target.model.embed_tokens.weight)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts.pt", 40)
    resumed = trained(tmp_path / "parts.pt", None)
    for one, other in zip(network.trained().values(), resumed.trained().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_tokens_of_a_round_follow_the_runs_of_agreement() -> None:
    text = torch.tensor([True, True, False, True, True, True, False, False])
    # with drafts of two: 2 accepted and 1 of the target's, 2 and 1, none and 1, none and 1
    assert measuring.tokens_per_round([text], 2) == pytest.approx(8 / 4)
    assert measuring.tokens_per_round([text], 1) == pytest.approx(8 / 5)
    assert measuring.tokens_per_round([torch.zeros(5, dtype=torch.bool)], 4) == 1.0


def test_what_a_draft_is_worth() -> None:
    seconds = {"target_1": 0.05, "target_3": 0.06, "draft": 0.01}
    assert costs.worth({"2": 2.0}, seconds, "draft") == {"2": pytest.approx(2.0 * 0.05 / (2 * 0.01 + 0.06))}


def test_the_stored_draft_is_an_ordinary_model(target: Any, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path / "target")
    byte_tokenizer().save_pretrained(tmp_path / "target")
    network = DraftNetwork(target, 2)
    with torch.no_grad():
        for tensor in network.trained().values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))
    store(network, [5, 3, 1], tmp_path / "draft.safetensors")
    again = DraftNetwork(target, 2)
    restore(again, tmp_path / "draft.safetensors")
    embedded_draft.assemble(tmp_path / "target", tmp_path / "draft.safetensors", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(20)[None]
    assert model.config.num_hidden_layers == 2
    assert torch.allclose(model(ids).logits, again(ids) @ target.lm_head.weight.T, atol=1e-4)
    assert torch.allclose(again(ids), network(ids), atol=0.2)
    assert (tmp_path / "model" / embedded_draft.FREQUENT_FILE).read_text() == "[5, 3, 1]"
