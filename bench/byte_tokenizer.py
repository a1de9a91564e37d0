"""The tokenizer of networks with random weights: one token per byte, three special ones, no download."""

from __future__ import annotations

from typing import Any

BOS, EOS, PAD = 256, 257, 258
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def byte_tokenizer() -> Any:
    """A `transformers` tokenizer over the 256 bytes, with ids 256 (begin), 257 (end) and 258 (padding)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    for index, token in ((BOS, "<bos>"), (EOS, "<eos>"), (PAD, "<pad>")):
        vocabulary[token] = index
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = _TEMPLATE
    return fast
