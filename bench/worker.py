"""`python -m bench.worker`: one arm in one process (a whole family inline), told what to do over a pipe.

Commands come as lines of JSON on standard input, answers go as lines of JSON to where standard output was; what
libraries print goes to standard error. The worker dies with its parent, is the first that the kernel's OOM killer
takes, and on a CPU runs under a memory limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from bench.errors import BenchError, Diverged, Unsupported

WARMUP = -1
_PR_SET_PDEATHSIG = 1


def harden(parent: int, memory_limit: int | None) -> None:
    """Tie this process to its parent and bound what it can take from the machine."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
        # some sandboxes have no such file: then the kernel chooses by itself
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    # no native code from a hub: peft and bitsandbytes would fetch kernels, and timings depend on them
    if os.environ.get("USE_HUB_KERNELS") == "0":
        sys.modules["kernels"] = None  # type: ignore[assignment]


def status_of(error: BaseException) -> str:
    """The status that an exception gives its cell."""
    import torch

    if isinstance(error, Unsupported):
        return "unsupported"
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    ):
        return "oom"
    return "failed"


def finite(data: Any) -> Any:
    """JSON has no NaN: such numbers become None."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data


class Bench:
    """The arms that live in this process."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import torch
        import transformers

        from bench import registry
        from bench.models import Source, Sources
        from bench.probes import resident

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        registry.load_plugins()
        for module in setting.get("plugins", ()):
            __import__(module)
        if setting.get("threads"):
            torch.set_num_threads(setting["threads"])
        if setting.get("deterministic"):
            torch.use_deterministic_algorithms(True, warn_only=True)
            # kernels are to change, nothing else
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.device: str = setting["device"]
        options = {"device": self.device, "dtype": setting["dtype"]}
        others = {role: Source(name, role, **options) for role, name in setting["others"].items()}
        self.sources = Sources(Source(setting["model"], **options), others)
        self.seed = 0
        self.techniques: dict[str, Any] = {}
        self.prepared: dict[str, Any] = {}
        self.fitted: dict[str, dict[str, Any]] = {}
        self.workload: Any = None
        self.built: dict[str, Any] = {}
        # what the modelling code brings along is no technique's doing
        from transformers import AutoModelForCausalLM, modeling_utils  # noqa: F401

        self.before = resident.at_rest()

    def do(self, message: dict[str, Any]) -> Any:
        return getattr(self, f"do_{message.pop('do')}")(**message)

    def do_open(
        self, workload: str, parameters: dict[str, Any], built: Any, seed: int, models: dict[str, Any] | None = None
    ) -> None:
        from dataclasses import replace

        from bench import registry

        self.workload = registry.workloads[workload].cls(**parameters)
        self.built = built or {}
        self.seed = seed
        self.sources = replace(self.sources.at(models or {}), seed=seed)

    def do_build(self) -> dict[str, Any]:
        from bench import data_files
        from bench.workload import content_hash

        self.built = self.workload.build(self.sources, self.seed)
        return {
            "built": self.built,
            "sha256": content_hash(self.built),
            "data": data_files.provenance(self.workload.model_dump()),
            "model": self._model_facts(),
            "models": self.sources.versions,
        }

    def do_prepare(self, arm: str, technique: str, parameters: dict[str, Any]) -> dict[str, Any]:
        import gc

        import torch

        from bench import registry
        from bench.families import own_attention
        from bench.probes import resident
        from bench.probes.memory import bytes_held

        torch.manual_seed(self.seed)
        start = time.perf_counter()
        cls = registry.techniques[technique].cls
        self.techniques[arm] = cls(**parameters)
        self.prepared[arm] = self.techniques[arm].prepare(self.sources)
        prepared = self.prepared[arm]
        seconds = time.perf_counter() - start
        self.fitted[arm] = self.workload.fitted(self.techniques[arm], prepared, self.built)
        gc.collect()
        resident.give_back()
        config, own = getattr(prepared.model, "config", None), own_attention.attends_by(prepared.model)
        return {
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "attention": own.__name__ if own else getattr(config, "_attn_implementation", None),
            "held": bytes_held(prepared.holdings()),
            "reads": self.sources.log,
        }

    def do_burst(self, arm: str, index: int) -> dict[str, Any]:
        from bench.probes.clock import time_steps

        job = self.workload.burst(self.fitted[arm], index, self.seed, self.device)
        groups = self.workload.groups(self.fitted[arm], index)
        return {**time_steps(self._steps(arm, job), self.device).to_json(), **({"groups": groups} if groups else {})}

    def do_profile(self, arm: str, index: int) -> dict[str, Any]:
        from dataclasses import replace

        from bench.probes.clock import PhaseClock, time_steps

        phases = PhaseClock(self.device)
        job = replace(self.workload.burst(self.fitted[arm], index, self.seed, self.device), phase=phases)
        samples = time_steps(self._steps(arm, job), self.device)
        samples.phases = phases.seconds
        return samples.to_json()

    def do_memory(self, arm: str, index: int) -> dict[str, Any]:
        from dataclasses import replace

        from bench.probes.memory import MemoryProbe

        job = self.workload.burst(self.fitted[arm], index, self.seed, self.device)
        probe = MemoryProbe(self.prepared[arm], self.device, self.before)
        probe.follow(self._steps(arm, replace(job, phase=probe.phase)))
        return probe.read()

    def do_calls(self, arm: str, index: int) -> dict[str, list[float]]:
        from bench.probes.clock import time_calls

        job = self.workload.burst(self.fitted[arm], index, self.seed, self.device)
        return time_calls(self.techniques[arm].calls(self.prepared[arm], job), self.device)

    def do_quality(self, arm: str, reference: dict[str, Any] | None) -> dict[str, Any]:
        from bench.probes import memory
        from bench.workload import Gate, Quality

        base = None
        if reference is not None:
            gates = [Gate(**gate) for gate in reference["gates"]]
            base = Quality(**{**reference, "gates": gates})
        unknown = memory.reset_peak(self.device)
        quality = self.workload.quality(
            self.techniques[arm], self.prepared[arm], self.fitted[arm], self.seed, self.sources.target, base
        )
        return {"quality": quality.to_json(), "peak": None if unknown else memory.peak(self.device)}

    def do_close(self, arm: str) -> None:
        import gc

        self.prepared.pop(arm).close()
        del self.fitted[arm]
        gc.collect()

    def _steps(self, arm: str, job: Any) -> Any:
        return self.techniques[arm].steps(self.prepared[arm], job)

    def _model_facts(self) -> dict[str, Any]:
        target = self.sources.target
        return {
            **target.version,
            "origin": target.origin,
            "random": target.is_random,
            "parameters": target.parameters,
            "sha256": target.fingerprint,
            "architecture": target.config.model_type,
        }


