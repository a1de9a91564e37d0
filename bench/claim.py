"""A paper's claim as data: a sentence, where it stands, the figure that decides it, and what the figure should be.

The figure is a small expression over stored records, parsed and never evaluated as code:

    FIGURE              its value
    FIGURE / FIGURE     the ratio of the first to the second, paired round by round, item by item or seed by seed
    FIGURE - FIGURE     the difference, paired likewise

A FIGURE is `QUANTITY(ARM)`. QUANTITY is a metric of the glossary, `counts.NAME` (what a record counted, the same in
every repeat), `gates.NAME` (1 where the gate passed, else 0) or `held.COMPONENT` (most bytes of one component). ARM is
the name of a technique or preset, with the parameters that it must have: `qlora[quant_type=fp4]`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from bench import metrics
from bench.errors import BenchError

Operator = Literal["", "/", "-"]

_FIGURE = re.compile(r"(?P<quantity>[a-z0-9_.]+)\((?P<arm>[a-z0-9_]+)(?:\[(?P<parameters>[^\[\]()]*)\])?\)")
_OPERATOR = re.compile(r"\s+([/-])\s+")
_KINDS = ("counts", "gates", "held")


@dataclass(frozen=True)
class Figure:
    """One quantity of one arm."""

    quantity: str
    arm: str
    """Name of a technique or preset."""
    parameters: Mapping[str, Any]
    """What the arm must have been run with; the others are free."""

    @property
    def kind(self) -> str:
        """`metric`, `counts`, `gates` or `held`."""
        return self.quantity.partition(".")[0] if "." in self.quantity else "metric"

    @property
    def metric(self) -> metrics.Metric | None:
        return metrics.metric(self.quantity) if self.kind == "metric" else None


@dataclass(frozen=True)
class Expression:
    """One figure, or two with what is between them."""

    figures: tuple[Figure, ...]
    operator: Operator


@dataclass(frozen=True)
class Expected:
    """The values with which a claim holds."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False
    """Whether the bounds themselves are outside."""

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{self.low:g} to {self.high:g}"
        bound, below = (self.low, False) if math.isfinite(self.low) else (self.high, True)
        words = ("below", "above") if self.strict else ("at most", "at least")
        return f"{words[0] if below else words[1]} {bound:g}"

    def holds(self, low: float, high: float) -> bool | None:
        """Whether all of an interval is inside, or all of it outside; None where it is on both sides."""
        if (self.low < low and high < self.high) or (not self.strict and self.low <= low and high <= self.high):
            return True
        if high < self.low or low > self.high:
            return False
        if self.strict and (high <= self.low or low >= self.high):
            return False
        return None


def about(value: float, tolerance: float) -> Expected:
    """The value, within so much of it, in its unit."""
    return Expected(value - tolerance, value + tolerance)


def at_least(value: float) -> Expected:
    return Expected(low=value)


def at_most(value: float) -> Expected:
    return Expected(high=value)


def above(value: float) -> Expected:
    return Expected(low=value, strict=True)


def below(value: float) -> Expected:
    return Expected(high=value, strict=True)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, as something that can be measured and can turn out wrong."""

    name: str
    """Unique within its technique: `lossless`, `speed` ..."""
    statement: str
    headline: str = ""
    """The statement in a dozen words, for a front page; empty where it does not stand there."""
    source: str
    """Paper with table, figure or section."""
    expression: str
    """As this module's text says."""
    expected: Expected
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Where the paper measured: fact of a record (see `facts`) -> pattern (see `meets`). Elsewhere a figure says
    whether the claim holds there, not whether the paper's result is reproduced."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Without this a figure says nothing about the claim."""
    free: tuple[str, ...] = ()
    """Parameters in which its arms may differ, as each is tuned for itself: the best arms are compared."""
    out_of_reach: str = ""
    """Why the paper's conditions cannot be met with this program, or are not known; empty where they can be."""
    workload: Mapping[str, Any]
    """What a run of one's own uses to look at it."""

    def __post_init__(self) -> None:
        parse(self.expression)
        for name in {**self.conditions, **self.needs}:
            if name not in FACTS and not name.startswith("workload."):
                raise BenchError(f"claim {self.name}: {name!r} is no fact of a record; allowed: {', '.join(FACTS)}")

    @property
    def parsed(self) -> Expression:
        return parse(self.expression)


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        BenchError: it is none, or names a metric that is not in the glossary.
    """
    first, *rest = _OPERATOR.split(text.strip())
    if len(rest) not in {0, 2}:
        raise BenchError(f"expression {text!r}: give one figure, or two with ' / ' or ' - ' between them")
    operator: Operator = "" if not rest else "/" if rest[0] == "/" else "-"
    return Expression(tuple(_figure(part, text) for part in (first, *rest[1:])), operator)


def _figure(part: str, text: str) -> Figure:
    found = _FIGURE.fullmatch(part)
    if found is None:
        raise BenchError(f"expression {text!r}: {part!r} is no QUANTITY(ARM) or QUANTITY(ARM[KEY=VALUE,...])")
    parameters = {}
    for pair in (found["parameters"] or "").split(",") if found["parameters"] is not None else ():
        key, equals, value = pair.strip().partition("=")
        if not key or not equals:
            raise BenchError(f"expression {text!r}: {pair!r} is no KEY=VALUE")
        parameters[key] = _value(value)
    figure = Figure(found["quantity"], found["arm"], parameters)
    if figure.kind not in {"metric", *_KINDS}:
        raise BenchError(f"expression {text!r}: {figure.kind!r} is none of {', '.join(_KINDS)}")
    _ = figure.metric  # it must be in the glossary
    return figure


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


FACTS: tuple[str, ...] = ("device", "machine", "dtype", "model", "weights", "workload")
"""What conditions speak of; `workload.NAME` is a parameter of the workload."""


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What a record says of where it was measured.

    `device` is cpu or cuda, `machine` its name, `weights` trained, random or `on a 4-bit grid`.
    """
    model, device = record["model"] or {}, record["environment"].get("device", {})
    on_grid = "4-bit grid" in str(model.get("origin", ""))
    weights = "random" if model.get("random") else "on a 4-bit grid" if on_grid else "trained"
    found = {
        "device": device.get("kind", "unknown"),
        "machine": device.get("name", "unknown"),
        "dtype": device.get("dtype", "unknown"),
        "model": model.get("name", "unknown"),
        "weights": weights,
        "workload": record["workload"].get("name", "unknown"),
    }
    given = record["workload"].get("parameters", {})
    found |= {f"workload.{name}": value for name, value in given.items()}
    return {name: str(value) for name, value in found.items()}


def unmet(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What is not as wanted, in words."""
    return [
        f"{name} is {found.get(name, 'unknown')}, not {pattern.replace('|', ' or ')}"
        for name, pattern in wanted.items()
        if not meets(found.get(name), pattern)
    ]


def meets(value: str | None, pattern: str) -> bool:
    """Whether a fact fits a pattern: `>=NUMBER`, or names with `*`, `|` between alternatives, upper or lower case."""
    if value is None:
        return False
    if pattern.startswith(">="):
        try:
            return float(value) >= float(pattern[2:])
        except ValueError:
            return False
    return any(fnmatchcase(value.lower(), one.lower()) for one in pattern.split("|"))
