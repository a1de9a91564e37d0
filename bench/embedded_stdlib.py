"""A small network of full precision: trained from random weights on what every Python carries (`scripts/pretrain`).

Its weights never lay on a grid of few bits, so what a quantised type costs can be told from them. The package carries
it as an ordinary model folder; beside the weights lies `training.json`, which says how they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.errors import ModelError

NAME = "stdlib-4m"
ORIGIN = "trained from random weights on Python's documentation and standard library, never quantised"
TRAINED = Path(__file__).parent / "data" / NAME
WEIGHTS = "model.safetensors"
REPORT = "training.json"
"""How the weights were made."""


def folder() -> Path:
    """Where the model lies."""
    return TRAINED


def shape() -> Mapping[str, Any]:
    """Of the network, as `transformers` configures it."""
    config: dict[str, Any] = json.loads((folder() / "config.json").read_text())
    return config


def fingerprint() -> str:
    """sha256 of the file of weights."""
    return file_hash(folder() / WEIGHTS)


def file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ensure(say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the model.

    Raises:
        ModelError: it is missing from the package, or its weights are not those that its report tells of.
    """
    try:
        made = json.loads((folder() / REPORT).read_text())
        if made["weights"]["sha256"] == fingerprint():
            return folder()
    except OSError as error:
        raise ModelError(f"{NAME}: {error.filename} is missing; make it with scripts/pretrain") from error
    raise ModelError(f"{NAME}: the weights in {folder()} are damaged; make them with scripts/pretrain")
