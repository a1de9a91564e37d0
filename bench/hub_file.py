"""Data sets of a hub: `hub:OWNER/NAME/FILE` stands for one file of one, its newest version, kept in the hub's cache.

FILE may hold `*`, as long as one file fits; without it the data set must have a single file. Nothing of a data set is
executed: only texts, lines of JSON and parquet are read.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from bench.errors import UsageError

READABLE = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt")
SHOWN = 8
"""Files that a message names."""
_NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<pattern>.+))?")


class HubFile(NamedTuple):
    """A file, or some, of a data set."""

    repo: str
    pattern: str


def parse(path: str | Path) -> HubFile | None:
    """The file of a hub that a path stands for; None where it stands for a local one.

    Raises:
        UsageError: it begins as a hub's and goes on otherwise.
    """
    name = str(path)
    if not name.startswith("hub:"):
        return None
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"data {name}: write hub:OWNER/NAME/FILE")
    return HubFile(found["repo"], found["pattern"] or "*")


def local(path: Path) -> Path:
    """Where the file lies on this machine: the path itself, or the copy of the hub's file, fetched if need be.

    Raises:
        UsageError: the hub does not answer, has no such file, or several that fit.
    """
    wanted = parse(path)
    if wanted is None:
        return path
    from huggingface_hub import HfApi, hf_hub_download

    file = wanted.pattern
    try:
        if "*" in file:
            there = HfApi().list_repo_files(wanted.repo, repo_type="dataset")
            file = _only([name for name in there if fnmatchcase(name, file) and name.endswith(READABLE)], path)
        return Path(hf_hub_download(wanted.repo, file, repo_type="dataset"))
    except UsageError:
        raise
    except Exception as error:  # in whatever way a network, a proxy or a hub can fail
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"data {path}: {reason} (or give the path of a local file)") from error


def _only(fitting: list[str], path: Path) -> str:
    if not fitting:
        raise UsageError(f"data {path}: no file of the data set fits that can be read ({', '.join(READABLE)})")
    if len(fitting) > 1:
        named = ", ".join(fitting[:SHOWN]) + (" ..." if len(fitting) > SHOWN else "")
        raise UsageError(f"data {path}: {len(fitting)} files fit, name one of them: {named}")
    return fitting[0]
