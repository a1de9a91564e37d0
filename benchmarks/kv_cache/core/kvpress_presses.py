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

    A press says nothing of its choice: keys are found again among those of a cache that holds everything. Where heads
    are to keep different numbers of tokens, it keeps all, and leaves with each layer which of them it hides.
    """
    from transformers import DynamicCache

    modules = [layer.self_attn for layer in model.model.layers]
    for module in modules:
        module.masked_key_indices = None
    full, cache = DynamicCache(), DynamicCache()
    model(input_ids=ids[:, :context], past_key_values=full)
    with press(model):
        model(input_ids=ids[:, :context], past_key_values=cache)
    held = []
    for module, whole, part in zip(modules, full.layers, cache.layers, strict=True):
        same = (part.keys[0, :, :, None] == whole.keys[0, :, None]).all(-1)  # (kv_heads, kept, context)
        assert bool((same.sum(-1) == 1).all()), "held keys cannot be told apart"
        heads = [set(head) for head in same.float().argmax(-1).tolist()]
        if module.masked_key_indices is not None:
            _, hidden, places = module.masked_key_indices
            for head, place in zip(hidden.tolist(), places.tolist(), strict=True):
                heads[head].remove(place)
        held.append([sorted(head) for head in heads])
    logits = []
    for at in range(context, ids.shape[1]):
        place = torch.tensor([at])
        made = model(input_ids=ids[:, at : at + 1], past_key_values=cache, position_ids=place[None])
        logits.append(made.logits[0, -1].tolist())
    return held, logits


def made(kind: str, values: dict[str, Any], compression: float) -> Any:
    """A press by name; one that goes around another has that one's name and values as its `press`."""
    import kvpress

    if "press" not in values:
        return getattr(kvpress, kind)(compression_ratio=compression, **values)
    return getattr(kvpress, kind)(**{**values, "press": made(*values["press"], compression)})


def main(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    task = json.loads((folder / "task.json").read_text())
    # eager: presses that look at attention weights are given none otherwise
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    ).eval()
    ids = torch.tensor([task["ids"]])
    found: dict[str, Any] = {}
    for name, (kind, values) in task["presses"].items():
        # what hides keys does so in the attention that it replaces, which is not the eager one
        model.set_attn_implementation("sdpa" if "press" in values else "eager")
        held, logits = kept(model, made(kind, values, task["compression"]), ids, task["context"])
        found[name] = {"held": held, "logits": logits}
    versions = {package: version(package) for package in ("kvpress", "transformers", "torch")}
    (folder / "theirs.json").write_text(json.dumps({"versions": versions, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
