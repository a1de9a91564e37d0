"""Contexts are real text, the same for every arm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench import text
from bench.errors import Unsupported, UsageError
from bench.models import Source, Sources
from benchmarks.kv_cache.long_document import LongDocument

SOURCES = Sources(Source("tiny:llama"))


def small(**values: Any) -> LongDocument:
    return LongDocument(**{"context": 300, "new_tokens": 20, "items": 3, "timed_contexts": 5, **values})


def test_sizes_and_splits():
    built = small().build(SOURCES, seed=0)
    assert [len(row) for row in built["scored"]] == [320] * 3
    assert [len(row) for row in built["timed"]] == [300] * 5
    decode = SOURCES.target.tokenizer.decode
    test = "\n\n".join(text.documents("test").values())
    train = "\n\n".join(text.documents("train").values())
    first = next(line for line in decode(built["scored"][0]).split("\n\n") if len(line) > 40)
    assert first in test
    assert first not in train
    timed = next(line for line in decode(built["timed"][0]).split("\n\n") if len(line) > 40)
    assert timed in train
    assert timed not in test


def test_shorter_contexts_lose_their_beginning_only():
    whole, uneven = (small(items=6, shortest=shortest).build(SOURCES, 0) for shortest in (None, 40))
    for name, behind in (("scored", 20), ("timed", 0)):
        lengths = [len(row) - behind for row in uneven[name]]
        assert len(set(lengths)) > 3
        assert min(lengths) >= 40
        assert max(lengths) <= 300
        assert all(long[-len(short) :] == short for long, short in zip(whole[name], uneven[name], strict=True))


def test_seed_orders_the_documents():
    assert small().build(SOURCES, 0) == small().build(SOURCES, 0)
    assert small().build(SOURCES, 0) != small().build(SOURCES, 1)


def test_pieces_are_disjoint_while_the_text_suffices_and_continuations_always():
    source: Any = SimpleNamespace(target=Counting(SOURCES.target, 10_000))
    roomy = small(items=4).build(source, 0)["scored"]
    assert len({i for row in roomy for i in row}) == 4 * 320
    tight = small(context=1900, items=4).build(SimpleNamespace(target=Counting(SOURCES.target, 1980)), 0)["scored"]
    continuations = [i for row in tight for i in row[-20:]]
    assert len(set(continuations)) == 4 * 20
    assert tight[0][0] == 0
    assert tight[-1][-1] == 1979


def test_begin_of_text_stands_first_where_the_tokenizer_puts_it():
    source: Any = SimpleNamespace(target=Counting(SOURCES.target, 5000, bos=7777))
    for row in small().build(source, 0)["scored"]:
        assert row[0] == 7777
        assert row.count(7777) == 1
        assert len(row) == 320
    assert small(begin=False).build(source, 0)["scored"][0][0] == 0
    assert small().build(SOURCES, 0)["scored"][0][0] < 256


def test_too_long_for_the_text_says_how_long_it_is():
    target = Counting(SOURCES.target, 359)
    with pytest.raises(UsageError, match=r"test part of the embedded text has 359 tokens .* 360 are needed"):
        small().build(SimpleNamespace(target=target), 0)
    assert small().build(SimpleNamespace(target=Counting(SOURCES.target, 360)), 0)


def test_too_long_for_the_model_is_unsupported():
    with pytest.raises(Unsupported, match="exceed the model's 2048"):
        small(context=2040).build(SOURCES, 0)
    assert small(context=2028).build(SOURCES, 0)


class Counting:
    """A source, and its tokenizer, for whom every text reads `0 1 2 ...`."""

    def __init__(self, source: Source, length: int, bos: int | None = None) -> None:
        self.config = source.config
        self.length = length
        self.bos_token_id = bos
        self.tokenizer = self

    def __call__(self, content: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        begin = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": begin + list(range(self.length))}
