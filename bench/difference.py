"""How far two answers of the quality pass lie apart: equal bit for bit, equal within a bound, different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BOUND = 1e-3
"""Figures further apart than this, relative to the largest of their metric, are different. It lies below the margins
of the verdicts: 0.01 nat of a log-likelihood of 3 nats per token is 3e-3."""
EQUAL, WITHIN, DIFFERENT = "bitwise equal", "equal within", "different"


@dataclass(frozen=True)
class Difference:
    """The worst difference between two runs."""

    answer: str = EQUAL
    metric: str = ""
    """Where it is: a metric, or the path of what else the run gave; "" if there is none."""
    relative: float | None = 0.0
    """Of figures: relative to the largest magnitude of the metric in both runs. None of what has no distance: ids,
    texts, whether a gate passed."""
    detail: str = ""


def compare(first: Mapping[str, Any], second: Mapping[str, Any], bound: float = BOUND) -> Difference:
    """The worst difference between two JSON mappings: floats have a distance, everything else is equal or not."""
    left, right = _columns(first), _columns(second)
    worst = Difference()
    for name in dict.fromkeys([*left, *right]):
        found = _difference(name, left.get(name, []), right.get(name, []), bound)
        if found.relative is None:
            return found
        if found.relative > (worst.relative or 0.0):
            worst = found
    return worst


def _columns(data: Any) -> dict[str, list[Any]]:
    """Path -> all values at it, in order: places in lists are no part of the path, lengths of lists are values."""
    columns: dict[str, list[Any]] = {}

    def walk(data: Any, path: str) -> None:
        if isinstance(data, Mapping):
            for key, value in data.items():
                walk(value, f"{path}.{key}".removeprefix("."))
        elif isinstance(data, list | tuple):
            columns.setdefault(f"{path} (length)", []).append(len(data))
            for value in data:
                walk(value, path)
        else:
            columns.setdefault(path, []).append(data)

    walk(data, "")
    return columns


def _difference(name: str, left: list[Any], right: list[Any], bound: float) -> Difference:
    if len(left) != len(right):
        return Difference(DIFFERENT, name, None, f"{len(left)} and {len(right)} values")
    unequal = [(a, b) for a, b in zip(left, right, strict=True) if a != b or type(a) is not type(b)]
    if not unequal:
        return Difference()
    count = f"{len(unequal)} of {len(left)} values"
    a, b = unequal[0]
    if not all(isinstance(value, float) for pair in unequal for value in pair):
        return Difference(DIFFERENT, name, None, f"{count}, first {str(a)[:40]!r} and {str(b)[:40]!r}")
    largest = max(abs(value) for value in (*left, *right) if isinstance(value, float))
    relative = max(abs(a - b) for a, b in unequal) / largest
    return Difference(DIFFERENT if relative > bound else WITHIN, name, relative, f"{count}, first {a!r} and {b!r}")


def compared(quality: Mapping[str, Any]) -> dict[str, Any]:
    """What of a quality pass must come again: all but its seconds and the gates' sentences, which repeat figures."""
    apart = {"metrics", "curves", "half_widths", "gates", "train_seconds"}
    other = {key: value for key, value in quality.items() if key not in apart}
    # a curve's columns have scales of their own
    curves, half_widths = (
        {
            name: dict(zip("xy", zip(*points, strict=True), strict=False))
            for name, points in quality.get(key, {}).items()
        }
        for key in ("curves", "half_widths")
    )
    passed = {gate["name"]: gate["passed"] for gate in quality["gates"]}
    return {**quality["metrics"], "curves": curves, "half_widths": half_widths, **other, "gates": passed}
