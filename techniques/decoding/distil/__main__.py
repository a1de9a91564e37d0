"""Train a draft for the embedded model: the target writes, the draft learns, and what came of it is said.

Everything goes on where it stopped: texts that are written and steps that are trained are kept in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import embedded, embedded_draft, manifest, registry
from bench.models import Source, Sources
from techniques.decoding.distil import corpus, costs, measuring, training, writing
from techniques.decoding.distil.corpus import Corpus
from techniques.decoding.distil.network import DraftNetwork
from techniques.decoding.distil.stored import restore, store
from techniques.decoding.distil.texts import Evaluation, asked
from techniques.decoding.distil.writing import Shard

LISTED = 8192
"""Frequent tokens that are stored with the draft, for a reduced head."""
REDUCED = 2048
"""Tokens of the reduced head that is measured."""
WATCHED = 4
"""Shards whose held-out texts are looked at before and during training."""
EVERY = 200
"""Steps between two looks."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/train_draft", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=3_600_000, help="positions trained on, repetitions counted")
    parser.add_argument(
        "--texts", type=int, nargs="+", default=[930_000, 550_000], help="tokens that the target writes, per series"
    )
    parser.add_argument("--layers", type=int, default=2, help="layers of the draft")
    parser.add_argument("--rate", type=float, default=training.Recipe.rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which texts are read")
    parser.add_argument("--work", type=Path, default=embedded.cache() / "draft-training", help="texts, checkpoint, log")
    parser.add_argument("--out", type=Path, default=embedded_draft.TRAINED, help="the trained tensors (.safetensors)")
    parser.add_argument("--only", choices=("write", "measure"), help="write texts, or measure OUT again, and stop")
    return parser.parse_args(argv)


def main(wanted: argparse.Namespace, say: Callable[[str], None]) -> None:
    embedded.ensure(say)
    source = Source(embedded.NAME, dtype="bfloat16")
    target, tokenizer = source.model(), source.tokenizer
    files = [
        file
        for number, tokens in enumerate(wanted.texts)
        for file in writing.write(target, tokenizer, wanted.work, tokens, number, say)
    ]
    if wanted.only == "write":
        return
    evaluation = Evaluation(_evaluation_prompts(source))
    texts = corpus.gather(files, lambda ids: any(map(evaluation.shares, asked(tokenizer.decode(ids)))))
    overlap = evaluation.overlap(turn for ids in texts.read_training() for turn in asked(tokenizer.decode(ids)))
    say(f"texts: {texts.texts}")
    say(f"overlap with evaluation prompts, {texts.refused} texts left out for it: {overlap}")
    report = wanted.out.with_suffix(".json")
    if wanted.only == "measure":
        made = json.loads(report.read_text())
    else:
        made = _trained(wanted, target, texts, say)
        made["texts"]["written_tokens"] = sum(Shard.load(file).hidden.shape[:2].numel() for file in files)
        made["overlap"] = overlap
    made |= _measured(wanted.out, made["layers"], texts, target)
    report.write_text(json.dumps(made, indent=1) + "\n")
    say(json.dumps({name: made[name] for name in ("seconds", "held_out", "held_out_reduced")}, indent=1))
    say(f"wrote {wanted.out} and {report}")


def _trained(wanted: argparse.Namespace, target: Any, texts: Corpus, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and store the draft; what is to be said of how it was made."""
    network = DraftNetwork(target, wanted.layers)
    head = target.get_output_embeddings().weight.detach()
    training.fit_map(network, texts, wanted.seed)
    some = random.Random(wanted.seed).sample(texts.held_out, min(WATCHED, len(texts.held_out)))
    checkpoint, log = wanted.work / "checkpoint.pt", wanted.work / "log.jsonl"
    if not checkpoint.exists():
        log.unlink(missing_ok=True)

    def keep(record: dict[str, Any]) -> None:
        with log.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        say(json.dumps(record))

    def measure() -> dict[str, float]:
        return _short(measuring.acceptance(network, some, head))

    untrained = measure()
    say(f"untrained: {untrained}")
    recipe = training.Recipe(tokens=wanted.tokens, rate=wanted.rate, seed=wanted.seed)
    spent = training.train(network, texts, head, recipe, checkpoint, keep, measure, every=EVERY)
    store(network, texts.frequent(LISTED), wanted.out)
    return {
        "target": {"name": embedded.NAME, "sha256": embedded.fingerprint()},
        "layers": wanted.layers,
        "asked_tokens": wanted.texts,
        "recipe": asdict(recipe),
        "texts": {**texts.texts, "sha256": texts.sha256},
        "cost": {**spent, "device": manifest.device_name("cpu"), "threads": torch.get_num_threads()},
        "untrained": untrained,
        "log": [json.loads(line) for line in log.read_text().splitlines()],
    }


def _measured(out: Path, layers: int, texts: Corpus, target: Any) -> dict[str, Any]:
    """Times, and acceptance on held-out texts of what is stored, with the whole head and with the reduced one."""
    network = DraftNetwork(target, layers)
    restore(network, out)
    head = target.get_output_embeddings().weight.detach()
    kept = torch.tensor(texts.frequent(REDUCED))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        embedded_draft.assemble(embedded.folder(), out, folder)
        seconds = costs.times(target, Source(str(folder), dtype="bfloat16").model, kept)
    found: dict[str, Any] = {"seconds": {"dtype": "bfloat16", "threads": torch.get_num_threads(), **seconds}}
    for name, reduced in (("held_out", None), ("held_out_reduced", kept)):
        found[name] = measuring.acceptance(network, texts.held_out, head, reduced)
        for one in found[name].values():
            tokens = one["tokens_per_round"]
            draft = "draft" if reduced is None else "draft_reduced"
            one["greedy_speedup"] = costs.worth(tokens, seconds, draft) if tokens else None
    return found


def _evaluation_prompts(source: Source) -> dict[str, list[str]]:
    """What the user says in the prompts of every registered decoding workload."""
    registry.load_plugins()
    found = {}
    for entry in registry.workloads.of_family("decoding"):
        if not entry.is_preset:
            built = entry.cls().build(Sources(source), 0)
            texts = source.tokenizer.batch_decode(built["scored"] + built["timed"])
            found[entry.name] = [turn for text in texts for turn in asked(text)]
    return found


def _short(measured: dict[str, Any]) -> dict[str, float]:
    """Acceptance per kind of prompt, and the share of equal best tokens over all greedy texts."""
    same = measured["all"]["same_best"]
    return {name: round(one["accepted"], 4) for name, one in measured.items()} | (
        {} if same is None else {"same_best": round(same, 4)}
    )


if __name__ == "__main__":
    main(arguments(), lambda line: print(line, flush=True))
