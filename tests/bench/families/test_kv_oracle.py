"""The mask oracle passes what is right, and fails what silently is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from bench.families import attention, kv_oracle
from bench.families import cache as kv
from bench.models import Source
from bench.workload import Gate
from techniques.kv_cache.core.rotation import Rotation, rotation_of
from techniques.kv_cache.streaming_llm import StreamingLayer

CONTEXT, STEPS, SINKS, SIZE = 60, 20, 4, 16
IDS = torch.arange(2 * (CONTEXT + STEPS)).reshape(2, -1) * 13 % 256


def network(name: str = "tiny:llama", dtype: str = "float32") -> Any:
    model: Any = Source(name, dtype=dtype).model()
    attention.pack(model)
    return model


def judge(model: Any, layer: type[kv.EvictingLayer], *arguments: Any) -> Gate:
    cache = Cache(layers=[layer(*arguments) for _ in range(3)])  # type: ignore[call-arg]
    return kv_oracle.gate(model, cache, IDS, CONTEXT)


class WrongClaim(StreamingLayer):
    """Says that tokens lie one further than they do."""

    def positions(self) -> Tensor:
        held = super().positions()
        return torch.where(held < self.sinks, held, held - 1)


class OneOff(StreamingLayer):
    """Sees the sinks one token from where it says."""

    def seen_at(self) -> Tensor:
        held = super().seen_at()
        return torch.where(self.positions() < self.sinks, held + 1, held)


class BackwardTurn(StreamingLayer):
    """Turns the sinks the wrong way."""

    def seen_at(self) -> Tensor:
        held = self.positions()
        return torch.where(held < self.sinks, held - self.evicted, held)


class Dropper(StreamingLayer):
    """Silently forgets one more token."""

    def update(self, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*arguments, **kwargs)
        if keys.shape[-2] == self.size:
            keys, values = keys[:, :, torch.arange(self.size) != 9], values[:, :, torch.arange(self.size) != 9]
        return keys, values


class DefaultPositions(StreamingLayer):
    """Lets the model number new tokens by what is kept."""

    def get_seq_length(self) -> int:
        return self.filled


class Overwriter(StreamingLayer):
    """Puts a new token over the latest instead of the oldest of the ring."""

    def _slot(self, position: int) -> int:
        return super()._slot(position - 1) if self.seen == position > self.size else super()._slot(position)


class Hoarder(StreamingLayer):
    """Keeps one token more than it says."""

    def positions(self) -> Tensor:
        return super().positions()[..., :-1]


class SwappedRows(StreamingLayer):
    """Mixes up the rows of a batch."""

    def update(self, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*arguments, **kwargs)
        return (keys, values) if keys.shape[-2] > self.size else (keys.flip(0), values.flip(0))


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:qwen3", "tiny:gpt2"])
@pytest.mark.parametrize("turn", [True, False])
def test_right_caches_pass(name: str, turn: bool):
    model = network(name)
    if turn and name == "tiny:gpt2":
        pytest.skip("learned positions")
    gate = judge(model, StreamingLayer, SIZE, SINKS, rotation_of(model) if turn else None)
    assert gate.passed, gate.detail
    assert "up to 64 tokens were hidden, which moved the logits by" in gate.detail
    assert float(gate.detail.rpartition(" ")[2]) > 0.1


WRONG = [WrongClaim, OneOff, BackwardTurn, Dropper, Overwriter, Hoarder, SwappedRows]


@pytest.mark.parametrize("layer", WRONG)
@pytest.mark.parametrize("name", ["tiny:llama", "tiny:qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_caches_fail(name: str, dtype: str, layer: type[StreamingLayer]):
    model = network(name, dtype)
    gate = judge(model, layer, SIZE, SINKS, rotation_of(model))
    assert not gate.passed, gate.detail


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:qwen3"])
def test_wrong_positions_fail(name: str):
    # keys and queries are wrong alike, head by head: the logits alone tell, to rounding errors
    model = network(name)
    gate = judge(model, DefaultPositions, SIZE, SINKS, rotation_of(model))
    assert not gate.passed, gate.detail


def test_a_missing_turn_fails():
    class Unturned(StreamingLayer):
        def seen_at(self) -> Tensor:
            held = self.positions()
            return torch.where(held < self.sinks, held + self.evicted, held)

    gate = judge(network(), Unturned, SIZE, SINKS, None)
    assert not gate.passed, gate.detail


def test_caches_that_keep_everything_pass_and_say_so():
    model = network()
    for cache in (kv.preallocated(model.config, CONTEXT + STEPS), DynamicCache()):
        gate = kv_oracle.gate(model, cache, IDS, CONTEXT)
        assert gate.passed, gate.detail
        assert gate.detail.endswith("nothing was evicted")


class PerHead(kv.EvictingLayer):
    """Each head of each row keeps tokens of its own, more of them go at every step."""

    def __init__(self, lie: bool = False) -> None:
        super().__init__()
        self.lie = lie
        self.index = torch.empty(0, dtype=torch.long)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def _keep(self, count: int) -> None:
        """The newest token, and others drawn per row and head."""
        batch, heads, tokens = self.index.shape
        draw = torch.rand(batch, heads, tokens, generator=torch.Generator().manual_seed(self.seen))
        draw[..., -1] = 2.0
        chosen = draw.topk(count, -1).indices.sort(-1).values
        self.index = self.index.gather(-1, chosen)
        wide = chosen[..., None].expand(-1, -1, -1, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, wide), self.values.gather(2, wide)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = torch.arange(self.seen, self.seen + key_states.shape[-2]).expand(*key_states.shape[:2], -1)
        if self.seen == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.index, self.seen = key_states, value_states, new, key_states.shape[-2]
            self._keep(20)
            return key_states, value_states
        self.seen += 1
        self.index = torch.cat([self.index, new], -1)
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)
        self._keep(max(self.index.shape[-1] - 2, 5))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def positions(self) -> Tensor:
        return self.index.flip(1) if self.lie else self.index


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2"])
def test_heads_may_keep_tokens_of_their_own(name: str):
    assert judge(network(name), PerHead).passed
    assert not judge(network(name), PerHead, True).passed


def test_heads_may_keep_different_numbers_of_tokens():
    held = torch.tensor([[[0, 3, -1], [1, 2, 4]]])
    visible, shift = kv_oracle.Visible(held, held + torch.tensor([2, 0, 5])).over(6)
    assert visible.long().tolist() == [[[1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 1, 0]]]
    assert shift.tolist() == [[[2, 0, 0, 0, 0, 0], [0, 2, 0, 0, 5, 0]]]


def test_a_turned_key_is_seen_as_its_type_holds_it():
    torch.manual_seed(0)
    keys = (torch.randn(1, 1, 4, 8) * 20).bfloat16()  # of sinks: large, so that rounding moves their weights
    query, values = torch.randn(1, 1, 1, 8).bfloat16(), torch.randn(1, 1, 4, 8).bfloat16()
    turn = Rotation(torch.tensor([1.0, 0.5, 0.2, 0.1]))
    places = torch.arange(4)[None, None]
    seen = kv_oracle.Visible(places, places + torch.tensor([9, 9, 0, 0]))
    reference = kv_oracle.Reference(3, {0: [seen]}, turn.inverse_frequencies)
    got, _ = reference.rows(query, keys, values, 3, 0, 0.3, None)

    def plain(turned: Tensor) -> Tensor:
        whole = torch.cat([turned.float(), keys[:, :, 2:].float()], 2)
        return (query.float() @ whole.mT * 0.3).softmax(-1) @ values.float()

    held, exact = turn(keys[:, :, :2], 9), turn(keys[:, :, :2].float(), 9)
    assert (got - plain(held)).abs().max() < 1e-5
    assert (got - plain(exact)).abs().max() > 1e-3


def test_the_reference_is_the_models_own_attention():
    model = network()
    with torch.inference_mode():
        expected = model(input_ids=IDS, use_cache=False).logits[:, CONTEXT - 1 :]
    got = kv_oracle.read_once(model, IDS, kv_oracle.Reference(CONTEXT))
    assert (got - expected).abs().max() < 1e-5


def test_coarse_types_are_judged_by_their_own_rounding():
    model = network(dtype="bfloat16")
    for turn in (None, rotation_of(model)):
        gate = judge(model, StreamingLayer, SIZE, SINKS, turn)
        assert gate.passed, gate.detail


def test_a_head_of_few_tokens_may_be_off_by_the_rounding_of_its_weights():
    # the full cache's own errors are those of many tokens, which even out
    model, ids = network("tiny:gpt2", "bfloat16"), torch.randperm(256, generator=torch.Generator().manual_seed(5))
    cache = Cache(layers=[StreamingLayer(10, 4, None) for _ in range(3)])
    gate = kv_oracle.gate(model, cache, ids[None, :82], 70)
    (_, _), (off, allowed) = re.findall(r"by (\S+) .*?\(allowed (\S+)\)", gate.detail)
    assert gate.passed, gate.detail
    assert float(off) <= float(allowed) == pytest.approx(2**-8, rel=0.05)


def test_one_head_is_seen_where_rounding_hides_it_in_the_logits():
    class OneHead(StreamingLayer):
        """Loses the value of one token in one head at one step."""

        def update(self, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*arguments, **kwargs)
            if self.seen == CONTEXT + 10:
                values = values.clone()
                values[0, 0, 9] = 0
            return keys, values

    model = network(dtype="bfloat16")
    cache = Cache(layers=[layer(SIZE, SINKS, None) for layer in (OneHead, StreamingLayer, StreamingLayer)])
    gate = kv_oracle.gate(model, cache, IDS, CONTEXT)
    logits, heads = re.findall(r"by (\S+) .*?\(allowed (\S+)\)", gate.detail)
    assert float(logits[0]) < float(logits[1])
    assert float(heads[0]) > float(heads[1])
    assert not gate.passed


def test_attention_is_put_back_even_after_an_error():
    class Broken(StreamingLayer):
        def positions(self) -> Tensor:
            raise ZeroDivisionError

    model = network()
    with pytest.raises(ZeroDivisionError):
        judge(model, Broken, SIZE, SINKS, None)
    assert model.config._attn_implementation == attention.NAME
    assert judge(model, StreamingLayer, SIZE, SINKS, None).passed
    assert model.config._attn_implementation == attention.NAME
    assert not kv_oracle._active
