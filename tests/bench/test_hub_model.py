"""A model of a hub is read in one version, which the manifest names and a repetition reads again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

from bench import api, hub_model, model_names, rerun
from bench.errors import ModelError, UsageError
from bench.hub_model import HubModel
from bench.models import Source, Sources

OLD, NEW = "a" * 40, "b" * 40
"""Commits of the model `own/net`; the second is the newest."""
TAG = "v1"
"""Of the first."""


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model in the hub's cache, as the library lays it out, with nobody to ask for a newer one: its snapshots."""
    folder = tmp_path / "hub/models--own--net"
    for commit, model in ((OLD, "tiny:gpt2"), (NEW, "tiny:llama")):
        Source(model).model().save_pretrained(folder / "snapshots" / commit)
        Source(model).tokenizer.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    for name, commit in (("main", NEW), (TAG, OLD)):
        (folder / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for the workers
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_model.commit.cache_clear()
    yield folder / "snapshots"
    hub_model.commit.cache_clear()


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("own/net", HubModel("own/net")),
        ("hub:own/net", HubModel("own/net", None, "hub:")),
        ("own/net@v1.2-b", HubModel("own/net", "v1.2-b")),
        (f"hub:own/net@{OLD}", HubModel("own/net", OLD, "hub:")),
        ("own/net@", None),
        ("own/net@../x", None),
        ("own/net/more", None),
        ("own", None),
    ],
)
def test_names(name: str, parsed: HubModel | None) -> None:
    assert hub_model.parse(name) == parsed
    if parsed:
        assert parsed.name == name
        assert model_names.kind_of(name) == "hub"
    else:
        with pytest.raises(UsageError, match="owner/name@revision"):
            model_names.kind_of(name)


@pytest.mark.parametrize(
    ("revision", "commit", "kind"),
    [("", NEW, "llama"), ("@main", NEW, "llama"), (f"@{TAG}", OLD, "gpt2"), (f"@{OLD}", OLD, "gpt2")],
)
@pytest.mark.parametrize("prefix", ["", "hub:"])
def test_all_of_a_model_is_of_one_version(cached: Path, prefix: str, revision: str, commit: str, kind: str) -> None:
    source = Source(f"{prefix}own/net{revision}")
    assert source.version == {"name": source.name, "revision": commit}
    assert source.config.model_type == kind
    expected = Source(f"tiny:{kind}")
    ids = torch.arange(20)[None]
    assert torch.equal(source.model()(ids).logits, expected.model()(ids).logits)
    layers = {f"{prefix}.{key}": tensor for prefix, tensors in source.layers() for key, tensor in tensors.items()}
    for name, parameter in expected.model().named_parameters():
        assert torch.equal(layers[name], parameter)
    assert source.fingerprint == Source(str(cached / commit)).fingerprint
    assert source.tokenizer("abc")["input_ids"] == Source(str(cached / commit)).tokenizer("abc")["input_ids"]


def test_a_hub_that_goes_on_does_not_change_what_a_run_reads(cached: Path) -> None:
    others = {"draft": Source("own/net@v1", "draft"), "other": Source("tiny:llama", "other")}
    known = Sources(Source("own/net"), others).versions
    assert [one["revision"] for one in known.values()] == [NEW, OLD, None]
    (cached.parent / "refs/main").write_text(OLD)
    assert Source("own/net").config.model_type == "llama", "this process has read it before"
    hub_model.commit.cache_clear()
    assert Source("own/net").config.model_type == "gpt2", "the newest is another now"
    after = Sources(Source("own/net"), {"draft": Source("own/net@v1", "draft")}).at(known)
    assert after.target.config.model_type == "llama"
    assert after.get("draft").revision == OLD
    assert after.target.name == "own/net"


def test_what_is_of_no_hub_has_no_revision(tmp_path: Path) -> None:
    Source("tiny:llama").model().save_pretrained(tmp_path)
    for name in ("tiny:llama", "smollm2-135m", str(tmp_path)):
        assert Source(name).version == {"name": name, "revision": None, "reason": "not of a hub"}


