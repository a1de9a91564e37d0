"""Long documents of real text: how well does the model go on when parts of what it read are forgotten?"""

from __future__ import annotations

import random
from typing import ClassVar

from bench import text
from bench.errors import Unsupported, UsageError
from bench.families.kv_cache_workload import KVCacheWorkload
from bench.models import Source, Sources
from bench.registry import register
from bench.workload import Built
from benchmarks.kv_cache.core.haystack import begin_of_text


@register
class LongDocument(KVCacheWorkload):
    """Pages of the language reference; their true continuation is scored, token by token through the cache.

    The documents of a split are put one behind the other in a seeded order, and pieces are cut at even distances:
    disjoint as long as the text suffices, then with contexts that overlap; scored continuations never do.
    """

    source: ClassVar[str] = text.SOURCE

    begin: bool = True
    """Put the begin-of-text token in front of each context, where the model's tokenizer does so."""
    path: str = ""
    """A text of your own instead, in several documents: .jsonl (text), or plain text with empty lines."""

    def check(self) -> None:
        text.documents("train", self.path)

    def build(self, sources: Sources, seed: int) -> Built:
        config = sources.target.config.get_text_config(decoder=True)
        limit = config.max_position_embeddings
        tokens = self.context + self.new_tokens
        if limit is not None and tokens > limit:
            raise Unsupported(f"context={self.context} and new_tokens={self.new_tokens} exceed the model's {limit}")
        first = begin_of_text(sources.target) if self.begin else []
        needed = self.context + self.items * self.new_tokens
        test = _stream(sources.target, "test", seed, needed, self.path)
        train = _stream(sources.target, "train", seed, self.context, self.path)
        return {
            "scored": self._pieces(first, test, tokens, self.items, random.Random(f"{seed} test")),
            "timed": self._pieces(first, train, self.context, self.timed_contexts, random.Random(f"{seed} train")),
        }

    def _pieces(
        self, first: list[int], stream: list[int], longest: int, count: int, rng: random.Random
    ) -> list[list[int]]:
        """`count` pieces of `longest` ids, from the beginning to the end of the stream at even distances; those of
        shorter contexts end where they would."""
        taken = longest - len(first)
        last = len(stream) - taken
        ends = [index * last // max(count - 1, 1) + taken for index in range(count)]
        return [first + stream[end - taken + self.context - self.length(rng) : end] for end in ends]


def _stream(source: Source, split: text.Split, seed: int, needed: int, path: str) -> list[int]:
    """Ids of a split's documents in a seeded order."""
    documents = list(text.documents(split, path).values())
    random.Random(seed).shuffle(documents)
    ids: list[int] = source.tokenizer("\n\n".join(documents), add_special_tokens=False)["input_ids"]
    if len(ids) < needed:
        raise UsageError(
            f"the {split} part of {path or 'the embedded text'} has {len(ids)} tokens in this model's vocabulary "
            f"and {needed} are needed; choose a smaller context, new_tokens or items"
        )
    return ids
