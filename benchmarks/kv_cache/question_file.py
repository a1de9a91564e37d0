"""Questions about long texts of any file: RULER's and LongBench's, or your own in their formats."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.errors import UsageError
from bench.families import cache as kv
from bench.models import Source, Sources
from bench.registry import register
from bench.workload import Built, Quality
from benchmarks.kv_cache.core import answers
from benchmarks.kv_cache.core.haystack import begin_of_text, encoder
from benchmarks.kv_cache.core.question_file import FileQuestion, Scoring, read_questions
from benchmarks.kv_cache.core.questions import Item, QuestionWorkload, item

OWN = Path(__file__).with_suffix(".jsonl")


@register
class QuestionFile(QuestionWorkload):
    """Lines of a file, each a context, a question and its answers, in random order; some are timed, others scored.

    All prompts have `context` tokens: a longer one loses the middle of its text, as in LongBench, and lines with a
    shorter one are left out, or from `shortest` on stay as they are; all is told. RULER's lines are scored by string
    match: the share of the answers that are written, or whether any is where the question is about documents. Of
    LongBench the data sets in English are read and scored as published: the F1 of words, the class that is named, the
    number that is given, the likeness of a line of code, ROUGE-L of a summary; the best accepted answer counts, and the
    first one's likelihood is taken, as far as `new_tokens` go for a summary.

    Differs from the published: prompts of LongBench in our own words; the answer is at most `new_tokens` long, and
    for the F1, for classes and for short summaries it ends with its line.
    """

    source: ClassVar[str] = (
        "16 questions about texts written for this project (Apache-2.0), or a file of your own; the formats of RULER "
        "(Hsieh et al. 2024) and LongBench (Bai et al. 2024)"
    )
    smallest: ClassVar[Mapping[str, int]] = {**QuestionWorkload.smallest, "context": 384}

    context: int = Field(default=384, ge=8, le=1_048_576)
    """Length of every prompt, of the longest where `shortest` is given [tokens]."""
    new_tokens: int = Field(default=36, ge=2, le=65536)
    """Tokens written as an answer [tokens]."""
    items: int = Field(default=10, ge=1)
    """Lines that are scored."""
    timed_contexts: int = Field(default=6, ge=1)
    """Lines for the timed bursts."""
    path: str = ""
    """A file of lines of JSON (.jsonl, .jsonl.gz); empty: the one that comes with the program."""
    usable: float = Field(default=0.2, ge=0.0, le=1.0)
    """Mean score that the full cache must reach; below it the figures say nothing of what was lost."""

    def check(self) -> None:
        self._questions()

    def _questions(self) -> list[FileQuestion]:
        found = read_questions(Path(self.path) if self.path else OWN)
        kinds = sorted({"string match" if one.scoring in ("all", "any") else one.scoring for one in found})
        if len(kinds) > 1:
            raise UsageError(f"{self.path}: lines that are scored by {' and by '.join(kinds)}; give a file for each")
        return found

    @property
    def _least(self) -> str:
        """The parameter that a line's prompt must reach."""
        return f"context={self.context}" if self.shortest is None else f"shortest={self.shortest}"

    def build(self, sources: Sources, seed: int) -> Built:
        kv.check_length(sources.target.config, self.context + self.new_tokens)
        questions = self._questions()
        random.Random(seed).shuffle(questions)
        found = [self._item(sources.target, one) for one in questions]
        long_enough = [one for one in found if one is not None]
        wanted = self.items + self.timed_contexts
        if len(long_enough) < wanted:
            raise UsageError(
                f"{self.path or 'the file that comes with the program'}: {len(long_enough)} of {len(found)} lines have "
                f"prompts of {self._least} tokens or more, and items={self.items} and "
                f"timed_contexts={self.timed_contexts} need {wanted}: lower one of the three"
            )
        used = long_enough[:wanted]
        lost = [one["lost"] for one in used if one["lost"]]
        return {
            **self.built(used[: self.items], used[self.items :]),
            "notes": notes(self.context, self._least, len(found) - len(long_enough), lost),
        }

    def _item(self, source: Source, asked: FileQuestion) -> Item | None:
        """A prompt of the wanted length; none where the line is too short for it."""
        encode = encoder(source)
        first = begin_of_text(source) if self.begin else []
        question, cue = encode(asked.question), encode(asked.cue)
        if not cue:  # something is to be read behind the eviction in any case
            question, cue = question[:-1], question[-1:]
        text = encode(asked.context)
        room = self.context - len(first) - len(question) - len(cue)
        if room < 1:
            raise UsageError(f"a question takes {self.context - room} tokens, context={self.context} is too small")
        lost = len(text) - room
        if self.context + lost < (self.shortest or self.context):
            return None
        lost = max(lost, 0)
        kept = text[: room // 2] + text[room // 2 + lost :]
        answer = encode(asked.answer)
        if "summary" in asked.scoring:
            answer = answer[: self.new_tokens - 1]
        made = item(first + kept, question, cue, answer, asked.answers)
        return {**made, "scoring": asked.scoring, "classes": list(asked.classes), "lost": lost}

    def judged(self, written: str, one: Item) -> dict[str, float]:
        accepted: Sequence[str] = one["answers"]
        scoring = one["scoring"]
        if scoring not in ("all", "any"):
            given = written.strip().partition("\n")[0] if scoring in ("f1", "class", "short summary") else written
            score = {
                "f1": answers.f1,
                "class": lambda said, answer: answers.classified(said, answer, one["classes"]),
                "number": answers.numbered,
                "line": answers.line_likeness,
                "summary": answers.rouge_l,
                "short summary": answers.rouge_l,
            }[scoring]
            return {_metric(scoring): max(score(given, answer) for answer in accepted)}
        found = answers.share_contained(written, accepted)
        if scoring == "any":
            found = float(found > 0)
        return {"exact_match": float(found == 1), "answers_found": found}

    def note(self, baseline: Quality, built: Built) -> dict[str, str]:
        return {**super().note(baseline, built), **built["notes"]}


def _metric(scoring: Scoring) -> str:
    """The metric that says whether a task is solved."""
    return {"all": "exact_match", "any": "exact_match", "f1": "answer_f1"}.get(scoring, "answer_score")


def notes(context: int, least: str, short: int, lost: Sequence[int]) -> dict[str, str]:
    """What a file lost on its way to the items -> what to do about it."""
    shorter = "the context" if least.startswith("context") else least.partition("=")[2]
    found: Mapping[str, tuple[int, str]] = {
        f"lines left out, as their prompts are shorter than {shorter}: {short}": (short, f"lower {least}"),
        f"prompts that lost their middle: {len(lost)}, {sum(lost)} tokens in all": (
            len(lost),
            f"raise context={context}",
        ),
    }
    return {what: hint for what, (count, hint) in found.items() if count}
