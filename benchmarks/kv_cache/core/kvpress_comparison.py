"""Our policies beside kvpress' presses: the same weights and ids, the tokens kept, and the logits behind them.

    scripts/compare-kvpress --out kvpress.json

kvpress and this project need different versions of transformers, so the presses run in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import registry
from bench.families import cache as kv
from bench.models import Source, Sources

PRESSES = Path(__file__).with_name("kvpress_presses.py")
CONTEXT, NEW = 192, 8
COMPRESSION = 0.75
"""Share of the context that goes."""
KEPT = max(1, int(CONTEXT * (1 - COMPRESSION)))
"""As kvpress rounds it [tokens]."""


class Pair(NamedTuple):
    """One policy of ours and the press beside it."""

    technique: str
    ours: Mapping[str, Any]
    press: str
    theirs: Mapping[str, Any]
    differs: str = ""
    """Why the definitions differ; empty where they do not, and the choice must be the same."""
    moves: bool = False
    """Whether ours goes on letting go while decoding, so that logits are not comparable."""


PAIRS = (
    Pair("knorm", {}, "KnormPress", {}),
    Pair("keydiff", {}, "KeyDiffPress", {}),
    Pair("expected_attention", {}, "ExpectedAttentionPress", {}),
    Pair(
        "snapkv",
        {"window": 16, "kernel": 5, "pooling": "mean"},
        "SnapKVPress",
        {"window_size": 16, "kernel_size": 5},
    ),
    Pair(
        "tova",
        {"every": None},
        "TOVAPress",
        {},
        "kvpress keeps the last token in any case; here its own weight decides",
    ),
    Pair(
        "h2o",
        {"recent": 0.0, "every": None},
        "ObservedAttentionPress",
        {},
        "kvpress divides a token's sum by the number of queries that saw it; H2O does not",
    ),
    Pair("streaming_llm_absolute", {}, "StreamingLLMPress", {"n_sink": 4}, moves=True),
)


@torch.inference_mode()
def kept(pair: Pair, source: Source, ids: list[int]) -> dict[str, Any]:
    """The tokens that each head holds behind the context, by layer, and the logits of what follows."""
    entry = registry.techniques[pair.technique]
    budget = KEPT if pair.moves else KEPT + NEW
    technique = entry.cls(**{**entry.parameters, **pair.ours, "budget": budget})
    prepared: Any = technique.prepare(Sources(source))
    cache = technique.cache(prepared, 1, CONTEXT, NEW)  # type: ignore[attr-defined]
    given = torch.tensor([ids])
    kv.read(prepared.model, given[:, :CONTEXT], cache)
    held = [[sorted(head) for head in layer.positions()[0].tolist()] for layer in cache.layers]
    places = range(CONTEXT, CONTEXT + NEW)
    logits = [kv.read(prepared.model, given[:, at : at + 1], cache)[0, -1].tolist() for at in places]
    return {"held": held, "logits": logits}


def compared(pair: Pair, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of one pair: `same_tokens` is the share of a head's tokens that both keep, the least one."""
    heads = [
        len(set(a) & set(b)) / max(len(a), len(b))
        for layer, other in zip(ours["held"], theirs["held"], strict=True)
        for a, b in zip(layer, other, strict=True)
    ]
    error = (torch.tensor(ours["logits"]) - torch.tensor(theirs["logits"])).abs().max()
    reason = "" if min(heads) == 1 else "other tokens are held"
    if pair.moves:
        reason = "ours goes on letting go while decoding, kvpress compresses the context only"
    return {
        "technique": pair.technique,
        "parameters": dict(pair.ours),
        "press": pair.press,
        "press_parameters": dict(pair.theirs),
        "definitions_differ": pair.differs or None,
        "kept": [len(head) for layer in ours["held"] for head in layer],
        "same_tokens": min(heads),
        "same_tokens_mean": sum(heads) / len(heads),
        "largest_logit_difference": None if reason else float(error),
        "logits_reason": reason,
        "agrees": min(heads) == 1 and (bool(reason) or float(error) < 1e-3),
    }


def compare(model: str, python: str, folder: Path) -> dict[str, Any]:
    """The record: versions, inputs, and every pair."""
    registry.load_plugins()
    source = Source(model)
    draw = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(0, 250, (CONTEXT + NEW,), generator=draw).tolist()
    network: Any = source.model()
    network.save_pretrained(folder / "model", safe_serialization=True)
    presses = {pair.technique: (pair.press, dict(pair.theirs)) for pair in PAIRS}
    task = {"ids": ids, "context": CONTEXT, "compression": COMPRESSION, "presses": presses}
    (folder / "task.json").write_text(json.dumps(task))
    quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([python, str(PRESSES), str(folder)], check=True, env=quiet)
    theirs = json.loads((folder / "theirs.json").read_text())
    return {
        "model": model,
        "context": CONTEXT,
        "new_tokens": NEW,
        "compression_ratio": COMPRESSION,
        "ids": ids,
        "versions": {
            "ours": {package: version(package) for package in ("transformers", "torch")},
            "theirs": theirs["versions"],
        },
        "pairs": [compared(pair, kept(pair, source, ids), theirs["found"][pair.technique]) for pair in PAIRS],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a policy of the same definition keeps other tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of the environment that has kvpress")
    parser.add_argument("--model", default="tiny:llama", help="a model of the Llama kind")
    parser.add_argument("--out", type=Path, required=True, help="where the record goes, JSON")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        record = compare(given.model, given.python, Path(folder))
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for one in record["pairs"]:
        error = one["largest_logit_difference"]
        logits = one["logits_reason"] if error is None else f"logits within {error:.1e}"
        note = f" ({one['definitions_differ']})" if one["definitions_differ"] else ""
        print(f"{one['technique']:24} {one['press']:24} same tokens {one['same_tokens']:.1%}; {logits}{note}")
    return int(any(not one["agrees"] and not one["definitions_differ"] for one in record["pairs"]))


if __name__ == "__main__":
    raise SystemExit(main())
