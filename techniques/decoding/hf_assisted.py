"""The library's assisted generation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from bench.families.decoding import DecodingPrepared
from bench.models import Sources
from bench.registry import register
from techniques.decoding.core import drafting
from techniques.decoding.core.library import LibraryDecoding


@register
class HfAssisted(LibraryDecoding):
    """`model.generate(assistant_model=)`, with draft length, schedule and confidence threshold set explicitly.

    They lie on the draft model's generation config, which the library changes as it goes and keeps from call to
    call; they are set anew for every prompt.
    """

    source: ClassVar[str] = "transformers, generation/candidate_generator.py, AssistedCandidateGenerator"

    draft_tokens: int = Field(default=3, ge=1, le=32)
    """Tokens drafted per round; of the first round where the schedule is heuristic [tokens]."""
    schedule: Literal["constant", "heuristic_transient"] = "constant"
    """How the draft's length changes within a text."""
    threshold: float = Field(default=0.0, ge=0.0, lt=1.0)
    """A token less probable than this ends the draft; 0: none does."""

    def prepare(self, sources: Sources) -> DecodingPrepared:
        return drafting.prepare(super().prepare(sources), sources, packed=False)

    def options(self, prepared: DecodingPrepared) -> tuple[dict[str, Any], dict[str, Any]]:
        draft: Any = prepared.helpers[0]
        draft.generation_config.num_assistant_tokens = self.draft_tokens
        draft.generation_config.num_assistant_tokens_schedule = self.schedule
        draft.generation_config.assistant_confidence_threshold = self.threshold
        return {}, {"assistant_model": draft}
