"""Models' names: what sort of source each one means, and whether it is at hand.

smollm2-135m           the embedded model
smollm2-135m-draft     its draft, for speculative decoding
stdlib-4m              a small network that was never quantised, to try quantisation on
tiny:llama|gpt2|qwen3  random networks of a few layers, for tests
synthetic:<shape>      real shapes with random weights, for memory and latency
hub:<id>, <id>         a model of the Hugging Face hub; <id>@<revision> one version of it
<folder>               a local folder with config.json and safetensors
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import embedded, embedded_draft, embedded_stdlib, hub_model
from bench.errors import UsageError
from bench.registry import did_you_mean
from bench.shapes import SYNTHETIC, TINY

EMBEDDED = {module.NAME: module for module in (embedded, embedded_draft, embedded_stdlib)}
"""The models that come with the package, by name."""


def kind_of(name: str, weights: bool = True) -> str:
    """What sort of name this is, without reading any weights.

    Args:
        weights: whether a folder must hold some.

    Raises:
        UsageError: no model can have this name.
    """
    if name in EMBEDDED:
        return "embedded"
    prefix, colon, rest = name.partition(":")
    if colon and prefix in {"tiny", "synthetic"}:
        shapes = TINY if prefix == "tiny" else SYNTHETIC
        if rest not in shapes:
            raise UsageError(f"unknown model {name!r}{did_you_mean(name, [f'{prefix}:{s}' for s in shapes])}")
        return prefix
    if name.startswith(("/", ".", "~")) or Path(name).is_dir():
        _check_folder(name, weights)
        return "folder"
    if hub_model.parse(name):
        return "hub"
    known = [*EMBEDDED, *(f"tiny:{s}" for s in TINY), *(f"synthetic:{s}" for s in SYNTHETIC)]
    hubs = "a hub id as owner/name or owner/name@revision"
    raise UsageError(f"unknown model {name!r}{did_you_mean(name, known)} (or {hubs}, or a folder)")


def _check_folder(name: str, weights: bool) -> None:
    config = Path(name) / "config.json"
    if not config.is_file():
        raise UsageError(f"model folder {name!r} has no config.json; give a folder saved by transformers")
    try:
        holds_mapping = isinstance(json.loads(config.read_text()), dict)
    except (OSError, ValueError):
        holds_mapping = False
    if not holds_mapping:
        raise UsageError(f"model folder {name!r}: config.json cannot be read; save the model again with transformers")
    if weights and not any(config.parent.glob("*.safetensors")):
        raise UsageError(
            f"model folder {name!r} has no weights as *.safetensors, and nothing else is read; "
            "save the model again with save_pretrained"
        )


def draft_of(target: str) -> str | None:
    """The draft that comes with a target, where the run names none."""
    return embedded_draft.NAME if target == embedded.NAME else None


def ensure(names: Iterable[str | None], say: Callable[[str], None] = lambda line: None) -> None:
    """Fetch or put together those of these models that are embedded and not in the cache yet.

    Raises:
        ModelError: one cannot be.
    """
    for name in dict.fromkeys(names):
        if name in EMBEDDED:
            EMBEDDED[name].ensure(say)


def at_hand(name: str) -> bool:
    """Whether a model need not be fetched, or can be: a hub's is in the local cache, or the hub answers for it."""
    wanted = hub_model.parse(name) if kind_of(name) == "hub" else None
    return wanted is None or hub_model.at_hand(wanted)
