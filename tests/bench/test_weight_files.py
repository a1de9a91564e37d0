"""Weights that are not what they should be are one line that names the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

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
        Source("hub:a/b").fingerprint  # noqa: B018


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
