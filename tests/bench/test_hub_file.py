"""A data set's file is found by its name and read as a local one; what a hub cannot give is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench import api, hub_file, rerun, text_file
from bench.anonymous import anonymous
from bench.errors import UsageError
from bench.models import Source, Sources
from benchmarks.finetuning.core.instruction_file import read_examples
from benchmarks.finetuning.instructions import Instructions

FILES = ["README.md", "data/train.jsonl", "data/test.jsonl", "weights.pkl", "script.py"]


OLD, NEW = "a" * 40, "b" * 40
"""Commits of the data set `own/set`; the second is the newest."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub's cache, in the place of the hub, as huggingface_hub lays it out; the newest snapshot is given."""

    def snapshot(repo: str, repo_type: str, revision: str | None) -> Path:
        assert repo_type == "dataset"
        commit = {None: NEW, "main": NEW, "v1": OLD}.get(revision, revision)
        return tmp_path / f"datasets--{repo.replace('/', '--')}/snapshots/{commit}"

    def download(repo: str, file: str, repo_type: str, revision: str | None) -> str:
        found = snapshot(repo, repo_type, revision) / file
        if not found.is_file():
            raise FileNotFoundError(f"404: {repo} has no {file}\nmore of it")
        return str(found)

    def listed(self: Any, repo: str, repo_type: str, revision: str | None) -> list[str]:
        root = snapshot(repo, repo_type, revision)
        return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listed)
    hub_file._fetched.cache_clear()
    for commit in (OLD, NEW):
        for name in FILES:
            file = snapshot("own/set", "dataset", commit) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"question": f"{commit[0]} {name} {n}?", "answer": f"it is {n}\n#### {n}"} for n in range(20)]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield snapshot("own/set", "dataset", None)
    hub_file._fetched.cache_clear()


def test_a_local_path_is_itself() -> None:
    assert hub_file.local(Path("some/file.jsonl")) == Path("some/file.jsonl")
    assert hub_file.parse("/hub:x/y") is None


@pytest.mark.parametrize("name", ["data/train.jsonl", "data/tr*.jsonl", "*train*"])
def test_a_file_is_named_or_fits(hub: Path, name: str) -> None:
    assert hub_file.local(Path(f"hub:own/set/{name}")) == hub / "data/train.jsonl"
    assert len(text_file.records(Path(f"hub:own/set/{name}"))) == 20


@pytest.mark.parametrize(("revision", "commit"), [("v1", OLD), (OLD, OLD), ("main", NEW), (NEW, NEW)])
@pytest.mark.parametrize("name", ["data/train.jsonl", "*train*"])
def test_a_revision_is_read(hub: Path, revision: str, commit: str, name: str) -> None:
    file = hub_file.local(Path(f"hub:own/set@{revision}/{name}"))
    assert file == hub.parent / commit / "data/train.jsonl"
    assert hub_file.version_of(file) == (commit, "data/train.jsonl")


def test_a_hub_that_goes_on_does_not_change_what_a_process_reads(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hub_file.local(Path("hub:own/set/data/train.jsonl"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(hub.parent / OLD / "data/train.jsonl"))
    assert hub_file.local(Path("hub:own/set/data/train.jsonl")) == file


def test_what_lies_elsewhere_is_of_no_commit(tmp_path: Path) -> None:
    assert hub_file.version_of(tmp_path / "snapshots/latest/a.jsonl") == (None, "a.jsonl")
    assert hub_file.version_of(tmp_path / NEW / "a.jsonl") == (None, "a.jsonl")


def test_what_is_no_data_is_not_seen(hub: Path) -> None:
    (hub / "data/test.jsonl").unlink()
    assert hub_file.local(Path("hub:own/set")) == hub / "data/train.jsonl"
    with pytest.raises(UsageError, match=r"hub:own/set/weights\*: no file of the data set fits that can be read"):
        hub_file.local(Path("hub:own/set/weights*"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hub:own/set", r"2 files fit, name one of them: data/test.jsonl, data/train.jsonl$"),
        ("hub:own/set/none.jsonl", r"404: own/set has no none.jsonl \(or give the path of a local file\)$"),
        ("hub:own", r"write hub:OWNER/NAME/FILE or hub:OWNER/NAME@REVISION/FILE$"),
        ("hub:own/set@", "write hub:OWNER/NAME/FILE"),
        ("hub:own/set@v2/data/train.jsonl", r"data hub:own/set@v2/data/train.jsonl: 404"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hub: Path, name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        text_file.records(Path(name))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["hub:own/set", "hub:own/set/data/tr*"])
def test_the_files_own_name_says_how_it_is_read(hub: Path, name: str) -> None:
    (hub / "data/test.jsonl").unlink()
    found = read_examples(Path(name))
    assert found == read_examples(hub / "data/train.jsonl")
    assert all(example.prompt for example in found), "a line of JSON was read as plain text"


def test_a_workload_trains_on_it(hub: Path) -> None:
    workload = Instructions(
        path="hub:own/set/data/train.jsonl", test_path="hub:own/set/data/test.jsonl", sequence=128, items=4
    )
    workload.check()
    built = workload.build(Sources(Source("tiny:llama")), 0)
    assert (len(built["train"]), len(built["heldout"])) == (20, 4)


def test_data_may_be_a_hubs_wherever_a_file_may(hub: Path) -> None:
    config = {
        "name": "x",
        "model": "tiny:llama",
        "comparisons": [{"workload": {"name": "instructions", "items": 4}, "arms": ["full"]}],
    }
    name = "hub:own/set/data/train.jsonl"
    checked, _, _ = api.prepare(config, data=name)
    assert checked.comparisons[0].workload.path == name  # type: ignore[attr-defined]
    assert rerun._here(name) == anonymous(name) == name


def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"a.parquet: parquet needs pyarrow; install it, or give lines of JSON"):
        text_file.records(Path("a.parquet"))


def test_rows_of_parquet_are_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for pyarrow, which is no dependency."""

    class ArrowException(Exception):
        pass

    def read(path: Path) -> Any:
        rows = json.loads(path.read_text())
        if not isinstance(rows, list):
            raise ArrowException("magic bytes not found\nin the footer")
        return SimpleNamespace(to_pylist=lambda: rows)

    arrow = ModuleType("pyarrow")
    arrow.ArrowException, arrow.parquet = ArrowException, SimpleNamespace(read_table=read)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    file = tmp_path / "a.parquet"
    file.write_text('[{"text": "one"}, {"text": "two"}]')
    assert text_file.read_documents(file) == ["one", "two"]
    file.write_text('[{"text": "one"}, {"word": "two"}]')
    with pytest.raises(UsageError, match=r"a.parquet, line 2: no text under any of"):
        text_file.read_documents(file)
    file.write_text("[]")
    with pytest.raises(UsageError, match="is empty"):
        text_file.read_documents(file)
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"no parquet file \(magic bytes not found\)$"):
        text_file.read_documents(file)
