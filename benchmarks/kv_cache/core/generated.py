"""Items that are made up: a context of an exact length around facts, with a question about them."""

from __future__ import annotations

import random
from abc import abstractmethod

from bench import text
from bench.families import cache as kv
from bench.models import Source, Sources
from bench.workload import Built
from benchmarks.kv_cache.core.haystack import Asked, begin_of_text, encoder, haystack
from benchmarks.kv_cache.core.questions import Item, QuestionWorkload, item


class GeneratedQuestions(QuestionWorkload):
    """Base of the workloads whose items are drawn: each by its seed, its number, and whether it is timed or scored."""

    @abstractmethod
    def ask(self, rng: random.Random, depth: float, split: text.Split) -> Asked:
        """One item.

        Args:
            rng: the item's own.
            depth: from 0 to 1, spread evenly over the items: where the answer stands in the context.
            split: the part of the embedded text that filler comes from: one for items scored, another for those timed.
        """

    def build(self, sources: Sources, seed: int) -> Built:
        kv.check_length(sources.target.config, self.context + self.new_tokens)
        scored = self.items_of(sources.target, seed, "test", self.items)
        return self.built(scored, self.items_of(sources.target, seed, "train", self.timed_contexts))

    def items_of(self, source: Source, seed: int, split: text.Split, count: int) -> list[Item]:
        """Items with prompts of exactly `context` tokens, or of as many as are drawn from `shortest` on."""
        encode = encoder(source)
        first = begin_of_text(source) if self.begin else []
        items = []
        for index in range(count):
            rng = random.Random(f"{seed} {split} {index}")
            asked = self.ask(rng, (index + rng.random()) / count, split)
            question, cue = encode(asked.question), encode(asked.cue)
            room = self.length(rng) - len(first) - len(question) - len(cue)
            placed = haystack(asked, encode, room)
            places = [(start + len(first), end + len(first)) for start, end in placed.places]
            items.append(item(first + placed.ids, question, cue, encode(f" {', '.join(asked.answers)}"), asked.answers))
            items[-1]["places"] = places
        return items
