"""Weights that are not what they should be are one line that names the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench import weight_files
from bench.errors import ModelError
from bench.models import Source

DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-100],
    "without weights": lambda data: data[:20],
    "empty": lambda data: b"",
    "overwritten": lambda data: b"\xff" * 20 + data[20:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [Source.model, lambda source: list(source.layers())], ids=["model", "layers"])
def test_a_damaged_file_is_one_line(damage: str, read: Callable[[Source], object], tmp_path: Path) -> None:
    """Of two files the second is damaged: it is named, by `transformers`' way and by ours."""
    Source("tiny:llama").model().save_pretrained(tmp_path, max_shard_size="100KB")
    *_, last = files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    with pytest.raises(ModelError) as caught:
        read(Source(str(tmp_path)))
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert f"the weights in {last.name} are damaged" in said
    assert "save the model again" in said


def test_weights_that_a_hub_does_not_give_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: object) -> str:
        raise ConnectionError(f"{name}: gone\nfor long")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"model 'hub:a/b': its weights cannot be fetched: a/b: gone$"):
        Source("hub:a/b", commit="c" * 40).fingerprint  # noqa: B018


def test_a_damaged_file_of_a_hub_is_found_in_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There a snapshot links to the file: to delete the link would bring the damaged one back."""
    blob, snapshot = tmp_path / "blobs/0123", tmp_path / "snapshots/4567"
    blob.parent.mkdir()
    blob.write_bytes(b"no weights")
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(snapshot))
    with pytest.raises(ModelError, match=rf"the weights in model.safetensors are damaged.*\({blob}\)"):
        weight_files.check("hub:a/b", weight_files.of("hub:a/b", "a/b"))


def four_bits(source: Source) -> object:
    from transformers import BitsAndBytesConfig

    return source.model(quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map={"": "cpu"})


READERS = {"model": Source.model, "layers": lambda source: list(source.layers()), "quantised": four_bits}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("tiny:llama", "model.layers.1.mlp.down_proj.weight"),
        ("tiny:qwen3", "model.layers.0.self_attn.k_proj.weight"),
        ("tiny:gpt2", "transformer.h.2.mlp.c_fc.weight"),
    ],
)
def test_weights_of_another_shape_or_missing_are_one_line(
    model: str, tensor: str, read: Callable[[Source], object], tmp_path: Path
) -> None:
    """The library fills in random weights for what is missing, and says so in a log only."""
    Source(model).model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    there = whole[tensor]
    rows, columns = there.shape
    other = there.T.contiguous() if rows != columns else there[1:].contiguous()
    for name, changed in (("another shape", {**whole, tensor: other}), ("missing", {**whole})):
        if name == "missing":
            del changed[tensor]
        safetensors.torch.save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            read(Source(str(tmp_path)))
        said = str(caught.value)
        assert len(said.splitlines()) == 1
        shapes = " x ".join(map(str, other.shape)), f"{rows} x {columns}"
        told = "is {} in its safetensors files and {} by config.json".format(*shapes)
        assert f"tensor {tensor} {told if name == 'another shape' else 'is in none of its safetensors files'}" in said
        assert "save it again" in said


def test_a_head_that_is_not_there_is_no_random_one(tmp_path: Path) -> None:
    """As where a language model is given in the place of a reward model."""
    from transformers import AutoModelForSequenceClassification

    Source("tiny:llama").model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"tensor score.weight is in none of its safetensors files"):
        Source(str(tmp_path)).other_model(AutoModelForSequenceClassification)


def test_a_tied_head_is_not_missed(tmp_path: Path) -> None:
    model = Source("tiny:llama").model()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")
    ids = torch.arange(20)[None]
    assert torch.equal(Source(str(tmp_path)).model()(ids).logits, model(ids).logits)
