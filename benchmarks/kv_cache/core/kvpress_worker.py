"""Times kvpress' presses: run in an environment that has kvpress and none of this project.

It reads a model and `timing.json` from a folder. Then it answers lines on its input, each the name of an arm, with
the seconds of its decoding steps and the bytes that its cache holds, and waits in between.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def timed(step: Callable[[Tensor], object], ids: Sequence[Tensor]) -> list[float]:
    """What each decoding step takes [s], garbage collected before and not in between: the loop of both sides."""
    seconds = []
    gc.collect()
    gc.disable()
    try:
        for one in ids:
            start = time.perf_counter()
            step(one)
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


@torch.inference_mode()
def turn(model: Any, press: Any, ids: Tensor, context: int) -> dict[str, Any]:
    """Read the context and compress it, then time the steps behind it; no press is the library's plain cache."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with press(model) if press else contextlib.nullcontext():
        model(input_ids=ids[:, :context], past_key_values=cache, logits_to_keep=1)
    places = iter(range(context, ids.shape[1]))

    def step(one: Tensor) -> None:
        model(input_ids=one, past_key_values=cache, position_ids=torch.tensor([[next(places)]]))

    seconds = timed(step, ids[:, context:].split(1, 1))
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {"seconds": seconds, "bytes": sum(held.values())}


def main(folder: Path) -> None:
    """Serve until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def answer(what: object) -> None:
        print(json.dumps(what), file=answers, flush=True)

    import kvpress
    from transformers import AutoModelForCausalLM

    task = json.loads((folder / "timing.json").read_text())
    torch.set_num_threads(task["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, task["dtype"]), attn_implementation="sdpa", use_safetensors=True
    ).eval()
    ids = torch.tensor([task["ids"]])
    presses = {
        arm: kind and getattr(kvpress, kind)(compression_ratio=task["compression"], **values)
        for arm, (kind, values) in task["arms"].items()
    }
    answer({package: version(package) for package in ("kvpress", "transformers", "torch")})
    for line in sys.stdin:
        answer(turn(model, presses[line.strip()], ids, task["context"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
