from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import store
from bench.errors import StoreError, UsageError


def made(tmp_path: Path) -> store.Run:
    run = store.Run.create(tmp_path, "x", "AMD EPYC, 2 cores", "0123456789")
    run.write_manifest({"cells": ["b", "a"], "experiment": "x"})
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
        store.newest(tmp_path, "x")


def test_an_out_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="--out"):
        store.Run.create(tmp_path / "file", "x", "cpu", None)
