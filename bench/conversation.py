"""Conversations: the messages that a file holds, and the ids that a model reads of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench.errors import Unsupported
from bench.models import Source

SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
"""Role -> the name that a transcript gives it, as hh-rlhf does."""
Turn = tuple[str, str]
"""Role and what is said."""
_ANSWER = "So it is."
_BEFORE = "\n"


class Asked(NamedTuple):
    """What an answer is given to."""

    turns: tuple[Turn, ...]
    """The conversation so far; none where the prompt is plain text."""
    text: str
    """The plain text; of a conversation its transcript."""

    def answered(self, answer: str) -> str:
        """As plain text with its answer."""
        return f"{self.text} {answer.strip()}" if self.turns else self.text + answer


def messages(value: Any, name: str) -> tuple[Turn, ...]:
    """The turns of a field that holds a list of messages, `{"role": ..., "content": ...}`.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} is no list of messages")
    turns = []
    for number, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in SPEAKERS:
            raise ValueError(f"{name}[{number}] has no 'role' of {', '.join(SPEAKERS)}")
        content = message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"{name}[{number}] has no text under 'content'")
        turns.append((str(message["role"]), content))
    return tuple(turns)


def transcript(turns: Iterable[Turn]) -> str:
    """A conversation as hh-rlhf writes it, up to where the assistant answers."""
    return "".join(f"\n\n{SPEAKERS[role]}: {content}" for role, content in turns) + "\n\nAssistant:"


def ids_of(
    source: Source, turns: Sequence[Turn], prompt: str, answers: Iterable[str], chat: bool
) -> tuple[list[int], list[list[int]]]:
    """Ids of what is asked, and of each answer behind it.

    A begin-of-text id stands there at most once, the id of an answer's end exactly once, behind every answer. Prompt
    and answer are made into ids apart, so no token spans the two, and an answer gets no space that a tokenizer puts
    before a text of its own. A template that can have a model think first is told that it shall not.

    Args:
        turns: the conversation so far; none where the prompt is plain text.
        prompt: what is asked where no chat template is applied; it may be empty.
        chat: write a conversation in the model's chat template, where it has one.

    Raises:
        Unsupported: the model's chat template refuses the conversation, or an answer holds a special token.
    """
    tokenizer = source.tokenizer
    begin, end = tokenizer.bos_token_id, end_of_answer(source, turns, chat)
    templated = _templated(tokenizer, turns, chat)
    if templated:
        try:
            prompt = rendered(tokenizer, turns, add_generation_prompt=True)
        except Exception as error:  # a template raises whatever it likes
            raise Unsupported(f"the model's chat template refuses a conversation ({error}); set chat=false") from error
    given: list[int] = []
    if prompt:
        # a template writes the begin-of-text token itself
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"] if templated else opened(tokenizer, prompt)
        if begin is not None and given[:2] == [begin, begin]:
            given = given[1:]
    found = []
    # one that stands for what a tokenizer does not know is no marker
    special = special_ids(tokenizer) - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
    for answer in answers:
        spoken = answer.strip() if templated else f" {answer.strip()}" if turns else answer
        ids = continued(tokenizer, spoken) if given else list(tokenizer(spoken)["input_ids"])
        while ids and ids[-1] in (end, tokenizer.eos_token_id):
            ids = ids[:-1]
        inside = special.intersection(ids if given else ids[1:])
        if inside:
            named = tokenizer.decode([min(inside)], skip_special_tokens=False)
            raise Unsupported(f"an answer holds the special token {named!r}; take it out of the text")
        found.append([*ids, end] if end is not None else ids)
    return given, found


def opened(tokenizer: Any, text: str) -> list[int]:
    """Ids of a plain text that is gone on with: some tokenizers put an end-of-text id behind every text."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def continued(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that stands behind another one, where some tokenizers put a space before it else."""
    head: list[int] = tokenizer(_BEFORE, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(_BEFORE + text, add_special_tokens=False)["input_ids"]
    if whole[: len(head)] == head:
        return whole[len(head) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone


def special_ids(tokenizer: Any) -> set[int]:
    """Ids that are no text: the named ones, and those that are marked so among the added ones, as a chat's markers."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added.union(tokenizer.all_special_ids)


def end_of_answer(source: Source, turns: Sequence[Turn], chat: bool) -> int | None:
    """The id that an answer ends with: the special one that the model's chat template writes behind what an assistant
    says (as Gemma's <end_of_turn>), else the end-of-text id; None where the tokenizer has neither.

    Args:
        turns: as of `ids_of`.
        chat: as of `ids_of`.
    """
    tokenizer = source.tokenizer
    end: int | None = tokenizer.eos_token_id
    if not _templated(tokenizer, turns, chat):
        return end
    try:
        text = rendered(tokenizer, [("user", "Well?"), ("assistant", _ANSWER)], add_generation_prompt=False)
    except Exception:  # a template raises whatever it likes; the conversation itself may please it
        return end
    _, found, behind = text.rpartition(_ANSWER)
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"] if found else []
    special = special_ids(tokenizer)
    return next((id for id in ids if id in special), end)


def rendered(tokenizer: Any, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
    """A conversation in the chat template; it raises whatever the template does."""
    said = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(
        said, add_generation_prompt=add_generation_prompt, tokenize=False, enable_thinking=False
    )
    return text


def _templated(tokenizer: Any, turns: Sequence[Turn], chat: bool) -> bool:
    return bool(turns) and chat and bool(tokenizer.chat_template)
