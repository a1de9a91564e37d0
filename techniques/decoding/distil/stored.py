"""The trained tensors as a file, as the package carries them for `bench.embedded_draft`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.embedded_draft import FREQUENT
from techniques.decoding.distil.network import DraftNetwork

BODY, MODEL = "body.", "model."


def store(network: DraftNetwork, frequent: Sequence[int], file: Path) -> None:
    """Write what is not the target's, in bfloat16, under the names it has in a model of the library.

    Args:
        frequent: ids that the draft's head may be reduced to, the most frequent first.
    """
    tensors = {_renamed(name, BODY, MODEL): t.bfloat16().contiguous() for name, t in network.trained().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({**tensors, FREQUENT: torch.tensor(frequent, dtype=torch.int32)}, part)
    os.replace(part, file)


def restore(network: DraftNetwork, file: Path) -> None:
    """Read them back into a network of the same target."""
    tensors = load_file(file)
    del tensors[FREQUENT]
    named = {_renamed(name, MODEL, BODY): tensor.float() for name, tensor in tensors.items()}
    assert named.keys() == network.trained().keys()
    network.load_state_dict(named, strict=False)


def _renamed(name: str, before: str, after: str) -> str:
    return after + name.removeprefix(before) if name.startswith(before) else name
