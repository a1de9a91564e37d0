"""The library's prompt lookup."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from techniques.decoding.core.library import LibraryDecoding


@register
class HfPromptLookup(LibraryDecoding):
    """`model.generate(prompt_lookup_num_tokens=)`: the first earlier match of the longest n-gram is copied."""

    source: ClassVar[str] = "transformers, generation/candidate_generator.py, PromptLookupCandidateGenerator"

    ngram: int = Field(default=3, ge=1, le=16)
    """Longest n-gram that is looked for [tokens]."""
    draft_tokens: int = Field(default=8, ge=1, le=64)
    """Tokens copied at most [tokens]."""

    def options(self, prepared: DecodingPrepared) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"prompt_lookup_num_tokens": self.draft_tokens, "max_matching_ngram_size": self.ngram}, {}
