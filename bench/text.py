"""The embedded text: Python's own language reference, as every Python carries it in `pydoc_data.topics`.

The reference changes from version to version, so the text is taken by the paragraph: a committed list names, for
every document, the hashes of those paragraphs that read the same in Python 3.11 to 3.14, white space and markup
apart. Documents are split into train, validation, test and prompts; no paragraph stands in two of them.
"""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Literal

from bench import text_file
from bench.errors import BenchError, UsageError

Split = Literal["train", "validation", "test", "prompts"]
SOURCE = "Python language reference (pydoc topics of the running Python; PSF licence)"
PARAGRAPHS = Path(__file__).parent / "data" / "pydoc_paragraphs.txt"
MISSING_ALLOWED = 0.05
"""A later patch release may have reworded a few paragraphs; more than this share is another text."""


def normalise(paragraph: str) -> str:
    """One line, single spaces, without the markup that changed between versions."""
    return re.sub(r"\s+", " ", re.sub(r'[`"*]', "", paragraph)).strip()


def paragraph_hash(paragraph: str) -> str:
    return hashlib.sha256(paragraph.encode()).hexdigest()[:12]


def paragraphs_here() -> dict[str, str]:
    """Hash -> normalised paragraph, of the running Python's topics."""
    from pydoc_data.topics import topics

    found = {}
    for text in topics.values():
        for block in re.split(r"\n\s*\n", text):
            paragraph = normalise(block)
            found[paragraph_hash(paragraph)] = paragraph
    return found


@cache
def _documents() -> tuple[tuple[Split, str, str], ...]:
    here = paragraphs_here()
    listed, missing, documents = 0, 0, []
    for line in PARAGRAPHS.read_text().splitlines():
        if line.startswith("#"):
            continue
        split, name, *hashes = line.split()
        known = [here[h] for h in hashes if h in here]
        listed, missing = listed + len(hashes), missing + len(hashes) - len(known)
        documents.append((split, name, "\n\n".join(known)))
    if missing > MISSING_ALLOWED * listed:
        raise BenchError(
            f"embedded text: this Python ({sys.version.split()[0]}) lacks {missing} of its {listed} paragraphs; "
            f"use Python 3.11 to 3.14, or give your own text with --data PATH"
        )
    return tuple(documents)  # type: ignore[arg-type]


def documents(split: Split, path: str = "") -> dict[str, str]:
    """Name -> text of the split's documents: of the embedded text, or of a file of one's own.

    Raises:
        UsageError: the file is missing, empty or malformed, or too small to be split.
    """
    found = _from_file(path) if path else _documents()
    return {name: text for where, name, text in found if where == split}


def _from_file(path: str) -> list[tuple[Split, str, str]]:
    """A file's documents, dealt out by their place: of every ten, six train, one validates, two test, one prompts."""
    deal: tuple[Split, ...] = (
        "train",
        "test",
        "train",
        "prompts",
        "train",
        "validation",
        "train",
        "test",
        "train",
        "train",
    )
    pieces = dict.fromkeys(text_file.read_documents(Path(path)))  # a document that stands twice counts once
    dealt = [(deal[index % len(deal)], f"{index}", piece) for index, piece in enumerate(pieces)]
    if len(dealt) < len(deal):
        raise UsageError(
            f"{path}: {len(dealt)} different documents are too few to split; at least {len(deal)} are needed"
        )
    return dealt
