"""Documents and examples -> the ids that a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from bench.conversation import ids_of
from bench.families.texts import Text
from bench.models import Source
from benchmarks.finetuning.core.instruction_file import Example

T = TypeVar("T")


def spread(found: Sequence[T], count: int) -> list[T]:
    """`count` of them, spread evenly from the first to the last, each once; all where there are no more."""
    count = min(count, len(found))
    return [found[place] for place in torch.linspace(0, len(found) - 1, count).round().int().tolist()]


def end_to_end(source: Source, documents: Iterable[str], sequence: int) -> list[list[int]]:
    """Documents end to end, cut into sequences of `sequence` ids; the rest is left out."""
    tokenizer = source.tokenizer
    stream: list[int] = []
    for document in documents:
        # a begin-of-text id where the tokenizer writes one; one end-of-text id behind every document
        stream += tokenizer(document)["input_ids"]
        if tokenizer.eos_token_id is not None and stream[-1] != tokenizer.eos_token_id:
            stream.append(tokenizer.eos_token_id)
    return [stream[i : i + sequence] for i in range(0, len(stream) - sequence + 1, sequence)]


def text_of(source: Source, example: Example, chat: bool) -> Text:
    """An example as ids, its answer to be learnt (`conversation.ids_of`).

    Raises:
        Unsupported: the model's chat template refuses the conversation.
    """
    given, (learnt,) = ids_of(source, example.turns, example.prompt, [example.answer], chat)
    return Text(ids=[*given, *learnt], prompt=len(given))
