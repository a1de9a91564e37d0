"""The data files that a workload reads: which version of them, and with which content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import hub_file
from bench.errors import UsageError

FIELDS = ("path", "test_path")
"""Parameters of a workload that name the user's files: not compared by their names, their content is."""


def provenance(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Where a workload's files came from, by the field that names them: for the manifest.

    Each has its `name` as it was given, the `file` of a data set, the `revision` (the commit of the data set) and the
    `sha256` of its bytes. What is not known is None, and `reason` says why.

    Args:
        parameters: the workload's.

    Raises:
        UsageError: a file is not there any more.
    """
    return {field: _of(str(parameters[field])) for field in FIELDS if parameters.get(field)}


def pinned(name: str, known: Any) -> str:
    """The name of a hub's file with the revision that a run read, where it names none itself.

    Args:
        known: comparison -> what `provenance` said, as the run's manifest has it.

    Raises:
        UsageError: the manifest holds no revision there, but something else.
    """
    wanted = hub_file.parse(name)
    if wanted is None or wanted.revision:
        return name
    exact = wanted._replace(revision=hub_file.revision_of(name, known)).name
    hub_file.parse(exact)
    return exact


def _of(name: str) -> dict[str, Any]:
    file = hub_file.local(Path(name))
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"data file {name}: {error.strerror}") from error
    if hub_file.parse(name) is None:
        return {"name": name, "revision": None, "sha256": digest, "reason": "a file of this machine"}
    commit, inside = hub_file.version_of(file)
    found = {"name": name, "file": inside, "revision": commit, "sha256": digest}
    return found if commit else {**found, "reason": "not kept by commit in the hub's cache"}
