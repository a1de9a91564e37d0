"""Judges: networks or programs that the user names to say which of two answers to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import commands
from bench.conversation import Asked, continued, ids_of, rendered
from bench.errors import UsageError
from bench.models import Source
from benchmarks.preference.core.judge_program import Program

Question = tuple[Asked, str, str]
"""What is asked, one answer, another."""
Judge = Callable[[Sequence[Question]], list[float]]
"""Of each question how much better the first answer is, above 0 where it is better at all."""

QUESTION = (
    "Two answers to one prompt.\n\nPrompt: {prompt}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "Which answer is better, A or B?"
)
REPLY = "The better answer is"
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
        return (
            lambda questions: program([(asked.text, first, second) for asked, first, second in questions])
        ), f"{name}, {program.version}"
    source = Source(name, role="judge", dtype=judged.dtype, device=judged.device)
    kinds = source.config.architectures or []
    scores = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    judge = reward_model(source) if scores else language_model(source)
    return judge, f"{name}, sha256 {source.fingerprint}"


def reward_model(source: Source) -> Judge:
    """The difference of two scores: each answer is read alone behind what is asked, in the network's own chat template
    where it has one.

    Raises:
        UsageError: the network gives more than one score, or its chat template refuses a conversation.
    """
    from transformers import AutoModelForSequenceClassification

    if source.config.num_labels != 1:
        raise UsageError(
            f"judge {source.name}: it has {source.config.num_labels} labels; a reward model has one (num_labels=1)"
        )
    network: Any = source.other_model(AutoModelForSequenceClassification)

    @torch.no_grad()
    def score(asked: Asked, answer: str) -> float:
        ids = torch.tensor([_read(source, asked, answer)], device=source.device)
        return float(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])

    return lambda questions: [score(asked, first) - score(asked, second) for asked, first, second in questions]


def _read(source: Source, asked: Asked, answer: str) -> list[int]:
    """What a reward model reads of one answer, as ids."""
    tokenizer = source.tokenizer
    text, templated = asked.answered(answer), bool(tokenizer.chat_template)
    if templated:
        said = [*(asked.turns or [("user", asked.text)]), ("assistant", answer.strip())]
        try:
            text = rendered(tokenizer, said, add_generation_prompt=False)
        except Exception as error:  # a template raises whatever it likes
            raise UsageError(f"judge {source.name}: its chat template refuses a conversation ({error})") from error
    # the template writes the begin-of-text token itself
    ids: list[int] = tokenizer(text, add_special_tokens=not templated)["input_ids"]
    return ids


def language_model(source: Source) -> Judge:
    """The log-odds of the letter of an answer, asked in both orders: a liking for a place or a letter cancels out.

    The question is a user's turn in the model's chat template, where it has one, and the reply's beginning is given.

    Raises:
        UsageError: the tokenizer does not tell the two letters apart by one token.
    """
    tokenizer = source.tokenizer
    letters = [continued(tokenizer, letter) for letter in LETTERS]
    kept = [ids[-1] for ids in letters if ids]
    if len(set(kept)) != 2 or letters[0][:-1] != letters[1][:-1]:
        raise UsageError(f"judge {source.name}: its tokenizer does not tell {LETTERS[0]!r} from {LETTERS[1]!r}")
    network: Any = source.model()

    @torch.no_grad()
    def odds(asked: Asked, first: str, second: str) -> float:
        question = QUESTION.format(prompt=asked.text, first=first, second=second)
        given, _ = ids_of(source, [("user", question)], f"{question} {REPLY}", [], chat=True)
        reply = continued(tokenizer, REPLY) if tokenizer.chat_template else []
        ids = torch.tensor([given + reply + letters[0][:-1]], device=source.device)
        logits = network(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        return float(logits[kept[0]] - logits[kept[1]])

    return lambda questions: [
        (odds(asked, first, second) - odds(asked, second, first)) / 2 for asked, first, second in questions
    ]


def wins(judge: Judge, asked: Sequence[Asked], answers: Sequence[str], others: Sequence[str]) -> list[float]:
    """Of each question 1 where the answer is judged better than the other one, 0 where worse, 1/2 where alike."""
    margins = judge(list(zip(asked, answers, others, strict=True)))
    return [0.5 + 0.5 * ((margin > 0) - (margin < 0)) for margin in margins]
