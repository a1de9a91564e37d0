"""The manifest says which version of a data file was read, and a repetition reads the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest

from bench import api, data_files, hub_file, rerun
from bench.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hub:own/set/train.jsonl"
CONFIG = {
    "name": "x",
    "model": "tiny:llama",
    "comparisons": [{"workload": {"name": "instructions", "path": NAME, "items": 4}, "arms": ["full"]}],
}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data set in the hub's cache, with nobody to ask for a newer one: its folder's name is all that is known."""
    file = tmp_path / f"hub/datasets--own--set/snapshots/{COMMIT}/train.jsonl"
    file.parent.mkdir(parents=True)
    lines = ({"question": f"what is {n}?", "answer": f"it is {n}\n#### {n}"} for n in range(20))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (file.parents[2] / "refs").mkdir()
    (file.parents[2] / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for the workers
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_file._fetched.cache_clear()
    yield file
    hub_file._fetched.cache_clear()


def test_a_file_of_the_cache_has_its_commit(cached: Path) -> None:
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    found = {"name": NAME, "file": "train.jsonl", "revision": COMMIT, "sha256": digest}
    assert data_files.provenance({"path": NAME, "test_path": "", "items": 4}) == {"path": found}


def test_a_local_file_has_its_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("text")
    found = data_files.provenance({"path": "", "test_path": str(file)})["test_path"]
    assert found["revision"] is None
    assert found["reason"]
    assert found["sha256"] == hashlib.sha256(b"text").hexdigest()
    with pytest.raises(UsageError, match=r"none.jsonl: No such file"):
        data_files.provenance({"path": str(tmp_path / "none.jsonl")})


def test_no_file_no_word() -> None:
    assert data_files.provenance({"path": "", "items": 3}) == {}


@pytest.mark.parametrize(
    ("name", "known", "pinned"),
    [
        (NAME, {"c": {"path": {"name": NAME, "revision": COMMIT}}}, f"hub:own/set@{COMMIT}/train.jsonl"),
        (NAME, {"c": {"path": {"name": NAME, "revision": None}}}, NAME),
        (NAME, {"c": {"path": {"name": "hub:own/set/test.jsonl", "revision": COMMIT}}}, NAME),
        ("hub:own/set", {"c": {"path": {"name": "hub:own/set", "revision": COMMIT}}}, f"hub:own/set@{COMMIT}"),
        ("hub:own/set@v1", {"c": {"path": {"name": "hub:own/set@v1", "revision": COMMIT}}}, "hub:own/set@v1"),
        ("a.jsonl", {"c": {"path": {"name": "a.jsonl", "revision": COMMIT}}}, "a.jsonl"),
        (NAME, None, NAME),
        (NAME, {"c": [1]}, NAME),
    ],
)
def test_a_name_takes_the_revision_that_was_read(name: str, known: Any, pinned: str) -> None:
    assert data_files.pinned(name, known) == pinned


def test_a_revision_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="write hub:"):
        data_files.pinned(NAME, {"c": {"path": {"name": NAME, "revision": "../../etc"}}})


def test_a_run_says_what_it_read_and_is_repeated_on_the_same(cached: Path, tmp_path: Path) -> None:
    with forked.workers():
        done = api.run(CONFIG, tmp_path / "out", lock=tmp_path / "lock", quick=True).store
    assert done.manifest["data"] == {"finetuning.instructions": data_files.provenance({"path": NAME})}
    assert [one["data"]["path"]["revision"] for one in done.records([])] == [COMMIT]
    again = rerun.settings(done)
    assert again["comparisons"][0]["workload"]["path"] == f"hub:own/set@{COMMIT}/train.jsonl"
    checked, _, _ = api.prepare(again)
    assert data_files.provenance(checked.comparisons[0].workload.model_dump())["path"]["revision"] == COMMIT
