"""Questions about a passage of real text: the answer can quote it, as summaries and retrieval do."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench import text, text_file
from bench.errors import UsageError
from bench.families.decoding_workload import DecodingWorkload
from bench.models import Sources
from bench.registry import register
from bench.workload import Built
from benchmarks.decoding.core.chat import chat

REQUESTS = (
    "Summarise the following text in a few sentences.",
    "List the rules that the following text states.",
    "Explain the following text to a beginner, quoting it where that helps.",
    "Rewrite the following text as questions and answers.",
)


@register
class GroundedChat(DecodingWorkload):
    """Four kinds of requests about passages of the language reference, as chat prompts."""

    source: ClassVar[str] = text.SOURCE

    passage_words: int = Field(default=120, ge=10, le=20000)
    """Length of a passage [words]."""
    path: str = ""
    """A file of prompts of your own, asked as they are: .jsonl (prompt, question, first of turns) or one per line."""

    @property
    def prompt_tokens(self) -> int:
        return int(self.passage_words * 1.6) + 40

    def check(self) -> None:
        if self.path:
            text_file.read_prompts(Path(self.path))

    def build(self, sources: Sources, seed: int) -> Built:
        wanted = self.timed_prompts + self.items
        if self.path:
            own = text_file.read_prompts(Path(self.path))
            prompts = [chat(sources.target, prompt.turns[0]) for prompt in own[:wanted]]
            if len(prompts) < self.items + 2:
                raise UsageError(f"{self.path}: {len(own)} prompts; items={self.items} needs at least {self.items + 2}")
            return {"scored": prompts[: self.items], "timed": prompts[self.items :]}
        passages = _passages("prompts", self.passage_words)
        if wanted > len(passages) * len(REQUESTS):
            raise UsageError(
                f"the embedded text has {len(passages)} passages of {self.passage_words} words, asked about in "
                f"{len(REQUESTS)} ways; {wanted} prompts are wanted: lower passage_words, items or timed_prompts"
            )
        prompts = []
        for index in range(wanted):
            lap, place = divmod(index, len(passages))
            request = REQUESTS[(place + lap) % len(REQUESTS)]  # every lap asks each passage something else
            prompts.append(chat(sources.target, f"{request}\n\n{passages[place]}"))
        return {"scored": prompts[: self.items], "timed": prompts[self.items :]}


def _passages(split: text.Split, words: int) -> list[str]:
    passages = []
    for document in text.documents(split).values():
        all_words = document.split()
        passages += [" ".join(all_words[i : i + words]) for i in range(0, len(all_words) - words + 1, words)]
    return passages
