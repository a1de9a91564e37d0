"""How long a step takes, from the device's limits and from how far other cells stay behind them.

No step is as short as its bytes and operations allow: calls cost time, and kernels leave some of a device unused. How
much longer it is depends on the kind of step and on the device: the median over the other cells says it, so that no
prediction knows its own measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.predict.check import Checked


@dataclass(frozen=True)
class Pace:
    """One kind of step of one cell."""

    run: str
    cell: str
    kind: str
    """Of the step: `prefill`, `decode` (a round), `train` or `rollout`."""
    least: float
    """By the device's limits [s]."""
    measured: float
    """Mean over all timed steps [s]."""
    predicted: float | None
    """`least`, times what the other cells of this device say; None if there is no other [s]."""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        return None if self.predicted is None else self.predicted / self.measured - 1


def paces(cells: Sequence[Checked]) -> list[Pace]:
    """Every kind of step of some cells, each calibrated by the other cells of its device."""
    found = []
    for one in cells:
        for kind, least in one.least.items():
            behind = [
                other.measured_steps[kind] / other.least[kind]
                for other in cells
                if other is not one and other.device == one.device and kind in other.least
            ]
            predicted = least * statistics.median(behind) if behind else None
            found.append(Pace(one.run, one.cell, kind, least, one.measured_steps[kind], predicted))
    return found


def measured(record: Mapping[str, Any]) -> dict[str, float]:
    """Kind of step -> mean time of one over the bursts of a record that count [s]."""
    seconds: dict[str, list[float]] = {}
    for part in record["rounds"]:
        for burst in part["bursts"]:
            if burst["used"]:
                for kind, each in zip(burst["samples"]["kind"], burst["samples"]["seconds"], strict=True):
                    seconds.setdefault(kind, []).append(each)
    return {kind: statistics.fmean(each) for kind, each in seconds.items()}
