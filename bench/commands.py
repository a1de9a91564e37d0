"""Programs of the user's own that a run starts: the one that its command line names, and no other.

A config or a results folder of somebody else can hold the same words. Without the user's they are text.
"""

from __future__ import annotations

import os
import shlex
import shutil

from bench.errors import UsageError

PREFIX = "command:"
"""Before a program and its arguments, where a model's name could stand as well."""
_GIVEN = "BENCH_COMMAND"
"""The variable by which workers know what the command line named."""


def give(text: str) -> None:
    """Let this process and its workers start what the user named."""
    os.environ[_GIVEN] = text


def arguments(text: str) -> list[str]:
    """`command:python3 judge.py --strict` -> the program and its arguments, for a start without a shell.

    Raises:
        UsageError: the user did not name it on the command line, quotes are left open, or there is no such program.
    """
    if text != os.environ.get(_GIVEN):
        raise UsageError(f"{text}: a program is started only where the command line names it, as --judge '{PREFIX}...'")
    try:
        found = shlex.split(text.removeprefix(PREFIX))
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from error
    if not found or shutil.which(found[0]) is None:
        raise UsageError(f"{text}: no such program; write {PREFIX}PROGRAM ARGUMENTS, as '{PREFIX}python3 judge.py'")
    return found
