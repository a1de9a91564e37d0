from __future__ import annotations

import json
import os
import re
from pathlib import Path

import fabricated
import pytest

from bench import store
from bench.errors import StoreError, UsageError


def record(cell: str, **changes: object) -> dict[str, object]:
    return {**fabricated.record(cell, rounds=0), "cell": cell, "config_sha256": "c", **changes}


def made(tmp_path: Path) -> store.Run:
    run = store.Run.create(tmp_path / "x", "AMD EPYC, 2 cores", "0123456789")
    run.write_manifest({"cells": ["b", "a"], "experiment": "x", "config_sha256": "c"})
    return run


def test_a_run_is_named_by_time_device_and_commit(tmp_path: Path) -> None:
    assert made(tmp_path).folder.name.endswith("Z_amd-epyc-2-cores_01234567")


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {store.Run.create(tmp_path / "x", "cpu", None).folder for _ in range(2)}
    assert len(folders) == 2


def test_records_come_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    run = made(tmp_path)
    for cell in ("a", "b"):
        run.write_part(cell, "quality", {})
        run.finish(cell, record(cell))
    assert [r["cell"] for r in run.records()] == ["b", "a"]
    assert not (run.folder / "parts").exists()


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write_json(path, {"a": 2})
    assert store.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(tmp_path / "x.json", {"a": float("nan")})


def test_damaged_and_foreign_records_are_named_and_left_out(tmp_path: Path) -> None:
    run = made(tmp_path)
    cells = run.folder / "cells"
    bad = {
        "cut": (json.dumps({"schema": 1, **record("cut")})[:-40], "cannot read"),
        "list": ("[]", "holds no mapping"),
        "future": (json.dumps({**record("future"), "schema": 99}), "has schema 99, this program reads 1"),
        "poor": (json.dumps({"schema": 1, "cell": "poor", "status": "ok"}), r"no record \(comparison, "),
        "odd": (json.dumps({"schema": 1, **record("odd", status="fine")}), r"no record \(status\)"),
        "rounds": (json.dumps({"schema": 1, **record("rounds", rounds={})}), r"no record \(rounds\)"),
        "renamed": (json.dumps({"schema": 1, **record("a")}), "holds cell 'a'"),
        "stranger": (json.dumps({"schema": 1, **record("stranger")}), "holds cell 'stranger'"),
        "other": (json.dumps({"schema": 1, **record("other", config_sha256="d")}), "another config"),
    }
    run.write_manifest({"cells": ["b", "a", *set(bad) - {"stranger"}], "experiment": "x", "config_sha256": "c"})
    run.finish("a", record("a"))
    for name, (text, _) in bad.items():
        (cells / f"{name}.json").write_text(text)
    damaged: list[str] = []
    assert [r["cell"] for r in run.records(damaged)] == ["a"]
    assert len(damaged) == len(bad)
    for name, (_, told) in bad.items():
        (line,) = [line for line in damaged if f"{name}.json" in line]
        assert re.search(told, line)
    with pytest.raises(StoreError):
        list(run.records())


