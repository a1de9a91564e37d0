"""The folder of a run: `results/<experiment>/<UTC>_<device>_<commit>/`, for what can be published and nothing else.
Other runs lie apart, in `results/{quick,dirty,disturbed}/<experiment>/`.

manifest.json        what ran, on what, with which config
inputs/<c>.json      what a comparison's arms share
parts/<cell>/*.json  what is measured of a cell that is not finished
cells/<cell>.json    one record per finished cell

Every file is written aside and moved into place: there is no half-written one. Parts make a broken run resumable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bench.anonymous import anonymous
from bench.errors import StoreError, UsageError
from bench.manifest import ROOT

SCHEMA = 1
STATUSES = ("ok", "oom", "failed", "timeout", "unsupported", "skipped")
APART = {"quick": "quick", "inline": "quick", "dirty": "dirty", "disturbed": "disturbed"}
"""Stamp -> the folder under results/ for runs that bear it; the first that holds decides."""


def results_folder() -> Path:
    return ROOT / "results"


def place(out: Path, experiment: str, stamps: Collection[str]) -> Path:
    """The folder of an experiment's runs that bear these stamps.

    Raises:
        UsageError: the experiment is named like a folder of runs that lie apart.
    """
    if experiment in APART.values():
        raise UsageError(f"name: {experiment!r} is where results that cannot be published go; name it otherwise")
    apart = [folder for stamp, folder in APART.items() if stamp in stamps]
    return out.joinpath(*apart[:1], experiment)


def write_json(path: Path, data: Any) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: the folder cannot be written, or the disk is full.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: the folder cannot be written, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; nothing half-written was left") from error


def read_json(path: Path) -> Any:
    """Raises StoreError where the file is missing, cut off or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, place: Path, device: str, commit: str | None) -> Run:
        """A new folder in `place`, named by time, device and commit.

        Raises:
            StoreError: it cannot be made.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:40].strip("-")
        folder = place / f"{stamp}_{name}_{(commit or 'nocommit')[:8]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}; choose another with --out") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A folder that holds a run.

        Raises:
            UsageError: it holds none.
        """
        if not (folder / "manifest.json").is_file():
            raise UsageError(f"{folder} holds no run (no manifest.json)")
        return cls(folder)

    @property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / "manifest.json", {"schema": SCHEMA, **anonymous(manifest)})

    def move(self, place: Path) -> Run:
        """The run in `place`, all of it or, on an error, none.

        Raises:
            StoreError: it cannot be moved there; it stays where it is.
        """
        if self.folder.parent == place:
            return self
        target = place / self.folder.name
        try:
            place.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder, target)
        except OSError as error:
            raise StoreError(f"cannot move {self.folder} to {target}: {error.strerror}; move it by hand") from error
        return Run(target)

    def inputs(self, comparison: str) -> dict[str, Any] | None:
        path = self.folder / "inputs" / f"{comparison}.json"
        return read_json(path) if path.exists() else None

    def write_inputs(self, comparison: str, inputs: dict[str, Any]) -> None:
        write_json(self.folder / "inputs" / f"{comparison}.json", inputs)

    def part(self, cell: str, name: str) -> Any:
        """A measured part of an unfinished cell, None if it is not there."""
        path = self.folder / "parts" / cell / f"{name}.json"
        return read_json(path) if path.exists() else None

    def write_part(self, cell: str, name: str, data: Any) -> None:
        write_json(self.folder / "parts" / cell / f"{name}.json", data)

    def finish(self, cell: str, record: dict[str, Any]) -> None:
        """Move a cell's record into place and drop its parts."""
        assert record["status"] in STATUSES
        write_json(self.folder / "cells" / f"{cell}.json", {"schema": SCHEMA, **anonymous(record)})
        shutil.rmtree(self.folder / "parts" / cell, ignore_errors=True)
        parts = self.folder / "parts"
        if parts.is_dir() and not any(parts.iterdir()):
            parts.rmdir()

    def has(self, cell: str) -> bool:
        return (self.folder / "cells" / f"{cell}.json").exists()

    def forget(self, cell: str) -> None:
        """Drop a record, so that the cell is run again."""
        (self.folder / "cells" / f"{cell}.json").unlink(missing_ok=True)

    def records(self, damaged: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """All records in the order they were asked for; damaged or foreign ones are named and left out."""
        order = {cell: index for index, cell in enumerate(self.manifest.get("cells", []))}
        paths = sorted((self.folder / "cells").glob("*.json"), key=lambda p: order.get(p.stem, len(order)))
        for path in paths:
            try:
                record = read_json(path)
                if not isinstance(record, dict) or record.get("status") not in STATUSES:
                    raise StoreError(f"{path.name} is no record")
                if record.get("schema") != SCHEMA:
                    raise StoreError(f"{path.name} has schema {record.get('schema')}, this program reads {SCHEMA}")
            except StoreError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
            else:
                yield record


def newest(out: Path, experiment: str, config_sha256: str) -> Run:
    """The latest run of a config, in whichever folder it lies.

    Raises:
        UsageError: there is none.
    """
    places = {place(out, experiment, [stamp]) for stamp in ("", *APART)}
    runs = [Run(path.parent) for each in places for path in each.glob("*/manifest.json")]
    runs.sort(key=lambda run: run.folder.name, reverse=True)
    for run in runs:
        if run.manifest["config_sha256"] == config_sha256:
            return run
    if runs:
        raise UsageError(f"{runs[0].folder} was run with another config; start a new run without --resume")
    raise UsageError(f"no run of {experiment!r} under {out}; start one without --resume")
