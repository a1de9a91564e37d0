"""Judges: networks or programs that the user names to say which of two answers to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import commands
from bench.errors import UsageError
from bench.models import Source
from benchmarks.preference.core.judge_program import Program

Question = tuple[str, str, str]
"""Prompt, one answer, another."""
Judge = Callable[[Sequence[Question]], list[float]]
"""Of each question how much better the first answer is, above 0 where it is better at all."""

QUESTION = (
    "Two answers to one prompt.\n\nPrompt: {prompt}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "Which answer is better, A or B? The better answer is"
)
LETTERS = (" A", " B")


def named(name: str, judged: Source, seconds: float) -> tuple[Judge, str]:
    """The judge of a name: a program, a reward model where its configuration says so, else a language model.

    Weights are read from safetensors alone, in the judged model's dtype and on its device; no code comes with them.

    Args:
        seconds: that a program may take for all questions [s].

    Returns:
        The judge, and its name with the hash of its weights.

    Raises:
        UsageError: no model can have this name, it is neither of the two, or the user named no such program.
        ModelError: it cannot be read.
    """
    if name.startswith(commands.PREFIX):
        program = Program(commands.arguments(name), seconds)
        return program, f"{name}, {program.version}"
    source = Source(name, role="judge", dtype=judged.dtype, device=judged.device)
    kinds = source.config.architectures or []
    scores = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    judge = reward_model(source) if scores else language_model(source)
    return judge, f"{name}, sha256 {source.fingerprint}"


def reward_model(source: Source) -> Judge:
    """The difference of two scores: each answer is read behind the prompt, alone.

    Raises:
        UsageError: the network gives more than one score, or the tokenizer makes nothing of a text.
    """
    from transformers import AutoModelForSequenceClassification

    if source.config.num_labels != 1:
        raise UsageError(
            f"judge {source.name}: it has {source.config.num_labels} labels; a reward model has one (num_labels=1)"
        )
    network: Any = source.other_model(AutoModelForSequenceClassification)

    @torch.no_grad()
    def score(prompt: str, answer: str) -> float:
        ids = source.tokenizer(prompt + answer, return_tensors="pt")["input_ids"].to(source.device)
        return float(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])

    return lambda questions: [score(prompt, first) - score(prompt, second) for prompt, first, second in questions]


def language_model(source: Source) -> Judge:
    """The log-odds of the letter of an answer, asked in both orders: a liking for a place or a letter cancels out.

    Raises:
        UsageError: the tokenizer does not tell the two letters apart by one token.
    """
    letters = [source.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
    kept = [ids[-1] for ids in letters if ids]
    if len(set(kept)) != 2 or letters[0][:-1] != letters[1][:-1]:
        raise UsageError(f"judge {source.name}: its tokenizer does not tell {LETTERS[0]!r} from {LETTERS[1]!r}")
    network: Any = source.model()

    @torch.no_grad()
    def odds(prompt: str, first: str, second: str) -> float:
        asked = source.tokenizer(QUESTION.format(prompt=prompt, first=first, second=second))["input_ids"]
        ids = torch.tensor([asked + letters[0][:-1]], device=source.device)
        logits = network(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        return float(logits[kept[0]] - logits[kept[1]])

    return lambda questions: [
        (odds(prompt, first, second) - odds(prompt, second, first)) / 2 for prompt, first, second in questions
    ]


def wins(judge: Judge, prompts: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> list[float]:
    """Of each prompt 1 where the answer is judged better than the other one, 0 where worse, 1/2 where alike."""
    margins = judge(list(zip(prompts, answers, others, strict=True)))
    return [0.5 + 0.5 * ((margin > 0) - (margin < 0)) for margin in margins]
