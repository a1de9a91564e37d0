"""Preference pairs of any file: how well a trained policy tells apart what it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from bench import commands, conversation
from bench.conversation import Asked
from bench.errors import Unsupported, UsageError
from bench.families import cache as kv
from bench.families.preference import Pair, Preference
from bench.families.preference_workload import PreferenceWorkload
from bench.families.rollout import Rollout, repetition, sample
from bench.families.training import TrainedPrepared
from bench.model_names import kind_of
from bench.models import Source, Sources
from bench.registry import register
from bench.technique import Prepared, Technique
from bench.workload import Built, Quality, Work
from benchmarks.preference.core import judge as judges
from benchmarks.preference.core.looks import drawn, mean, written
from benchmarks.preference.core.pair_file import PairFile, TextPair, read_pairs

OWN = Path(__file__).with_suffix(".jsonl")
NAMED = 5
"""Lines of a file that are named of those that were cut."""
SHOWN = 2
"""Held-out prompts whose answers are shown."""


@register
class PreferencePairs(PreferenceWorkload):
    """Pairs from a file in the format of hh-rlhf, UltraFeedback or TRL; prompts are held out whole.

    A conversation is written in the model's chat template, and an answer ends as the template ends it. Without a
    template, or with chat=false, it is written as hh-rlhf has it. Prompt and answer are made into ids apart, so no
    token spans the two.
    """

    source: ClassVar[str] = "40 pairs written for this project (Apache-2.0), or a file of your own"
    smallest: ClassVar[Mapping[str, int]] = {
        **PreferenceWorkload.smallest,
        "max_prompt": 64,
        "max_completion": 64,
        "answers": 2,
        "answer": 8,
    }

    items: int = Field(default=20, ge=1)
    """Held-out pairs that are scored."""
    pairs: int = Field(default=256, ge=1)
    """Training pairs at most."""
    max_prompt: int = Field(default=256, ge=1)
    """A longer prompt loses its beginning [tokens]."""
    max_completion: int = Field(default=128, ge=1)
    """A longer answer loses its end, and has no end-of-text id then [tokens]."""
    chat: bool = True
    """Whether conversations are written in the model's chat template."""
    skip: bool = False
    """Leave out lines whose answers are empty or the same, or that the model's chat template refuses, and say how many,
    instead of refusing the file."""
    judge: str = ""
    """A reward model (one label, as transformers' sequence classification) or a language model, by hub id or folder:
    it compares what the policy and the baseline answer to the held-out prompts, of which it reads the beginning too; or
    a program, as `command:python3 judge.py`, that is started only where the command line names it; empty: nothing is
    compared."""
    judge_seconds: float = Field(default=120.0, gt=0)
    """That a judge which is a program may take for all answers of an arm [s]."""
    answers: int = Field(default=8, ge=0)
    """Held-out prompts that are answered where there is no judge: for length, repetition and something to read."""
    answer: int = Field(default=64, ge=1, le=8192)
    """Length of an answer at most [tokens]."""
    path: str = ""
    """A file of pairs as lines of JSON (.jsonl, .jsonl.gz); empty: those that come with the program."""

    def check(self) -> None:
        self._file()
        if self.judge.startswith(commands.PREFIX):
            commands.arguments(self.judge)
        elif self.judge:
            kind_of(self.judge)

    def _file(self) -> PairFile:
        return read_pairs(Path(self.path) if self.path else OWN, self.skip)

    @property
    def pair_tokens(self) -> int:
        return min(2 * (self.max_prompt + self.max_completion), 512)

    @property
    def train_pairs(self) -> int:
        return self.pairs

    @property
    def answered(self) -> int:
        """Held-out prompts that are answered."""
        return self.items if self.judge else min(self.answers, self.items)

    def work(self) -> tuple[Work, Work, Work]:
        build, burst, quality = super().work()
        # all at once, by the untrained model and by the policy
        answers = Work(prefill=self.answered * self.max_prompt, decode=self.answer if self.answered else 0)
        return build + answers, burst, quality + answers

    def build(self, sources: Sources, seed: int) -> Built:
        source, file = sources.target, self._file()
        cuts = Cuts(left_out=file.left_out)
        groups: dict[tuple[object, str], list[TextPair]] = {}
        for text in file.pairs:
            groups.setdefault((text.turns, text.prompt), []).append(text)
        heldout: list[tuple[TextPair, Pair]] = []
        learnt: list[tuple[TextPair, Pair]] = []
        for place in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
            wanted = heldout if len(heldout) < self.items else learnt
            if len(learnt) < self.pairs:
                wanted += self._pairs(source, list(groups.values())[place], cuts)
        asked = [asked_of(text) for text, _ in heldout[: self.items]]
        kept = [pair for _, pair in heldout[: self.items]]
        shown = {tuple(pair["prompt"]) for pair in kept}
        apart = [pair for _, pair in learnt if tuple(pair["prompt"]) not in shown]
        cuts.shared, train = len(learnt) - len(apart), apart[: self.pairs]
        if len(kept) < self.items or not train:
            raise UsageError(
                f"{self.path or 'the embedded pairs'}: {len(kept) + len(apart)} usable pairs over {len(groups)} "
                f"prompts; {self.items} are held out with their prompts, and at least one more prompt is needed: "
                f"lower items"
            )
        model = source.model()
        built: Built = {
            "train": train,
            "heldout": kept,
            "train_reference": self.reference_logprobs(model, train, source.device),
            "reference": self.reference_logprobs(model, kept, source.device),
            "notes": cuts.notes(self),
        }
        if self.judge:
            first = heldout[0][0]
            # what is wrong with a judge is to show before anything is trained
            judges.named(self.judge, source, self.judge_seconds)[0]([(asked[0], first.chosen, first.rejected)])
        if self.answered:
            built["asked"] = asked[: self.answered]
            built["drawn"] = drawn(source, self._end(source, built["asked"]))
            generator = torch.Generator(source.device).manual_seed(seed)
            sampling = self._sampling(built, source.device)
            built["before"] = sample(model, prompts_of(kept[: self.answered]), sampling, generator)
        return built

    def _end(self, source: Source, asked: Sequence[Asked]) -> int | None:
        """The id that answers end with.

        Raises:
            UsageError: not all with the same one.
        """
        ends = {conversation.end_of_answer(source, one.turns, self.chat) for one in asked}
        if len(ends) > 1:
            raise UsageError(
                f"{self.path}: conversations and plain prompts end differently with this model; give two files, or "
                f"chat=false"
            )
        return ends.pop()

    def _pairs(self, source: Source, texts: Sequence[TextPair], cuts: Cuts) -> Iterator[tuple[TextPair, Pair]]:
        """Texts as ids, cut to the limits; none where two answers are the same as far as they are kept."""
        for text in texts:
            try:
                prompt, chosen, rejected = ids_of(source, text, self.chat)
            except Unsupported as error:
                if self.skip:
                    cuts.left_out += 1
                    continue
                raise Unsupported(f"line {text.line}: {error} (skip=true leaves such lines out)") from error
            if len(prompt) > self.max_prompt:
                # a begin-of-text id stays where it is
                begin = prompt[:1] if prompt[0] == source.tokenizer.bos_token_id and self.max_prompt > 1 else []
                cuts.prompts.append(text.line)
                cuts.prompt_tokens += len(prompt) - self.max_prompt
                prompt = begin + prompt[len(prompt) - self.max_prompt + len(begin) :]
            cuts.answers += [text.line for ids in (chosen, rejected) if len(ids) > self.max_completion]
            chosen, rejected = chosen[: self.max_completion], rejected[: self.max_completion]
            try:
                kv.check_length(source.config, len(prompt) + max(len(chosen), len(rejected)))
            except Unsupported as error:
                raise Unsupported(f"line {text.line}: {error}; lower max_prompt or max_completion") from error
            if chosen == rejected:
                cuts.alike.append(text.line)
            else:
                yield text, Pair(prompt=prompt, chosen=chosen, rejected=rejected)

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        quality = self.trained(technique, prepared, built, seed, source)
        quality.notes |= built["notes"]
        if "asked" in built:
            generator = torch.Generator(source.device).manual_seed(seed)
            sampling = self._sampling(built, source.device)
            prompts = prompts_of(built["heldout"][: len(built["asked"])])
            quality.outputs = technique.generate(prepared, prompts, sampling, generator)
            self._read(quality, (reference or quality).outputs, built, source)
        return quality

    def _sampling(self, built: Built, device: str) -> Rollout:
        banned = torch.tensor(built["drawn"]["banned"], device=device, dtype=torch.long)
        return Rollout(self.answer, built["drawn"]["stop"], banned, unknown)

    def _read(self, quality: Quality, others: list[list[int]], built: Built, source: Source) -> None:
        """How long answers are and how often they repeat, before and after; some to read; and, where there is a judge,
        the win rate over the baseline's."""
        own, before = quality.outputs, built["before"]
        asked = [Asked(tuple(map(tuple, turns)), text) for turns, text in built["asked"]]
        texts, start = ([written(source, ids) for ids in answers] for answers in (own, before))
        other = [written(source, ids) for ids in others]
        if self.judge:
            judge, quality.notes["judge"] = judges.named(self.judge, source, self.judge_seconds)
            quality.metrics["win_rate"] = judges.wins(judge, asked, texts, other)
        quality.metrics["repetition"] = [repetition(ids) for ids in own]
        quality.counts["repetition_before"] = mean([repetition(ids) for ids in before])
        quality.counts["output_tokens"] = mean([float(len(ids)) for ids in own])
        quality.counts["output_tokens_before"] = mean([float(len(ids)) for ids in before])
        for question, first, text in list(zip(asked, start, texts, strict=True))[:SHOWN]:
            quality.texts.append({"prompt": f"{question.text} ... (before training:{first})", "output": text})


