"""Plain decoding that is slower, or holds more, by a known amount."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench import registry
from bench.families.decoding import Batch, Decoding, DecodingJob, DecodingPrepared, Emitted
from bench.models import Sources
from bench.registry import register
from bench.technique import Step


@register
class SpoiledDecoding(Decoding):
    """The family's baseline, spoiled by a known amount; by nothing it is its twin."""

    source: ClassVar[str] = "a known fault"

    slowdown: float = Field(default=0.0, ge=0.0)
    """Every step takes this share longer."""
    mebibytes: int = Field(default=0, ge=0)
    """Held beside the model [MiB]."""

    @property
    def plain(self) -> Decoding:
        entries = registry.techniques.of_family(self.family)
        found = next(entry.cls for entry in entries if entry.cls.baseline)()
        assert isinstance(found, Decoding)
        return found

    def prepare(self, sources: Sources) -> DecodingPrepared:
        prepared = self.plain.prepare(sources)
        assert isinstance(prepared, DecodingPrepared)
        if self.mebibytes:
            held = torch.ones(self.mebibytes << 20, dtype=torch.uint8, device=sources.target.device)

            def planted() -> Iterable[Tensor]:
                return [held]

            prepared.components["planted"] = planted
        return prepared

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        return self.plain.round(prepared, batch, job)

    def steps(self, prepared: DecodingPrepared, job: DecodingJob) -> Iterator[Step]:
        steps = super().steps(prepared, job)
        while True:
            start = time.perf_counter()
            step = next(steps, None)
            if step is None:
                return
            if self.slowdown:
                self._linger(start, step.outputs[0].is_cuda)
            yield step

    def _linger(self, start: float, cuda: bool) -> None:
        if cuda:
            torch.cuda.synchronize()
        end = start + (time.perf_counter() - start) * (1 + self.slowdown)
        while time.perf_counter() < end:
            pass
