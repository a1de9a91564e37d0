"""Steps timed in turn with kvpress' process, whose place a package of the same name takes here."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from bench import registry
from bench.errors import WorkerError
from bench.families import cache as kv
from bench.models import Source, Sources
from benchmarks.kv_cache.core import kvpress_comparison as comparison
from benchmarks.kv_cache.core import kvpress_timing as timing
from benchmarks.kv_cache.core import kvpress_worker
from benchmarks.kv_cache.core.kvpress_pairs import PAIRS, ids_of, kept_tokens

registry.load_plugins()
CONTEXT, STEPS = 96, 6
SOURCE = Source("tiny:llama")
IDS = ids_of(SOURCE, CONTEXT + STEPS)[1]

KVPRESS = """
from contextlib import contextmanager

print("what a library prints is no answer")


class SnapKVPress:
    def __init__(self, compression_ratio, **parameters):
        self.kept = 1 - compression_ratio

    def shorten(self, module, given, named, made):
        layer = named["past_key_values"].layers[module.layer_idx]
        kept = int(layer.keys.shape[-2] * self.kept)
        layer.keys, layer.values = (t[:, :, :kept].clone() for t in (layer.keys, layer.values))

    @contextmanager
    def __call__(self, model):
        hooks = [one.self_attn.register_forward_hook(self.shorten, with_kwargs=True) for one in model.model.layers]
        yield
        for hook in hooks:
            hook.remove()


