"""Our policies beside kvpress' presses: the same weights and ids, the tokens kept, and the logits behind them.

    scripts/compare-kvpress --out kvpress.json
    scripts/compare-kvpress --model smollm2-135m --context 1024 --time --out kvpress.json

The first reads random ids with a random network, the second the embedded text, and times decoding steps besides: on
a machine that does nothing else. kvpress and this project need different versions of transformers, so the presses
run in an environment of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench import registry
from bench.errors import BenchError
from bench.families import cache as kv
from bench.families.kv_cache import KVCache
from bench.models import Source, Sources
from benchmarks.kv_cache.core import kvpress_timing
from benchmarks.kv_cache.core.kvpress_pairs import COMPRESSION, PAIRS, Pair, ids_of, their_environment

PRESSES = Path(__file__).with_name("kvpress_presses.py")
CONTEXT, NEW = 192, 8
LEAST = 96
"""Of a shorter context little more than a press' window of 16 tokens is left [tokens]."""
TIE = 1e-5
"""Relative difference of two scores in float32 that another order of sums can turn round."""
DTYPES = ("float32", "bfloat16")
STEPS = 32
"""Decoding steps of a turn that is timed."""


@torch.inference_mode()
def kept(pair: Pair, source: Source, ids: list[int], context: int) -> dict[str, Any]:
    """The tokens that each head holds behind the context and what each token is worth, by layer; the logits of what
    follows."""
    policy = pair.policy(context, len(ids) - context)
    prepared = policy.prepare(Sources(source))
    cache: Any = policy.cache(prepared, 1, context, len(ids) - context)
    given = torch.tensor([ids])
    with scoring(policy) as scores:
        kv.read(prepared.model, given[:, :context], cache)
    held = [[sorted(at for at in head if at >= 0) for head in layer.positions()[0].tolist()] for layer in cache.layers]
    places = range(context, len(ids))
    logits = [kv.read(prepared.model, given[:, at : at + 1], cache)[0, -1].tolist() for at in places]
    return {"held": held, "logits": logits, "scores": scores}


@contextlib.contextmanager
def scoring(policy: KVCache) -> Iterator[list[list[list[float]]]]:
    """What a policy says of the tokens it chooses from: layer, head, token. Nothing of one that does not score them."""
    found: list[list[list[float]]] = []
    kind: Any = type(policy)
    real = getattr(kind, "importance", None)
    if real is None:
        yield found
        return

    def noted(own: Any, seen: Any) -> torch.Tensor:
        made: torch.Tensor = real(own, seen)
        found.append(made[0].tolist())
        return made

    with mock.patch.object(kind, "importance", noted):
        yield found


def swapped(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """How far apart, relatively, our scores are of tokens that only we hold and of those that only they do, at most.

    Infinite where a head holds another number of tokens, or one that stays in any case was swapped; none where we do
    not score.
    """
    apart = 0.0
    if not ours["scores"]:
        return None
    for layer, (held, other) in enumerate(zip(ours["held"], theirs["held"], strict=True)):
        for head, (own, their) in enumerate(zip(held, other, strict=True)):
            if len(own) != len(their):
                return math.inf
            scores = ours["scores"][layer][head]
            for pair in itertools.product(set(own) - set(their), set(their) - set(own)):
                a, b = (scores[at] for at in pair)
                apart = max(
                    apart, abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf
                )
    return apart


def compared(pair: Pair, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of one pair: `same_tokens` is the share of a head's tokens that both keep, the least one."""
    heads = [
        len(set(a) & set(b)) / max(len(a), len(b))
        for layer, other in zip(ours["held"], theirs["held"], strict=True)
        for a, b in zip(layer, other, strict=True)
    ]
    error = (torch.tensor(ours["logits"]) - torch.tensor(theirs["logits"])).abs().max()
    apart = 0.0 if min(heads) == 1 else swapped(ours, theirs)
    alike = apart is not None and apart < TIE
    reason = "" if min(heads) == 1 else f"other tokens{' of equal score' if alike else ''} are held"
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
        "scores_apart": None if apart is None or math.isinf(apart) else apart,
        "largest_logit_difference": None if reason else float(error),
        "logits_reason": reason,
        "agrees": alike and (bool(reason) or float(error) < 1e-3),
    }


def compare(
    model: str, python: str, folder: Path, context: int = CONTEXT, rounds: int = 0, dtype: str = "float32"
) -> dict[str, Any]:
    """The record: versions, inputs, every pair, and what was timed.

    Args:
        rounds: of timing; 0: nothing is timed.
        dtype: of what is timed; what is kept is compared in float32, where few scores tie.
    """
    registry.load_plugins()
    source = Source(model)
    text, longer = ids_of(source, context + max(NEW, STEPS if rounds else 0))
    ids = longer[: context + NEW]
    network: Any = source.model()
    network.save_pretrained(folder / "model", safe_serialization=True)
    del network
    presses = {pair.technique: (pair.press, dict(pair.theirs)) for pair in PAIRS}
    task = {"ids": ids, "context": context, "compression": COMPRESSION, "presses": presses}
    (folder / "task.json").write_text(json.dumps(task))
    subprocess.run([python, str(PRESSES), str(folder)], check=True, env=their_environment())
    theirs = json.loads((folder / "theirs.json").read_text())
    record = {
        "model": model,
        "text": text,
        "context": context,
        "new_tokens": NEW,
        "compression_ratio": COMPRESSION,
        "ids": ids,
        "versions": {
            "ours": {package: version(package) for package in ("transformers", "torch")},
            "theirs": theirs["versions"],
        },
        "pairs": [compared(pair, kept(pair, source, ids, context), theirs["found"][pair.technique]) for pair in PAIRS],
        "timing": None,
    }
    if rounds:
        record["timing"] = kvpress_timing.time(
            replace(source, dtype=dtype), python, folder, longer[: context + STEPS], context, rounds
        )
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a policy of the same definition keeps other tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of the environment that has kvpress")
    parser.add_argument("--model", default="tiny:llama", help="a model of the Llama kind")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens that are compressed (default %(default)s)")
    parser.add_argument("--time", action="store_true", help="time decoding steps too, ours and theirs in turn")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of what is timed (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="where the record goes, JSON")
    given = parser.parse_args(arguments)
    if given.context < LEAST:
        parser.error(f"--context is {given.context}; give {LEAST} or more")
    if given.rounds < 1:
        parser.error(f"--rounds is {given.rounds}; give 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        rounds = given.rounds if given.time else 0
        try:
            record = compare(given.model, given.python, Path(folder), given.context, rounds, given.dtype)
        except BenchError as error:
            parser.exit(error.exit_code, f"{error}\n")
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for one in record["pairs"]:
        error = one["largest_logit_difference"]
        logits = one["logits_reason"] if error is None else f"logits within {error:.1e}"
        note = f" ({one['definitions_differ']})" if one["definitions_differ"] else ""
        print(f"{one['technique']:24} {one['press']:24} same tokens {one['same_tokens']:.1%}; {logits}{note}")
    if record["timing"]:
        print("", *kvpress_timing.lines(record["timing"]), sep="\n")
    return int(any(not one["agrees"] and not one["definitions_differ"] for one in record["pairs"]))


if __name__ == "__main__":
    raise SystemExit(main())
