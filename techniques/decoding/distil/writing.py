"""The target writes texts and its final hidden states are kept: what the draft is trained on.

Texts are written in batches of one prompt length, without padding, and stored a batch a file (a shard). Writing again
goes on behind the shards that are there.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench import text
from bench.families import attention
from bench.families import cache as kv
from techniques.decoding.distil import prompts
from techniques.decoding.distil.prompts import SERIES, Passage, Prompt, Series
from techniques.decoding.distil.texts import asked, straight

ROWS = 128
"""Texts of a shard."""
TOP_K, TOP_P = 64, 0.95
"""What sampled texts are drawn from."""
STEP = 32
"""Prompts with a passage are cut to a multiple of this length [tokens]."""
LONGEST = 320
"""Prompts are at most this long [tokens]."""
PASSAGE = 90
"""Words of a passage."""


@dataclass(frozen=True)
class Shard:
    """Texts of one prompt length."""

    ids: Tensor
    """`(rows, prompt + new)` int32."""
    hidden: Tensor
    """Final normalised hidden states that predicted the new tokens, `(rows, new, hidden)` bfloat16."""
    kinds: list[str]
    subjects: list[str]
    greedy: bool

    @property
    def prompt(self) -> int:
        """Length of the prompts [tokens]."""
        return self.ids.shape[1] - self.hidden.shape[1]

    def save(self, file: Path) -> None:
        facts = {
            "kinds": json.dumps(self.kinds),
            "subjects": json.dumps(self.subjects),
            "greedy": str(int(self.greedy)),
        }
        part = file.with_suffix(".part")
        save_file({"ids": self.ids, "hidden": self.hidden.bfloat16()}, part, metadata=facts)
        os.replace(part, file)

    @classmethod
    def load(cls, file: Path) -> Shard:
        """The shard, its tensors mapped from the file."""
        with safe_open(str(file), framework="pt") as reader:
            facts = reader.metadata()
            ids, hidden = reader.get_tensor("ids"), reader.get_tensor("hidden")
        return cls(ids, hidden, json.loads(facts["kinds"]), json.loads(facts["subjects"]), facts["greedy"] == "1")


def write(model: Any, tokenizer: Any, folder: Path, tokens: int, number: int, say: Callable[[str], None]) -> list[Path]:
    """The files of texts of `tokens` new tokens in all, written now where they are not there.

    Args:
        model: the target.
        number: of the series; what its texts are drawn with, too.
        say: takes a line per shard.
    """
    attention.pack(model)
    folder.mkdir(parents=True, exist_ok=True)
    passages = [
        Passage(name, " ".join(words[first : first + PASSAGE]))
        for name, words in ((name, whole.split()) for name, whole in text.documents("train").items())
        for first in range(0, len(words) - PASSAGE, PASSAGE)
    ]
    series = SERIES[number]
    files: list[Path] = []
    for index, batch in enumerate(_batches(tokenizer, series, passages, random.Random(number))):
        if index * ROWS * series.new >= tokens:
            break
        file = folder / f"texts-{number}-{index:05d}.safetensors"
        if not file.exists():
            generator = torch.Generator().manual_seed(number * 1_000_003 + index)
            greedy = random.Random(number + index).random() < 0.5
            ids, hidden = continued(model, batch.ids, series.new, greedy, batch.own, generator)
            subjects = [p.subject for p in batch.prompts]
            if batch.own:
                subjects = [asked(tokenizer.decode(row))[0] for row in ids]
            Shard(ids.int(), hidden, [p.kind for p in batch.prompts], subjects, greedy).save(file)
            say(f"{file.name}: {ROWS} texts behind {batch.ids.shape[1]} tokens, {'greedy' if greedy else 'sampled'}")
        files.append(file)
        passages += _passages(Shard.load(file), tokenizer)
    return files


@torch.inference_mode()
def continued(
    model: Any, ids: Tensor, new: int, greedy: bool, own: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Let the model continue prompts of one length, `(rows, prompt)`.

    Args:
        greedy: choose the likeliest tokens; otherwise draw.
        own: the user's turn is still to be written; it is drawn in either case.

    Returns:
        Ids `(rows, prompt + new)`, hidden states `(rows, new, hidden)`.
    """
    rows, prompt = ids.shape
    cache = kv.preallocated(model.config, prompt + new)
    states, feed = [], ids
    asking = torch.full((rows,), own)
    for _ in range(new):
        seen = cache.get_seq_length()
        positions = torch.arange(seen, seen + feed.shape[1])[None]
        output = model.model(input_ids=feed, past_key_values=cache, position_ids=positions, use_cache=True)
        states.append(output.last_hidden_state[:, -1])
        logits = model.lm_head(states[-1])
        tokens = logits.argmax(-1)
        if not greedy or asking.any():
            drawn = _draw(logits, generator)
            tokens = torch.where(asking, drawn, tokens) if greedy else drawn
        asking &= tokens != model.config.bos_token_id  # a turn begins: the answer
        feed = tokens[:, None]
        ids = torch.cat([ids, feed], 1)
    return ids, torch.stack(states, 1)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    values, tokens = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
    law = values.float().softmax(-1)
    law = law.masked_fill(law.cumsum(-1) - law >= TOP_P, 0.0)
    return tokens.gather(1, torch.multinomial(law, 1, generator=generator))[:, 0]


