"""The same as the command line, from Python: `run(config)` -> a run's folder with its records and table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import embedded, experiment, kept, manifest, models, outcome, plan, record, store, yaml_file
from bench.anonymous import anonymous
from bench.errors import ModelError, UsageError
from bench.lock import machine_lock
from bench.report import files, table
from bench.runner import Event, Runner


@dataclass(frozen=True)
class Run:
    """What came out."""

    store: store.Run

    @property
    def folder(self) -> Path:
        return self.store.folder

    def records(self) -> list[dict[str, Any]]:
        return list(self.store.records([]))

    def rows(self) -> dict[str, list[outcome.Row]]:
        """Comparison -> rows with estimates."""
        return outcome.rows(self.records())

    def table(self) -> list[dict[str, Any]]:
        """One mapping per cell and metric: what a DataFrame takes."""
        return table.flat(self.rows())


def prepare(
    config: str | Path | Mapping[str, Any], origin: str = "config", **settings: Any
) -> tuple[experiment.Experiment, str, str]:
    """Check a config; returns the experiment, its device and its dtype.

    Raises:
        UsageError: the config, the device or a setting is wrong.
    """
    if isinstance(config, Mapping):
        raw = dict(config)
    else:
        raw, origin = yaml_file.load(Path(config)), str(config)
    raw.update({key: value for key, value in settings.items() if value is not None})
    checked = experiment.check(raw, origin)
    device = manifest.resolve_device(checked.settings.device)
    return checked, device, manifest.resolve_dtype(checked.settings.dtype, device)


def run(
    config: str | Path | Mapping[str, Any],
    out: Path | None = None,
    resume: bool = False,
    say: Callable[[Event], None] = lambda event: None,
    argv: tuple[str, ...] = (),
    plugins: tuple[str, ...] = (),
    lock: Path | None = None,
    **settings: Any,
) -> Run:
    """Run an experiment to its end, or to its time limit.

    Args:
        config: a YAML file, or what it would hold.
        out: where results go; `results/` of the checkout if None.
        resume: go on with the newest run of this config instead of starting one.
        say: takes an event at every stage and finished cell.
        argv: the command line, for the record.
        plugins: modules that workers import besides the registered plug-ins.
        lock: the machine-wide lock's file; tests bring their own.
        settings: replace the config's settings of the same name.

    Raises:
        UsageError: the config is wrong, or its plan exceeds its limit.
        Busy: another run is timing on this machine.
    """
    checked, device, dtype = prepare(config, **settings)
    plan.check(checked, device, dtype)
    if embedded.NAME in {checked.settings.draft, *(one.model for one in checked.comparisons)}:
        embedded.ensure(lambda line: say({"event": "note", "text": line}))
    for name in sorted({one.model for one in checked.comparisons} | {checked.settings.draft or embedded.NAME}):
        if models.kind_of(name) == "hub" and not models.at_hand(name):
            raise ModelError(f"model {name!r} is not in the local cache, and the hub does not answer for it")
    out = out or store.results_folder()
    facts = anonymous(manifest.collect(device, dtype, argv))
    with machine_lock(f"experiment {checked.settings.name}", lock), _terminable():
        folder = _resumed(out, checked, facts) if resume else _new(out, checked, facts)
        say({"event": "start", "folder": str(folder.folder), "seconds": plan.total(checked, device, dtype)})
        try:
            Runner(checked, folder, facts, say, plugins).go()
            folder.write_manifest({**folder.manifest, "ended": _now()})
        finally:
            files.write(folder)
            folder = folder.move(_place(out, checked, facts, folder.records([])))
            say({"event": "end", "folder": str(folder.folder)})
    return Run(folder)


def _place(
    out: Path, checked: experiment.Experiment, facts: dict[str, Any], records: Iterable[dict[str, Any]] = ()
) -> Path:
    """Where a run belongs by what is known of it at the start, and by its records."""
    stamps = {stamp for one in records for stamp in one["stamps"]}
    return store.place(out, checked.settings.name, stamps.union(record.stamps(checked.settings, [], facts)))


def _new(out: Path, checked: experiment.Experiment, facts: dict[str, Any]) -> store.Run:
    folder = store.Run.create(_place(out, checked, facts), facts["device"]["name"], facts["code"]["commit"])
    folder.write_manifest(
        {
            "experiment": checked.settings.name,
            "started": _now(),
            "ended": None,
            "argv": facts["argv"],
            "config": dict(checked.raw),
            "config_sha256": checked.hash,
            "environment": facts,
            "calibration": kept.known("calibration", facts),
            "determinism": kept.known("determinism", facts),
            "cells": [cell.id for cell in checked.cells()],
        }
    )
    return folder


def _resumed(out: Path, checked: experiment.Experiment, facts: dict[str, Any]) -> store.Run:
    folder = store.newest(out, checked.settings.name, checked.hash)
    changed = manifest.lasting_differences(folder.manifest["environment"], facts)
    if changed:
        raise UsageError(
            f"{folder.folder} was run in another environment ({', '.join(changed[:4])}); start a new run "
            f"without --resume"
        )
    for one in folder.records([]):
        if one["status"] not in {"ok", "unsupported"}:
            folder.forget(one["cell"])
    return folder


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: workers are ended, finished cells are kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever owns the signals deals with them
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
