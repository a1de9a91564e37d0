"""Time between the steps of a technique: the gaps of `next()`, and nothing else.

On a GPU events are recorded around each gap and the device is waited for once, after the last one.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.errors import BenchError
from bench.technique import Step

EMITTING = {"prefill", "decode", "rollout"}


@dataclass
class Samples:
    """Raw samples of one burst, one entry per step."""

    kind: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Per step over all rows, counted from the emitted ids."""
    counts: list[dict[str, int]] = field(default_factory=list)
    """What the technique counted, summed per prefill and the steps behind it; all in one where there is none."""
    phases: dict[str, list[float]] = field(default_factory=dict)
    """Profile pass only: seconds per phase, one entry per mark."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def time_steps(steps: Iterator[Step], device: str) -> Samples:
    """Run a generator to its end and time every `next()`.

    Raises:
        BenchError: a step reports another number of tokens than its outputs hold.
    """
    done: list[Step] = []
    collect_later = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        seconds = _time_cuda(steps, done) if device.startswith("cuda") else _time_cpu(steps, done)
    finally:
        if collect_later:
            gc.enable()
    samples = Samples(seconds=seconds)
    for step in done:
        samples.kind.append(step.kind)
        samples.tokens.append(count_tokens(step))
        if step.kind == "prefill" or not samples.counts:
            samples.counts.append({})
        for name, count in step.counts.items():
            samples.counts[-1][name] = samples.counts[-1].get(name, 0) + int(count)
    return samples


def time_calls(calls: Mapping[str, Callable[[], object]], device: str, repeats: int = 9) -> dict[str, list[float]]:
    """Seconds of every call, in turn with the others, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    clock = PhaseClock(device)
    for _ in range(repeats + 1):
        for name, call in calls.items():
            with clock(name):
                call()
    for name, taken in clock.seconds.items():
        seconds[name] = taken[1:]
    return seconds


def count_tokens(step: Step) -> int:
    """Tokens of a step: emitted ids are counted, trained ones taken as reported.

    Raises:
        BenchError: the technique reports another number than its outputs hold.
    """
    if step.kind not in EMITTING:
        return step.tokens
    emitted = sum(output.numel() for output in step.outputs)
    if emitted != step.tokens:
        raise BenchError(f"a {step.kind} step reports {step.tokens} tokens, its outputs hold {emitted}")
    return emitted


def _time_cpu(steps: Iterator[Step], done: list[Step]) -> list[float]:
    now = time.perf_counter_ns
    marks: list[int] = []
    while True:
        start = now()
        step = next(steps, None)
        end = now()
        if step is None:
            return [gap / 1e9 for gap in marks]
        marks.append(end - start)
        done.append(step)


def _time_cuda(steps: Iterator[Step], done: list[Step]) -> list[float]:
    torch.cuda.synchronize()
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    while True:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step = next(steps, None)
        end.record()
        if step is None:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in marks]
        marks.append((start, end))
        done.append(step)


class PhaseClock:
    """The phase mark of the profile pass: it waits for the device at both ends, so phases add up.

    The time of a phase inside another is that phase's alone.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.seconds: dict[str, list[float]] = {}
        self._inside: list[float] = []
        """Of every open phase, the time that phases inside it took [s]."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._now()
        self._inside.append(0.0)
        try:
            yield
        finally:
            taken = self._now() - start
            self.seconds.setdefault(name, []).append(taken - self._inside.pop())
            if self._inside:
                self._inside[-1] += taken

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
