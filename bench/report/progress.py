"""What is shown while a run goes on: a status at the bottom of a terminal, plain lines elsewhere, or lines of JSON.

It is drawn when an event comes and by nobody else. The runner tells events between bursts, so that nothing is drawn
while a burst runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bench import outcome
from bench.errors import BenchError
from bench.remaining import Remaining
from bench.report import table, terminal
from bench.store import Run

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Progress:
    """Takes a run's events and shows them; a context manager, so that every exit leaves a clean terminal."""

    def __init__(self, console: Console, as_json: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.as_json = as_json
        self.clock = clock
        self.folder: str | None = None
        """Of the run, as soon as there is one."""
        self.exit_code = 0
        """What the command will exit with, for the last line of JSON."""
        self._began = clock()
        self._remaining = Remaining([], clock)
        self._pieces: dict[tuple[str, str], int] = {}
        self._begun: Counter[tuple[str, str]] = Counter()
        self._expected = {"comparisons": 0, "cells": 0}
        self._done: Counter[str] = Counter()
        self._stage = self._burst = ""
        """What runs now, in words; empty while nothing does."""
        live = console.is_interactive and not as_json
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if isinstance(error, BenchError):
            self.exit_code = error.exit_code
        elif error is not None:
            self.exit_code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        if self.as_json:
            self._print({"event": "end", "folder": self.folder, "exit_code": self.exit_code})

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show what an event changes."""
        self._follow(event)
        if self.as_json:
            self._print_as_json(event)
            return
        if self._live:
            self._live.update(self._status(), refresh=True)  # what is printed next goes above it
        line = self._line(event)
        if line:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if event["event"] == "comparison" and (rows := self._rows(event["comparison"])):
            terminal.draw_one(event["comparison"], rows, self.console)
        sys.stdout.flush()

    def _follow(self, event: Mapping[str, Any]) -> None:
        """Keep count of what is done and what is left."""
        match event["event"]:
            case "start":
                self.folder = event["folder"]
                self._remaining = Remaining(event["stages"], self.clock)
                self._pieces = {(one["comparison"], one["stage"]): one["pieces"] for one in event["stages"]}
                self._expected = {name: event[name] for name in self._expected}
                self._begun.clear()
                self._done = Counter({"cells": event["finished"]})
            case "stage":
                self._remaining.begin(event["comparison"], event["stage"])
                self._begun[event["comparison"], event["stage"]] += 1
                self._stage, self._burst = self._what(event), ""
            case "burst":
                again = ", once more: others disturbed it" if event["try"] else ""
                self._burst = f", burst {event['burst'] + 1} of {event['bursts']}: {event['arm']}{again}"
            case "cell":
                self._done["cells"] += 1
            case "comparison":
                self._remaining.finish(event["comparison"])
                self._done["comparisons"] += 1
                self._stage = ""
            case "end":
                self.folder, self._stage = event["folder"], ""

    def _what(self, event: Mapping[str, Any]) -> str:
        """What runs in a stage, as a person says it."""
        if event["stage"] == "timing":
            return f"{event['comparison']}: round {event['round'] + 1} of {event['rounds']}"
        if event["stage"] == "build":
            return f"{event['comparison']}: build"
        key = event["comparison"], event["stage"]
        count = f"{self._begun[key]} of {max(self._pieces.get(key, 0), self._begun[key])}"
        return f"{event['comparison']}: quality of {event['arm']}, seed {event['seed']} ({count})"

    def _line(self, event: Mapping[str, Any]) -> str:
        """What stays on the screen, or goes into a log; empty where an event only moves the status."""
        match event["event"]:
            case "note":
                return str(event["text"])
            case "start":
                todo = f"{event['cells'] - event['finished']} of {event['cells']} cells to do"
                planned = event["seconds"]
                how_long = "in an unknown time" if planned is None else f"in about {_minutes(planned)}"
                return f"{event['folder']}: {todo} {how_long}"
            case "stage" if not self._live:
                return f"{self._clock()} {self._stage}"
            case "cell" if event["status"] != "ok":
                return f"{self._clock()} {event['cell']}: {event['status']}: {event['reason']}"
        return ""

    def _clock(self) -> str:
        left = self._remaining.seconds()
        told = "time left unknown" if left is None else f"about {_minutes(left)} left"
        return f"[{_minutes(self.clock() - self._began)}, {told}]"

    def _status(self) -> Text:
        """The lines at the bottom of a terminal; none while nothing runs."""
        if not self._stage:
            return Text()
        done = [f"{self._done[name]} of {count} {name}" for name, count in self._expected.items()]
        text = f"{self._stage}{self._burst}\n{', '.join(done)} done {self._clock()}"
        return Text(text, style="dim", no_wrap=True, overflow="ellipsis")

    def _rows(self, comparison: str) -> list[outcome.Row]:
        """A comparison's rows, judged beside all that is finished so far."""
        assert self.folder is not None
        return outcome.rows(Run(Path(self.folder)).records([])).get(comparison, [])

    def _print_as_json(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "comparison":
            rows = self._rows(event["comparison"])
            self._print({**event, "rows": table.flat({event["comparison"]: rows})})
        elif event["event"] != "end":  # told at the exit, when its code is known
            self._print(event)

    def _print(self, event: Mapping[str, Any]) -> None:
        at = round(self.clock() - self._began, 3)
        print(json.dumps({"event": event["event"], "at": at, **event}), flush=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
