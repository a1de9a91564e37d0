from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import embedded, embedded_draft, model_names
from bench.errors import ModelError
from bench.models import Source
from bench.plan import parameters_of

REQUESTS = (
    "Write a letter to a neighbour who makes too much noise.",
    "Translate into French: My brother sold his boat to a friend in May.",
    "A farmer has 14 hens and buys 9 more. How many eggs does she collect if each hen lays 2 eggs?",
    "What should I know before I adopt a cat?",
    "Give me three ideas for a birthday party in the garden.",
)
"""None of the training's prompts."""


@pytest.mark.embedded
def test_it_is_an_ordinary_model_with_the_targets_vocabulary_and_embeddings() -> None:
    folder = embedded_draft.ensure()
    target = embedded.ensure()
    draft = AutoModelForCausalLM.from_pretrained(folder)
    whole = load_file(target / "model.safetensors")
    assert draft.get_input_embeddings().weight.equal(whole["model.embed_tokens.weight"])
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(target).get_vocab()
    assert draft.get_output_embeddings().weight.shape == whole["model.embed_tokens.weight"].shape
    norms = (2 * draft.config.num_hidden_layers + 1) * draft.config.hidden_size
    assert sum(p.numel() for p in draft.parameters()) == parameters_of(embedded_draft.NAME) + norms
    assert draft.config.num_hidden_layers == json.loads(embedded_draft.REPORT.read_text())["layers"]
    frequent = json.loads((folder / embedded_draft.FREQUENT_FILE).read_text())
    assert len(set(frequent)) == len(frequent) > 1000
    assert max(frequent) < draft.config.vocab_size


@pytest.mark.embedded
def test_the_target_would_accept_much_of_what_it_proposes() -> None:
    model_names.ensure([embedded_draft.NAME])
    source = Source(embedded.NAME)
    target, draft = source.model(), Source(embedded_draft.NAME).model()
    accepted, same = [], []
    for request in REQUESTS:
        turn = [{"role": "user", "content": request}]
        text = source.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        asked = source.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            ids = target.generate(asked, do_sample=False, max_new_tokens=32, min_new_tokens=32, pad_token_id=2)
            p, q = (model(ids[:, :-1]).logits[0, asked.shape[1] - 1 :] for model in (target, draft))
        accepted.append(torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    assert torch.cat(accepted).mean() > 0.35
    assert torch.cat(same).float().mean() > 0.28


@pytest.mark.embedded
def test_a_damaged_copy_is_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = embedded.ensure()
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "ensure", lambda say=None: target)
    said: list[str] = []
    folder = embedded_draft.ensure(said.append)
    assert folder.parent == tmp_path
    embedded_draft.ensure(said.append)
    assert len(said) == 1, "a sound copy is made again"
    (folder / "config.json").write_text("{}")
    embedded_draft.ensure(said.append)
    assert len(said) == 2
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 49152


def test_the_weights_in_the_package_are_small_and_on_record() -> None:
    assert embedded_draft.TRAINED.stat().st_size < 20_000_000
    report = json.loads(embedded_draft.REPORT.read_text())
    assert report["target"]["sha256"] == embedded.WEIGHTS_SHA256
    assert report["cost"]["seconds"] > 0
    assert len(report["texts"]["sha256"]) == 64


def test_missing_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded_draft, "TRAINED", tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="scripts/train_draft"):
        embedded_draft.ensure()


def test_it_is_a_model_like_any_other() -> None:
    assert model_names.kind_of(embedded_draft.NAME) == "embedded"
    source = Source(embedded_draft.NAME)
    assert source.fingerprint != Source(embedded.NAME).fingerprint
    assert source.origin != Source(embedded.NAME).origin
