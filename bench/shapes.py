"""Shapes of networks whose weights are made up: tiny ones for tests, published ones for memory and latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TINY = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 264, "max_position_embeddings": 2048}
_SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}

TINY: Mapping[str, Mapping[str, Any]] = {
    # grouped queries, tied head
    "llama": {
        "model_type": "llama",
        **_TINY,
        **_SPECIAL,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # learned positions, one key per query, Conv1D weights
    "gpt2": {
        "model_type": "gpt2",
        **_SPECIAL,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "vocab_size": 264,
        "n_positions": 2048,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    # normalised queries and keys, untied head
    "qwen3": {
        "model_type": "qwen3",
        **_TINY,
        **_SPECIAL,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
}


def _llama(
    hidden: int,
    layers: int,
    heads: int,
    inner: int,
    vocabulary: int = 32000,
    kv_heads: int | None = None,
    positions: int = 2048,
    theta: float = 10000.0,
    tied: bool = False,
) -> Mapping[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": tied,
        **_SPECIAL,
    }


SYNTHETIC: Mapping[str, Mapping[str, Any]] = {
    # SmolLM2 (Allal et al. 2025), config.json as published
    "smollm2-135m": _llama(576, 30, 9, 1536, 49152, 3, 8192, 100000.0, tied=True),
    # the same for longer contexts
    "smollm2-135m-32k": _llama(576, 30, 9, 1536, 49152, 3, 32768, 100000.0, tied=True),
    # LLaMA (Touvron et al. 2023), table 2
    "llama-7b": _llama(4096, 32, 32, 11008),
    "llama-13b": _llama(5120, 40, 40, 13824),
    "llama-33b": _llama(6656, 60, 52, 17920),
    "llama-65b": _llama(8192, 80, 64, 22016),
    # Llama 3 (Grattafiori et al. 2024), table 3
    "llama3-8b": _llama(4096, 32, 32, 14336, 128256, 8, 8192, 500000.0),
    # the same for longer contexts
    "llama3-8b-128k": _llama(4096, 32, 32, 14336, 128256, 8, 131072, 500000.0),
}
