"""Our policies beside kvpress: what is held against it, without kvpress itself."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.models import Source
from benchmarks.kv_cache.core import kvpress_comparison as comparison
from benchmarks.kv_cache.core.kvpress_pairs import ids_of, kept_tokens

registry.load_plugins()
IDS = ids_of(Source("tiny:llama"), comparison.CONTEXT + comparison.NEW)[1]


@pytest.mark.parametrize("pair", comparison.PAIRS, ids=lambda pair: pair.technique)
def test_ours_keeps_as_much_as_a_press(pair: comparison.Pair) -> None:
    found = comparison.kept(pair, Source("tiny:llama"), IDS, comparison.CONTEXT)
    sizes = [len(head) for layer in found["held"] for head in layer]
    assert sum(sizes) == 6 * kept_tokens(comparison.CONTEXT)
    assert len(set(sizes)) > 1 or pair.technique not in ("adakv", "pyramidkv")
    assert all(0 <= at < comparison.CONTEXT for layer in found["held"] for head in layer for at in head)
    assert len(found["logits"]) == comparison.NEW
    if pair.technique != "streaming_llm_absolute":
        for held, worth in zip(found["held"][0], found["scores"][0], strict=True):
            assert len(worth) == comparison.CONTEXT
            if pair.technique != "adakv":
                assert min(worth[at] for at in held) >= sorted(worth)[-len(held)]


def test_one_other_token_in_one_head_is_no_agreement() -> None:
    pair = comparison.PAIRS[0]
    worth = [float(10 - at) for at in range(10)]
    ours: dict[str, Any] = {
        "held": [[[0, 1, 2, 3], [4, 5, 6, 7]]],
        "logits": [[0.0, 1.0]],
        "scores": [[worth, worth]],
    }
    same = comparison.compared(pair, ours, ours)
    assert same["agrees"]
    assert same["largest_logit_difference"] == 0
    theirs = copy.deepcopy(ours)
    theirs["held"][0][1][0] = 9
    other = comparison.compared(pair, ours, theirs)
    assert not other["agrees"]
    assert other["same_tokens"] == 0.75
    assert other["same_tokens_mean"] == 0.875
    assert other["largest_logit_difference"] is None
    assert other["logits_reason"] == "other tokens are held"
    assert other["scores_apart"] == (6 - 1) / 6  # of tokens 4 and 9
    tied = {**ours, "scores": [[worth, [*worth[:9], 6.0 + 1e-6]]]}
    near = comparison.compared(pair, tied, theirs)
    assert near["agrees"]
    assert near["logits_reason"] == "other tokens of equal score are held"
    assert not comparison.compared(pair, {**ours, "scores": []}, theirs)["agrees"]
    stays = {**ours, "scores": [[worth, [*worth[:9], math.inf]]]}
    assert not comparison.compared(pair, stays, theirs)["agrees"]
    more = {**tied, "held": [[[0, 1, 2, 3], [4, 5, 6, 7, 8]]]}
    assert not comparison.compared(pair, more, theirs)["agrees"]
    wrong = {**ours, "logits": [[0.0, 1.1]]}
    assert not comparison.compared(pair, ours, wrong)["agrees"]


def test_the_record_and_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = {"now": False}

    def presses(command: list[str], check: bool, env: dict[str, str]) -> None:
        """In kvpress' place: what ours keeps."""
        folder = Path(command[-1])
        task = json.loads((folder / "task.json").read_text())
        assert (folder / "model" / "model.safetensors").is_file()
        found: dict[str, Any] = {
            pair.technique: comparison.kept(pair, Source("tiny:llama"), task["ids"], task["context"])
            for pair in comparison.PAIRS
        }
        if spoiled["now"]:
            found["knorm"]["held"][0][0][0] = 190
        (folder / "theirs.json").write_text(json.dumps({"versions": {"kvpress": "0"}, "found": found}))

    monkeypatch.setattr(comparison.subprocess, "run", presses)
    arguments = ["--python", "python", "--out", str(tmp_path / "record.json")]
    assert comparison.main(arguments) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert all(pair["agrees"] for pair in record["pairs"])
    assert record["versions"]["theirs"] == {"kvpress": "0"}
    spoiled["now"] = True
    assert comparison.main(arguments) == 1
