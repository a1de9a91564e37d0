"""What simulation says of the papers' claims about memory: what a figure would be on a model that is not here.

Only peaks and components of memory are foreseen, and only where they do not follow from weights, as the length of a
cache may. How fast a step is and how good a model becomes no shape tells. A foreseen figure is no measurement: it
stands beside a claim that no record decides, and changes no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import registry, store
from bench.claim import Claim, Figure, meets
from bench.errors import StoreError, Unsupported
from bench.registry import Entry
from bench.technique import Technique

if TYPE_CHECKING:
    from bench.predict.prediction import Prediction

KEPT = "foreseen.json"
"""In the results folder."""
ANY_MODEL = "synthetic:llama-7b"
"""Where a claim names none."""
DEVICE, DTYPE = "a100", "bfloat16"
"""Papers measure on CUDA; of the device only its kind counts here."""
READ = ("peak_memory", "held_memory", "reserved_memory")
"""Metrics that a prediction has, beside `held.COMPONENT`."""
NOT_HELD = ("activations", "operators", "allocator", "runtime", "unseen")
"""Parts of a peak that no component names."""


@dataclass(frozen=True)
class Foreseen:
    """One claim's figure."""

    technique: str
    claim: str
    asked: str
    """What was simulated for it (`asked`)."""
    value: float
    words: str
    """The figure, whether the claim would hold with it, and of what it is simulated."""


def foresee(entries: Iterable[Entry[Technique]]) -> list[Foreseen]:
    """Simulate what the claims of these techniques speak of, as far as shapes alone tell it: minutes for 65B."""
    return [one for entry in entries for claim in entry.cls.claims if (one := of(entry.name, claim)) is not None]


def of(technique: str, claim: Claim) -> Foreseen | None:
    """A claim's figure, simulated; None where it is not of memory, of no listed model, or needs weights."""
    model = model_of(claim)
    if model is None or not all(figure.kind == "held" or figure.quantity in READ for figure in claim.parsed.figures):
        return None
    try:
        predicted = [_predicted(figure, claim, model) for figure in claim.parsed.figures]
    except Unsupported:
        return None
    a, b = (*map(_value, claim.parsed.figures, predicted), 0.0)[:2]
    value = {"": a, "-": a - b, "/": a / b if b else 0.0}[claim.parsed.operator]
    return Foreseen(technique, claim.name, asked(claim), value, _words(claim, value, model, predicted[0].needed))


def asked(claim: Claim) -> str:
    """All of a claim that a foreseen figure and its words rest on, in one line."""
    workload = ", ".join(f"{key}={value}" for key, value in claim.workload.items())
    return f"{claim.expression}, {claim.expected}; {model_of(claim)}, {workload}"


def model_of(claim: Claim) -> str | None:
    """The listed shapes of a model that a claim speaks of; None where none is listed."""
    from bench.shapes import SYNTHETIC

    pattern = claim.needs.get("model", claim.conditions.get("model"))
    if pattern is None:
        return ANY_MODEL
    return next((f"synthetic:{shape}" for shape in SYNTHETIC if meets(shape, pattern)), None)


def keep(out: Path, found: Iterable[Foreseen]) -> None:
    """Leave what was foreseen in a results folder, beside older figures of other claims.

    Raises:
        StoreError: it cannot be written.
    """
    new = {(one.technique, one.claim): one for one in found}
    kept = {**stored(out), **new}
    store.write_json(out / KEPT, {"claims": [asdict(kept[key]) for key in sorted(kept)]})


def stored(out: Path) -> dict[tuple[str, str], Foreseen]:
    """By technique and claim, what was left in a results folder, of claims that still read the same."""
    claims = {(e.name, claim.name): claim for e in registry.techniques.values() for claim in e.cls.claims}
    try:
        found = [Foreseen(**one) for one in store.read_json(out / KEPT)["claims"]]
    except (StoreError, KeyError, TypeError):
        return {}
    there = {(one.technique, one.claim): one for one in found}
    return {key: one for key, one in there.items() if key in claims and asked(claims[key]) == one.asked}


def _predicted(figure: Figure, claim: Claim, model: str) -> Prediction:
    from bench.predict.devices import find
    from bench.predict.prediction import Setting, predict

    entry = registry.techniques[figure.arm]
    given = dict(claim.workload)
    workload = registry.workloads[given.pop("name")].cls(**given)
    technique = entry.cls(**{**entry.parameters, **figure.parameters})
    found = predict(Setting(figure.arm, technique, workload, model, find(DEVICE), DTYPE))
    if found.guessed and not technique.trains:  # a training holds the same, whatever its numbers
        raise Unsupported("it depends on weights")
    return found


def _value(figure: Figure, found: Prediction) -> float:
    """[B]"""
    if figure.quantity == "peak_memory":
        return float(found.peak)
    if figure.quantity == "reserved_memory":  # of a device that has no more: the allocator gives back what it keeps
        return float(found.needed)
    held = {name: size for name, size in found.parts.items() if name not in NOT_HELD}
    return float(sum(held.values()) if figure.quantity == "held_memory" else held[figure.quantity.partition(".")[2]])


def _words(claim: Claim, value: float, model: str, needed: int) -> str:
    figure = f"{value:.4g}" if claim.parsed.operator == "/" else f"{value / 1e9:.1f} GB"
    if not claim.parsed.operator:
        figure += f" (torch can do with {needed / 1e9:.1f} GB of a device)"
    would = "would hold" if claim.expected.holds(value, value) else "would not hold"
    given = ", ".join(f"{key}={value}" for key, value in claim.workload.items() if key != "name")
    return f"{figure}: it {would}; {model}, {claim.workload['name']} ({given}), {DTYPE}, simulated without weights"
