"""A draft for the embedded model: two layers, distilled on what the target itself writes (`scripts/train_draft`).

The package carries what was trained: the layers, the final norm and a linear map to the target's final hidden state.
The embeddings are the target's, and its output head behind the map is the draft's head; an ordinary model folder is
put together from them once, in the user's cache. Beside the weights lies a JSON file that says how they were made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import embedded
from bench.errors import ModelError
from bench.shapes import SYNTHETIC

NAME = "smollm2-135m-draft"
ORIGIN = "draft distilled from the embedded model on its own texts"
TRAINED = Path(__file__).parent / "data" / f"{NAME}.safetensors"
"""The trained tensors, bfloat16, and the ids of the tokens that the target writes most often."""
REPORT = TRAINED.with_suffix(".json")
"""How they were made, and how good they are."""
MAP = "to_target.weight"
FREQUENT = "frequent_tokens"
FREQUENT_FILE = "frequent_tokens.json"
"""In the model's folder: ids that a reduced output head may be cut to, the most frequent first."""


def folder() -> Path:
    """Where the model lies, or will lie."""
    return embedded.cache() / NAME


def shape() -> Mapping[str, Any]:
    """Of the network, as `transformers` configures it."""
    layers = json.loads(REPORT.read_text())["layers"]
    return {**SYNTHETIC[embedded.NAME], "num_hidden_layers": layers, "tie_word_embeddings": False}


def fingerprint() -> str:
    """sha256 of what the model is put together from."""
    return hashlib.sha256(f"{_hash(TRAINED)} {embedded.fingerprint()}".encode()).hexdigest()


def frequent_tokens() -> list[int]:
    """Ids that its output head may be cut to, the most frequent in the target's own texts first."""
    ids: list[int] = json.loads((folder() / FREQUENT_FILE).read_text())
    return ids


def ensure(say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the model, put together if it is not there or not what it should be.

    Raises:
        ModelError: the embedded model cannot be fetched, or the trained tensors are missing.
    """
    if not TRAINED.is_file():
        raise ModelError(f"{NAME}: {TRAINED.name} is missing from the package; make it with scripts/train_draft")
    target = embedded.ensure(say)
    with (embedded.cache() / f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_sound(folder()):
            say(f"{NAME}: putting the draft together from the embedded model (once)")
            with tempfile.TemporaryDirectory(dir=embedded.cache(), prefix=f"{NAME}-") as scratch:
                model = Path(scratch) / "model"
                command = [sys.executable, "-m", "bench.embedded_draft", str(target), str(TRAINED), str(model)]
                done = subprocess.run(command, capture_output=True, text=True)  # the caller need not load torch
                if done.returncode:
                    raise ModelError(f"{NAME}: putting it together failed: {done.stderr.strip().splitlines()[-1:]}")
                shutil.rmtree(folder(), ignore_errors=True)
                os.replace(model, folder())
    return folder()


def assemble(target: Path, trained: Path, model: Path) -> None:
    """The target's folder and the trained tensors -> a model's folder with an output head of its own.

    Every file's hash is put in `files.json`, and what the model was made of.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(trained)
    frequent = tensors.pop(FREQUENT).tolist()
    to_target = tensors.pop(MAP).float()
    embeddings = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
    with torch.no_grad():
        whole = {name: tensor.float() for name, tensor in tensors.items()}
        whole |= {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings @ to_target}
    shutil.copytree(target, model, ignore=shutil.ignore_patterns("*.safetensors", "files.json"))
    config = json.loads((target / "config.json").read_text())
    config["num_hidden_layers"] = 1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name)
    config["tie_word_embeddings"] = False
    (model / "config.json").write_text(json.dumps(config, indent=2))
    (model / FREQUENT_FILE).write_text(json.dumps(frequent))
    save_file(whole, model / "model.safetensors", metadata={"format": "pt"})
    hashes = {file.name: _hash(file) for file in sorted(model.iterdir())}
    made_of = {"trained": _hash(trained), "target": embedded.fingerprint()}
    (model / "files.json").write_text(json.dumps({"files": hashes, "made_of": made_of}))


def _is_sound(model: Path) -> bool:
    try:
        listed = json.loads((model / "files.json").read_text())
        if listed["made_of"] != {"trained": _hash(TRAINED), "target": embedded.fingerprint()}:
            return False
        return all(_hash(model / name) == expected for name, expected in listed["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # in whatever way files can be missing or damaged


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        assemble(*map(Path, sys.argv[1:]))
    else:
        print(ensure(print))
