"""Next-token training on real text: the language reference, packed into sequences of one length."""

from __future__ import annotations

from typing import ClassVar

import torch

from bench import text
from bench.errors import UsageError
from bench.families.finetuning import FinetuningWorkload
from bench.models import Source, Sources
from bench.registry import register
from bench.workload import Built


@register
class EmbeddedText(FinetuningWorkload):
    """Train on the documents of the train split, score sequences of the test split."""

    source: ClassVar[str] = text.SOURCE

    path: str = ""
    """A text of your own instead, in several documents: .jsonl (text), or plain text with empty lines."""

    def check(self) -> None:
        text.documents("train", self.path)

    def build(self, sources: Sources, seed: int) -> Built:
        train = packed(sources.target, "train", self.sequence, self.path)
        heldout = packed(sources.target, "test", self.sequence, self.path)
        for split, there, wanted in (
            ("train", len(train), self.batch_size),
            ("test", len(heldout), self.items),
        ):
            if there < wanted:
                raise UsageError(
                    f"{self.path or 'embedded text'}: its {split} split holds {there} sequences of {self.sequence} "
                    f"tokens, {wanted} are needed; lower sequence, batch_size or items"
                )
        # scored sequences are spread over all documents, and the same for every seed
        spread = torch.linspace(0, len(heldout) - 1, self.items).round().int().tolist()
        return {"train": train, "heldout": [heldout[index] for index in spread]}


def packed(source: Source, split: text.Split, sequence: int, path: str = "") -> list[list[int]]:
    """The split's documents end to end, cut into sequences of `sequence` ids; the rest is left out."""
    tokenizer = source.tokenizer
    stream: list[int] = []
    for document in text.documents(split, path).values():
        # a begin-of-text id where the tokenizer writes one; one end-of-text id behind every document
        stream += tokenizer(document)["input_ids"]
        if tokenizer.eos_token_id is not None and stream[-1] != tokenizer.eos_token_id:
            stream.append(tokenizer.eos_token_id)
    return [stream[i : i + sequence] for i in range(0, len(stream) - sequence + 1, sequence)]
