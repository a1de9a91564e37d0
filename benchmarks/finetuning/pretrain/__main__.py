"""Train a small network of full precision from random weights, and store it as a model's folder.

It goes on where it stopped: the checkpoint is kept in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import embedded, embedded_stdlib, manifest, text
from bench.errors import UsageError
from benchmarks.finetuning.pretrain import corpus, training
from benchmarks.finetuning.pretrain.training import Recipe

SHAPE: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "tie_word_embeddings": True,
}
"""Of the network; vocabulary, context and special ids come from the tokenizer and the recipe."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="trained on, repetitions counted")
    parser.add_argument("--rate", type=float, default=Recipe.rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of the first weights and the order of rows")
    parser.add_argument("--work", type=Path, default=embedded.cache() / "pretraining", help="checkpoint and log")
    parser.add_argument("--out", type=Path, default=embedded_stdlib.TRAINED, help="the model's folder")
    return parser.parse_args(argv)


def main(wanted: argparse.Namespace, say: Callable[[str], None]) -> None:
    if wanted.out.exists() and any(wanted.out.iterdir()) and not (wanted.out / embedded_stdlib.REPORT).is_file():
        raise UsageError(f"--out {wanted.out}: it holds something else; name a new folder")
    recipe = Recipe(tokens=wanted.tokens, rate=wanted.rate, seed=wanted.seed)
    texts = corpus.gather()
    tokenizer = corpus.tokenizer_of(texts.documents)
    rows = corpus.rows_of(tokenizer, texts.documents, recipe.length)
    heldout = corpus.rows_of(tokenizer, text.documents("validation").values(), recipe.length)
    said = f"{len(texts.documents)} documents, {rows.numel()} tokens, sha256 {texts.sha256}"
    say(f"{said}; {texts.shared} left out for what they share with texts that are scored")
    end = tokenizer.eos_token_id
    shape = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": recipe.length}
    model = training.network({**shape, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}, recipe.seed)
    wanted.work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = wanted.work / "checkpoint.pt", wanted.work / "log.jsonl"
    if not checkpoint.exists():
        log.unlink(missing_ok=True)

    def keep(record: dict[str, Any]) -> None:
        with log.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        say(json.dumps(record))

    spent = training.train(model, rows, heldout, recipe, checkpoint, keep)
    model.bfloat16()
    report = {
        "recipe": asdict(recipe),
        "corpus": {
            "documents": len(texts.documents),
            "left_out": texts.shared,
            "tokens": rows.numel(),
            "sha256": texts.sha256,
            "python": platform.python_version(),
        },
        "weights": {
            "count": sum(p.numel() for p in model.parameters()),
            "dtype": "bfloat16",
            "heldout_nll": round(training.heldout_nll(model, heldout), 4),
        },
        "cost": {**spent, "device": manifest.device_name("cpu"), "threads": torch.get_num_threads()},
        "log": [json.loads(line) for line in log.read_text().splitlines()],
    }
    store(model, tokenizer, report, wanted.out)
    say(f"wrote {wanted.out}: {json.dumps(report['weights'])}, {json.dumps(report['cost'])}")


def store(model: Any, tokenizer: Any, report: dict[str, Any], folder: Path) -> None:
    """Write the model's folder anew; the hash of the weights goes into the report."""
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report["weights"]["sha256"] = embedded_stdlib.file_hash(folder / embedded_stdlib.WEIGHTS)
    (folder / embedded_stdlib.REPORT).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(arguments(), lambda line: print(line, flush=True))
