"""Data sets of a hub: `hub:OWNER/NAME@REVISION/FILE` stands for one file of one, kept in the hub's cache.

REVISION is a commit, a branch or a tag; without it the newest version is taken, or the one in the cache where the hub
does not answer. FILE may hold `*`, as long as one file fits; without it the data set must have a single file. Nothing
of a data set is executed: only texts, lines of JSON and parquet are read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from bench.errors import UsageError

READABLE = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt")
SHOWN = 8
"""Files that a message names."""
SNAPSHOTS = "snapshots"
"""Folder of the hub's cache that holds one folder per commit of a data set."""
_NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\w[\w.-]*))?(?:/(?P<pattern>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubFile(NamedTuple):
    """A file, or some, of a data set."""

    repo: str
    pattern: str
    revision: str | None = None
    """A commit, a branch or a tag; None: the newest."""

    @property
    def name(self) -> str:
        """What it is called in a config."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.repo}{revision}" + (f"/{self.pattern}" if self.pattern != "*" else "")


class _Options(TypedDict):
    repo_type: str
    revision: str | None


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
        raise UsageError(f"data {name}: write hub:OWNER/NAME/FILE or hub:OWNER/NAME@REVISION/FILE")
    return HubFile(found["repo"], found["pattern"] or "*", found["revision"])


def local(path: Path) -> Path:
    """Where the file lies on this machine: the path itself, or the copy of the hub's file, fetched if need be.

    Raises:
        UsageError: the hub does not answer, has no such file, or several that fit.
    """
    wanted = parse(path)
    return path if wanted is None else _fetched(wanted)


def version_of(file: Path) -> tuple[str | None, str]:
    """The commit that a file in the hub's cache is of, and its name in the data set, both from where it lies.

    Elsewhere the commit is None.
    """
    for folder in file.parents:
        if folder.parent.name == SNAPSHOTS and _COMMIT.fullmatch(folder.name):
            return folder.name, file.relative_to(folder).as_posix()
    return None, file.name


def revision_of(name: str, known: Any) -> str | None:
    """The revision that a run read under a name; None where its manifest does not say.

    Args:
        known: comparison -> what was read -> `name` and `revision`.
    """
    for read in known.values() if isinstance(known, Mapping) else ():
        for one in read.values() if isinstance(read, Mapping) else ():
            if isinstance(one, Mapping) and one.get("name") == name and one.get("revision"):
                return str(one["revision"])
    return None


@functools.cache  # in one process a name stands for one version
def _fetched(wanted: HubFile) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    file, options = wanted.pattern, _Options(repo_type="dataset", revision=wanted.revision)
    try:
        if "*" in file:
            there = HfApi().list_repo_files(wanted.repo, **options)
            file = _only([one for one in there if fnmatchcase(one, file) and one.endswith(READABLE)], wanted.name)
        return Path(hf_hub_download(wanted.repo, file, **options))
    except UsageError:
        raise
    except Exception as error:  # in whatever way a network, a proxy or a hub can fail
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"data {wanted.name}: {reason} (or give the path of a local file)") from error


def _only(fitting: list[str], name: str) -> str:
    if not fitting:
        raise UsageError(f"data {name}: no file of the data set fits that can be read ({', '.join(READABLE)})")
    if len(fitting) > 1:
        named = ", ".join(fitting[:SHOWN]) + (" ..." if len(fitting) > SHOWN else "")
        raise UsageError(f"data {name}: {len(fitting)} files fit, name one of them: {named}")
    return fitting[0]