KnormPress = SnapKVPress
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and in the environment a kvpress that keeps the first tokens."""
    SOURCE.model().save_pretrained(tmp_path / "model")
    package = tmp_path / "packages"
    (package / "kvpress-0.dist-info").mkdir(parents=True)
    (package / "kvpress-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: kvpress\nVersion: 0\n")
    (package / "kvpress.py").write_text(KVPRESS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def bytes_of(tokens: int) -> int:
    """Keys and values of so many tokens [B]."""
    cache = DynamicCache()
    kv.read(SOURCE.model(), torch.tensor([IDS[:tokens]]), cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("dtype", comparison.DTYPES)
def test_both_sides_hold_what_is_asked_and_time_every_step(folder: Path, dtype: str) -> None:
    found = timing.time(replace(SOURCE, dtype=dtype), sys.executable, folder, IDS, CONTEXT, 2)
    assert (found["versions"]["kvpress"], found["dtype"]) == ("0", dtype)
    share = 2 if dtype == "bfloat16" else 1
    whole, part = (bytes_of(tokens + STEPS) // share for tokens in (CONTEXT, kept_tokens(CONTEXT)))
    held = {arm: one["bytes"] for arm, one in found["arms"].items()}
    assert held == {
        "full_cache": whole,
        "plain": whole,
        "hf_dynamic": whole,
        "snapkv": held["snapkv"],
        "SnapKVPress": part,
        "knorm": held["knorm"],
        "KnormPress": part,
    }
    # ours may hold besides which tokens its keys are of
    assert all(part <= held[arm] < 1.1 * part for arm in ("snapkv", "knorm"))
    assert len(found["rounds"]) == 2
    for each in found["rounds"]:
        assert set(each) == set(timing.ARMS)
        assert all(len(turn["seconds"]) == STEPS and min(turn["seconds"]) > 0 for turn in each.values())
    assert all(f"\n{arm} " in "\n".join(timing.lines(found)) for arm in timing.ARMS)


def test_turns_alternate_and_the_first_round_is_not_counted() -> None:
    asked: list[str] = []

    def turn(arm: str) -> timing.Turn:
        return lambda: asked.append(arm) or {"seconds": [float(len(asked))], "bytes": 1}

    found = list(timing.rounds({arm: turn(arm) for arm in timing.ARMS}, 2))
    arms = list(timing.ARMS)
    assert asked == arms[::-1] + arms + arms[::-1]
    assert [each["full_cache"]["seconds"] for each in found] == [[8.0], [21.0]]


def fabricated(steps: dict[str, float], slow: float = 1.0) -> dict[str, dict[str, Any]]:
    """A round in which all steps take `slow` times as long."""
    return {arm: {"seconds": [9.0, 9.0, *[steps[arm] * slow] * 3], "bytes": 100} for arm in timing.ARMS}


def test_ratios_are_paired_within_a_round() -> None:
    steps = {arm: 2.0 if arm == "snapkv" else 1.0 for arm in timing.ARMS}
    other = {**steps, "snapkv": 3.0}
    # the machine is five times slower in the second round: both arms of it are
    found = timing.summary([fabricated(steps), fabricated(steps, slow=5.0), fabricated(other)])
    (ratio,) = [one for one in found["ratios"] if (one["of"], one["to"]) == ("snapkv", "SnapKVPress")]
    assert ratio["time"] == {"median": 2.0, "least": 2.0, "most": 3.0}
    assert found["arms"]["plain"]["seconds_per_step"] == {"median": 1.0, "least": 1.0, "most": 5.0}


def test_the_press_works_while_the_context_is_read_and_steps_stand_where_the_text_goes_on() -> None:
    """Their turn without a press is the model itself: the places of its steps are those of the text."""
    model: Any = SOURCE.model()
    seen: list[Any] = []

    class Spied(torch.nn.Module):
        def forward(self, **named: Any) -> Any:
            seen.append(named.get("position_ids"))
            return model(**named)

    turn = kvpress_worker.turn(Spied(), None, torch.tensor([IDS]), CONTEXT)
    assert [None if one is None else one.item() for one in seen] == [None, *range(CONTEXT, CONTEXT + STEPS)]
    assert turn["bytes"] == bytes_of(CONTEXT + STEPS)


def test_a_process_that_ends_says_why_in_one_line(folder: Path) -> None:
    (folder / "packages" / "kvpress.py").write_text("raise ImportError('planted')")
    with (
        pytest.raises(WorkerError, match=r"kvpress' process ended: ImportError: planted; make its environment again"),
        timing.theirs(sys.executable, folder, "float32", IDS, CONTEXT),
    ):
        pass


@torch.inference_mode()
def test_ours_is_asked_for_what_the_press_leaves() -> None:
    for arm, pair in timing.COMPRESSED.items():
        turn = timing.ours(arm, SOURCE, IDS, CONTEXT)()
        policy = pair.policy(CONTEXT, STEPS)
        prepared = policy.prepare(Sources(SOURCE))
        cache: Any = policy.cache(prepared, 1, CONTEXT, STEPS)
        kv.read(prepared.model, torch.tensor([IDS[:CONTEXT]]), cache)
        assert kv.kept_tokens(cache) == kept_tokens(CONTEXT)
        assert len(turn["seconds"]) == STEPS


@pytest.mark.embedded
def test_a_real_model_reads_real_text() -> None:
    source = Source("smollm2-135m")
    text, ids = ids_of(source, 1100)
    assert text == "embedded text, test split"
    assert len(ids) == 1100
    assert "the" in source.tokenizer.decode(ids)


def test_the_record_holds_what_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def presses(command: list[str], check: bool, env: dict[str, str]) -> None:
        folder = Path(command[-1])
        task = json.loads((folder / "task.json").read_text())
        assert task["context"] == 100
        found = {pair.technique: comparison.kept(pair, SOURCE, task["ids"], 100) for pair in PAIRS}
        (folder / "theirs.json").write_text(json.dumps({"versions": {}, "found": found}))

    given: dict[str, Any] = {}

    def time(source: Source, python: str, folder: Path, ids: list[int], context: int, count: int) -> dict[str, Any]:
        given.update(ids=len(ids), context=context, count=count, dtype=source.dtype)
        return {"planted": True, **timing.summary([fabricated(dict.fromkeys(timing.ARMS, 1.0))])}

    monkeypatch.setattr(comparison.subprocess, "run", presses)
    monkeypatch.setattr(timing, "time", time)
    arguments = ["--python", "python", "--context", "100", "--out", str(tmp_path / "record.json")]
    assert comparison.main([*arguments, "--time", "--rounds", "3", "--dtype", "bfloat16"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["timing"]["planted"]
    assert (record["context"], record["text"]) == (100, "random ids")
    assert given == {"ids": 100 + comparison.STEPS, "context": 100, "count": 3, "dtype": "bfloat16"}
    assert comparison.main(arguments) == 0
    assert json.loads((tmp_path / "record.json").read_text())["timing"] is None


@pytest.mark.parametrize(("option", "value"), [("--context", "95"), ("--rounds", "0")])
def test_too_little_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        comparison.main(["--python", "python", "--out", "x.json", option, value])
    assert f"{option} is {value}; give " in capsys.readouterr().err
