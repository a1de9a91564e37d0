"""Begin and end of a text stand where the model expects them, once."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from bench.errors import Unsupported
from bench.models import Source
from benchmarks.finetuning.core.instruction_file import Example, parse
from benchmarks.finetuning.core.sequences import end_to_end, spread, text_of

SOURCE = Source("tiny:llama")
EOS = 257
QUESTION = parse({"question": "How many?", "answer": " 72 "})


class Beginning:
    """A tokenizer that writes begin and end of every text, as T5's and Llama's of old do."""

    bos_token_id, eos_token_id, unk_token_id = 1, 2, None
    all_special_ids: ClassVar[list[int]] = [1, 2]
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    chat_template: str | None = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [10 + ord(letter) for letter in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    def apply_chat_template(self, turns: Any, **options: Any) -> str:
        raise ValueError("roles must alternate")


class Peer:
    def __init__(self) -> None:
        self.tokenizer = Beginning()


def bytes_of(text: str) -> list[int]:
    ids: list[int] = SOURCE.tokenizer(text)["input_ids"]
    return ids


def test_the_chat_template_is_applied():
    found = text_of(SOURCE, QUESTION, chat=True)
    assert SOURCE.tokenizer.decode(found["ids"][: found["prompt"]]) == "user: How many?\nassistant: "
    assert found["ids"][found["prompt"] :] == [*bytes_of("72"), EOS]


def test_without_a_template():
    found = text_of(SOURCE, QUESTION, chat=False)
    assert found["ids"] == [*bytes_of("Question: How many?\nAnswer:"), *bytes_of(" 72"), EOS]
    assert found["prompt"] == len(bytes_of("Question: How many?\nAnswer:"))


def test_a_prompt_as_written_keeps_its_spaces():
    found = text_of(SOURCE, Example(" three", "One, two,"), chat=True)
    assert found["ids"] == [*bytes_of("One, two, three"), EOS]
    assert found["prompt"] == 9


def test_a_text_without_a_prompt_is_learnt_whole():
    assert text_of(SOURCE, Example("Hello"), chat=True) == {"ids": [*bytes_of("Hello"), EOS], "prompt": 0}


def test_begin_and_end_stand_once():
    peer: Any = Peer()
    with_prompt = text_of(peer, Example("b", "a"), chat=True)
    assert with_prompt == {"ids": [1, 107, 108, 2], "prompt": 2}
    assert text_of(peer, Example("b"), chat=True) == {"ids": [1, 108, 2], "prompt": 0}
    assert end_to_end(peer, ["a", "b"], 3) == [[1, 107, 2], [1, 108, 2]]


def test_a_template_that_refuses_is_said():
    peer: Any = Peer()
    peer.tokenizer.chat_template = "there is one"
    with pytest.raises(Unsupported, match=r"refuses a conversation \(roles must alternate\); set chat=false"):
        text_of(peer, QUESTION, chat=True)


def test_spread():
    assert spread("abcdefghi", 3) == ["a", "e", "i"]
    assert spread("abc", 5) == ["a", "b", "c"]
    assert spread("abc", 0) == []
    assert len(set(spread(range(100), 99))) == 99


@pytest.mark.embedded
def test_the_embedded_models_own_template():
    source = Source("smollm2-135m")
    found = text_of(source, QUESTION, chat=True)
    written = source.tokenizer.decode(found["ids"])
    assert written.startswith("<|im_start|>system\n")
    assert written.endswith("<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n72<|im_end|>")
    assert source.tokenizer.decode(found["ids"][found["prompt"] :]) == "72<|im_end|>"
