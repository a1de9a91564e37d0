"""Known answers through the real runner: every way to end badly ends one cell and no other."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path

import forked
import psutil
import pytest

from bench import api, units

NAMES = ["still", "waits", "holds", "wrong", "raises", "exhausts", "endless", "killed", "fails_later"]


def config(arms: list[str], **settings: object) -> dict[str, object]:
    small = {
        "name": "grounded_chat",
        "new_tokens": 12,
        "items": 2,
        "timed_prompts": 6,
        "burst_prompts": 1,
        "passage_words": 20,
    }
    return {
        "name": "known",
        "model": "tiny:llama",
        "dtype": "float32",
        "cell_timeout": "10s",
        "comparisons": [{"workload": small, "arms": arms}],
        **settings,
    }


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    for name in NAMES:
        importlib.import_module(f"known_answers.{name}")
    folder = tmp_path_factory.mktemp("known")
    plugins = tuple(f"known_answers.{name}" for name in NAMES)
    children = len(psutil.Process().children())
    with forked.workers():
        done = api.run(config(NAMES, replicates=1), out=folder, plugins=plugins, lock=folder / "lock", max_time="1h")
    assert len(psutil.Process().children()) == children, "a worker outlived its run"
    return done


def record(run: api.Run, arm: str) -> dict[str, object]:
    return next(r for r in run.records() if r["arm"] == arm)


def test_every_cell_ends_as_a_record(known: api.Run) -> None:
    assert [r["arm"] for r in known.records()] == NAMES
    assert not (known.folder / "parts").exists()
    assert (known.folder / "table.csv").exists()
    assert (known.folder / "report.md").exists()


@pytest.mark.parametrize(
    ("arm", "status", "reason"),
    [
        ("still", "ok", ""),
        ("waits", "ok", ""),
        ("holds", "ok", ""),
        ("wrong", "ok", ""),
        ("raises", "failed", "ValueError: planted"),
        ("exhausts", "oom", "can't allocate memory"),
        ("endless", "timeout", "no answer within 10 s"),
        ("killed", "failed", "killed by SIGKILL"),
        ("fails_later", "failed", "planted in the timing pass"),
    ],
)
def test_status(known: api.Run, arm: str, status: str, reason: str) -> None:
    found = record(known, arm)
    assert found["status"] == status, found
    assert reason in str(found["reason"])


def test_wrong_output_is_invalid_and_its_speed_withheld(known: api.Run) -> None:
    row = next(row for rows in known.rows().values() for row in rows if row.record["arm"] == "wrong")
    assert row.status == "invalid"
    assert "lossless" in row.reason
    assert row.shown("latency")[1] is None
    assert row.shown("memory")[1] is None
    lines = [line for line in known.table() if line["arm"] == "wrong" and line["metric"] == "tpot"]
    assert [line["value"] for line in lines] == [None]


def test_failed_in_timing_keeps_its_quality(known: api.Run) -> None:
    assert record(known, "fails_later")["quality"]["metrics"]["output_nll"]


def test_ten_milliseconds_are_read_within_five_percent(known: api.Run) -> None:
    """Of the quickest step: whatever else runs here makes a step slower, never quicker."""
    waits, still = (
        min(
            seconds
            for part in record(known, arm)["rounds"]
            for burst in part["bursts"]
            for kind, seconds in zip(burst["samples"]["kind"], burst["samples"]["seconds"], strict=True)
            if kind == "decode"
        )
        for arm in ("waits", "still")
    )
    assert waits - still == pytest.approx(0.010, rel=0.05)


def test_64_mebibytes_are_read_within_five_percent(known: api.Run) -> None:
    holds, still = (units.of([record(known, arm)]) for arm in ("holds", "still"))
    for name in ("peak_memory", "held_memory"):
        planted = statistics.median(holds[name][0].values()) - statistics.median(still[name][0].values())
        assert planted == pytest.approx(64 << 20, rel=0.05), name


def test_bursts_have_prompts_of_their_own(known: api.Run) -> None:
    bursts = [part["bursts"] for part in record(known, "still")["rounds"]]
    used = [[burst["index"] for burst in round_ if burst["used"]] for round_ in bursts]
    assert used == [[0, 1]]


def test_resume_runs_only_what_is_missing(known: api.Run, lock: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (known.folder / "cells").iterdir()}
    events: list[dict[str, object]] = []
    (known.folder / "cells" / "decoding.grounded_chat.waits.seed0.json").unlink()
    for name in ("raises", "exhausts", "endless", "killed", "fails_later"):
        # resuming tries failed cells again; here they would fail again
        path = known.folder / "cells" / f"decoding.grounded_chat.{name}.seed0.json"
        path.write_text(path.read_text().replace(f'"status": "{record(known, name)["status"]}"', '"status": "ok"'))
    plugins = tuple(f"known_answers.{name}" for name in NAMES)
    out = next(folder for folder in known.folder.parents if (folder / "lock").exists())
    settings = {"plugins": plugins, "lock": lock, "max_time": "1h", "resume": True, "say": events.append}
    with forked.workers():
        done = api.run(config(NAMES, replicates=1), out=out, **settings)
    assert done.folder.name == known.folder.name, "it is the same run, wherever a disturbance has moved it"
    after = {path.name: path.stat().st_mtime_ns for path in (done.folder / "cells").iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert "decoding.grounded_chat.waits.seed0.json" in changed
    assert not changed & {f"decoding.grounded_chat.{name}.seed0.json" for name in ("still", "holds", "wrong")}
    assert [e["cell"] for e in events if e["event"] == "cell"] == ["decoding.grounded_chat.waits.seed0"]