@dataclass(frozen=True)
class _Batch:
    ids: Tensor
    prompts: list[Prompt]
    own: bool


def _batches(tokenizer: Any, series: Series, passages: list[Passage], draw: random.Random) -> Iterator[_Batch]:
    """Batches without end; `passages` may grow between them."""
    openings = draw.sample(prompts.OPENINGS, len(prompts.OPENINGS))
    waiting: dict[str, dict[int, list[tuple[list[int], Prompt]]]] = {
        "asked": defaultdict(list),
        "grounded": defaultdict(list),
    }
    seen: set[str] = set()
    turn = 0
    while True:
        for sort in series.order:
            if sort in ("own", "begun"):
                begun = openings[turn % len(openings)] if sort == "begun" else ""
                turn += sort == "begun"
                opening = _user_turn(tokenizer, begun)[0]
                yield _Batch(torch.tensor([opening] * ROWS), [Prompt(sort, "", begun)] * ROWS, True)
                continue
            while not (full := [length for length, queue in waiting[sort].items() if len(queue) == ROWS]):
                plain = sort == "asked"
                prompt = draw.choice(series.asked)(draw) if plain else draw.choice(series.grounded)(draw, passages)
                if prompt.text in seen:
                    continue
                seen.add(prompt.text)
                head, tail = _user_turn(tokenizer, prompt.text)
                spare = 0 if plain else (len(head) + len(tail)) % STEP
                ids = head[: len(head) - spare] + tail
                if len(ids) <= LONGEST:
                    waiting[sort][len(ids)].append((ids, prompt))
            batch = waiting[sort].pop(full[0])
            yield _Batch(torch.tensor([ids for ids, _ in batch]), [prompt for _, prompt in batch], False)


def _user_turn(tokenizer: Any, content: str) -> tuple[list[int], list[int]]:
    """Ids of the chat up to the end of the user's words, and of what follows them up to the answer."""
    turn = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    end = rendered.rindex("<|im_end|>")
    head, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (rendered[:end], rendered[end:]))
    return head, tail


def _passages(shard: Shard, tokenizer: Any) -> list[Passage]:
    """Answers that can be asked about in turn."""
    found = []
    for row, kind, subject in zip(shard.ids[:, shard.prompt :].tolist(), shard.kinds, shard.subjects, strict=True):
        if kind == "chat" and straight(row) == len(row):
            found.append(Passage(subject, tokenizer.decode(row).partition("<|im_end|>")[0].strip()))
    return [passage for passage in found if len(passage.text.split()) >= PASSAGE // 2]
