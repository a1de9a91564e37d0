"""Nothing that was measured is lost: full disks, signals and kills at random moments, and going on afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from swift_worker import Swift

from bench import api, cli, outcome, process, store
from bench.errors import Busy, StoreError, UsageError
from bench.lock import folder_lock
from bench.process import CellFailure
from bench.workers import Workers

FACTS = {
    "device": {"kind": "cpu", "name": "A machine", "dtype": "float32"},
    "code": {"commit": "c" * 40, "dirty": False},
    "versions": {},
    "argv": [],
}
CONFIG = {
    "name": "unlucky",
    "model": "tiny:llama",
    "device": "cpu",
    "dtype": "float32",
    "replicates": 3,
    "bursts": 2,
    "comparisons": [
        {"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]},
        {"workload": "long_document", "arms": ["full_cache", "streaming_llm"]},
    ],
}
CHAT, DOCUMENT = "decoding.grounded_chat", "kv_cache.long_document"
CELLS = [
    f"{CHAT}.autoregressive.seed0",
    f"{CHAT}.prompt_lookup.seed0",
    f"{DOCUMENT}.full_cache.seed0",
    f"{DOCUMENT}.streaming_llm.seed0",
]
WHOLE = {cell: [0, 1, 2] for cell in CELLS}
"""The cells of a run that nothing happened to, and their rounds."""


@pytest.fixture(autouse=True)
def _quick_and_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.api.manifest.collect", lambda *_: FACTS)
    monkeypatch.setattr("bench.report.html.as_html", lambda *_: "<p>drawn elsewhere")
    monkeypatch.setattr("bench.runner.load.between", lambda before, after: {"disturbed": False})


class Inside(Swift):
    """The same answers without a process; `spoil` may change or refuse one."""

    pid, alive = 0, True
    spoil: Callable[[str, dict[str, Any]], None] = staticmethod(lambda do, arguments: None)
    now = 0.01
    """What a step takes at this time, on this machine [s]."""
    passes = True
    """Whether the gate does."""

    def ready(self, timeout: float) -> None: ...

    def ask(self, do: str, timeout: float, **arguments: Any) -> Any:
        self.spoil(do, arguments)
        self.step, self.pause = self.now, 0.0
        answer = self.do({"do": do})
        if do == "quality":
            answer["quality"]["gates"][0]["passed"] = self.passes
        return answer


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> type[Inside]:
    class Own(Inside):
        pass

    @contextlib.contextmanager
    def lend(self: Workers, comparison: Any) -> Iterator[Own]:
        yield Own({})

    monkeypatch.setattr(Workers, "lend", lend)
    return Own


def run(out: Path, **settings: Any) -> api.Run:
    return api.run(CONFIG, out=out, lock=out.parent / "lock", max_time="100h", **settings)


def rounds(folder: Path) -> dict[str, list[int]]:
    """Cell -> the numbers of its rounds."""
    return {one["cell"]: [part["round"] for part in one["rounds"]] for one in store.Run(folder).records()}


def finished(folder: Path) -> dict[str, str]:
    """Cell -> its record's text, of cells that ended well."""
    texts = {path.stem: path.read_text() for path in folder.glob("cells/*.json")}
    return {cell: text for cell, text in texts.items() if json.loads(text)["status"] == "ok"}


def only(out: Path) -> Path:
    """The folder of the one run."""
    (found,) = out.glob("unlucky/*/manifest.json")
    return found.parent