def serve(commands: IO[str], answers: IO[str]) -> None:
    """Answer one line per line until the pipe ends."""

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(finite(data), allow_nan=False) + "\n")
        answers.flush()

    bench: Bench | None = None
    for line in commands:
        message = json.loads(line)
        try:
            if bench is None:
                harden(message.pop("parent"), message.pop("memory_limit", None))
                bench = Bench(message)
                answer({"status": "ok", "result": {"runtime": bench.before.get("now", 0)}})
            else:
                answer({"status": "ok", "result": bench.do(message)})
        except Exception as error:
            answer(_failure(error))


def _failure(error: Exception) -> dict[str, Any]:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not isinstance(error, BenchError):
        reason = f"{type(error).__name__}: {reason}"
    failure: dict[str, Any] = {"status": status_of(error), "reason": reason}
    failure["detail"] = "" if isinstance(error, Unsupported) else traceback.format_exc(limit=-8)
    if isinstance(error, Diverged):
        failure["curve"] = [[step, loss] for step, loss in enumerate(error.losses)]
    # the traceback holds the frames, the frames hold the tensors
    traceback.clear_frames(error.__traceback__)
    return failure


def main(run: Callable[[IO[str], IO[str]], None] = serve) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    run(sys.stdin, answers)


if __name__ == "__main__":
    main()
