"""A worker's protocol, its death with its parent, and its memory limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from bench import worker
from bench.errors import Diverged, Unsupported, WorkerError
from bench.process import CellFailure, Worker

SETTING: dict[str, Any] = {"model": "tiny:llama", "others": {}, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def live() -> Worker:
    with Worker(SETTING) as started:
        started.ready(120)
        yield started
    assert not alive(started.pid)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended stays a zombie until somebody asks for its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_whole_conversation(live: Worker) -> None:
    small = {"new_tokens": 6, "items": 2, "timed_prompts": 4, "burst_prompts": 1, "passage_words": 20}
    live.ask("open", 60, workload="grounded_chat", parameters=small, built=None, seed=0)
    built = live.ask("build", 60)
    assert built["model"]["random"] is True
    assert len(built["sha256"]) == 64
    prepared = live.ask("prepare", 60, arm="a", technique="autoregressive", parameters={})
    assert prepared["attention"] == "packed_sdpa", "the backend really used"
    assert prepared["held"]["weights"] > 0
    burst = live.ask("burst", 60, arm="a", index=0)
    assert (len(burst["seconds"]), burst["tokens"]) == (6, [1] * 6)
    memory = live.ask("memory", 60, arm="a", index=0)
    assert memory["largest"]["kv_cache"] > 0
    assert memory["peak"] > memory["named"]
    profile = live.ask("profile", 60, arm="a", index=0)
    assert set(profile["phases"]) == {"prefill", "forward", "sample", "cache"}
    quality = live.ask("quality", 60, arm="a", reference=None)
    assert len(quality["quality"]["metrics"]["output_nll"]) == 2
    live.ask("close", 60, arm="a")


def test_an_error_is_an_answer_and_the_worker_lives(live: Worker) -> None:
    with pytest.raises(CellFailure) as failure:
        live.ask("prepare", 60, arm="b", technique="no_such", parameters={})
    assert failure.value.status == "failed"
    assert "no_such" in failure.value.reason
    assert live.alive


def test_it_is_first_in_line_for_the_oom_killer_and_limited(live: Worker) -> None:
    with open(f"/proc/{live.pid}/oom_score_adj") as file:
        assert file.read().strip() == "1000"
    _, hard = psutil.Process(live.pid).rlimit(psutil.RLIMIT_DATA)
    assert 0 < hard < psutil.virtual_memory().total


def test_it_loads_no_kernels_from_a_hub(live: Worker) -> None:
    with open(f"/proc/{live.pid}/environ") as file:
        assert "USE_HUB_KERNELS=0" in file.read()


PARENT = """
import sys, time
from bench.process import Worker
worker = Worker({setting!r})
worker.ready(120)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(setting=SETTING)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_ctrl_c_is_for_the_parent(live: Worker) -> None:
    os.kill(live.pid, signal.SIGINT)
    time.sleep(0.2)
    assert live.alive


def test_garbage_on_the_pipe_is_named(live: Worker) -> None:
    live._buffer = b"what a library printed\n"
    with pytest.raises(WorkerError, match="outside the protocol"):
        live._receive(1)


def test_statuses() -> None:
    import torch

    assert worker.status_of(Unsupported("x")) == "unsupported"
    assert worker.status_of(MemoryError()) == "oom"
    assert worker.status_of(torch.OutOfMemoryError("CUDA out of memory")) == "oom"
    assert worker.status_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")) == "oom"
    assert worker.status_of(RuntimeError("shapes")) == "failed"


def test_a_diverged_run_keeps_its_curve() -> None:
    failure = worker._failure(Diverged(2, [3.0, 4.0, float("nan")]))
    assert failure["reason"] == "loss is not finite at step 2"
    assert worker.finite(failure)["curve"] == [[0, 3.0], [1, 4.0], [2, None]]
