"""Reports about this machine in the user's cache: the newest of a kind for every device with its versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import embedded, store
from bench.errors import StoreError
from bench.workload import content_hash


def path(kind: str) -> Path:
    """Where the reports of a kind lie."""
    return embedded.cache() / f"{kind}.json"


def keep(kind: str, report: Mapping[str, Any]) -> None:
    """Store a report in place of the one of the same device, dtype and versions.

    Raises:
        StoreError: the cache cannot be written.
    """
    store.write_json(path(kind), {**_all(kind), _key(report): report})


def known(kind: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored report of this device, dtype and these versions; None if there is none."""
    report: dict[str, Any] | None = _all(kind).get(_key(facts))
    return report


def _all(kind: str) -> dict[str, Any]:
    try:
        kept = store.read_json(path(kind))
    except StoreError:  # none yet, or damaged: it is made again the next time
        return {}
    return kept if isinstance(kept, dict) else {}


def _key(facts: Mapping[str, Any]) -> str:
    return content_hash({"device": facts["device"], "versions": facts["versions"]})
