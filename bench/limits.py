"""Limits on what may change between two runs: `throughput<-5%,nll>+0.01`.

    LIMITS   = LIMIT {"," LIMIT}
    LIMIT    = METRIC ("<" | ">") ("+" | "-") NUMBER ["%"]

METRIC is of the glossary. With "%" NUMBER is a share of the first run's figure, else it is in the metric's unit; where
a metric is compared the other way it is converted by the first run's figure. A limit fails where the whole interval of
an arm's change lies beyond it, and holds where all of it lies on this side. Where the interval straddles the limit, or
where there is none to lean on, nobody can tell, and only a strict examination fails. Intervals are those of one arm
and metric, not corrected over arms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.comparison import Change, Contrast
from bench.errors import BenchError, UsageError
from bench.metrics import Metric, metric

_LIMIT = re.compile(r"(?P<metric>\w+)\s*(?P<side>[<>])\s*(?P<sign>[+-])\s*(?P<number>\d+(\.\d+)?)\s*(?P<percent>%?)")
_FORM = "write METRIC, < or >, a sign and a number, as throughput<-5% or nll>+0.01"
ROUNDING = 1e-6
"""A ratio of bytes, less one, is known to about this share."""


@dataclass(frozen=True)
class Limit:
    """A change beyond this is a regression."""

    text: str
    metric: Metric
    above: bool
    """Whether changes above the bound are beyond it, else those below."""
    bound: float
    """A share of the first run's figure if `percent`, else in the metric's unit."""
    percent: bool


class Answer(StrEnum):
    FAILS = "FAILS"
    HOLDS = "HOLDS"
    OPEN = "CANNOT TELL"


@dataclass(frozen=True)
class Check:
    """One limit, examined on one arm."""

    limit: Limit
    change: Change
    answer: Answer
    reason: str


def parse(expression: str) -> tuple[Limit, ...]:
    """The limits of an expression.

    Raises:
        UsageError: it is none; what is wrong with which part.
    """
    return tuple(_limit(part.strip()) for part in expression.split(","))


def _limit(text: str) -> Limit:
    found = _LIMIT.fullmatch(text)
    if not found:
        raise UsageError(f"--fail-on {text!r}: {_FORM}")
    try:
        named = metric(found["metric"])
    except BenchError as error:
        raise UsageError(f"--fail-on {text!r}: {error}") from error
    percent = bool(found["percent"])
    bound = float(found["sign"] + found["number"]) / (100 if percent else 1)
    if percent and not _has_shares(named):
        raise UsageError(f"--fail-on {text!r}: a share of {named.name} means nothing; write {named.unit}, as +0.01")
    if percent and bound <= -1:
        raise UsageError(f"--fail-on {text!r}: nothing falls by 100 % or more")
    return Limit(text, named, found["side"] == ">", bound, percent)


def _has_shares(named: Metric) -> bool:
    """Whether 5 % of a figure can be read one way only: not of a share, nor of what may be negative."""
    return named.relative or named.unit == "nat/token"


def examine(limits: Sequence[Limit], found: Contrast) -> list[Check]:
    """Every limit on every arm that has its metric.

    Raises:
        UsageError: no arm has the metric of a limit, so it would never fail.
    """
    measured = {change.metric.name for change in found.changes}
    for limit in limits:
        if limit.metric.name not in measured:
            raise UsageError(f"--fail-on {limit.text!r}: no arm has this metric; there is {', '.join(measured)}")
    return [_check(limit, change) for limit in limits for change in found.changes if change.metric == limit.metric]


def _check(limit: Limit, change: Change) -> Check:
    try:
        low, high = _interval(limit, change)
    except _Unknown as unknown:
        return Check(limit, change, Answer.OPEN, str(unknown))
    form = "{:+.2%}" if limit.percent else "{:+.4g} " + limit.metric.unit
    ends = [form.format(end) for end in (low, high)]
    sides = {_beyond(limit, end) for end in (low, high)}
    answer = {True: Answer.FAILS, False: Answer.HOLDS}[sides.pop()] if len(sides) == 1 else Answer.OPEN
    return Check(limit, change, answer, f"exactly {ends[0]}" if low == high else f"between {ends[0]} and {ends[1]}")


def _beyond(limit: Limit, value: float) -> bool:
    """A change that is the bound itself, but for rounding, is not."""
    excess = value - limit.bound if limit.above else limit.bound - value
    return excess > ROUNDING * abs(limit.bound)


class _Unknown(Exception):
    """There is no interval to lean on."""


def _interval(limit: Limit, change: Change) -> tuple[float, float]:
    """Of the change, on the limit's scale."""
    estimate, named = change.estimate, change.metric
    if estimate is None or estimate.change is None:
        raise _Unknown(change.missing or (estimate.reason if estimate else "not measured"))
    low, high = estimate.low, estimate.high
    if named.exact and not estimate.spread:
        low = high = estimate.change
    elif estimate.refusal:
        raise _Unknown(estimate.refusal)
    elif named.axis == "latency" and estimate.spread == 0:
        raise _Unknown("all times alike to the last digit: the clock is suspicious")
    if low is None or high is None:
        raise _Unknown(estimate.reason)
    return _scaled(limit, change, low), _scaled(limit, change, high)


def _scaled(limit: Limit, change: Change, value: float) -> float:
    if change.metric.relative:
        moved = value - 1
        return moved if limit.percent else moved * _figure(change)
    return value / _figure(change) if limit.percent else value


def _figure(change: Change) -> float:
    if not change.before or not math.isfinite(change.before):
        raise _Unknown("the first run's figure is 0: nothing is a share of it")
    return change.before


def exit_code(checks: Iterable[Check], found: Contrast, strict: bool = False) -> int:
    """1 for a limit that fails (strict: or that nobody can tell of) or a gate that fails and did not before; 3 for an
    arm that did not finish, and did before; else 0."""
    failing = {Answer.FAILS, Answer.OPEN} if strict else {Answer.FAILS}
    if any(check.answer in failing for check in checks) or any(pair.broke for pair in found.pairs):
        return 1
    return 3 if any(_lost(found)) else 0


def _lost(found: Contrast) -> Iterator[bool]:
    yield from (pair.lost for pair in found.pairs)
    yield from (which == "first" for _, which in found.only)
