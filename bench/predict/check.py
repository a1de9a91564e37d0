"""Predictions beside what stored records measured: each cell is predicted anew from its parameters, and compared.

What no simulation sees is taken from the other cells alone, so that no prediction knows its own measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry, store
from bench.errors import BenchError, StoreError
from bench.predict import pace
from bench.predict.prediction import Calibration

if TYPE_CHECKING:
    from bench.predict.devices import Device
    from bench.predict.prediction import Prediction

PAGE, FIGURES = "predictions.md", "predictions.json"
"""What a check leaves in the results folder: to read, and to calibrate later predictions with."""
FAR = 0.1
"""An error beyond it is pointed out."""


@dataclass(frozen=True)
class Checked:
    """One cell: what was measured, and what is foreseen of it."""

    run: str
    cell: str
    family: str
    model: str
    device: str
    kind: str
    measured: int | None
    """Median over the rounds of the peak of the memory pass [B]."""
    runtime: int | None
    """Of these, resident before anything was prepared [B]; None on CUDA."""
    seen: int | None
    """What the simulation sees: tensors, and what is kept free beside them [B]."""
    reason: str = ""
    """Why there is no prediction, or nothing to compare it with."""
    predicted: int | None = None
    """With what the other cells say of the rest [B]."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Kind of step -> the shortest time of one, by the device's limits; empty where these are not known [s]."""
    measured_steps: Mapping[str, float] = field(default_factory=dict)
    """Kind of step -> its mean time, of those in `least` [s]."""
    limits: str = ""
    """Where the device's limits are from, or why they are not known."""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1

    @property
    def share(self) -> float | None:
        """Unseen bytes over seen ones."""
        if self.measured is None or not self.seen:
            return None
        return (self.measured - (self.runtime or 0)) / self.seen - 1


def check(runs: Iterable[store.Run], families: Sequence[str] = ()) -> Iterator[Checked]:
    """Every cell of some runs, as far as the simulation sees; `calibrated` adds the rest.

    Args:
        families: only cells of these; all if there are none.

    Raises:
        StoreError: a run cannot be read.
    """
    registry.load_plugins()
    built: dict[Any, Any] = {}
    devices: dict[tuple[str, str], Device] = {}
    for run in runs:
        for record in run.records(damaged=[]):
            if not families or record["family"] in families:
                yield _examined(run, record, built, devices)


def calibrated(cells: Sequence[Checked]) -> list[Checked]:
    """The cells with predictions, each calibrated by the others of its kind of device."""
    found = []
    for one in cells:
        others = [other for other in cells if other is not one]
        calibration = calibration_of(others, one.kind)
        predicted = None
        if one.seen is not None and calibration.unseen is not None:
            predicted = round(one.seen * (1 + calibration.unseen)) + (calibration.runtime or 0)
        reason = one.reason or ("" if predicted else "no other cell to calibrate with")
        found.append(replace(one, predicted=predicted, reason=reason))
    return found


def calibration_of(cells: Iterable[Checked], kind: str) -> Calibration:
    """What the cells of a kind of device say of the bytes that no simulation sees: medians."""
    usable = [one for one in cells if one.kind == kind and one.share is not None]
    shares = [one.share for one in usable if one.share is not None]
    runtimes = [one.runtime for one in usable if one.runtime is not None]
    return Calibration(
        runtime=round(statistics.median(runtimes)) if runtimes else None,
        unseen=statistics.median(shares) if shares else None,
        records=len(usable),
    )


def kept(out: Path, kind: str) -> Calibration:
    """The calibration that the last check left in a results folder; an empty one if there is none."""
    return calibration_of(stored(out), kind)


def keep(out: Path, cells: Sequence[Checked]) -> None:
    """Leave the figures for later predictions, in the place of older ones of the same cells.

    Raises:
        StoreError: the folder cannot be written.
    """
    new = {(one.run, one.cell) for one in cells}
    older = [one for one in stored(out) if (one.run, one.cell) not in new]
    store.write_json(out / FIGURES, {"cells": [dict(vars(one)) for one in (*older, *cells)]})


