"""Models of a hub: `OWNER/NAME` or `OWNER/NAME@REVISION`, with or without `hub:` before it.

REVISION is a commit, a branch or a tag; without it the newest version is taken, or the one in the cache where the hub
does not answer. A process finds out the commit once and reads all of a model from that one.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from bench import hub_file
from bench.errors import ModelError

_NAME = re.compile(r"(?P<prefix>hub:)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\w[\w.-]*))?")


class HubModel(NamedTuple):
    """A model of a hub, in one version."""

    repo: str
    revision: str | None = None
    """A commit, a branch or a tag; None: the newest."""
    prefix: str = ""

    @property
    def name(self) -> str:
        """What it is called in a config."""
        return self.prefix + self.repo + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> HubModel | None:
    """The model that a name stands for; None where it cannot be one of a hub."""
    found = _NAME.fullmatch(name)
    return HubModel(found["repo"], found["revision"], found["prefix"] or "") if found else None


@functools.cache  # in one process a name stands for one version
def commit(wanted: HubModel) -> str | None:
    """The commit that the hub, or its cache, gives for the model; None where the cache is not kept by commits.

    Raises:
        ModelError: there is no such model or revision, or nobody to ask for it.
    """
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(wanted.repo, "config.json", revision=wanted.revision))
    except Exception as error:  # in whatever way a network, a proxy or a hub can fail
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model {wanted.name!r} cannot be read: {reason} (check id and revision, or give a folder with config.json "
            f"and safetensors)"
        ) from error
    return hub_file.version_of(config)[0]


def at_hand(wanted: HubModel) -> bool:
    """Whether the model is in the local cache, or the hub answers for it."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(wanted.repo, "config.json", revision=wanted.revision), str):
        return True
    try:
        HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=5)
    except Exception:  # in whatever way a network, a proxy or a hub can fail
        return False
    return True


def pinned(name: str, known: Any) -> str:
    """The name of a hub's model with the revision that a run read, where it names none itself.

    Args:
        known: comparison -> role -> `name` and `revision`, as the run's manifest has it.
    """
    wanted = parse(name)
    if wanted is None or wanted.revision:
        return name
    revision = hub_file.revision_of(name, known)
    exact = wanted._replace(revision=revision)
    return exact.name if parse(exact.name) == exact else name
