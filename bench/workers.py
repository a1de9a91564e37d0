"""The processes that a run lends to its arms: one of their own each; inline, one for a whole family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.experiment import Arm, Comparison
from bench.process import Worker, available_memory
from bench.settings import Settings

START_LIMIT = 300.0
"""Importing the libraries may take this long on a busy machine [s]."""


class Workers:
    """Starts workers, and tells them what to work on."""

    def __init__(self, settings: Settings, environment: Mapping[str, Any], plugins: tuple[str, ...]) -> None:
        self.settings = settings
        self.device: str = environment["device"]["kind"]
        self.dtype: str = environment["device"].get("dtype", "float32")
        self.plugins = plugins
        self._inline: Worker | None = None

    @contextmanager
    def lend(self, comparison: Comparison) -> Iterator[Worker]:
        """A process of its own; inline, the family's one."""
        if self.settings.inline:
            if self._inline is None or not self._inline.alive:
                self.end()
                self._inline = Worker(self.setting(comparison))
            yield self._inline
            return
        with Worker(self.setting(comparison)) as worker:
            yield worker

    def open(self, worker: Worker, comparison: Comparison, seed: int, inputs: dict[str, Any] | None) -> None:
        """Give a worker its question; `inputs` is what `build` answered, None before."""
        worker.ready(START_LIMIT)
        worker.ask(
            "open",
            self.settings.cell_timeout,
            workload=comparison.workload_name,
            parameters=comparison.workload.model_dump(mode="json"),
            built=inputs["built"] if inputs else None,
            models=inputs.get("models", {}) if inputs else {},
            seed=seed,
        )

    def prepare(self, worker: Worker, arm: Arm) -> dict[str, Any]:
        """Make an arm ready in a worker; returns what the record keeps of it."""
        prepared: dict[str, Any] = worker.ask(
            "prepare",
            self.settings.cell_timeout,
            arm=arm.label,
            technique=arm.name,
            parameters=arm.technique.model_dump(mode="json"),
        )
        return prepared

    def end(self) -> None:
        """End the family's process."""
        if self._inline:
            self._inline.end()
            self._inline = None

    def memory(self) -> int:
        """What workers could take now, of the device they run on [B]."""
        if self.device != "cuda":
            return available_memory()
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free)

    def setting(self, comparison: Comparison) -> dict[str, Any]:
        """What a process is told first."""
        return {
            "model": comparison.model,
            "others": self.settings.helpers_of(comparison.model),
            "device": self.device,
            "dtype": self.dtype,
            "plugins": list(self.plugins),
        }
