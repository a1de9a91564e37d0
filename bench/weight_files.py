"""The safetensors files that hold a model's weights: which there are, and one tensor of them at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_MEND = "give config.json and weights of one model, or save it again with save_pretrained"


def of(model: str, path: str, revision: str | None = None) -> list[Path]:
    """The files of a model, by name.

    Args:
        model: its name, for messages.
        path: its folder, or its id on a hub, whose files are fetched if need be.
        revision: on a hub, the commit to take.

    Raises:
        ModelError: there are none, or the hub does not give them.
    """
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
        except Exception as error:  # in whatever way a network, a proxy or a hub can fail
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"model {model!r}: its weights cannot be fetched: {reason}") from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model {model!r}: no safetensors file in its folder (pickles are not read)")
    return files


def tensor(model: str, files: Iterable[Path], names: Sequence[str]) -> Tensor:
    """The first tensor that has one of these names, on the CPU.

    Raises:
        ModelError: a file is damaged, or none holds such a tensor.
    """
    for file in files:
        with opened(model, file) as reader:
            keys = set(reader.keys())
            for name in names:
                if name in keys:
                    found: Tensor = reader.get_tensor(name)
                    return found
    raise ModelError(f"model {model!r}: tensor {names[0]} is in none of its safetensors files; {_MEND}")


def spellings(name: str) -> tuple[str, ...]:
    """The names that a network's tensor may have in a file: with or without what stands around the decoder."""
    return name, name.partition(".")[2], f"model.{name}"


def refuse_unfit(model: str, shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]], missing: Iterable[str]) -> None:
    """Nothing is filled in, cut or repeated to make weights fit their configuration.

    Args:
        shapes: name of a tensor -> its shape in the file, and the one that the configuration asks for.
        missing: names of tensors that no file holds.

    Raises:
        ModelError: there is such a tensor; the first by name is told.
    """
    for name, (there, wanted) in sorted(shapes.items()):
        if tuple(there) != tuple(wanted):
            found = " x ".join(map(str, there)) or "a single number"
            what = (
                f"tensor {name} is {found} in its safetensors files and {' x '.join(map(str, wanted))} by config.json"
            )
            raise ModelError(f"model {model!r}: {what}; {_MEND}")
    for name in sorted(missing):
        raise ModelError(f"model {model!r}: tensor {name} is in none of its safetensors files; {_MEND}")


def shapes(model: str, files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the files, from their headers.

    Raises:
        ModelError: a file is damaged.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with opened(model, file) as reader:
            names: list[str] = list(reader.keys())
            found |= {name: tuple(reader.get_slice(name).get_shape()) for name in names}
    return found


def check(model: str, files: Iterable[Path]) -> None:
    """Look at every file's header.

    Raises:
        ModelError: one is damaged.
    """
    for file in files:
        with opened(model, file):
            pass


@contextlib.contextmanager
def opened(model: str, file: Path) -> Iterator[Any]:
    """A reader of one file.

    Raises:
        ModelError: the file is cut off or altered, so that its header does not fit it, or cannot be read at all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        # what comes from a hub is a link into its cache: the file behind it is the damaged one
        where = f" ({file.resolve()})" if file.is_symlink() else ""
        raise ModelError(
            f"model {model!r}: the weights in {file.name} are damaged: {str(error).splitlines()[0]}; "
            f"delete the file{where} and fetch it again, or save the model again with save_pretrained"
        ) from error
