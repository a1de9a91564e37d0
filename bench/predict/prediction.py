"""A prediction: a technique's peak memory by parts and its time at best on a device, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.errors import Unsupported, UsageError
from bench.predict.devices import Device
from bench.predict.heap import Heap
from bench.predict.segments import Segments
from bench.predict.simulation import Simulated, simulate
from bench.predict.weightless import sources
from bench.shapes import SYNTHETIC
from bench.technique import Technique
from bench.workload import Built, Workload

MODEL = "model"
"""What is searched for where no field of the workload is: the largest model."""
GUESSES = 32
"""Sizes that a search tries at most."""


@dataclass(frozen=True)
class Calibration:
    """What no simulation sees, from records of a kind of device; None where there is no record yet."""

    runtime: int | None = None
    """Resident before a technique prepares anything [B]; CPU only."""
    unseen: float | None = None
    """Fragments, workspaces, libraries' own: their share of what is seen."""
    records: int = 0
    """How many it rests on."""


@dataclass(frozen=True)
class Setting:
    """What is asked about: one arm on one workload, model and device."""

    label: str
    technique: Technique
    workload: Workload
    model: str
    device: Device
    dtype: str
    others: Mapping[str, str] = field(default_factory=dict)
    """Role -> model, as `draft`."""
    seed: int = 0


@dataclass(frozen=True)
class Prediction:
    """What comes of it."""

    setting: Setting
    parts: Mapping[str, int]
    """At the peak [B]: components, `activations`, `operators`, `allocator` (kept free), `runtime`, `unseen`."""
    needed: int
    """What the device must have: the peak, and on CUDA the free parts of segments that cannot go back [B]."""
    reserved: int
    """What torch reserves where there is room: on CUDA it gives nothing back before memory is short [B]."""
    seconds: Mapping[str, float]
    """Kind of step -> the shortest time of one, by the device's limits; of decoding that of a token [s]."""
    rounds: Mapping[str, float]
    """As `seconds`, but of decoding that of a round, however many tokens it gives [s]."""
    flops: Mapping[str, float]
    """Kind of step -> floating-point operations of one."""
    guessed: int
    """Numbers and answers that no shape tells; see `simulation`."""
    calibration: Calibration
    seen: int
    """In tensors, and kept free beside them [B]."""

    @property
    def peak(self) -> int:
        """[B]"""
        return sum(self.parts.values())


def predict(setting: Setting, calibration: Calibration | None = None, built: Built | None = None) -> Prediction:
    """Simulate a setting on tensors without contents.

    Args:
        calibration: for what is not seen; nothing is added if None.
        built: what the workload built for this model before.

    Raises:
        Unsupported: it cannot be foreseen, or the technique cannot do it.
    """
    calibration = calibration or Calibration()
    models = sources(setting.model, dict(setting.others), setting.dtype, setting.seed)
    if built is None:
        built = setting.workload.build(models, setting.seed)
    cpu = setting.device.kind == "cpu"
    allocator = Heap() if cpu else Segments()
    found = simulate(setting.technique, setting.workload, built, models, setting.seed, allocator, copies=cpu)
    seen = found.live + found.idle
    parts = {**found.parts, "allocator": found.idle}
    if cpu:
        parts["runtime"] = calibration.runtime or 0
    parts["unseen"] = round((calibration.unseen or 0.0) * seen)
    # a CPU's process has what it needs and no more; of the heap's own rounding nothing is told apart
    needed, reserved = (sum(parts.values()) + (0 if cpu else taken - seen) for taken in (found.least, found.reserved))
    seconds, rounds, flops = _times(found, setting.device)
    return Prediction(setting, parts, needed, reserved, seconds, rounds, flops, found.guessed, calibration, seen)


def _times(found: Simulated, device: Device) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    seconds: dict[str, list[float]] = {}
    rounds: dict[str, list[float]] = {}
    flops: dict[str, list[float]] = {}
    for step in found.steps:
        share = max(step.tokens, 1) if step.kind == "decode" else 1
        least = step.seconds(device.rate, device.bandwidth)
        rounds.setdefault(step.kind, []).append(least)
        seconds.setdefault(step.kind, []).append(least / share)
        flops.setdefault(step.kind, []).append(step.flops / share)
    return _means(seconds), _means(rounds), _means(flops)


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: sum(each) / len(each) for name, each in values.items()}


@dataclass(frozen=True)
class Fit:
    """The largest size that fits into a budget."""

    field: str
    value: int | str | None
    """None: not even the smallest does."""
    prediction: Prediction | None
    """Of it."""
    beyond: str
    """Why the next one does not, or why nobody looked further."""
    largest: bool = True
    """Whether the next one was tried; else larger ones may fit too."""


