"""Prompts of six kinds: what a draft is worth differs from one kind of task to another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from bench import text_file, yaml_file
from bench.errors import UsageError
from bench.families import cache as kv
from bench.families.decoding_workload import DecodingWorkload
from bench.models import Source, Sources
from bench.registry import did_you_mean, register
from bench.text_file import Prompt
from bench.workload import Built, Work
from benchmarks.decoding.core.chat import chat

PROMPTS = Path(__file__).with_suffix(".yaml")
UNNAMED = "uncategorised"
"""Prompts of a file that names no category."""


@register
class SixCategories(DecodingWorkload):
    """Conversation, translation, summarisation, question answering, mathematics and retrieval, as chat prompts.

    The categories take turns: with n of them, prompt i is of category i modulo n, among those scored and among those
    timed. A prompt of several turns is its last one, asked after the model's own greedy answers to those before; they
    are made once, and every arm reads the same.
    """

    source: ClassVar[str] = "96 prompts written for this project (Apache-2.0), in the categories of Spec-Bench"
    smallest: ClassVar[Mapping[str, int]] = {**DecodingWorkload.smallest, "answer_tokens": 8}

    items: int = Field(default=24, ge=1)
    """Prompts that are scored."""
    timed_prompts: int = Field(default=72, ge=2)
    """Distinct prompts for the timed bursts; fewer where a category has no more."""
    burst_prompts: int = Field(default=6, ge=1)
    """Prompts of one timed burst: one of each category, as it comes."""
    categories: tuple[str, ...] = ()
    """Names of the categories that are asked; none: all that there are."""
    answer_tokens: int = Field(default=64, ge=1, le=8192)
    """Where an answer inside a conversation is cut at the latest [tokens]."""
    path: str = ""
    """A file of prompts instead: Spec-Bench, MT-bench, GSM8K, HumanEval, or your own as .jsonl or one per line."""

    @field_validator("categories", mode="before")
    @classmethod
    def _one_category(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def check(self) -> None:
        self._dealt()

    @property
    def prompt_tokens(self) -> int:
        scored, timed = self._dealt()
        answers = self.answer_tokens * _answers(scored + timed)
        words = sum(len(turn.split()) for prompt in scored + timed for turn in prompt.turns)
        return int((words * 1.6 + answers) / len(scored + timed)) + 40

    def work(self) -> tuple[Work, Work, Work]:
        build, burst, quality = super().work()
        scored, timed = self._dealt()
        answer = Work(prefill=self.prompt_tokens, decode=self.answer_tokens)
        return build + answer.times(_answers(scored + timed)), burst, quality

    def build(self, sources: Sources, seed: int) -> Built:
        scored, timed = self._dealt()
        # no network is loaded where no answer is needed
        model = sources.target.model() if _answers(scored + timed) else None
        return {
            "scored": [self._ids(sources.target, model, prompt.turns) for prompt in scored],
            "timed": [self._ids(sources.target, model, prompt.turns) for prompt in timed],
            "categories": {
                "scored": [prompt.category or UNNAMED for prompt in scored],
                "timed": [prompt.category or UNNAMED for prompt in timed],
            },
        }

    def _ids(self, source: Source, model: Any, turns: tuple[str, ...]) -> list[int]:
        said = [turns[0]]
        for turn in turns[1:]:
            said += [greedy_answer(source, model, chat(source, *said), self.answer_tokens), turn]
        return chat(source, *said)

    def _dealt(self) -> tuple[list[Prompt], list[Prompt]]:
        """The prompts to score and to time, disjoint; both go round the categories.

        Raises:
            UsageError: the file is missing or malformed, or a category is unknown or has too few prompts.
        """
        held = _by_category(self.path)
        unknown = [name for name in self.categories if name not in held]
        if unknown:
            where = f"{self.path} has no category" if self.path else "no category"
            raise UsageError(f"{where} {unknown[0]!r}{did_you_mean(unknown[0], held)}")
        names = tuple(dict.fromkeys(self.categories)) or tuple(held)
        timed = max(2, -(-self.timed_prompts // len(names)))
        scored, left = {}, {}
        for place, name in enumerate(names):
            count = len(range(place, self.items, len(names)))
            asked = _spread(held[name], count + timed)
            if len(asked) < count + 2:
                raise UsageError(
                    f"{self.path or 'the embedded prompts'}: {len(asked)} prompts of the category {name!r}; with "
                    f"items={self.items} it needs at least {count + 2}, of which 2 are timed: lower items, or name the "
                    f"other categories in categories"
                )
            scored[name] = _spread(asked, count)
            left[name] = [prompt for prompt in asked if prompt not in scored[name]]
        rounds = min(map(len, left.values()))
        return _in_turn(scored, self.items), _in_turn(left, min(self.timed_prompts, rounds * len(names)))


def _by_category(path: str) -> dict[str, list[Prompt]]:
    """Category -> its prompts, each once, in the order of the file."""
    held: dict[str, dict[tuple[str, ...], Prompt]] = {}
    for prompt in text_file.read_prompts(Path(path)) if path else _own():
        held.setdefault(prompt.category or UNNAMED, {}).setdefault(prompt.turns, prompt)
    return {name: list(prompts.values()) for name, prompts in held.items()}


@cache
def _own() -> tuple[Prompt, ...]:
    """The prompts that come with the program."""
    return tuple(
        Prompt((said,) if isinstance(said, str) else tuple(said), category)
        for category, prompts in yaml_file.load(PROMPTS).items()
        for said in prompts
    )


def _spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` of them at even distances, all if there are no more: a file may be sorted by subject."""
    taken = min(count, len(prompts))
    return [prompts[index * len(prompts) // taken] for index in range(taken)]


def _in_turn(held: Mapping[str, list[Prompt]], count: int) -> list[Prompt]:
    names = list(held)
    return [held[names[index % len(names)]][index // len(names)] for index in range(count)]


def _answers(prompts: list[Prompt]) -> int:
    """How many answers of the model stand inside these conversations."""
    return sum(len(prompt.turns) - 1 for prompt in prompts)


@torch.inference_mode()
def greedy_answer(source: Source, model: Any, ids: list[int], limit: int) -> str:
    """What the model answers to a prompt, up to the first special id, or `limit` tokens.

    Raises:
        Unsupported: prompt and answer do not fit the model's context.
    """
    tokens = kv.preallocated(model.config, len(ids) + limit)
    ends = set(source.tokenizer.all_special_ids)
    new, answer = ids, []
    while len(answer) < limit:
        token = int(kv.read(model, torch.tensor([new], device=source.device), tokens)[0, -1].argmax())
        if token in ends:
            break
        answer.append(token)
        new = [token]
    text: str = source.tokenizer.decode(answer)
    return text
