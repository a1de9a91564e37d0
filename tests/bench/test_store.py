from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import store
from bench.errors import StoreError, UsageError


def made(tmp_path: Path) -> store.Run:
    run = store.Run.create(tmp_path / "x", "AMD EPYC, 2 cores", "0123456789")
    run.write_manifest({"cells": ["b", "a"], "experiment": "x", "config_sha256": "c"})
    return run


def test_a_run_is_named_by_time_device_and_commit(tmp_path: Path) -> None:
    assert made(tmp_path).folder.name.endswith("Z_amd-epyc-2-cores_01234567")


def test_records_come_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    run = made(tmp_path)
    for cell in ("a", "b"):
        run.write_part(cell, "quality", {})
        run.finish(cell, {"cell": cell, "status": "ok"})
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
    run.finish("a", {"cell": "a", "status": "ok"})
    cells = run.folder / "cells"
    (cells / "b.json").write_text('{"cell": "b", "stat')
    (cells / "c.json").write_text("[]")
    (cells / "d.json").write_text('{"cell": "d", "status": "ok", "schema": 99}')
    damaged: list[str] = []
    assert [r["cell"] for r in run.records(damaged)] == ["a"]
    assert len(damaged) == 3
    with pytest.raises(StoreError):
        list(run.records())


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        store.Run.open(tmp_path)
    with pytest.raises(UsageError, match="no run of 'x'"):
        store.newest(tmp_path, "x", "c")


def test_an_out_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="--out"):
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
    run.finish("b", {"cell": "b", "status": "ok"})
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
