"""What kvpress keeps: run by `scripts/compare-kvpress` in an environment that has kvpress and none of this project.

It reads `task.json` and a model from a folder, and writes `theirs.json` beside them.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def kept(model: Any, press: Any, ids: Tensor, context: int) -> tuple[list[list[list[int]]], list[list[float]]]:
    """The tokens that each head holds behind the context, by layer, and the logits of what follows.

    A press says nothing of its choice: keys are found again among those of a cache that holds everything.
    """
    from transformers import DynamicCache

    full, cache = DynamicCache(), DynamicCache()
    model(input_ids=ids[:, :context], past_key_values=full)
    with press(model):
        model(input_ids=ids[:, :context], past_key_values=cache)
    held = []
    for whole, part in zip(full.layers, cache.layers, strict=True):
        same = (part.keys[0, :, :, None] == whole.keys[0, :, None]).all(-1)  # (kv_heads, kept, context)
        assert bool((same.sum(-1) == 1).all()), "held keys cannot be told apart"
        held.append([sorted(head) for head in same.float().argmax(-1).tolist()])
    logits = []
    for at in range(context, ids.shape[1]):
        place = torch.tensor([at])
        made = model(input_ids=ids[:, at : at + 1], past_key_values=cache, position_ids=place[None])
        logits.append(made.logits[0, -1].tolist())
    return held, logits


def main(folder: Path) -> None:
    import kvpress
    from transformers import AutoModelForCausalLM

    task = json.loads((folder / "task.json").read_text())
    # eager: presses that look at attention weights are given none otherwise
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    ).eval()
    ids = torch.tensor([task["ids"]])
    found: dict[str, Any] = {}
    for name, (kind, values) in task["presses"].items():
        press = getattr(kvpress, kind)(compression_ratio=task["compression"], **values)
        held, logits = kept(model, press, ids, task["context"])
        found[name] = {"held": held, "logits": logits}
    versions = {package: version(package) for package in ("kvpress", "transformers", "torch")}
    (folder / "theirs.json").write_text(json.dumps({"versions": versions, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
