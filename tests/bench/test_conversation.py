"""Messages are read or named; the ids of a conversation begin and end once, in the template or without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.byte_tokenizer import EOS, PAD, byte_tokenizer
from bench.conversation import Asked, continued, end_of_answer, ids_of, messages, opened, transcript
from bench.errors import Unsupported

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
        _, answers = ids_of(source, TURNS, transcript(TURNS), ["Ciao.", "So long.<eos>"], chat)
        assert [ids[-1] for ids in answers] == [end] * 2
        assert all(sum(id in (EOS, PAD) for id in ids) == 1 for ids in answers)
        assert end_of_answer(source, TURNS, chat) == end
    assert end_of_answer(source, (), True) == EOS
    # behind its last turn nothing special, or no template that takes the two turns: the end-of-text id
    assert end_of_answer(with_template("\n"), TURNS, True) == EOS
    source.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_answer(source, TURNS, True) == EOS


def test_an_answer_stands_behind_what_is_asked() -> None:
    assert Asked((), "The sky is").answered(" blue.") == "The sky is blue."
    assert Asked(TURNS[:1], transcript(TURNS[:1])).answered(" Ciao. ") == "\n\nHuman: Hi.\n\nAssistant: Ciao."


def with_dummy_prefix() -> Any:
    """A tokenizer that puts a space before every text, as SentencePiece's do: one token per letter, `_` a space."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<s>", "</s>", "<unk>", "\u2581", "\n", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(letters)}, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Replace("\u2581", "_")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_an_answer_gets_no_space_of_its_own() -> None:
    source: Any = SimpleNamespace(tokenizer=with_dummy_prefix())
    decode = source.tokenizer.decode
    assert decode(source.tokenizer("So")["input_ids"]) == "_So", "else this test says nothing"
    assert decode(continued(source.tokenizer, "So")) == "So"
    prompt, (answer,) = ids_of(source, (), "The sky is", [" blue."], chat=True)
    assert decode(prompt + answer) == "_The_sky_is_blue.</s>"
    source.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    prompt, (answer,) = ids_of(source, TURNS[:1], "", [" So. "], chat=True)
    assert decode(prompt + answer).endswith("assistant:So.</s>")
    # what the tokenizer does not know is no marker of its own
    assert ids_of(source, (), "The", [" sky \u00e9"], chat=True)[1][0][-2] == source.tokenizer.unk_token_id


def test_a_text_that_is_gone_on_with_has_no_end() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_dummy_prefix()
    markers = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=markers)
    assert tokenizer("So")["input_ids"][-1] == tokenizer.eos_token_id, "else this test says nothing"
    assert tokenizer.decode(opened(tokenizer, "So")) == "<s>_So"
    assert tokenizer.decode(ids_of(SimpleNamespace(tokenizer=tokenizer), (), "So", [" be"], chat=True)[0]) == "<s>_So"  # type: ignore[arg-type]


def test_a_special_token_inside_an_answer_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"an answer holds the special token '<pad>'"):
        ids_of(SOURCE, (), "The sky is", [" blue<pad> now."], chat=True)
    with pytest.raises(Unsupported, match=r"an answer holds the special token '<eos>'"):
        ids_of(SOURCE, TURNS, "", ["Ciao.<eos> And more."], chat=True)


def test_a_model_that_could_think_first_is_told_not_to() -> None:
    source = with_template("")
    source.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:' if enable_thinking is false else 'T:' }}{% endif %}"
    )
    assert text(ids_of(source, TURNS[:1], "", [], chat=True)[0]) == "Hi.A:"
