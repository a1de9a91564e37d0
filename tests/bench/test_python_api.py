"""The same from Python as from the command line: `bench.run`, a stored run, and the events of `--json`."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench import api, cli, lock, suites
from bench.errors import UsageError

README = (Path(__file__).parents[2] / "README.md").read_text()
SMALL = {"name": "grounded_chat", "new_tokens": 4, "items": 2, "timed_prompts": 3, "burst_prompts": 1}
CONFIG = {
    "name": "small",
    "model": "tiny:llama",
    "quick": True,
    "comparisons": [{"workload": SMALL, "arms": ["autoregressive"]}],
}


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "default_path", lambda: tmp_path / "lock")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more threads of a tiny network only wait for one another


def test_bench_itself_imports_nothing_until_it_is_asked() -> None:
    block = (
        "import sys; sys.modules['torch'] = None; import bench; print(sorted(m for m in sys.modules if 'bench' in m))"
    )
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=300)
    assert done.stdout == "['bench']\n", done.stderr


def test_what_is_exported() -> None:
    assert bench.run is api.run
    assert bench.Run is api.Run
    assert {name: getattr(bench, name) for name in bench.__all__}
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        bench.walk  # noqa: B018


@pytest.mark.parametrize("form", [str, Path, lambda path: [str(path)], lambda path: yaml.safe_load(path.read_text())])
def test_a_config_is_a_file_or_what_it_holds(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    checked, device, _ = api.prepare(form(path), device="cpu")
    assert checked.settings.name == "small"
    assert [cell.id for cell in checked.cells()] == ["decoding.grounded_chat.autoregressive.seed0"]
    assert device == "cpu"


def test_names_and_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"prompt": "number {n}"}}\n' for n in range(9)))
    checked, *_ = api.prepare(
        "prompt_lookup",
        model="tiny:gpt2",
        data=own,
        seed=7,
        max_time="3h",
        draft="tiny:llama",
        settings=["prompt_lookup.ngram=1,2", "items=2"],
        replicates=6,
    )
    (one,) = checked.comparisons
    assert [arm.label for arm in one.arms] == ["autoregressive", "prompt_lookup(ngram=1)", "prompt_lookup(ngram=2)"]
    assert one.model == "tiny:gpt2"
    assert (one.workload.path, one.workload.items) == (str(own), 2)  # type: ignore[attr-defined]
    settings = checked.settings
    assert (settings.seeds, settings.max_time, settings.draft, settings.replicates) == ((7,), 10800, "tiny:llama", 6)

    several, *_ = api.prepare(["decoding", "kv_cache"], quick=True, settings="quick=false")
    assert {one.family for one in several.comparisons} == {"decoding", "kv_cache"}
    assert not several.settings.quick, "--set is read last"
    suite, *_ = api.prepare(device="cpu")
    assert suite.settings.name == suites.default("cpu")
    with pytest.raises(UsageError, match=r"/not/there\.txt"):
        api.prepare("smoke", data="/not/there.txt")
    with pytest.raises(UsageError, match="replicants: unknown parameter; did you mean 'replicates'"):
        api.prepare("smoke", replicants=3)


def test_an_options_model_holds_for_comparisons_that_name_their_own() -> None:
    own = {**CONFIG, "comparisons": [{**CONFIG["comparisons"][0], "model": "tiny:llama"}]}  # type: ignore[index]
    checked, *_ = api.prepare(own, model="tiny:gpt2")
    assert [one.model for one in checked.comparisons] == ["tiny:gpt2"]
    assert own["comparisons"][0]["model"] == "tiny:llama", "the caller's mapping is left alone"  # type: ignore[index]


def test_a_table_is_what_a_data_frame_takes(finished_run: Path) -> None:
    stored = bench.Run.open(str(finished_run))
    assert stored.folder == finished_run
    assert stored.manifest["experiment"] == "small"
    assert repr(stored) == f"Run({str(finished_run)!r})"
    lines = stored.table()
    assert {line["arm"] for line in lines} == {"autoregressive", "prompt_lookup"}
    assert {tuple(line) for line in lines} == {tuple(lines[0])}, "the same columns in the same order"
    assert {type(value) for line in lines for value in line.values()} == {str, int, float, type(None)}
    assert set(stored.rows()) == {line["comparison"] for line in lines}
    with pytest.raises(UsageError, match="holds no run"):
        bench.Run.open("/not/there")


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("## From Python\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})
    baseline, arm, metrics = printed.getvalue().splitlines()
    assert baseline.startswith("autoregressive None None [None, None]")
    interval = re.fullmatch(r"prompt_lookup INCONCLUSIVE (\S+) \[(\S+), (\S+)\] 2 rounds, at least 5 are needed", arm)
    assert interval, arm
    change, low, high = map(float, interval.groups())
    assert 0 < low < change < high
    assert metrics.startswith("prompt_lookup ['")
    assert "'peak_memory'" in metrics
    (run,) = (tmp_path / "my_results" / "quick" / "prompt_lookup").iterdir()
    assert (run / "table.csv").is_file()


def documented() -> dict[str, set[str]]:
    """Event -> keys, as the README's table has them."""
    section = README.split("--json`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)
    return {event: {"event", "at", *re.findall(r"`(\w+)`", keys)} for event, keys in rows}


def called(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, list[Any]]:
    """Exit code and the lines on the very file that is stdout, also by what this process starts."""
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_every_event_and_key_is_documented_and_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setattr(api.files, "write", lambda folder: ["a record"])
    threads = threading.active_count()
    code, lines = called(capfd, monkeypatch, "run", str(path), "--json", "--out", str(tmp_path / "out"))
    assert code == 0
    assert threading.active_count() == threads
    code, planned = called(capfd, monkeypatch, "run", str(path), "--json", "--dry-run")
    assert code == 0
    assert [line["event"] for line in planned] == ["plan"]
    seen: dict[str, set[str]] = {}
    for line in [*planned, *lines]:
        assert seen.setdefault(line["event"], set(line)) == set(line), "an event has the same keys each time"
    assert seen == documented()

    ats = [line["at"] for line in lines]
    assert ats == sorted(ats)
    names = [line["event"] for line in lines]
    assert names[0] == "start"
    assert names[-1] == "end"
    end = lines[-1]
    stored = bench.Run.open(end["folder"])
    assert end["exit_code"] == 0
    (cell,) = (line for line in lines if line["event"] == "cell")
    assert (cell["status"], cell["reason"]) == ("ok", "")
    (over,) = (line for line in lines if line["event"] == "comparison")
    assert over["rows"] == stored.table()
    assert over["rows"]


def test_a_mistake_ends_with_its_exit_code_and_no_folder(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines = called(capfd, monkeypatch, "run", "nonsens", "--json")
    assert code == 2
    assert [{**line, "at": 0} for line in lines] == [{"event": "end", "at": 0, "folder": None, "exit_code": 2}]