def largest(setting: Setting, name: str, budget: int, calibration: Calibration | None = None) -> Fit:
    """The largest value of a field of the workload, or the largest listed model, that fits into a budget.

    Args:
        name: of the field, as `batch_size`, or `model`.
        budget: [B]

    Raises:
        UsageError: the workload has no such field, it is no number, or memory does not depend on it.
        Unsupported: the setting cannot be foreseen.
    """
    if name == MODEL:
        shapes = sorted(SYNTHETIC, key=_weights)
        return _walk(setting, [f"synthetic:{shape}" for shape in shapes], budget, calibration)
    numbers = ", ".join(key for key, one in setting.workload.model_dump().items() if type(one) is int and key != name)
    value = getattr(setting.workload, name, None)
    if type(value) is not int:
        raise UsageError(f"largest {name!r}: the workload has no such number; name {MODEL} or {numbers}")

    def of(size: int) -> Prediction:
        values = {**setting.workload.model_dump(), name: size}
        try:
            workload = type(setting.workload)(**values)
        except ValueError as error:
            raise UsageError(f"{name}={size} is not allowed: {str(error).splitlines()[0]}") from None
        return predict(replace(setting, workload=workload), calibration)

    try:
        return _search(of, name, value, budget)
    except _WithoutEffect as error:
        raise UsageError(f"largest {name!r}: {error}; name {MODEL} or one of {numbers}") from None


class _WithoutEffect(Exception):
    """What is searched for changes nothing; the text says between which sizes."""


def _search(of: Callable[[int], Prediction], name: str, start: int, budget: int) -> Fit:
    """Memory grows about in proportion: a line through two sizes says where the budget is met.

    Raises:
        _WithoutEffect: the first two sizes need and compute the same.
    """
    known: dict[int, Prediction] = {}
    beyond, low, high, size = "", 0, 0, start
    while len(known) < GUESSES:
        try:
            known[size] = of(size)
        except (Unsupported, UsageError) as error:
            if not known:
                raise
            beyond, high = str(error), size
        else:
            if known[size].needed > budget:
                beyond, high = f"{name}={size} needs {known[size].needed / 1e9:.3g} GB", size
            else:
                low = size
        if len(known) == 2 and _alike(*known.values()):
            a, b = sorted(known)
            raise _WithoutEffect(f"a burst with {a} is one with {b}: its memory and its work do not depend on it")
        if high and high - low == 1:
            return Fit(name, low or None, known.get(low), beyond)
        size = _guess(known, low, high, budget)
    ended = f"the search ended after {GUESSES} sizes"
    return Fit(name, low or None, known.get(low), f"{ended}; {beyond}" if beyond else ended, largest=False)


def _alike(a: Prediction, b: Prediction) -> bool:
    """Whether nothing tells two predictions apart. More rows may fit beside a peak without them, but they compute."""
    return a.parts == b.parts and a.needed == b.needed and a.flops == b.flops


def _guess(known: Mapping[int, Prediction], low: int, high: int, budget: int) -> int:
    """The next size to try: above `low`, which fits, and below `high`, which does not (0: nothing is too large yet)."""
    if not high and len(known) < 2:
        return 2 * low
    if high and (low not in known or high not in known or len(known) % 2):
        return (low + high) // 2  # every other time at least: memory may grow in another way than a line
    a, b = sorted(known)[-2:] if not high else (low, high)
    slope = (known[b].needed - known[a].needed) / (b - a)
    guess = int(a + (budget - known[a].needed) / slope) if slope > 0 else 2 * b
    return max(min(guess, high - 1) if high else guess, low + 1)


def _walk(setting: Setting, models: list[str], budget: int, calibration: Calibration | None) -> Fit:
    best, refused = None, ""
    for model in models:
        try:
            found = predict(replace(setting, model=model), calibration)
        except Unsupported as error:  # a context that is too short, perhaps: a larger model may have a longer one
            refused = str(error)
            continue
        if found.needed > budget:
            return Fit(MODEL, best.setting.model if best else None, best, f"{model} needs {found.needed / 1e9:.3g} GB")
        best = found
    if best is None:
        raise Unsupported(f"none of the listed models can be foreseen: {refused}")
    return Fit(MODEL, best.setting.model, best, "no larger one is listed")


def _weights(shape: str) -> int:
    from bench.plan import parameters_of

    return parameters_of(f"synthetic:{shape}") or 0


def as_event(found: Prediction) -> dict[str, Any]:
    """A prediction as JSON."""
    setting = found.setting
    return {
        "event": "prediction",
        "technique": setting.label,
        "parameters": setting.technique.model_dump(mode="json"),
        "workload": type(setting.workload).__module__.rpartition(".")[2],
        "model": setting.model,
        "device": setting.device.name,
        "dtype": setting.dtype,
        "parts": dict(found.parts),
        "peak": found.peak,
        "needed": found.needed,
        "reserved": found.reserved,
        "seconds": dict(found.seconds),
        "flops": dict(found.flops),
        "guessed": found.guessed,
        "limits": setting.device.source,
        "unseen_share": found.calibration.unseen,
        "records": found.calibration.records,
    }
