"""A program is started where the user named it, and nowhere else."""

from __future__ import annotations

import sys

import pytest

from bench import api, commands
from bench.errors import UsageError

NAMED = f"command: {sys.executable} 'judge one.py' --of a,b"


def test_what_the_user_named_is_a_list_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_COMMAND", raising=False)
    with pytest.raises(UsageError, match="started only where the command line names it"):
        commands.arguments(NAMED)
    monkeypatch.setenv("BENCH_COMMAND", "command:something else")
    with pytest.raises(UsageError, match="started only where the command line names it"):
        commands.arguments(NAMED)
    commands.give(NAMED)
    assert commands.arguments(NAMED) == [sys.executable, "judge one.py", "--of", "a,b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("command:'open", "No closing quotation"), ("command:", "no such program"), ("command:no-such-tool", "no such")],
)
def test_what_cannot_be_started_is_said(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_COMMAND", text)
    with pytest.raises(UsageError, match=said):
        commands.arguments(text)


def test_a_config_cannot_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_COMMAND", raising=False)
    with pytest.raises(UsageError, match="started only where the command line names it"):
        api.prepare("preference_pairs", settings=["workload.judge=command:true"])
    monkeypatch.setenv("BENCH_COMMAND", "")  # restored behind the test, as `give` sets it
    checked, _, _ = api.prepare("preference_pairs", judge=NAMED)
    assert checked.comparisons[0].workload.model_dump()["judge"] == NAMED
