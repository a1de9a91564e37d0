"""The language of limits, and when a limit fails, holds, or nobody can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated import pair, record

from bench.comparison import Change, Contrast, contrast
from bench.errors import UsageError
from bench.limits import Answer, Check, Limit, examine, exit_code, parse
from bench.metrics import GLOSSARY
from bench.stats import Estimate


def checked(
    limit: str,
    low: float | None,
    high: float | None,
    before: float = 2.0,
    refusal: str = "",
    spread: float | None = 0.1,
    middle: float | None = None,
) -> Check:
    """A limit on an arm whose change is known to lie between two figures."""
    (parsed,) = parse(limit)
    middle = middle if low is None or high is None else (low + high) / 2
    estimate = Estimate(1.0, middle, low, high, 5, "" if low else "one unit has no interval", spread=spread)
    estimate = Estimate(**{**vars(estimate), "refusal": refusal})
    change = Change("c", "arm", parsed.metric, False, before, estimate)
    (check,) = examine([parsed], Contrast(("a", "b"), (), (change,), (), (), (), ()))
    return check


def test_an_expression_is_a_list_of_limits() -> None:
    assert parse("throughput<-5%, nll > +0.01,peak_memory>+1.5%") == (
        Limit("throughput<-5%", GLOSSARY["throughput"], False, -0.05, True),
        Limit("nll > +0.01", GLOSSARY["nll"], True, 0.01, False),
        Limit("peak_memory>+1.5%", GLOSSARY["peak_memory"], True, 0.015, True),
    )


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("trougput<-5%", "did you mean 'throughput'?"),
        ("nonsense<-5%", "metric 'nonsense' is not in the glossary"),
        ("throughput<5%", "a sign and a number"),
        ("throughput=-5%", "write METRIC, < or >"),
        ("throughput<-5 percent", "write METRIC"),
        ("throughput<-5%,", "--fail-on '': write METRIC"),
        ("", "--fail-on '': write METRIC"),
        ("next_token_accuracy<-5%", "a share of next_token_accuracy means nothing; write share"),
        ("preference_margin<-5%", "a share of preference_margin means nothing; write nat"),
        ("throughput<-100%", "nothing falls by 100 % or more"),
    ],
)
def test_a_mistake_is_one_line(expression: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(expression)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("limit", "low", "high", "answer"),
    [
        ("throughput<-5%", 0.90, 0.94, Answer.FAILS),
        ("throughput<-5%", 0.90, 0.96, Answer.OPEN),
        ("throughput<-5%", 0.96, 0.99, Answer.HOLDS),
        ("throughput<-5%", 1.10, 1.20, Answer.HOLDS),
        ("throughput<+5%", 1.01, 1.04, Answer.FAILS),
        ("tpot>+5%", 1.06, 1.10, Answer.FAILS),
        ("tpot>+5%", 1.04, 1.10, Answer.OPEN),
        ("tpot>+5%", 0.80, 1.04, Answer.HOLDS),
        ("nll>+0.01", 0.011, 0.02, Answer.FAILS),
        ("nll>+0.01", 0.009, 0.02, Answer.OPEN),
        ("nll>+0.01", -0.2, 0.009, Answer.HOLDS),
        # of a first figure of 2: +0.1 s is +5 %, +1 % is 0.02 nat
        ("tpot>+0.1", 1.06, 1.10, Answer.FAILS),
        ("tpot>+0.1", 1.01, 1.04, Answer.HOLDS),
        ("nll>+1%", 0.021, 0.03, Answer.FAILS),
        ("nll>+1%", 0.011, 0.019, Answer.HOLDS),
    ],
)
def test_the_whole_interval_decides(limit: str, low: float, high: float, answer: Answer) -> None:
    assert checked(limit, low, high).answer == answer


def test_a_bound_itself_is_not_beyond() -> None:
    assert checked("nll>+0.5", 0.5, 0.5).answer == Answer.HOLDS
    assert checked("nll<-0.5", -0.5, -0.5).answer == Answer.HOLDS


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (checked("tpot>+5%", 1.5, 1.6, refusal="2 rounds, at least 5 are needed"), "at least 5 are needed"),
        (checked("tpot>+5%", None, None, spread=None, middle=1.5), "one unit has no interval"),
        (checked("tpot>+5%", 1.5, 1.5, spread=0.0), "the clock is suspicious"),
        (checked("nll>+5%", 1.5, 1.6, before=0.0), "the first run's figure is 0"),
    ],
)
def test_without_an_interval_to_lean_on_nobody_can_tell(check: Check, said: str) -> None:
    assert check.answer == Answer.OPEN
    assert said in check.reason


def test_an_exact_metric_needs_no_interval() -> None:
    refused = checked("held_memory>+1%", None, None, refusal="1 rounds", spread=None, middle=1.02)
    assert (refused.answer, refused.reason) == (Answer.FAILS, "exactly +2.00%")
    assert checked("held_memory>+1%", None, None, refusal="1 rounds", spread=None, middle=1.01).answer == Answer.HOLDS


def test_a_limit_that_no_arm_could_break_is_a_mistake(tmp_path: Path) -> None:
    found = contrast(*pair(tmp_path, [record("arm")], [record("arm")]))
    with pytest.raises(UsageError, match=r"'tpot>\+5%': no arm has this metric; there is .*time_per_step"):
        examine(parse("tpot>+5%"), found)


def codes(tmp_path: Path, expression: str, *, strict: bool = False, **second: object) -> int:
    found = contrast(*pair(tmp_path, [record("arm")], [record("arm", salt="b", **second)]))  # type: ignore[arg-type]
    return exit_code(examine(parse(expression), found), found, strict)


def test_exit_codes(tmp_path: Path) -> None:
    assert codes(tmp_path / "1", "throughput<-5%,nll>+0.01") == 0
    assert codes(tmp_path / "2", "throughput<-5%", seconds=1.2) == 1
    assert codes(tmp_path / "3", "nll>+0.01", nll=3.1) == 1
    assert codes(tmp_path / "4", "throughput<-5%", seconds=1.2, rounds=3) == 0
    assert codes(tmp_path / "5", "throughput<-5%", seconds=1.2, rounds=3, strict=True) == 1
    assert codes(tmp_path / "6", "nll>+0.01", gate=False) == 1
    assert codes(tmp_path / "7", "nll>+0.01", status="oom", reason="full") == 3


def test_an_arm_that_the_second_run_lacks_did_not_finish_there(tmp_path: Path) -> None:
    both, gone = record("base"), record("arm")
    found = contrast(*pair(tmp_path / "1", [both, gone], [both]))
    assert exit_code(examine(parse("nll>+0.01"), found), found) == 3
    found = contrast(*pair(tmp_path / "2", [both], [both, gone]))
    assert exit_code(examine(parse("nll>+0.01"), found), found) == 0
