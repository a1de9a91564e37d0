"""A cache layer whose heads keep different tokens, and different numbers of them, in storage of just that size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.families import cache as kv
from bench.families.attention import packed_sdpa
from techniques.kv_cache.core import varlen
from techniques.kv_cache.core.attending import linked

HALVED = 1024
"""From so many tokens a head on, it pays to share a head's attention between cores [tokens]."""


class RaggedLayer(kv.EvictingLayer):
    """Flat storage `(slots, head_dim)`: each head of each row owns a segment of it, filled from the left.

    A segment has `capacity` slots, so that a token is appended without moving any other. Behind keys and values lie
    further columns `(slots,)`: the token's position (int32, 4 bytes a slot) and what a policy notes about it. Slots
    are in no order: attention does not ask for one.

    Where all segments are alike, as with most policies, storage is a plain `(batch, kv_heads, capacity, head_dim)`.
    """

    watching = False
    """Whether `watch` is told the attention weights of every new token; for segments that are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_prompt = False
        self.columns: dict[str, Tensor] = {}
        """`places` and a policy's notes, each `(slots,)`."""
        self.starts = self.lengths = self.capacities = torch.empty(0, dtype=torch.int64)
        """Of each segment, `(batch, kv_heads)` on the CPU [slots]."""
        self.level: int | None = None
        """What each segment holds, where all are alike [slots]."""
        self.ends = self.starts
        """The next slot of each segment, `(batch * kv_heads,)` on the keys' device."""
        self.room = 0
        """Free slots of the fullest segment [slots]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)`; the keys returned point to this layer.

        The prompt is not stored here but after it has attended to itself, by `read_prompt`.
        """
        new = key_states.shape[-2]
        if self.seen == 0:
            self.lazy_initialization(key_states, value_states)
            self.reads_prompt = True
        else:
            assert new == 1, f"{new} tokens at once behind the prompt: a mask per head is not supported"
            self.append(key_states[:, :, 0], value_states[:, :, 0], self.notes())
        self.seen += new
        return linked(key_states, self), value_states

    @abstractmethod
    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        """Choose, and `store`."""

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        """Attend with `(batch, heads, 1, head_dim)` to what each head holds -> `(batch, 1, heads, head_dim)`."""
        return self.attend(module, query, scaling)

    def notes(self) -> Mapping[str, Tensor]:
        """Of the token that is appended: column -> `(batch, kv_heads)`; zero for columns that are not named."""
        return {}

    def watch(self, weights: Tensor, notes: Mapping[str, Tensor]) -> None:
        """Be told the weights `(..., group, held)` of a new token, with views of the columns `(..., held)`."""

    def store(
        self, keys: Tensor, values: Tensor, kept: list[list[Tensor]], rooms: Tensor, notes: Mapping[str, Tensor]
    ) -> None:
        """Fill the storage from a prompt.

        Args:
            keys: `(batch, kv_heads, tokens, head_dim)`; `values` alike.
            kept: per row and head, the tokens kept: indices `(kept,)`.
            rooms: slots for tokens to come, `(batch, kv_heads)` [slots].
            notes: column -> `(batch, kv_heads, tokens)`.
        """
        self._lay_out(torch.tensor([[len(index) for index in row] for row in kept]), rooms)
        slots = int(self.capacities.sum())
        self.keys = keys.new_empty(slots, keys.shape[-1])
        self.values = values.new_empty(slots, values.shape[-1])
        self.columns = {"places": torch.zeros(slots, dtype=torch.int32, device=keys.device)}
        self.columns.update((name, note.new_zeros(slots)) for name, note in notes.items())
        for row, of_heads in enumerate(kept):
            for head, index in enumerate(of_heads):
                held = self.segment(row, head)
                torch.index_select(keys[row, head], 0, index, out=self.keys[held])
                torch.index_select(values[row, head], 0, index, out=self.values[held])
                self.columns["places"][held] = index.int()
                for name, note in notes.items():
                    self.columns[name][held] = note[row, head, index]
        self.reads_prompt = False
        self.is_initialized = True

    def append(self, key: Tensor, value: Tensor, notes: Mapping[str, Tensor]) -> None:
        """Put one token `(batch, kv_heads, head_dim)` behind what each head holds."""
        told: Mapping[str, Tensor | int] = {"places": self.seen, **notes}
        if self.level is not None:
            rows = {name: self.rows(column) for name, column in self.columns.items()}
            assert self.level < rows["places"].shape[2], "a segment is full"
            self.rows(self.keys)[:, :, self.level] = key
            self.rows(self.values)[:, :, self.level] = value
            for name, row in rows.items():
                row[:, :, self.level] = told.get(name, 0)
            self.level += 1
        else:
            assert self.room > 0, "a segment is full"
            self.keys.index_copy_(0, self.ends, key.flatten(0, 1))
            self.values.index_copy_(0, self.ends, value.flatten(0, 1))
            for name, column in self.columns.items():
                note = told.get(name, 0)
                if isinstance(note, Tensor):
                    column.index_copy_(0, self.ends, note.to(column.dtype).flatten())
                else:
                    column.index_fill_(0, self.ends, note)
            self.ends += 1
            self.room -= 1
        self.lengths = self.lengths + 1

    def drop(self, worst: Tensor) -> None:
        """Let go of one token of each head, the slots `worst` (batch, kv_heads) of segments that are alike.

        The last token moves there: what `keep` does, without a search for the holes.
        """
        assert self.level is not None
        last = self.level - 1
        heads = worst.numel()
        holes = torch.arange(0, len(self.keys), len(self.keys) // heads, device=worst.device) + worst.flatten()
        for column in (self.keys, self.values, *self.columns.values()):
            column.index_copy_(0, holes, column.view(heads, -1, *column.shape[1:])[:, last].clone())
        self.level = last
        self.lengths = self.lengths - 1

    def keep(self, kept: Tensor) -> None:
        """Let go of what is False in `kept` (batch, kv_heads, most): the last tokens move into the holes."""
        device = kept.device
        lengths = kept.sum(-1)
        slot = torch.arange(kept.shape[-1], device=device)
        filled = slot < self.lengths.to(device)[..., None]
        inside = slot < lengths[..., None]
        starts = self.starts.to(device)[..., None]
        # a head has as many holes in front as tokens behind, and `masked_select` goes head by head
        holes = (starts + slot).masked_select(filled & ~kept & inside)
        movers = (starts + slot).masked_select(kept & ~inside)
        for column in (self.keys, self.values, *self.columns.values()):
            column[holes] = column[movers]
        self.lengths = lengths.cpu()
        self._compare()

    def regrow(self, rooms: Tensor) -> None:
        """Lay the segments out anew, each with so many free slots `(batch, kv_heads)`. This copies the layer."""
        before, lengths = self.starts, self.lengths
        self._lay_out(lengths, rooms)
        slots = int(self.capacities.sum())
        moved = {name: column.new_zeros(slots) for name, column in self.columns.items()}
        keys, values = (part.new_empty(slots, part.shape[-1]) for part in (self.keys, self.values))
        for old, new, length in zip(before.flatten(), self.starts.flatten(), lengths.flatten(), strict=True):
            source, target = slice(int(old), int(old + length)), slice(int(new), int(new + length))
            keys[target], values[target] = self.keys[source], self.values[source]
            for name, column in self.columns.items():
                moved[name][target] = column[source]
        self.keys, self.values, self.columns = keys, values, moved

    def attend(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        """Plain attention with `(batch, heads, 1, head_dim)` over each head's own keys; in one kernel on a GPU."""
        batch, heads = query.shape[:2]
        kv_heads = self.lengths.shape[1]
        if self.level is not None and not self.watching:
            keys, values = self.padded(self.keys), self.padded(self.values)
            return packed_sdpa(module, query, keys, values, None, scaling=scaling)[0]
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, -1)
        if self.watching:
            out = self._watched(grouped, scaling)
        elif varlen.usable(query):
            starts, lengths = self.starts.flatten(), self.lengths.flatten()
            out = varlen.attend(grouped.flatten(0, 1), self.keys, self.values, starts, lengths, scaling)
        else:
            out = self._each(grouped.flatten(0, 1), scaling)
        return out.reshape(batch, 1, heads, -1)

    def _each(self, query: Tensor, scaling: float) -> Tensor:
        """All heads' groups of queries `(batch * kv_heads, group, head_dim)`, head by head over their segments."""
        # plain numbers and views: for a few hundred tokens a head's attention takes no longer than an index
        segments = list(
            zip(query.unbind(), self.starts.flatten().tolist(), self.lengths.flatten().tolist(), strict=True)
        )
        held = [length for _, _, length in segments]
        even = self.keys.shape[-1] == self.values.shape[-1]  # as the kernel wants them
        if even and query.device.type == "cpu" and sum(held) >= HALVED * len(held) and min(held) > 1:
            return self._halved(segments, scaling)
        keys, values = self.keys[None, None], self.values[None, None]
        return torch.cat(
            [
                scaled_dot_product_attention(
                    own[None, None], keys.narrow(2, start, length), values.narrow(2, start, length), scale=scaling
                )
                for own, start, length in segments
            ]
        )

    def _halved(self, segments: list[tuple[Tensor, int, int]], scaling: float) -> Tensor:
        """Each head's attention to the halves of its segment at once, one to a core; then both by their weights."""
        width = self.keys.shape[-1]
        outs, logsums = [], []
        for own, start, length in segments:
            half = (length + 1) // 2
            shape, strides = (2, 1, half, width), ((length - half) * width, 0, width, 1)
            keys, values = (part.as_strided(shape, strides, start * width) for part in (self.keys, self.values))
            twice = None
            if length % 2:  # the halves have one token in common
                twice = own.new_zeros(2, 1, 1, half)
                twice[1, ..., 0] = -torch.inf
            out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                own.expand(2, 1, -1, -1), keys, values, attn_mask=twice, scale=scaling
            )
            outs.append(out)
            logsums.append(logsum)
        shares = torch.stack(logsums).softmax(1)[..., None]  # (segments, 2, 1, group, 1)
        return (torch.stack(outs) * shares).sum(1).to(self.values.dtype)

    def _watched(self, query: Tensor, scaling: float) -> Tensor:
        """All heads' groups of queries `(batch, kv_heads, group, head_dim)` over segments that are alike."""
        assert self.level is not None, "heads that hold different numbers of tokens are not watched"
        weights = (quick(query) @ quick(self.padded(self.keys)).mT).float().mul_(scaling).softmax(-1)
        self.watch(weights, {name: self.padded(column) for name, column in self.columns.items()})
        values = quick(self.padded(self.values))
        return (weights.to(values.dtype) @ values).to(self.values.dtype)

    def segment(self, row: int, head: int) -> slice:
        """The slots that hold a head's tokens."""
        start = int(self.starts[row, head])
        return slice(start, start + int(self.lengths[row, head]))

    def rows(self, column: Tensor) -> Tensor:
        """Even segments side by side: `(batch, kv_heads, capacity, ...)`."""
        return column.view(*self.lengths.shape, -1, *column.shape[1:])

    def padded(self, column: Tensor) -> Tensor:
        """A column's filled slots: `(batch, kv_heads, most, ...)`, anything behind a head's last token."""
        if self.level is not None:
            return self.rows(column)[:, :, : self.level]
        most = int(self.lengths.max())
        slots = self.starts[..., None] + torch.arange(most)
        return column[slots.clamp(max=len(column) - 1).to(column.device)]

    def filled(self) -> Tensor:
        """Which of the padded slots hold a token: `(batch, kv_heads, most)`."""
        slot = torch.arange(int(self.lengths.max()), device=self.keys.device)
        return slot < self.lengths.to(slot.device)[..., None]

    def positions(self) -> Tensor:
        return torch.where(self.filled(), self.padded(self.columns["places"]).long(), -1)

    def held(self) -> list[Tensor]:
        return [self.keys, self.values, *self.columns.values()]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def _lay_out(self, lengths: Tensor, rooms: Tensor) -> None:
        self.lengths, self.capacities = lengths, lengths + rooms
        self.starts = (self.capacities.flatten().cumsum(0) - self.capacities.flatten()).view_as(lengths)
        self._compare()

    def _compare(self) -> None:
        alike = all(int(t.min()) == int(t.max()) for t in (self.lengths, self.capacities))
        self.level = int(self.lengths.max()) if alike else None
        self.ends = (self.starts + self.lengths).flatten().to(self.device)
        self.room = int((self.capacities - self.lengths).min())


def quick(states: Tensor) -> Tensor:
    """In float32 on a CPU, whose products of 16 bits are compiled anew for every length: a hundred times the work."""
    return states.float() if states.device.type == "cpu" else states