def prompts_of(pairs: Sequence[Pair]) -> list[list[int]]:
    return [pair["prompt"] for pair in pairs]


def unknown(text: str) -> float:
    """What an answer is worth, where nothing but a comparison says so.

    Raises:
        Unsupported: always.
    """
    raise Unsupported("these pairs come with no reward of a text")


@dataclass
class Cuts:
    """What a file lost on its way to the pairs."""

    left_out: int = 0
    shared: int = 0
    prompt_tokens: int = 0
    prompts: list[int] = field(default_factory=list)
    """The lines of prompts, answers and pairs that were cut or left out."""
    answers: list[int] = field(default_factory=list)
    alike: list[int] = field(default_factory=list)

    def notes(self, workload: PreferencePairs) -> dict[str, str]:
        """What was lost -> what to do about it."""
        prompt, answer = f"max_prompt={workload.max_prompt}", f"max_completion={workload.max_completion}"
        found = {
            f"lines left out, as they cannot be read or their answers not compared: {self.left_out}": (
                "correct the file; skip=false names the first of them"
            ),
            f"prompts that lost their beginning: {_lines(self.prompts)}, {self.prompt_tokens} tokens in all": (
                f"raise {prompt}"
            ),
            f"answers that lost their end: {_lines(self.answers)}": f"raise {answer}",
            f"pairs left out, as their answers differ only behind what was kept: {_lines(self.alike)}": (
                f"raise {answer}"
            ),
            f"pairs left out, as what was kept of their prompts is held out: {self.shared}": f"raise {prompt}",
        }
        lost = (self.left_out, self.prompts, self.answers, self.alike, self.shared)
        return {what: remedy for some, (what, remedy) in zip(lost, found.items(), strict=True) if some}


def _lines(lines: Sequence[int]) -> str:
    """How many, and which: the first of them."""
    named = sorted(set(lines))
    more = " ..." if len(named) > NAMED else ""
    return f"{len(lines)} (line{'s' if len(named) > 1 else ''} {', '.join(map(str, named[:NAMED]))}{more})"


def asked_of(pair: TextPair) -> Asked:
    return Asked(pair.turns, conversation.transcript(pair.turns) if pair.turns else pair.prompt)


def ids_of(source: Source, pair: TextPair, chat: bool) -> tuple[list[int], list[int], list[int]]:
    """Ids of prompt, chosen and rejected answer (`conversation.ids_of`); without a template, those of a transcript.

    Raises:
        Unsupported: the model's chat template refuses the conversation, or its tokenizer makes nothing of a text.
    """
    asked = asked_of(pair)
    prompt, answers = conversation.ids_of(source, asked.turns, asked.text, (pair.chosen, pair.rejected), chat)
    if not prompt:
        raise Unsupported("the tokenizer makes no token of a prompt, so nothing predicts the first one of its answer")
    if not all(answers):
        raise Unsupported("the tokenizer makes no token of an answer; leave the pair out")
    return prompt, answers[0], answers[1]
