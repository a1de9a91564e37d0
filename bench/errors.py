"""Every error that the program raises on purpose.

BenchError                 one line for the reader: what was wrong, the value, what is allowed, what to do
├── UsageError             the command line, a config or a data file is wrong (exit 2)
│   └── ConfigError        several mistakes of one config, each with the path of its field
├── Unsupported            this technique cannot do this model or workload; the cell says why
├── Diverged               a training run left the finite numbers; the curve is kept
├── ModelError             a model cannot be found, fetched or trusted
├── StoreError             a results folder cannot be read or written
├── Busy                   another run is timing on this machine
└── WorkerError            a worker process ended or answered outside the protocol
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class BenchError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 2


class UsageError(BenchError):
    """What the user asked for cannot be done as written."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a config."""

    path: str
    """Where: the path of the field, as `comparisons[0].arms[1].ngram`."""
    message: str
    """What was wrong, the value, what is allowed."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(UsageError):
    """All mistakes of one config at once."""

    def __init__(self, origin: str, problems: Iterable[Problem]) -> None:
        self.origin = origin
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{origin}: {problem}" for problem in self.problems))


class Unsupported(BenchError):
    """The technique cannot be applied here; the reason becomes part of the record."""


class Diverged(BenchError):
    """A loss left the finite numbers."""

    def __init__(self, step: int, losses: Iterable[float] = ()) -> None:
        self.step = step
        self.losses = tuple(losses)
        super().__init__(f"loss is not finite at step {step}")


class ModelError(BenchError):
    """A model cannot be found, fetched or trusted."""


class StoreError(BenchError):
    """A results folder cannot be read or written."""

    exit_code = 3


class Busy(BenchError):
    """Another run holds the machine-wide lock."""


class WorkerError(BenchError):
    """A worker process ended or answered outside the protocol."""

    exit_code = 3


class BenchWarning(UserWarning):
    """Something that the user should know and can act on."""
