"""Messages are read or named; the ids of a conversation begin and end once, in the template or without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.byte_tokenizer import EOS, byte_tokenizer
from bench.conversation import ids_of, messages, transcript

TURNS = (("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."))
SOURCE: Any = SimpleNamespace(tokenizer=byte_tokenizer())


def text(ids: list[int]) -> str:
    return str(SOURCE.tokenizer.decode(ids))


def test_messages() -> None:
    assert messages([{"role": role, "content": said} for role, said in TURNS], "x") == TURNS
    for value in ([], "x", None):
        with pytest.raises(ValueError, match="'x' is no list of messages"):
            messages(value, "x")


def test_a_transcript_ends_where_the_assistant_answers() -> None:
    assert transcript(TURNS) == "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Bye.\n\nAssistant:"


@pytest.mark.parametrize("chat", [True, False])
def test_every_answer_ends_once_behind_the_same_prompt(chat: bool) -> None:
    prompt, answers = ids_of(SOURCE, TURNS, transcript(TURNS), [" Ciao. ", "So long.<eos>"], chat)
    written = "user: Hi.\nassistant: Hello.\nuser: Bye.\nassistant: "
    assert text(prompt) == (written if chat else transcript(TURNS))
    before = "" if chat else " "
    assert [text(ids[:-1]) for ids in answers] == [f"{before}Ciao.", f"{before}So long."]
    assert [ids[-1] for ids in answers] == [EOS, EOS]
    assert all(ids.count(EOS) == 1 for ids in answers)


def test_without_a_prompt_an_answer_is_a_text_of_its_own() -> None:
    assert ids_of(SOURCE, (), "", ["ab"], chat=True) == ([], [[*SOURCE.tokenizer("ab")["input_ids"], EOS]])
