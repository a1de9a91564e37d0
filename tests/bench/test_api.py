"""Where a run's folder lies, from a runner that only writes the records it is told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import api, experiment, manifest, record
from bench.errors import UsageError

CONFIG = {
    "name": "x",
    "model": "tiny:llama",
    "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]}],
}


class Told:
    """Writes one record per cell, with bursts that are disturbed or not."""

    disturbed = False
    status = "ok"

    def __init__(self, checked: experiment.Experiment, run: Any, facts: dict[str, Any], *_: object) -> None:
        self.checked, self.run, self.facts = checked, run, facts

    def go(self) -> None:
        burst = {"used": True, "load": {"disturbed": self.disturbed}, "samples": {"seconds": [], "kind": []}}
        for cell in self.checked.cells():
            rounds = [{"round": 0, "bursts": [burst]}] if self.status == "ok" else []
            made = record.assemble(cell, self.checked.settings, {}, rounds, {}, self.facts)
            self.run.finish(cell.id, {**made, "status": self.status, "reason": "", "config_sha256": self.checked.hash})


@pytest.fixture
def run(tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., api.Run]:
    monkeypatch.setattr(api, "Runner", Told)
    monkeypatch.setattr(api.files, "write", lambda folder: [])
    commit(monkeypatch, dirty=False)

    def go(**settings: Any) -> api.Run:
        return api.run(CONFIG, out=tmp_path, lock=lock, max_time="100h", **settings)

    return go


def commit(monkeypatch: pytest.MonkeyPatch, dirty: bool | None) -> None:
    monkeypatch.setattr(manifest, "commit", lambda: {"commit": "c" * 40, "dirty": dirty})


def lies(done: api.Run, tmp_path: Path) -> str:
    assert (done.folder / "manifest.json").is_file(), "the folder that is returned is the one that is there"
    return str(done.folder.parent.relative_to(tmp_path))


def test_a_clean_undisturbed_run_lies_with_the_published(run: Callable[..., api.Run], tmp_path: Path) -> None:
    done = run()
    assert lies(done, tmp_path) == "x"
    assert [r["stamps"] for r in done.records()] == [[], []]
    assert done.store.manifest["ended"]


@pytest.mark.parametrize("setting", ["quick", "inline"])
def test_a_quick_run_lies_apart(run: Callable[..., api.Run], tmp_path: Path, setting: str) -> None:
    assert lies(run(**{setting: True}), tmp_path) == "quick/x"


@pytest.mark.parametrize("dirty", [True, None])
def test_a_run_of_changed_or_unknown_code_lies_apart_from_its_start(
    run: Callable[..., api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dirty: bool | None
) -> None:
    commit(monkeypatch, dirty)
    events: list[dict[str, Any]] = []
    assert lies(run(say=events.append), tmp_path) == "dirty/x"
    assert events[0]["folder"] == events[-1]["folder"]


def test_a_disturbed_run_is_moved_and_announced_where_it_ends(
    run: Callable[..., api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "disturbed", True)
    events: list[dict[str, Any]] = []
    done = run(say=events.append)
    assert lies(done, tmp_path) == "disturbed/x"
    assert not Path(events[0]["folder"]).exists()
    assert events[-1] == {"event": "end", "folder": str(done.folder)}
    assert done.store.manifest["ended"]


def test_an_interrupted_run_that_was_disturbed_is_moved_too(
    run: Callable[..., api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Told):
        disturbed = True

        def go(self) -> None:
            super().go()
            raise KeyboardInterrupt

    monkeypatch.setattr(api, "Runner", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [p.parent.name for p in (tmp_path / "disturbed").glob("x/*")] == ["x"]
    assert not list((tmp_path / "x").iterdir())


def test_resume_finds_a_run_where_it_lies_and_leaves_it_where_it_belongs(
    run: Callable[..., api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "disturbed", True)
    first = run(argv=("run", "x"))
    monkeypatch.setattr(Told, "disturbed", False)
    again = run(resume=True, argv=("run", "x", "--resume"))
    assert lies(again, tmp_path) == "x", "nothing disturbed is left in it"
    assert again.folder.name == first.folder.name
    with pytest.raises(UsageError, match="another config"):
        run(resume=True, quick=True)


def test_a_quick_run_without_a_record_stays_apart(
    run: Callable[..., api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "go", lambda self: None)
    assert lies(run(quick=True), tmp_path) == "quick/x"


def test_another_environment_is_not_resumed(run: Callable[..., api.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    commit(monkeypatch, dirty=True)
    with pytest.raises(UsageError, match=r"another environment \(code.dirty\)"):
        run(resume=True)


def test_a_judge_is_asked_by_the_workloads_that_can() -> None:
    checked, _, _ = api.prepare("preference_pairs", judge="tiny:llama")
    assert [one.workload.model_dump()["judge"] for one in checked.comparisons] == ["tiny:llama"]
    with pytest.raises(UsageError, match=r"workload\.judge: nothing in this config has it"):
        api.prepare("sentiment_small", judge="tiny:llama")