@pytest.mark.parametrize("text", ['{"cells": [', "[]", '{"schema": 2, "cells": []}', "{}"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    run = made(tmp_path)
    (run.folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        _ = run.manifest
    with pytest.raises(UsageError, match=r"no run of 'x'.*manifest\.json"):
        store.newest(tmp_path, "x", "c")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.finish("a", record("a"))
    run.write_part("a", "round-0", {"left": "between the record and the end of its parts"})
    run.write_part("b", "round-0", {"kept": 1})
    (run.folder / "cells" / ".b.json.77.tmp").write_text("{")
    run.tidy()
    assert not (run.folder / "parts" / "a").exists()
    assert run.part("b", "round-0") == {"kept": 1}
    assert [path.name for path in (run.folder / "cells").iterdir()] == ["a.json"]
    run.finish("b", record("b"))
    (run.folder / "parts").mkdir()
    run.tidy()
    assert not (run.folder / "parts").exists(), "an empty folder is nothing to go on from"


def test_a_part_that_cannot_be_read_is_measured_again(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_part("b", "round-0", {"kept": 1})
    (run.folder / "parts" / "b" / "round-0.json").write_text("{")
    assert run.part("b", "round-0") is None


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        store.Run.open(tmp_path)
    with pytest.raises(UsageError, match="no run of 'x'"):
        store.newest(tmp_path, "x", "c")


def test_an_out_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--out"):
        store.Run.create(tmp_path / "file" / "x", "cpu", None)


@pytest.mark.parametrize(
    ("stamps", "folder"),
    [
        ([], "x"),
        (["quick", "inline"], "quick/x"),
        (["inline"], "quick/x"),
        (["dirty"], "dirty/x"),
        (["disturbed"], "disturbed/x"),
        (["dirty", "disturbed"], "dirty/x"),
        (["disturbed", "quick"], "quick/x"),
    ],
)
def test_only_what_can_be_published_lies_with_the_published(tmp_path: Path, stamps: list[str], folder: str) -> None:
    assert store.place(tmp_path, "x", stamps) == tmp_path / folder


def test_runs_apart_do_not_come_into_version_control() -> None:
    ignored = (store.ROOT / ".gitignore").read_text().splitlines()
    assert {f"/results/{folder}/" for folder in store.APART.values()} <= set(ignored)


def test_an_experiment_may_not_be_named_like_a_folder_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name it otherwise"):
        store.place(tmp_path, "disturbed", [])


def test_a_run_is_moved_whole(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_part("a", "quality", {"q": 1})
    run.finish("b", record("b"))
    moved = run.move(tmp_path / "disturbed" / "x")
    assert moved.folder == tmp_path / "disturbed" / "x" / run.folder.name
    assert not run.folder.exists()
    assert moved.part("a", "quality") == {"q": 1}
    assert [r["cell"] for r in moved.records()] == ["b"]
    assert moved.move(moved.folder.parent).folder == moved.folder, "it is there already"


def test_a_run_that_cannot_be_moved_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)

    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", another_disk)
    with pytest.raises(StoreError, match="cross-device link; move it by hand"):
        run.move(tmp_path / "disturbed" / "x")
    assert run.manifest["experiment"] == "x"


def test_the_newest_run_of_a_config_is_found_wherever_it_lies(tmp_path: Path) -> None:
    for place, name, config in (
        ("x", "20260101T000000Z_a", "c"),
        ("disturbed/x", "20260102T000000Z_a", "c"),
        ("quick/x", "20260103T000000Z_a", "another"),
        ("dirty/y", "20260104T000000Z_a", "c"),
    ):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        store.Run(folder).write_manifest({"config_sha256": config})
    assert store.newest(tmp_path, "x", "c").folder == tmp_path / "disturbed" / "x" / "20260102T000000Z_a"
    assert store.newest(tmp_path, "x", "another").folder.parent == tmp_path / "quick" / "x"
    with pytest.raises(UsageError, match="20260103T000000Z_a was run with another config"):
        store.newest(tmp_path, "x", "third")


def test_neither_manifest_nor_record_holds_a_path_of_this_machine(tmp_path: Path) -> None:
    run = store.Run.create(tmp_path / "x", "cpu", None)
    run.write_manifest({"cells": [], "config": {"model": "/home/zoe/model"}, "argv": ["run", "/home/zoe/x.yaml"]})
    detail = f'File "{store.ROOT}/bench/worker.py", line 1\nOSError: /home/zoe/model: no such file'
    run.finish("a", {"cell": "a", "status": "failed", "detail": detail})
    written = "".join(path.read_text() for path in run.folder.rglob("*.json"))
    assert "zoe" not in written
    assert str(store.ROOT) not in written
    assert "bench/worker.py" in written
