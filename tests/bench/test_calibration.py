from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from fabricated import ended
from simulated import rounds

from bench import calibration, kept, registry, stats, units
from bench.metrics import GLOSSARY
from bench.models import Source, Sources
from bench.probes.memory import bytes_held
from bench.report import calibration as shown
from bench.verdict import Verdict


@pytest.fixture
def planted() -> Any:
    before = [dict(catalogue._entries) for catalogue in (registry.techniques, registry.workloads)]
    for module in calibration.PLANTED:
        importlib.reload(importlib.import_module(module))
    yield registry.techniques
    for catalogue, entries in zip((registry.techniques, registry.workloads), before, strict=True):
        catalogue._entries = entries


def timed(factor: float, arm: str, memory: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """An arm of the time experiment: as simulated, but told per prompt."""
    parts = rounds(np.random.default_rng(seed), 10, factor, process=0.004, within=0.01, outlying=0.0)
    for part in parts:
        for burst in part["bursts"]:
            seconds = burst["samples"]["seconds"]
            pairs = [value for decoding in seconds for value in (1.0, decoding)]
            kinds = ["prefill", "decode"] * len(seconds)
            burst["samples"] = {"kind": kinds, "seconds": pairs, "tokens": [1] * len(pairs)}
        part["memory"]["peak"] *= memory / factor
    primary = {"quality": "output_nll", "latency": "tpot", "memory": "peak_memory"}
    return ended(arm, rounds=parts, family="decoding", primary=primary)


def records(slower: float = 1.10) -> list[dict[str, Any]]:
    return [
        timed(1.0, "base", seed=1),
        timed(1.0, "twin", seed=2),
        timed(1.05, "5 % slower", seed=3),
        timed(slower, "10 % slower", seed=4),
        timed(1.0, "64 MiB more", memory=1.067, seed=5),
    ]


def test_what_is_planted_is_seen() -> None:
    seen = {(one["arm"], one["metric"]): one["looks"] for one in calibration._seen(records())}
    assert [look["units"] for look in seen["10 % slower", "tpot"]] == [5, 10]
    for fault in (("twin", "tpot"), ("5 % slower", "tpot"), ("10 % slower", "tpot"), ("64 MiB more", "peak_memory")):
        assert seen[fault][-1]["right"] is True, (fault, seen[fault])
    assert seen["0.05 nat worse", "nll"] == [], "it did not run"


def test_a_false_verdict_fails() -> None:
    report = {"seen": list(calibration._seen(records(slower=0.9))), "failed": []}
    assert calibration.exit_code(report) == 1
    assert calibration.exit_code({"seen": list(calibration._seen(records())), "failed": []}) == 0
    assert calibration.exit_code({"seen": [], "failed": ["twin: oom"]}) == 3
    fault = calibration.Fault("twin", "tpot", 1.0, Verdict.SAME)
    assert [calibration.right(fault, v) for v in (Verdict.SAME, Verdict.WORSE, Verdict.INCONCLUSIVE)] == [
        True,
        False,
        None,
    ]


def test_the_resolution_is_what_is_found_four_times_in_five() -> None:
    one = next(
        r for r in calibration.resolutions(records(), minutes=10.0) if (r["metric"], r["rounds"]) == ("tpot", 10)
    )
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        d = math.log1p(one["smallest"]) + rng.normal(0, one["spread"], 10)
        estimate = stats.compare(GLOSSARY["tpot"], dict(enumerate(np.exp(d))), dict.fromkeys(range(10), 1.0))
        found += estimate.low > 1
    assert 0.77 <= found / 2000 <= 0.83
    assert one["minutes"] == pytest.approx(10.0 / 10 / 5 * 2 * 10)


def test_the_spread_is_that_between_rounds() -> None:
    one = next(iter(calibration.resolutions(records(), minutes=1.0)))
    levels = [units.of([r])["tpot"][0] for r in records()]
    expected = [np.std(np.log(list(a.values())) - np.log(list(levels[0].values())), ddof=1) for a in levels[1:]]
    assert one["spread"] == pytest.approx(math.sqrt(np.mean(np.square(expected))))


def test_the_planted_slowdown_lasts_as_long_as_it_should(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100, 1000))
    cls = planted["spoiled_decoding"].cls
    monkeypatch.setattr("bench.planted.spoiled_decoding.time.perf_counter", lambda: float(next(now)))
    cls(slowdown=0.5)._linger(start=60.0, cuda=False)  # 40 have passed
    assert next(now) == 60 + 40 * 1.5 + 1


def test_the_planted_bytes_are_held(planted: Any) -> None:
    sources = Sources(Source("tiny:llama", "target", device="cpu", dtype="float32"))
    assert bytes_held(planted["spoiled_decoding"].cls(mebibytes=3).prepare(sources).holdings())["planted"] == 3 << 20


def test_the_planted_loss_is_real_and_varies(planted: Any) -> None:
    cls = planted["spoiled_cache"].cls
    sources = Sources(Source("tiny:llama", "target", device="cpu", dtype="float32"))
    ids = torch.randint(0, 200, (64, 24), generator=torch.Generator().manual_seed(0))
    plain, worse = (arm.score(arm.prepare(sources), ids, 16).logprobs.mean(1) for arm in (cls(), cls(loss=0.05)))
    lost = plain - worse
    assert float(lost.mean()) == pytest.approx(0.05, abs=3 * 0.05 / 8)
    assert float(lost.std()) == pytest.approx(0.05, rel=0.4)


def test_calibrated_kept_and_found_again(planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    device = {"kind": "cpu", "name": "x", "dtype": "float32"}
    facts = {"device": device, "versions": {}, "code": {}, "cpu": {"threads": 1}}
    with forked.workers():
        report = calibration.calibrate(
            facts, lock=tmp_path / "lock", model="tiny:llama", dtype="float32", quick=True, max_time="1h"
        )
    assert report["failed"] == []
    assert "quick" in report["stamps"]
    assert {one["arm"]: [look["verdict"] for look in one["looks"]] for one in report["seen"]}["10 % slower"] == [
        "INCONCLUSIVE"
    ]
    kept.keep(calibration.KIND, report)
    assert kept.known(calibration.KIND, facts) == report
    assert kept.known(calibration.KIND, {**facts, "versions": {"torch": "0"}}) is None


def test_what_it_says() -> None:
    report = {"resolution": list(calibration.resolutions(records(), minutes=10.0))}
    lines = shown.sentences(report)
    assert len(lines) == 6
    assert lines[0].startswith("tpot: 5 rounds, about 2 min for two arms: differences below ")
