"""A small network is trained on what nobody scores, goes on where it stopped, and becomes a model like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import embedded_stdlib, text
from bench.errors import ModelError, UsageError
from bench.models import Source, Sources
from benchmarks.finetuning.embedded_text import EmbeddedText
from benchmarks.finetuning.pretrain import __main__ as script
from benchmarks.finetuning.pretrain import corpus, training
from benchmarks.finetuning.pretrain.training import Recipe
from techniques.finetuning.full import Full

OWN = (
    "def add(a, b):\n    return a + b  # what is nowhere else: one two three four five six seven eight nine ten\n" * 20
)
SHAPE = {**script.SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL = {"vocab_size": 264, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
RECIPE = Recipe(tokens=12 * 2 * 16, rows=2, length=16, rate=1e-2)
ROWS = torch.arange(40 * 16).view(40, 16) % 7


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library of two files, one of which quotes a text that is scored."""
    scored = max(text.documents("test").values(), key=len)
    files = [OWN, f"quoted below\n{scored[:400]}"]
    monkeypatch.setattr(corpus, "_library", lambda: iter(files))
    return files


def test_what_is_scored_elsewhere_is_not_read(library: list[str]) -> None:
    found = corpus.gather()
    train = list(text.documents("train").values())
    assert found.documents == (*train, *train, *train, *train, OWN)
    assert found.shared == 1
    scored = [document for split in ("test", "validation", "prompts") for document in text.documents(split).values()]
    assert not set(scored) & set(found.documents)
    assert found.sha256 != corpus.Corpus(found.documents[::-1], 1).sha256


def test_modules_that_a_workload_scores_are_left_out_with_all_that_quote_them() -> None:
    import bisect
    import inspect

    scored = list(corpus._scored())
    assert inspect.getsource(bisect) in scored
    assert set(text.documents("test").values()) < set(scored)


def test_the_library_is_python_without_its_tests() -> None:
    files: Iterator[str] = corpus._library()
    assert sum(len(document) for document, _ in zip(files, range(5), strict=False)) > 1000
    assert {"test", "site-packages", "pydoc_data"} <= corpus.LEFT_OUT


def test_tokens_are_the_text_and_an_end_behind_every_document() -> None:
    tokenizer = corpus.tokenizer_of([OWN], 300)
    assert len(tokenizer) == 300
    said = "return äöü\n\n  seven"
    assert tokenizer.decode(tokenizer(said)["input_ids"]) == said
    rows = corpus.rows_of(tokenizer, [OWN, "two"], 8)
    end = tokenizer.eos_token_id
    stream = [*tokenizer(OWN)["input_ids"], end, *tokenizer("two")["input_ids"], end]
    assert end not in tokenizer(OWN)["input_ids"]
    assert rows.flatten().tolist() == stream[: len(stream) // 8 * 8]
    assert rows.shape[1] == 8


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(tokens=1000 * 2048)
    rates = [recipe.rate_at(step) for step in range(recipe.steps)]
    assert recipe.steps == 1000
    assert max(rates) == pytest.approx(recipe.rate)
    assert rates.index(max(rates)) == 30
    assert rates[0] == pytest.approx(recipe.rate / 20)
    assert rates[-1] == pytest.approx(recipe.rate / 20, rel=1e-3)


def test_a_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EVERY", 5)
    whole, seen = training.network({**SHAPE, **SMALL}, 0), []
    spent = training.train(whole, ROWS, ROWS[:4], RECIPE, tmp_path / "a.pt", seen.append)
    assert [record["step"] for record in seen] == [5, 10, 12]
    assert seen[-1]["heldout_nll"] < seen[0]["heldout_nll"] - 0.2
    assert (spent["steps"], spent["tokens"]) == (12, 12 * 32)

    class Stopped(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 10:
            raise Stopped

    first = training.network({**SHAPE, **SMALL}, 0)
    with pytest.raises(Stopped):
        training.train(first, ROWS, ROWS[:4], RECIPE, tmp_path / "b.pt", stop)
    second = training.network({**SHAPE, **SMALL}, 1)  # the checkpoint's weights, whatever it begins with
    later: list[dict[str, Any]] = []
    training.train(second, ROWS, ROWS[:4], RECIPE, tmp_path / "b.pt", later.append)
    assert [record["step"] for record in later] == [12]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    with pytest.raises(UsageError, match="is of another training; remove it"):
        training.train(second, ROWS, ROWS[:4], replace(RECIPE, seed=RECIPE.seed + 1), tmp_path / "b.pt", later.append)


def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UsageError, match="it holds something else"):
        script.main(script.arguments(["--out", str(tmp_path), "--work", str(tmp_path / "work")]), print)
    assert (tmp_path / "precious.txt").read_text() == "x"


def test_the_loss_is_of_the_next_token() -> None:
    model: Any = training.network({**SHAPE, **SMALL}, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ROWS[:2], labels=ROWS[:2]).loss
    assert float(training.loss_of(model, ROWS[:2])) == pytest.approx(float(expected), abs=1e-3)
    assert training.heldout_nll(model, ROWS[:6]) == pytest.approx(
        float(torch.stack([training.loss_of(model, row[None]) for row in ROWS[:6]]).mean()), abs=0.02
    )


def test_what_it_makes_is_a_model_of_the_harness(
    library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SHAPE", SHAPE)
    monkeypatch.setattr(corpus, "DOCUMENTATION_READ", 1)
    monkeypatch.setattr(embedded_stdlib, "TRAINED", tmp_path / "model")
    wanted = script.arguments(["--tokens", "6144", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "model")])
    said: list[str] = []
    script.main(wanted, said.append)
    report = json.loads((tmp_path / "model" / embedded_stdlib.REPORT).read_text())
    assert report["recipe"]["tokens"] == 6144
    assert report["cost"]["tokens"] == 6144
    assert report["corpus"]["left_out"] == 1
    assert report["log"][-1]["step"] == 3
    source = Source(embedded_stdlib.NAME, dtype="bfloat16")
    assert embedded_stdlib.ensure() == tmp_path / "model"
    assert source.fingerprint == report["weights"]["sha256"]
    workload = EmbeddedText(sequence=32, steps=2, items=4, other_items=2)
    technique = Full()
    quality = workload.quality(
        technique, technique.prepare(Sources(source)), workload.build(Sources(source), 0), 0, source, None
    )
    assert all(gate.passed for gate in quality.gates)
    with (tmp_path / "model" / embedded_stdlib.WEIGHTS).open("r+b") as weights:
        weights.seek(-2, 2)
        weights.write(b"xx")
    with pytest.raises(ModelError, match=r"are damaged; make them with scripts/pretrain"):
        embedded_stdlib.ensure()
    (tmp_path / "model" / embedded_stdlib.WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"model.safetensors is missing; make it with scripts/pretrain"):
        embedded_stdlib.ensure()
