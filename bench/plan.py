"""What a run will take, by arithmetic: processes, their start, and the work, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench import model_names
from bench.errors import UsageError
from bench.experiment import Comparison, Experiment
from bench.shapes import SYNTHETIC, TINY
from bench.workload import Work


@dataclass(frozen=True)
class Speed:
    """Round figures of a device, for planning only: the clock knows better."""

    start: float
    """Importing the libraries and loading a small model, one process [s]."""
    compute: float
    """Dense matrix work [FLOP/s]."""
    bandwidth: float
    """Reading weights while decoding [B/s]."""
    step: float
    """Least time of one decoding step, whatever the size [s]."""


SPEEDS: Mapping[str, Speed] = {
    "cpu": Speed(start=7.0, compute=1.8e11, bandwidth=9e9, step=0.002),
    "cuda": Speed(start=12.0, compute=2e14, bandwidth=1.5e12, step=0.025),
}


@dataclass(frozen=True)
class Stage:
    """One line of the plan."""

    comparison: str
    stage: Literal["build", "quality", "timing"]
    pieces: int
    """How many builds, scorings or rounds it consists of."""
    processes: int
    start: float
    work: float | None
    """None: the model's size is not known before it is read."""

    @property
    def what(self) -> str:
        return "timing and memory" if self.stage == "timing" else self.stage

    @property
    def total(self) -> float:
        return self.start + (self.work or 0.0)


def parameters_of(name: str) -> int | None:
    """Number of weights of a model from its shape alone; None where that needs a download or is not told."""
    kind = model_names.kind_of(name)
    prefix, _, shape = name.partition(":")
    if kind == "embedded":
        return _count(model_names.EMBEDDED[name].shape())
    if kind in {"tiny", "synthetic"}:
        return _count((TINY if prefix == "tiny" else SYNTHETIC)[shape])
    if kind == "folder":
        try:
            return _count(json.loads((Path(name) / "config.json").read_text()))
        except KeyError:  # as of a model of several parts, which has a configuration for each
            return None
    return None


def stages(experiment: Experiment, device: str, dtype: str) -> Iterator[Stage]:
    """The plan of every comparison."""
    settings = experiment.settings
    speed = SPEEDS[device]
    for one in experiment.comparisons:
        count = parameters_of(one.model)
        build, burst, scored = one.workload.work()
        arms, seeds, rounds = len(one.arms), len(settings.seeds), settings.rounds
        # bursts; warm-up, memory pass and profile
        round_work = one.workload.timed_work().times(one.bursts) + burst.times(2 + settings.profile)
        bursts = _over_arms(one, round_work).times(rounds)

        def stage(
            name: Literal["build", "quality", "timing"],
            pieces: int,
            processes: int,
            work: Work,
            one: Comparison = one,
            count: int | None = count,
            at_once: int = 1,
        ) -> Stage:
            if settings.inline:
                processes = 1 if name == "build" else 0
            estimate = None if count is None else seconds(work, count, dtype, speed)
            start = processes * speed.start / min(at_once, 2)
            return Stage(one.id, name, pieces, processes, start, estimate)

        yield stage("build", 1, 1, build)
        yield stage("quality", arms * seeds, arms * seeds, _over_arms(one, scored, whole=True).times(seeds))
        yield stage("timing", rounds, arms * rounds, bursts, at_once=arms)


def _over_arms(one: Comparison, work: Work, whole: bool = False) -> Work:
    """A piece of work done by every arm of a comparison once, training as each of them does it.

    Args:
        whole: it is the whole training, which a workload may end early, and not a few steps of it.
    """
    every = work.times(len(one.arms))
    techniques = [arm.technique for arm in one.arms]
    shares = [one.workload.train_work(t, techniques[0]) if whole else t.train_work for t in techniques]
    return replace(every, train=round(work.train * sum(shares)))


def seconds(work: Work, parameters: int, dtype: str, speed: Speed) -> float:
    """Time of a piece of work by bytes and operations."""
    size = 4 if dtype == "float32" else 2
    slow = 2.0 if dtype == "float32" else 1.0
    parallel = (2 * work.prefill + 6 * work.train) * parameters / speed.compute * slow
    return parallel + work.decode * max(parameters * size / speed.bandwidth, speed.step)


def total(experiment: Experiment, device: str, dtype: str) -> float:
    """Seconds of the whole run."""
    return sum(stage.total for stage in stages(experiment, device, dtype))


def check(experiment: Experiment, device: str, dtype: str) -> None:
    """Raises UsageError where the plan exceeds the experiment's limit."""
    needed, limit = total(experiment, device, dtype), experiment.settings.max_time
    if needed > limit:
        raise UsageError(
            f"the plan takes about {needed / 60:.0f} min, the limit is {limit / 60:.0f} min; raise it with "
            f"--max-time {needed * 1.2 / 60:.0f}m, or run less (--dry-run shows where the time goes)"
        )


def _count(config: Mapping[str, Any]) -> int:
    """Weights of a decoder from its configuration, norms left out."""
    hidden = config.get("hidden_size") or config["n_embd"]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    heads = config.get("num_attention_heads") or config["n_head"]
    inner = config.get("intermediate_size") or 4 * hidden
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    gates = 3 if "intermediate_size" in config else 2
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    tied = 1 if config.get("tie_word_embeddings", True) else 2
    return int(layers * (attention + gates * hidden * inner) + tied * hidden * config["vocab_size"])
