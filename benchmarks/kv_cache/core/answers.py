"""Whether an answer stands in what was written."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher


def share_found(written: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in a text as whole words, whatever their case."""
    hits = [re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", written, re.IGNORECASE) for answer in answers]
    return sum(hit is not None for hit in hits) / len(hits)


def share_contained(written: str, answers: Sequence[str]) -> float:
    """Share of the answers that a text contains, also inside words, whatever their case (RULER's string match)."""
    return sum(answer.lower() in written.lower() for answer in answers) / len(answers)


def f1(written: str, answer: str) -> float:
    """F1 of the words of a text and of an answer, as multisets: SQuAD's, which LongBench takes for its QA sets."""
    said, true = _words(written), _words(answer)
    shared = (Counter(said) & Counter(true)).total()
    return 2 * shared / (len(said) + len(true)) if shared else 0.0


def classified(written: str, answer: str, classes: Sequence[str]) -> float:
    """One over the classes that a text names, where the answer is among them (LongBench's score of classes).

    A class whose name is a part of the answer's does not count; the published code lets one of two such in a row count.
    """
    named = [one for one in classes if one in written and (one == answer or one not in answer)]
    return 1 / len(named) if answer in named else 0.0


def numbered(written: str, answer: str) -> float:
    """Share of the numbers in a text that are the first one of the answer (LongBench's of counting and retrieval)."""
    found, true = re.findall(r"\d+", written), re.findall(r"\d+", answer)
    return found.count(true[0]) / len(found) if found else 0.0


def line_likeness(written: str, answer: str) -> float:
    """Likeness, in whole percents, of a line of code and of the first that is written without a mark of comments or
    quotes (LongBench's of code)."""
    lines = [line for line in written.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))]
    return round(100 * SequenceMatcher(None, lines[0] if lines else "", answer).ratio()) / 100


def rouge_l(written: str, answer: str) -> float:
    """ROUGE-L of summaries as LongBench takes it, of different words: F1 of those that lie in a longest common
    subsequence of any sentence of the one with any of the other. Nothing is stemmed, and case counts."""
    said, true = _sentences(written), _sentences(answer)
    shared = {word for one in true for other in said for word in _common(one, other)}
    if not shared:
        return 0.0
    precision, recall = (len(shared) / len({word for one in sentences for word in one}) for sentences in (said, true))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(written: str) -> list[list[str]]:
    """The words between full stops; blanks alone are one empty word."""
    return [" ".join(piece.split()).split(" ") for piece in written.split(".") if piece]


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several the one that ends first in `other`."""
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for place, said in enumerate(other):
            row.append(above[place] + 1 if said == word else max(above[place + 1], row[place]))
        lengths.append(row)
    found: list[str] = []
    i, j = len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.append(one[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _words(written: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    bare = "".join(sign for sign in written.lower() if sign not in string.punctuation)
    return [word for word in bare.split() if word not in {"a", "an", "the"}]