# a full disk


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_the_disk_may_be_full_at_any_write(
    operation: str, inside: type[Inside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = getattr(os, operation), 0

    def maybe_full(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, operation, maybe_full)
    for writes in range(200):
        out, left = tmp_path / str(writes) / "results", writes
        out.parent.mkdir()
        try:
            run(out)
            break
        except StoreError as error:
            told = error
        assert told.exit_code == 3
        assert "No space left on device" in str(told)
        assert not list(out.rglob(".*")), "nothing half-written is left"
        kept = {cell: text for folder in out.glob("unlucky/*") for cell, text in finished(folder).items()}
        left = 1000
        done = run(out, resume=writes > 0)
        assert rounds(done.folder) == WHOLE
        assert finished(only(out)).items() >= kept.items(), "what was finished is kept as it was"
    assert writes == 2 + 2 + 4 + 12 + 4 + 3, "manifest, inputs, quality, rounds, records and reports were in danger"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder where a run does not fit: a small file system, or a limit on files for whom may not mount one."""
    out = tmp_path / "small" / "results"
    out.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(out)]
    mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield out, (lambda: None) if mounted else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    if mounted:
        subprocess.run(["umount", str(out)], check=True)


def test_a_disk_that_is_really_full(small_disk: tuple[Path, Callable[[], None]], tmp_path: Path) -> None:
    out, limit = small_disk
    assert wait(begin(out, tmp_path, before=limit)) == 3
    told = (tmp_path / "log").read_text().splitlines()
    assert "error: cannot write" in told[-1]
    assert "No space left" in told[-1] or "File too large" in told[-1]
    assert not list(out.rglob(".*"))
    assert all(json.loads(path.read_text()) for path in out.rglob("*.json"))


# signals and kills


def begin(out: Path, tmp_path: Path, *options: str, before: Callable[[], None] = lambda: None) -> int:
    """Start `bench run` in a process and session of its own, which has imported everything; returns its pid."""
    config = tmp_path / "unlucky.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    popen = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        return popen([sys.executable, "-m", "swift_worker"] if "bench.worker" in command else command, **settings)

    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.subprocess.Popen = start  # type: ignore[assignment,misc]
        cli_lock(tmp_path)
        before()
        sys.argv = ["bench", "run", str(config), "--out", str(out), "--max-time", "100h", *options]
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def cli_lock(tmp_path: Path) -> None:
    from bench import lock

    lock.default_path = lambda: tmp_path / "lock"


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def of_session(session: int) -> list[int]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(one.pid) == session and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


def strike(kind: str, pid: int, draw: random.Random) -> bool:
    """Hit the run, or one of its workers; returns whether there was one."""
    if kind != "worker":
        os.kill(pid, {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}[kind])
        return True
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        workers = psutil.Process(pid).children()
        if workers:
            os.kill(draw.choice(workers).pid, signal.SIGKILL)
            return True
    return False


def bad_moment(number: int, length: float, tmp_path: Path) -> str:
    """Strike a run once, let it go on, and look at what there is; returns how it ended."""
    draw = random.Random(number)
    kind = ("interrupt", "terminate", "kill", "worker")[number % 4]
    folder = tmp_path / str(number)
    folder.mkdir()
    out = folder / "results"
    pid = begin(out, folder)
    time.sleep(draw.uniform(0, length))
    while not (hit := strike(kind, pid, draw)) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.002)
    code = wait(pid)
    told = (folder / "log").read_text()
    assert "Traceback" not in told, told
    deadline = time.monotonic() + 60
    while left := of_session(pid):
        assert time.monotonic() < deadline, f"{left} are left behind"
        time.sleep(0.01)
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    if kind != "kill":
        assert not list(out.rglob(".*.tmp"))
    begun = list(out.glob("unlucky/*/manifest.json"))
    kept = finished(begun[0].parent) if begun else {}
    if code not in {0, 3}:
        assert code in ({-9} if kind == "kill" else {130, -15})
    if code:
        again = wait(begin(out, folder, *(["--resume"] if begun else [])))
        assert again == 0, (folder / "log").read_text()
    done = only(out)
    assert rounds(done) == WHOLE, "no record is lost, none is doubled, none is short"
    assert finished(done).items() >= kept.items(), "finished cells are kept as they were"
    assert not (done / "parts").exists()
    assert not list(done.rglob(".*")), "neither the lock nor what was aside is left"
    return f"{kind}{'' if hit else ' (nobody to hit)'} {code} {len(kept)}"


@pytest.fixture(scope="module")
def length(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a run takes that nothing happens to [s]."""
    folder = tmp_path_factory.mktemp("length")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.api.manifest.collect", lambda *_: FACTS)
        patch.setattr("bench.report.html.as_html", lambda *_: "")
        start = time.monotonic()
        assert wait(begin(folder / "results", folder)) == 0, (folder / "log").read_text()
    assert rounds(only(folder / "results")) == WHOLE
    return time.monotonic() - start


@pytest.mark.parametrize("number", range(8))
def test_a_signal_or_a_kill_at_a_random_moment(number: int, length: float, tmp_path: Path) -> None:
    bad_moment(number, length, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8, 58))
def test_fifty_more_moments(number: int, length: float, tmp_path: Path) -> None:
    print(bad_moment(number, length, tmp_path))


# exit codes of `bench run` that no signal brings about


@pytest.mark.parametrize(
    ("spoiled", "code"), [(None, 0), ("gate", 1), ("cell", 3), ("gate and cell", 1), ("unsupported", 0)]
)
def test_exit_codes(
    spoiled: str | None, code: int, inside: type[Inside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(do: str, arguments: dict[str, Any]) -> None:
        if do == "burst" and arguments["arm"] == "full_cache" and "cell" in (spoiled or ""):
            raise CellFailure("oom", "planted")
        if do == "quality" and arguments["arm"] == "streaming_llm" and spoiled == "unsupported":
            raise CellFailure("unsupported", "planted")

    inside.spoil = staticmethod(spoil)
    inside.passes = "gate" not in (spoiled or "")
    config = tmp_path / "unlucky.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setattr("bench.lock.default_path", lambda: tmp_path / "lock")
    monkeypatch.setattr(sys, "argv", ["bench", "run", str(config), "--out", str(tmp_path / "r"), "--max-time", "100h"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code


# going on


def test_an_arm_that_is_made_up_for_is_compared_with_its_baseline_of_the_same_time(
    inside: type[Inside], tmp_path: Path
) -> None:
    killed = f"{CHAT}.prompt_lookup.seed0"
    first = unlucky_arm(inside, tmp_path / "results", "prompt_lookup")
    before = finished(first.folder)
    inside.now = 0.02  # by now the machine is twice as slow
    done = run(tmp_path / "results", resume=True)
    assert rounds(done.folder) == WHOLE
    assert finished(done.folder).items() >= before.items()
    (record,) = [one for one in done.records() if one["cell"] == killed]
    assert [part["round"] for part in record["beside"]["autoregressive"]] == [1, 2], "round 0 has its pair already"
    assert ratio(done) == pytest.approx((1.0, 1.0, 3))


def test_arms_are_compared_with_a_baseline_that_is_made_up_for(inside: type[Inside], tmp_path: Path) -> None:
    first = unlucky_arm(inside, tmp_path / "results", "autoregressive")
    before = finished(first.folder)
    inside.now = 0.02
    done = run(tmp_path / "results", resume=True)
    assert rounds(done.folder) == WHOLE
    assert finished(done.folder).items() >= before.items()
    assert ratio(done) == pytest.approx((1.0, 1.0, 3))


def unlucky_arm(inside: type[Inside], out: Path, arm: str) -> api.Run:
    """A run whose arm dies in the second round."""

    def die(do: str, arguments: dict[str, Any]) -> None:
        if do == "burst" and arguments["arm"] == arm and arguments["index"] == 2:
            raise CellFailure("failed", "killed by SIGKILL")

    inside.spoil = staticmethod(die)
    done = run(out)
    inside.spoil = staticmethod(lambda do, arguments: None)
    assert {one["arm"]: one["status"] for one in done.records() if one["comparison"] == CHAT}[arm] == "failed"
    assert cli._exit_code(done.rows()) == 3
    return done


def ratio(done: api.Run) -> tuple[float, float, int]:
    """Lowest and highest ratio of TPOT that a pair of rounds shows, and the number of pairs."""
    row = next(row for row in outcome.rows(done.records())[CHAT] if row.arm == "prompt_lookup")
    estimate = row.estimates["tpot"]
    return estimate.low, estimate.high, estimate.units


def test_a_run_that_reaches_its_limit_goes_on_where_it_stopped(
    inside: type[Inside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bursts = 0

    def count(do: str, arguments: dict[str, Any]) -> None:
        nonlocal bursts
        bursts += do == "burst" and arguments["index"] >= 0

    inside.spoil = staticmethod(count)
    clock = SimpleNamespace(time=time.time, monotonic=lambda: 1e9 if bursts >= 8 else 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("bench.runner.time", clock)
        first = run(tmp_path / "results")
    ended = {one["arm"]: (one["status"], len(one["rounds"]), one["reason"]) for one in first.records()}
    assert ended["autoregressive"][:2] == ended["prompt_lookup"][:2] == ("skipped", 2)
    assert "2 of 3 rounds within the run's limit of 6000 min; --resume goes on" in ended["prompt_lookup"][2]
    assert ended["full_cache"][:2] == ("skipped", 0)
    assert cli._exit_code(first.rows()) == 3
    bursts = 0
    done = run(tmp_path / "results", resume=True)
    assert rounds(done.folder) == WHOLE
    assert bursts == 2 * 2 + 3 * 2 * 2, "only what was missing was timed"
    assert cli._exit_code(done.rows()) == 0


def test_a_damaged_record_is_measured_again(inside: type[Inside], tmp_path: Path) -> None:
    first = run(tmp_path / "results")
    path = first.folder / "cells" / f"{CELLS[1]}.json"
    path.write_text(path.read_text()[:100])
    notes: list[str] = []
    done = run(tmp_path / "results", resume=True, say=lambda event: notes.append(str(event.get("text"))))
    assert rounds(done.folder) == WHOLE
    assert any(f"measured again: cannot read {path}" in note for note in notes)


# where results go


@pytest.mark.parametrize("place", ["/proc/results", "file/results"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    place: str, inside: type[Inside], tmp_path: Path
) -> None:
    def never(do: str, arguments: dict[str, Any]) -> None:
        raise AssertionError("something was measured")

    inside.spoil = staticmethod(never)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make .* choose another with --out") as raised:
        api.run(CONFIG, out=tmp_path / place, lock=tmp_path / "lock", max_time="100h")
    assert raised.value.exit_code == 2


def test_two_runs_never_write_into_one_folder(inside: type[Inside], tmp_path: Path) -> None:
    first = run(tmp_path / "results")
    with (
        folder_lock(first.folder, "experiment of somebody"),
        pytest.raises(Busy, match=f"pid {os.getpid()}, experiment of somebody") as raised,
    ):
        run(tmp_path / "results", resume=True)
    assert raised.value.exit_code == 2
    assert rounds(first.folder) == WHOLE
