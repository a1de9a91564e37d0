"""What the network is trained on: Python's own documentation and the source of its standard library."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench import text
from benchmarks.finetuning.core.contamination import contaminated
from benchmarks.finetuning.python_code import MODULES

END = "<|endoftext|>"
"""Stands behind every document."""
VOCABULARY = 2048
DOCUMENTATION_READ = 4
"""Times that the documentation is read in an epoch, which is far shorter than the source."""
NGRAM = 13
"""A document that shares a run of so many words with a text that is scored elsewhere is left out."""
LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"),
    *("site-packages", "ensurepip", "turtledemo"),
}
"""Folders of the standard library that are no ordinary code, or hold what is scored."""


@dataclass(frozen=True)
class Corpus:
    """Documents to learn."""

    documents: tuple[str, ...]
    shared: int
    """Documents left out, as they share a run of words with a text that is scored elsewhere."""

    @property
    def sha256(self) -> str:
        """Of the documents in their order."""
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()


def gather() -> Corpus:
    """The train split of the embedded text, several times, and the library's source, its tests left out."""
    found = list(_library())
    shared = set(contaminated(_scored(), found, NGRAM))
    source = [document for number, document in enumerate(found) if number not in shared]
    documentation = list(text.documents("train").values())
    return Corpus((*DOCUMENTATION_READ * documentation, *source), len(shared))


def _library() -> Iterator[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        if not LEFT_OUT & set(parts) and not parts[0].startswith("config-"):
            yield file.read_text(errors="replace")


def _scored() -> Iterator[str]:
    """What workloads score or finetune on."""
    split: Literal["validation", "test", "prompts"]
    for split in ("validation", "test", "prompts"):
        yield from text.documents(split).values()
    for names in MODULES.values():
        for name in names:
            yield inspect.getsource(importlib.import_module(name))


def tokenizer_of(documents: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """A tokenizer of byte pairs learnt from documents (Sennrich et al. 2016), as `transformers` knows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def rows_of(tokenizer: Any, documents: Iterable[str], length: int) -> Tensor:
    """Documents end to end, cut into rows of ids, `(rows, length)`; the rest is left out."""
    stream: list[int] = []
    for document in documents:
        stream += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    count = len(stream) // length
    return torch.tensor(stream[: count * length]).view(count, length)
