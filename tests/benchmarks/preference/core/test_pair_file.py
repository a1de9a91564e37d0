"""Every published format gives the same pair; what cannot be read or compared is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from benchmarks.preference.core.pair_file import TextPair, parse, read_pairs

QUESTION, GOOD, BAD = "Name a colour.", "Green.", "Seven."


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER = message("user", QUESTION)
FORMATS: dict[str, dict[str, Any]] = {
    "hh-rlhf": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
    },
    "UltraFeedback": {
        "prompt": QUESTION,
        "prompt_id": "f00",
        "chosen": [USER, message("assistant", GOOD)],
        "rejected": [USER, message("assistant", BAD)],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "TRL, prompt inside": {
        "chosen": [USER, message("assistant", GOOD)],
        "rejected": [USER, message("assistant", BAD)],
    },
    "TRL, prompt apart": {
        "prompt": [USER],
        "chosen": [message("assistant", GOOD)],
        "rejected": [message("assistant", BAD)],
    },
    "TRL, prompt apart and inside": {
        "prompt": [USER],
        "chosen": [USER, message("assistant", GOOD)],
        "rejected": [USER, message("assistant", BAD)],
    },
    "prompt a text, answers as messages": {
        "prompt": QUESTION,
        "chosen": [message("assistant", GOOD)],
        "rejected": [message("assistant", BAD)],
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pair(name: str):
    assert parse(FORMATS[name]) == TextPair((("user", QUESTION),), "", GOOD, BAD)


def test_plain_texts_stay_as_they_are():
    found = parse({"prompt": "The sky is", "chosen": " blue.", "rejected": " a fish."})
    assert found == TextPair((), "The sky is", " blue.", " a fish.")


def test_conversations_of_several_turns():
    context = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three, and\n\nmore"
    found = parse({"chosen": f"{context}\n\nAssistant: a\n\nb", "rejected": f"{context}\n\nAssistant: c"})
    assert found.turns == (("user", "one"), ("assistant", "two"), ("user", "three, and\n\nmore"))
    assert (found.chosen, found.rejected) == ("a\n\nb", "c")
    system = [message("system", "Be kind."), USER]
    found = parse({"prompt": system, "chosen": [message("assistant", "a")], "rejected": [message("assistant", "b")]})
    assert found.turns == (("system", "Be kind."), ("user", QUESTION))


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return path


def changed(name: str, **values: Any) -> dict[str, Any]:
    return {**FORMATS[name], **values}


HH, APART, INSIDE = "hh-rlhf", "TRL, prompt apart", "TRL, prompt inside"
WRONG: dict[str, tuple[Any, str]] = {
    "no rejected": ({"chosen": "a"}, "no 'rejected'; there is chosen"),
    "nothing": ({}, "no 'chosen'; there is nothing"),
    "no transcript": (changed(HH, rejected="Seven."), "'rejected' is a text without '\\n\\nAssistant:'"),
    "no question": ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "no '\\n\\nHuman:'"),
    "mixed": (changed(HH, chosen=[message("assistant", "a")]), "'rejected' is no list of messages"),
    "null": (changed(APART, chosen=None), "'chosen' is no list of messages"),
    "no messages": (changed(APART, chosen=[]), "'chosen' is no list of messages"),
    "role": (changed(APART, chosen=[message("robot", "a")]), "chosen[0] has no 'role' of system, user, assistant"),
    "no content": (changed(APART, rejected=[message("assistant", 3)]), "rejected[0] has no text under 'content'"),
    "user last": (changed(INSIDE, chosen=[USER, USER]), "must be the assistant's"),
    "other context": (
        changed(INSIDE, chosen=[message("user", "What?"), message("assistant", "a")]),
        "'chosen' and 'rejected' differ before their last message",
    ),
    "no user": (
        {"chosen": [message("assistant", "a")], "rejected": [message("assistant", "b")]},
        "before the two answers must be the user's",
    ),
    "no JSON": ("{", "no JSON"),
    "a list": ("[]", "a list instead of an object"),
    "empty prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
}
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "empty answer": (changed(HH, chosen=f"\n\nHuman: {QUESTION}\n\nAssistant:  "), "the answer in 'chosen' is empty"),
    "empty message": (changed(APART, rejected=[message("assistant", "")]), "the answer in 'rejected' is empty"),
    "equal": (changed(APART, rejected=[message("assistant", f"{GOOD} ")]), "'chosen' and 'rejected' are the same"),
    "other conversation": (
        changed(HH, rejected="\n\nHuman: What?\n\nAssistant: b"),
        "'chosen' and 'rejected' differ before their last answer",
    ),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_malformed_lines_are_named_and_never_skipped(name: str, skip: bool, tmp_path: Path):
    line, reason = WRONG[name]
    path = write(tmp_path / "pairs.jsonl", FORMATS[HH], line)
    with pytest.raises(UsageError) as caught:
        read_pairs(path, skip)
    first, *_ = str(caught.value).splitlines()
    assert first.startswith(f"{path}, line 2: ")
    assert reason in first


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_compared_is_named_or_left_out_and_counted(name: str, tmp_path: Path):
    line, reason = UNUSABLE[name]
    path = write(tmp_path / "pairs.jsonl", line, FORMATS[HH], line)
    with pytest.raises(UsageError) as caught:
        read_pairs(path, skip=False)
    first, second, _ = str(caught.value).splitlines()
    assert first == f"{path}, line 1: {reason} (skip=true leaves such lines out)"
    assert second.startswith(f"{path}, line 3: ")
    found = read_pairs(path, skip=True)
    assert (len(found.pairs), found.left_out) == (1, 2)


def test_missing_empty_and_compressed_files(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read_pairs(tmp_path / "none.jsonl", skip=True)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        read_pairs(tmp_path / "empty.jsonl", skip=True)
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(FORMATS[HH]).encode()))
    assert len(read_pairs(packed, skip=False).pairs) == 1
