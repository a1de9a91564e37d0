from __future__ import annotations

import itertools
import re

import pytest

from bench import text
from bench.errors import BenchError

SPLITS = ("train", "validation", "test", "prompts")


def test_splits_share_no_paragraph() -> None:
    found = {split: {p for d in text.documents(split).values() for p in d.split("\n\n")} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not found[a] & found[b]
    assert all(found.values())


def test_splits_are_large_enough() -> None:
    size = {split: sum(map(len, text.documents(split).values())) for split in SPLITS}
    assert size["train"] > 90_000
    assert min(size.values()) > 15_000


def test_the_list_is_sound() -> None:
    hashes = [h for line in text.PARAGRAPHS.read_text().splitlines()[1:] for h in line.split()[2:]]
    assert len(hashes) == len(set(hashes))
    assert all(re.fullmatch("[0-9a-f]{12}", h) for h in hashes)


def test_another_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = dict(itertools.islice(text.paragraphs_here().items(), 200))
    monkeypatch.setattr(text, "paragraphs_here", lambda: here)
    text._documents.cache_clear()
    try:
        with pytest.raises(BenchError, match=r"use Python 3\.11 to 3\.14"):
            text.documents("train")
    finally:
        text._documents.cache_clear()


def test_white_space_and_markup_do_not_matter() -> None:
    assert text.normalise('"a"\n  *b*  `c`') == "a b c"