def stored(out: Path) -> list[Checked]:
    """The cells that were checked before; none where there is no such file, or it is another version's."""
    try:
        return [Checked(**one) for one in store.read_json(out / FIGURES)["cells"]]
    except (StoreError, KeyError, TypeError):
        return []


def _examined(
    run: store.Run, record: Mapping[str, Any], built: dict[Any, Any], devices: dict[tuple[str, str], Device]
) -> Checked:
    environment = record["environment"]["device"]
    rounds = [part["memory"] for part in record["rounds"] if part.get("memory")]
    peaks = [memory["peak"] for memory in rounds if memory["peak"] is not None]
    runtimes = [memory["runtime"] for memory in rounds if memory["runtime"]]
    cpu = environment["kind"] == "cpu"
    found = Checked(
        run=f"{run.folder.parent.name}/{run.folder.name}",
        cell=record["cell"],
        family=record["family"],
        model=(record["model"] or {}).get("name", "unknown"),
        device=environment["name"],
        kind=environment["kind"],
        measured=round(statistics.median(peaks)) if peaks else None,
        runtime=round(statistics.median(runtimes)) if cpu and runtimes else None,
        seen=None,
    )
    if not peaks:
        return replace(found, reason=f"no peak was measured: {record['reason'] or record['status']}")
    device, limits = _limits(record, devices)
    try:
        foreseen = _foreseen(record, built, device)
    except (BenchError, ValueError) as error:
        return replace(found, reason=str(error).splitlines()[0])
    found = replace(found, seen=foreseen.seen, limits=limits)
    if not device.memory:
        return found
    timed = pace.measured(record)
    kinds = [kind for kind in foreseen.rounds if kind in timed]
    return replace(
        found,
        least={kind: foreseen.rounds[kind] for kind in kinds},
        measured_steps={kind: timed[kind] for kind in kinds},
    )


def _limits(record: Mapping[str, Any], known: dict[tuple[str, str], Device]) -> tuple[Device, str]:
    """The device of a record, and where its limits are from; one of no memory where they are not known."""
    from bench import manifest
    from bench.predict import devices

    environment = record["environment"]["device"]
    name, kind, dtype = environment["name"], environment["kind"], environment["dtype"]
    if (name, dtype) not in known:
        listed = devices.listed(name) if kind == "cuda" else None
        if listed is not None:
            known[name, dtype] = listed
        elif kind == "cpu" and name == manifest.device_name("cpu"):
            known[name, dtype] = devices.this_cpu(dtype, (record["prepared"] or {}).get("threads"))
        else:
            reason = f"the limits of {name} are not known here"
            known[name, dtype] = devices.Device(name, kind, 0, 1.0, {"float32": 1.0}, reason)
    return known[name, dtype], known[name, dtype].source


def _foreseen(record: Mapping[str, Any], built: dict[Any, Any], device: Device) -> Prediction:
    from bench.predict.prediction import Setting, predict
    from bench.predict.weightless import sources

    dtype = record["environment"]["device"]["dtype"]
    arm, asked = record["technique"], record["workload"]
    setting = Setting(
        label=record["arm"],
        technique=registry.techniques[arm["registered"]].cls(**arm["parameters"]),
        workload=registry.workloads[asked["name"]].cls(**asked["parameters"]),
        model=record["model"]["name"],
        device=device,
        dtype=dtype,
        others={read["role"]: read["name"] for read in record["prepared"]["reads"] if read["role"] != "target"},
        seed=record["seed"],
    )
    key = (setting.model, setting.dtype, setting.seed, type(setting.workload), setting.workload.model_dump_json())
    if key not in built:
        models = sources(setting.model, dict(setting.others), setting.dtype, setting.seed)
        built[key] = setting.workload.build(models, setting.seed)
    return predict(setting, built=built[key])
