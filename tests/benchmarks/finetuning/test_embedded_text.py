"""Sequences are real text, packed without gaps; no held-out text is trained on."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import text
from bench.errors import Unsupported, UsageError
from bench.models import Source, Sources
from benchmarks.finetuning.core.sequences import end_to_end
from benchmarks.finetuning.embedded_text import EmbeddedText
from techniques.finetuning.full import Full
from techniques.finetuning.lora import Lora

SOURCES = Sources(Source("tiny:llama"))
EOS = 257


def packed(source: Source, split: text.Split, sequence: int) -> list[list[int]]:
    return end_to_end(source, text.documents(split).values(), sequence)


def test_sequences_are_the_documents_with_one_end_behind_each():
    stream = [i for row in packed(SOURCES.target, "train", 100) for i in row]
    documents = list(text.documents("train").values())
    expected = [i for d in documents for i in (*SOURCES.target.tokenizer(d)["input_ids"], EOS)]
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) < 100
    assert [EOS, EOS] not in [stream[i : i + 2] for i in range(len(stream))]


def test_end_is_not_doubled_where_the_tokenizer_writes_it():
    class Ending:
        eos_token_id = 7

        def __call__(self, document: str) -> dict[str, list[int]]:
            return {"input_ids": [1, *range(10, 10 + len(document.split()) % 50), 7]}

    class Peer:
        tokenizer = Ending()

    peer: Any = Peer()
    stream = [i for row in packed(peer, "train", 5) for i in row]
    assert all(pair != (7, 7) for pair in itertools.pairwise(stream))
    assert all(b == 1 for a, b in itertools.pairwise(stream) if a == 7)


def test_sizes_and_determinism():
    workload = EmbeddedText(sequence=64, items=5)
    built = workload.build(SOURCES, 0)
    assert built == workload.build(SOURCES, 1)
    assert {len(one["ids"]) for name in ("train", "heldout", "other") for one in built[name]} == {64}
    assert {one["prompt"] for one in (*built["train"], *built["heldout"])} == {0}
    assert (len(built["heldout"]), len(built["other"])) == (5, 8)


def test_heldout_is_disjoint_from_training_and_spread_over_its_split():
    built = EmbeddedText(sequence=64, items=20).build(SOURCES, 0)
    heldout = {tuple(one["ids"]) for one in built["heldout"]}
    assert len(heldout) == 20
    assert not heldout & {tuple(one["ids"]) for one in built["train"]}
    there = packed(SOURCES.target, "test", 64)
    places = [there.index(one["ids"]) for one in built["heldout"]]
    assert places[0] == 0
    assert places[-1] == len(there) - 1


@pytest.mark.parametrize(
    ("values", "split"), [({"sequence": 2000, "batch_size": 200}, "train"), ({"items": 1000}, "test")]
)
def test_too_little_text_is_said(values: dict[str, int], split: str):
    with pytest.raises(UsageError, match=f"its {split} split holds"):
        EmbeddedText(**values).build(SOURCES, 0)


def test_a_text_of_ones_own(tmp_path: Path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"text": f"document {n} " + "x y z " * 30}) + "\n" for n in range(40)))
    built = EmbeddedText(path=str(own), sequence=64, items=5).build(SOURCES, 0)
    decode = SOURCES.target.tokenizer.decode
    train, heldout = ("".join(decode(one["ids"]) for one in built[name]) for name in ("train", "heldout"))
    assert "document 0 " in train
    assert not set(re.findall(r"document \d+ ", heldout)) & set(re.findall(r"document \d+ ", train))
    with pytest.raises(UsageError, match=r"own.jsonl: its train split"):
        EmbeddedText(path=str(own), sequence=1500, batch_size=8).build(SOURCES, 0)


def test_forgetting_is_looked_for_in_another_domain(tmp_path: Path):
    decode = SOURCES.target.tokenizer.decode
    ours = EmbeddedText(sequence=64, items=5, other_items=3).build(SOURCES, 0)["other"]
    assert len(ours) == 3
    assert decode(ours[0]["ids"]).startswith("Question: ")
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"text": f"document {n} " + "x y z " * 30}) + "\n" for n in range(40)))
    other = EmbeddedText(path=str(own), sequence=64, items=5, other_items=3).build(SOURCES, 0)["other"]
    assert other[0]["ids"] == packed(SOURCES.target, "validation", 64)[0]
    assert not EmbeddedText(sequence=64, items=5, other_items=0).build(SOURCES, 0)["other"]


def test_contamination_is_reported(tmp_path: Path):
    own = tmp_path / "own.jsonl"
    same = "the quick brown fox jumps over the lazy dog while all of the others sleep in the sun"
    # document 1 is held out, document 2 is trained on
    texts = [f"number {n} {f'a{n} b{n} c{n} ' * 30 if n not in (1, 2) else same * 4}" for n in range(20)]
    own.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    built = EmbeddedText(path=str(own), sequence=64, items=8, batch_size=1).build(SOURCES, 0)
    assert built["counts"] == {"contaminated_items": pytest.approx(1, abs=2), "contamination_ngram": 13.0}
    assert built["counts"]["contaminated_items"] >= 1
    assert any("share a run of 13 words" in note for note in built["notes"])
    clean = EmbeddedText(sequence=64, items=5).build(SOURCES, 0)
    assert clean["counts"]["contaminated_items"] == 0
    assert not clean["notes"]


def test_a_sequence_beyond_the_context_is_refused():
    with pytest.raises(Unsupported, match="sequence=2049 exceeds the context of tiny:llama, 2048 tokens"):
        EmbeddedText(sequence=2049, items=1).build(SOURCES, 0)


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
def test_both_arms_learn_on_the_same_batches(name: str):
    sources = Sources(Source(name))
    workload = EmbeddedText(sequence=32, steps=20, items=6)
    built = workload.build(sources, 0)
    starts = set()
    for technique in (Full(learning_rate=1e-3), Lora(learning_rate=5e-3)):
        quality = workload.quality(technique, technique.prepare(sources), built, 0, sources.target, None)
        starts.add(quality.curves["loss"][0][1])
        assert sum(quality.metrics["nll"]) / 6 < quality.counts["nll_before"] - 0.1
        assert quality.counts["epochs"] == 80 / len(built["train"])
        names = [gate.name for gate in quality.gates]
        assert names == (["finite", "frozen", "saved"] if isinstance(technique, Lora) else ["finite"])
        assert all(gate.passed for gate in quality.gates)
    assert len(starts) == 1
