"""What is said in a conversation -> ids of a prompt."""

from __future__ import annotations

from bench.models import Source


def chat(source: Source, *said: str) -> list[int]:
    """Ids of a conversation in the model's chat template, of the bare texts where it has none.

    Args:
        said: by the user and by the assistant in turn; the user comes first and last.
    """
    tokenizer = source.tokenizer
    if not tokenizer.chat_template:
        ids: list[int] = tokenizer("\n\n".join(said))["input_ids"]
        return ids
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    # the template writes the begin-of-text token itself
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids
