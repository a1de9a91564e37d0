"""Messages are read or named; the ids of a conversation begin and end once, in the template or without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.byte_tokenizer import EOS, PAD, byte_tokenizer
from bench.conversation import Asked, end_of_answer, ids_of, messages, transcript

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


def with_template(behind: str) -> Any:
    """A tokenizer whose template writes that behind each turn, as Gemma's writes <end_of_turn>."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '" + behind + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return SimpleNamespace(tokenizer=tokenizer)


def test_an_answer_ends_as_the_template_ends_it() -> None:
    source = with_template(" <pad>\n")
    for chat, end in ((True, PAD), (False, EOS)):
        _, answers = ids_of(source, TURNS, transcript(TURNS), ["Ciao.", "So long.<eos>", "So long.<pad>"], chat)
        assert [ids[-1] for ids in answers] == [end] * 3
        assert all(sum(id in (EOS, PAD) for id in ids) == 1 for ids in answers[:2])
        assert end_of_answer(source, TURNS, chat) == end
    assert end_of_answer(source, (), True) == EOS
    # behind its last turn nothing special, or no template that takes the two turns: the end-of-text id
    assert end_of_answer(with_template("\n"), TURNS, True) == EOS
    source.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_answer(source, TURNS, True) == EOS


def test_an_answer_stands_behind_what_is_asked() -> None:
    assert Asked((), "The sky is").answered(" blue.") == "The sky is blue."
    assert Asked(TURNS[:1], transcript(TURNS[:1])).answered(" Ciao. ") == "\n\nHuman: Hi.\n\nAssistant: Ciao."
