"""KIVI: all tokens stay, in two or four bits: keys rounded per channel, values per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from transformers.cache_utils import Cache

from bench.claim import Claim, at_least, at_most
from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families.kv_cache import QUERY_AGNOSTIC, KVCachePrepared
from bench.models import Sources
from bench.registry import register
from techniques.kv_cache.core.attending import check_layers, link
from techniques.kv_cache.core.quantized import PerChannel, PerToken, QuantizedLayer, head_width
from techniques.kv_cache.core.rows import RowByRow


@register
class Kivi(RowByRow):
    """Round keys in groups of tokens of one channel, and values in groups of channels of one token.

    A few channels of the keys are large in all tokens, so each is rounded by a range of its own. The latest tokens
    stay exact: the last `residual` values, and keys until `residual` of them can be rounded together. Each group has
    a step and a lowest value in 16 bits. Query-agnostic.

    Differs from the paper:
        Codes are unpacked before they are multiplied, where the paper has one kernel for both: the memory is what is
        held, the time is not the paper's. Values are rounded `group` tokens at a time, so that up to `group` more of
        them are exact, where the paper rounds one with every token. Steps and lowest values are rounded outwards, so
        that no element is off by more than half a step. A full block is rounded when the next token comes. A head
        narrower than the group is one group.
    """

    source: ClassVar[str] = "Liu et al. 2024, KIVI, algorithm 1; group of 32, residual of 128 tokens"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="peak",
            statement="2.6 times less memory at the peak, weights included.",
            source="Liu et al. 2024, KIVI, the authors' code page",
            expression="peak_memory(full_cache) / peak_memory(kivi[bits=2,group=32,residual=128])",
            expected=at_least(2.47),
            conditions={"device": "cuda", "model": "*llama-2-7b*|*falcon-7b*|*mistral-7b*"},
            out_of_reach="the page does not say with which batch and length",
            workload={"name": "long_document", "context": 1024},
        ),
        Claim(
            name="bytes",
            headline="KIVI: four times as many rows in the same cache.",
            statement="The cache is small enough for batches of up to 4 times as many rows.",
            source="Liu et al. 2024, KIVI, the authors' code page",
            expression="kv_cache_bytes(full_cache) / kv_cache_bytes(kivi[bits=2,group=32,residual=128])",
            expected=at_least(4.0),
            conditions={"device": "cuda", "model": "*llama-2-7b*|*falcon-7b*|*mistral-7b*"},
            workload={"name": "long_document", "context": 1024},
        ),
        Claim(
            name="quality",
            statement="Almost the quality of the full cache with 2 bits.",
            source="Liu et al. 2024, KIVI, the authors' code page",
            expression="nll(kivi[bits=2,group=32,residual=128]) - nll(full_cache)",
            expected=at_most(0.01),
            conditions={"device": "cuda", "model": "*llama-2*|*falcon*|*mistral*"},
            workload={"name": "long_document", "context": 1024},
        ),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"kivi_4bit": {"bits": 4}}

    bits: Literal[2, 4] = 2
    """Of a code [bits]."""
    group: int = Field(default=32, ge=4, multiple_of=4)
    """Elements that share a step: tokens for keys, channels for values."""
    residual: int = Field(default=128, ge=4)
    """Latest tokens that are exact, a multiple of `group` [tokens]."""

    @model_validator(mode="after")
    def _residual_is_whole_groups(self) -> Self:
        if self.residual % self.group:
            raise ValueError(f"residual={self.residual} is no multiple of group={self.group}")
        return self

    def prepare(self, sources: Sources) -> KVCachePrepared:
        prepared = super().prepare(sources)
        link(prepared.model)
        return prepared

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        config = prepared.model.config
        capacity = context + new_tokens
        kv.check_length(config, capacity)
        width = head_width(config)
        group = min(self.group, width)
        if width % group or width * self.bits % 8:
            raise Unsupported(f"heads of {width} channels do not divide into groups of {group}; give a group that does")
        return Cache(
            layers=[
                QuantizedLayer(
                    PerChannel(capacity, self.bits, self.group, keep=0, block=self.residual),
                    PerToken(capacity, self.bits, group, keep=self.residual, block=self.group),
                )
                for _ in range(check_layers(config))
            ]
        )
