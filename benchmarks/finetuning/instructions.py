"""Instructions of any file: how well a trained model answers what it has not been asked before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench import text
from bench.conversation import end_of_answer
from bench.errors import UsageError
from bench.families.finetuning import Finetuning
from bench.families.finetuning_workload import FinetuningWorkload
from bench.families.texts import Text, packed, targets, whole
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.registry import register
from bench.workload import Built, Quality, Work
from benchmarks.finetuning.core import contamination, word_problems
from benchmarks.finetuning.core.instruction_file import RESULT, Example, read_examples, result
from benchmarks.finetuning.core.sequences import end_to_end, spread, text_of

SHOWN = 2
"""Held-out questions whose answers are shown."""
OTHER_SEQUENCE = 256
"""Longest sequence of the text in which forgetting is looked for [tokens]."""


@register
class Instructions(FinetuningWorkload):
    """Chat, Alpaca, GSM8K, prompt and completion, or plain text from a file; the loss is on the answer alone.

    Of a conversation the last message is learnt, given all before it. Without a test file held-out examples are taken
    out of the one file, spread over it, and no prompt of theirs is trained on. Where answers end in a number, as
    GSM8K's, held-out questions are answered greedily too, and their numbers compared; smooth beside it is how likely
    the published number is behind the published way to it. Forgetting is looked for in the embedded text.
    """

    source: ClassVar[str] = f"{word_problems.SOURCE}, or a file of your own"
    smallest: ClassVar[Mapping[str, int]] = {
        **FinetuningWorkload.smallest,
        "sequence": 352,
        "examples": 24,
        "new_tokens": 8,
    }

    sequence: int = Field(default=512, ge=2, le=65536)
    """A longer text loses its end; one whose prompt alone is as long is left out [tokens]."""
    examples: int = Field(default=1024, ge=1)
    """Training examples at most, spread over the file."""
    packing: bool = False
    """Put several texts into one row of `sequence` tokens, none attending to another; else pad each to the longest."""
    chat: bool = True
    """Whether conversations are written in the model's chat template."""
    new_tokens: int = Field(default=128, ge=1, le=8192)
    """Length of a greedy answer at most [tokens]."""
    ngram: int = Field(default=13, ge=1)
    """Held-out examples that share a run of so many words with a training example are reported."""
    path: str = ""
    """A file of examples as lines of JSON (.jsonl, .jsonl.gz), or plain text; empty: word problems of our own."""
    test_path: str = ""
    """A file of the examples that are held out; empty: some of `path`."""

    def check(self) -> None:
        self._examples()

    def _examples(self) -> tuple[list[Example], list[Example]]:
        """Those to train on, and those held out.

        Raises:
            UsageError: a file is missing, empty or malformed, or too short.
        """
        found = read_examples(Path(self.path)) if self.path else word_problems.word_problems(0, self.examples)
        if self.test_path:
            heldout = read_examples(Path(self.test_path))
        elif self.path:
            heldout = list({_asked(example): example for example in found}.values())
        else:
            heldout = word_problems.word_problems(self.examples, self.items)
        where = self.test_path or self.path or "the word problems"
        if len(heldout) < self.items:
            raise UsageError(f"{where}: {len(heldout)} different examples, {self.items} are held out; lower items")
        heldout = spread(heldout, self.items)
        asked = {_asked(example) for example in heldout}
        # with a test file nothing is taken out: what both files share is for the contamination check to report
        train = found if self.test_path else [example for example in found if _asked(example) not in asked]
        if not train:
            raise UsageError(f"{where}: all {len(heldout)} examples are held out, none is left to learn; lower items")
        return spread(train, self.examples), heldout

    def build(self, sources: Sources, seed: int) -> Built:
        source = sources.target
        learnt, kept = self._examples()
        cuts = Cuts()
        train = [one for _, one in self._texts(source, learnt, cuts)]
        answered = self._texts(source, kept, cuts)
        heldout = [one for _, one in answered]
        for which, there in (("training", train), ("held-out", heldout)):
            if not there:
                raise UsageError(
                    f"{self.path or 'the word problems'}: no {which} text has a token to learn within "
                    f"sequence={self.sequence}; raise sequence"
                )
        shared = contamination.contaminated((one.text for one in learnt), [one.text for one, _ in answered], self.ngram)
        numbers = [one.number for one, _ in answered]
        asks = None not in numbers
        self.check_context(source, self.new_tokens if asks else 0)
        documents = text.documents("validation").values()
        other = end_to_end(source, documents, min(self.sequence, OTHER_SEQUENCE))
        return {
            "train": train,
            "heldout": heldout,
            "other": whole(spread(other, self.other_items)),
            **({"rows": packed([len(one["ids"]) for one in train], self.sequence)} if self.packing else {}),
            **({"numbers": numbers, "end": self._end(source, answered)} if asks else {}),
            "notes": {**cuts.notes(self.sequence), **contamination.notes(shared, len(heldout), self.ngram)},
            "counts": {"contaminated_items": float(len(shared)), "contamination_ngram": float(self.ngram)},
        }

    def _texts(self, source: Source, examples: Sequence[Example], cuts: Cuts) -> list[tuple[Example, Text]]:
        """Examples with their ids, cut to the limit; without those that have nothing left to learn."""
        found = []
        for example in examples:
            one = text_of(source, example, self.chat)
            lost = max(len(one["ids"]) - self.sequence, 0)
            one = Text(ids=one["ids"][: self.sequence], prompt=one["prompt"])
            if targets(one) < 1:
                cuts.left_out += 1
                continue
            cuts.texts += lost > 0
            cuts.tokens += lost
            found.append((example, one))
        return found

    def _end(self, source: Source, answered: Sequence[tuple[Example, Text]]) -> int | None:
        """The id that the held-out answers end with; a file is of conversations or it is not."""
        return end_of_answer(source, answered[0][0].turns, self.chat)

    @property
    def row_tokens(self) -> int:
        return self.sequence if self.packing else min(self.sequence, 192)

    def work(self) -> tuple[Work, Work, Work]:
        build, burst, quality = super().work()
        # answers of all held-out questions are written at once; the published numbers are scored beside them
        return build, burst, quality + Work(prefill=2 * self.items * self.row_tokens, decode=self.new_tokens)

    def ask(
        self, technique: Finetuning, prepared: TrainedPrepared, built: Built, source: Source, quality: Quality
    ) -> None:
        """Greedy answers, where there are numbers to compare."""
        if "numbers" not in built:
            return
        decode: Any = source.tokenizer.decode
        prompts = [one["ids"][: one["prompt"]] for one in built["heldout"]]
        answers = technique.answers(prepared, prompts, self.new_tokens, built["end"])
        results = [one for one in (result_of(source, text, built["end"]) for text in built["heldout"]) if one]
        if len(results) == len(prompts):  # else items would not be the same; that texts lost their end is told
            quality.metrics["result_nll"] = self.score(technique, prepared, results, source.device).nll
        written = [decode(ids, skip_special_tokens=True) for ids in answers]
        quality.metrics["task_accuracy"] = [
            float(same(result(answer), number)) for answer, number in zip(written, built["numbers"], strict=True)
        ]
        quality.notes |= edge(quality.metrics["task_accuracy"])
        quality.texts += [
            {"prompt": decode(prompt), "output": answer}
            for prompt, answer in zip(prompts[:SHOWN], written[:SHOWN], strict=True)
        ]