@pytest.mark.parametrize("name", ["own/net@v2", f"own/net@{'c' * 40}", "own/other"])
def test_what_the_hub_does_not_have_is_one_line(cached: Path, name: str) -> None:
    assert not model_names.at_hand(name)
    for read in (Source.model, lambda source: source.config, lambda source: source.version):
        with pytest.raises(ModelError, match=f"model '{name}' cannot be read: .*check id and revision") as caught:
            read(Source(name))
        assert len(str(caught.value).splitlines()) == 1


def test_a_revision_in_the_cache_is_at_hand(cached: Path) -> None:
    for name in ("own/net", "hub:own/net@v1", f"own/net@{OLD}", "tiny:llama"):
        assert model_names.at_hand(name)


@pytest.mark.parametrize(
    ("name", "known", "pinned"),
    [
        ("own/net", {"c": {"target": {"name": "own/net", "revision": OLD}}}, f"own/net@{OLD}"),
        ("hub:own/net", {"c": {"draft": {"name": "hub:own/net", "revision": OLD}}}, f"hub:own/net@{OLD}"),
        ("own/net@v1", {"c": {"target": {"name": "own/net@v1", "revision": OLD}}}, "own/net@v1"),
        ("own/net", {"c": {"target": {"name": "own/other", "revision": OLD}}}, "own/net"),
        ("own/net", {"c": {"target": {"name": "own/net", "revision": None}}}, "own/net"),
        ("own/net", {"c": {"target": {"name": "own/net", "revision": "../../etc"}}}, "own/net"),
        ("own/net", None, "own/net"),
        ("own/net", {"c": [1]}, "own/net"),
        ("tiny:llama", {"c": {"target": {"name": "tiny:llama", "revision": OLD}}}, "tiny:llama"),
    ],
)
def test_a_name_takes_the_revision_that_was_read(name: str, known: Any, pinned: str) -> None:
    assert hub_model.pinned(name, known) == pinned


def test_a_run_says_which_version_it_read_and_is_repeated_on_the_same(cached: Path, tmp_path: Path) -> None:
    config = {
        "name": "x",
        "model": "own/net",
        "draft": "hub:own/net@v1",
        "comparisons": [{"workload": {"name": "embedded_text", "items": 2, "sequence": 32}, "arms": ["full"]}],
    }
    with forked.workers():
        done = api.run(config, tmp_path / "out", lock=tmp_path / "lock", quick=True).store
    versions = {
        "target": {"name": "own/net", "revision": NEW},
        "draft": {"name": "hub:own/net@v1", "revision": OLD},
    }
    assert done.manifest["models"] == {"finetuning.embedded_text": versions}
    (record,) = done.records([])
    assert record["status"] == "ok", record["reason"]
    assert (record["model"]["name"], record["model"]["revision"]) == ("own/net", NEW)
    assert record["model"]["architecture"] == "llama"
    again = rerun.settings(done)
    assert (again["model"], again["draft"]) == (f"own/net@{NEW}", "hub:own/net@v1")


def test_a_hub_that_goes_on_during_a_run_changes_nothing(cached: Path, tmp_path: Path) -> None:
    """Each pass has a process of its own, which would find the newest version then."""
    config = {
        "name": "x",
        "model": "own/net",
        "replicates": 1,
        "bursts": 1,
        "comparisons": [
            {
                "workload": {"name": "embedded_text", "items": 2, "sequence": 32, "steps": 1, "other_items": 0},
                "arms": ["full"],
            }
        ],
    }

    def go_on(event: dict[str, Any]) -> None:
        if event.get("stage") == "quality":
            (cached.parent / "refs/main").write_text(OLD)

    with forked.workers():
        done = api.run(config, tmp_path / "out", lock=tmp_path / "lock", say=go_on).store
    assert (cached.parent / "refs/main").read_text() == OLD
    (record,) = done.records([])
    assert record["status"] == "ok", record["reason"]
    assert record["model"]["revision"] == NEW
    assert record["quality"]["counts"]["trained_weights"] == Source("tiny:llama").parameters
    assert record["rounds"][0]["prepared"]["held"] == record["prepared"]["held"]
