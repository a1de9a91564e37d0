"""The library's `generate`: what most people run today."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from techniques.decoding.core.library import LibraryDecoding


@register
class HfGenerate(LibraryDecoding):
    """`model.generate` with its dynamic cache, one token a step."""

    source: ClassVar[str] = "transformers, generation/utils.py"

    def options(self, prepared: DecodingPrepared) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}