def _asked(example: Example) -> str:
    return example.prompt or example.answer


def result_of(source: Source, text: Text, end: int | None) -> Text | None:
    """The same text of which only the number behind #### is learnt, and the end; None where that was cut off."""
    ids, tokenizer = text["ids"], source.tokenizer
    complete = end in {None, ids[-1]} and RESULT in tokenizer.decode(ids[text["prompt"] :])
    if not complete:
        return None
    places = (place for place in range(text["prompt"], len(ids)) if "#" not in tokenizer.decode(ids[place:]))
    behind = next(places, None)
    return None if behind is None else Text(ids=ids, prompt=behind)


def same(given: float | None, published: float) -> bool:
    """Whether a number is the published one; 72 and 72.0 are the same."""
    return given is not None and abs(given - published) <= 1e-6 * max(1.0, abs(published))


def edge(right: Sequence[float]) -> dict[str, str]:
    """A note where no question is answered rightly, or every one is: there the share can tell no arms apart.

    Args:
        right: 1 or 0 per question.
    """
    share = sum(right) / len(right)
    if 0 < share < 1:
        return {}
    where, other = ("floor", "a more capable model or easier") if share == 0 else ("ceiling", "harder")
    return {
        f"task_accuracy is at its {where}, {sum(right):.0f} of {len(right)} right: it says nothing of a difference "
        f"between arms that are there": f"read nll and result_nll, which have no threshold, or give {other} questions"
    }


@dataclass
class Cuts:
    """What examples lost on their way to texts."""

    texts: int = 0
    tokens: int = 0
    left_out: int = 0

    def notes(self, sequence: int) -> dict[str, str]:
        """What was lost -> what to do about it."""
        remedy = f"raise sequence={sequence}"
        found = {}
        if self.texts:
            found[f"texts that lost their end: {self.texts}, {self.tokens} tokens in all"] = remedy
        if self.left_out:
            found[f"texts left out, as their prompt alone fills a sequence: {self.left_out}"] = remedy
        return found
