"""A decoding step behind our caches and behind kvpress' presses, in turn, and the bytes that each cache holds.

    scripts/compare-kvpress --model smollm2-135m --context 1024 --time --out kvpress.json

One process of theirs and this one are never at work in the same moment: who is not asked waits. A round asks every
arm once; the order is turned round from one round to the next. Ratios are paired within a round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.errors import WorkerError
from bench.families import cache as kv
from bench.models import Source, Sources
from benchmarks.kv_cache.core.kvpress_pairs import COMPRESSION, PAIRS, technique, their_environment
from benchmarks.kv_cache.core.kvpress_worker import timed

WORKER = Path(__file__).with_name("kvpress_worker.py")
WARM = 2
"""Steps of a turn that are not counted."""
COMPRESSED = {pair.technique: pair for pair in PAIRS if pair.technique in ("snapkv", "knorm")}
THEIRS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plain": ("", {}),
    **{pair.press: (pair.press, pair.theirs) for pair in COMPRESSED.values()},
}
ARMS = ("full_cache", "plain", "snapkv", "SnapKVPress", "hf_dynamic", "knorm", "KnormPress")
"""In the order of a round."""
RATIOS = (
    ("full_cache", "plain"),
    ("hf_dynamic", "plain"),
    ("snapkv", "SnapKVPress"),
    ("knorm", "KnormPress"),
    ("snapkv", "full_cache"),
    ("knorm", "full_cache"),
    ("SnapKVPress", "plain"),
    ("KnormPress", "plain"),
)

Turn = Callable[[], dict[str, Any]]
"""-> `seconds` of the steps, `bytes` held behind the last one."""


@torch.inference_mode()
def ours(name: str, source: Source, ids: list[int], context: int) -> Turn:
    """An arm of this process, made ready."""
    given, new = torch.tensor([ids]), len(ids) - context
    policy = COMPRESSED[name].policy(context, new) if name in COMPRESSED else technique(name)
    prepared = policy.prepare(Sources(source))

    @torch.inference_mode()
    def turn() -> dict[str, Any]:
        cache = policy.cache(prepared, 1, context, new)
        kv.read(prepared.model, given[:, :context], cache)
        seconds = timed(lambda one: kv.read(prepared.model, one, cache), given[:, context:].split(1, 1))
        return {"seconds": seconds, "bytes": kv.held_bytes(cache)}

    return turn


@contextmanager
def theirs(
    python: str, folder: Path, dtype: str, ids: list[int], context: int
) -> Iterator[tuple[dict[str, str], dict[str, Turn]]]:
    """The versions of a process of kvpress' environment, and its arms.

    Args:
        folder: holds the model.

    Raises:
        WorkerError: it ended early.
    """
    threads = torch.get_num_threads()
    task = {"ids": ids, "context": context, "compression": COMPRESSION, "dtype": dtype}
    task |= {"threads": threads, "arms": THEIRS}
    (folder / "timing.json").write_text(json.dumps(task))
    command = [python, str(WORKER), str(folder)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=their_environment(),
        ) as process,
    ):
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def answer() -> Any:
            line = answered.readline()
            if not line:
                log.seek(0)
                last = (log.read().strip().splitlines() or ["nothing was said"])[-1]
                raise WorkerError(f"kvpress' process ended: {last}; make its environment again, or give another")
            return json.loads(line)

        def turn(arm: str) -> Turn:
            def ask() -> dict[str, Any]:
                if process.poll() is None:
                    asked.write(arm + "\n")
                    asked.flush()
                return answer()  # type: ignore[no-any-return]

            return ask

        try:
            yield answer(), {arm: turn(arm) for arm in THEIRS}
        finally:
            process.kill()


def rounds(turns: Mapping[str, Turn], count: int) -> Iterator[dict[str, dict[str, Any]]]:
    """Every arm once a round, behind one round that is not counted; every other round the other way round."""
    for place in range(count + 1):
        order = ARMS if place % 2 else ARMS[::-1]
        found = {arm: turns[arm]() for arm in order}
        if place:
            yield found


def step_of(turn: Mapping[str, Any]) -> float:
    """The median step of a turn behind the first ones [s]."""
    return statistics.median(turn["seconds"][WARM:])


def summary(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Per arm the median over rounds of its step and the bytes it holds; ratios of arms, each within its round."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "least": min(values), "most": max(values)}

    arms = {
        arm: {"seconds_per_step": spread([step_of(each[arm]) for each in found]), "bytes": found[-1][arm]["bytes"]}
        for arm in ARMS
    }
    ratios = [
        {
            "of": one,
            "to": other,
            "time": spread([step_of(each[one]) / step_of(each[other]) for each in found]),
            "bytes": arms[one]["bytes"] / arms[other]["bytes"],
        }
        for one, other in RATIOS
    ]
    return {"arms": arms, "ratios": ratios}


def time(source: Source, python: str, folder: Path, ids: list[int], context: int, count: int) -> dict[str, Any]:
    """What the record says of time: every round's samples, and their summary.

    Args:
        source: with the type of numbers that both sides compute in.
        folder: holds the model as theirs reads it.
        count: of rounds.
    """
    mine = {arm: ours(arm, source, ids, context) for arm in ARMS if arm not in THEIRS}
    with theirs(python, folder, source.dtype, ids, context) as (versions, others):
        found = list(rounds({**mine, **others}, count))
    return {
        "steps": len(ids) - context,
        "steps_not_counted": WARM,
        "threads": torch.get_num_threads(),
        "dtype": source.dtype,
        "versions": versions,
        **summary(found),
        "rounds": found,
    }


def lines(timing: Mapping[str, Any]) -> list[str]:
    """The table that is printed."""
    made = [f"{'arm':14}{'ms per step':>13}{'MiB held':>11}"]
    for arm, one in timing["arms"].items():
        made.append(f"{arm:14}{one['seconds_per_step']['median'] * 1e3:13.2f}{one['bytes'] / 2**20:11.2f}")
    made.append(f"{'ratio':28}{'time':>7}{'least':>8}{'most':>8}{'bytes':>8}")
    for one in timing["ratios"]:
        spent = one["time"]
        name = f"{one['of']} / {one['to']}"
        made.append(f"{name:28}{spent['median']:7.3f}{spent['least']:8.3f}{spent['most']:8.3f}{one['bytes']:8.3f}")
    return made
