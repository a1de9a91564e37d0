"""Attention over ragged heads in one kernel: on a GPU, every head of every row is a sequence of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
WIDEST = 256
"""Channels of a head that the kernel takes at most."""


def usable(query: Tensor) -> bool:
    """Whether the kernel takes these queries, `(..., head_dim)`: it is FlashAttention's, in 16 bits from Ampere on."""
    width = query.shape[-1]
    fits = query.is_cuda and query.dtype in HALF and width % 8 == 0 and width <= WIDEST
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    lengths: Tensor,
    scaling: float,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Each segment's queries over its own filled slots.

    Args:
        query: `(segments, group, head_dim)`.
        keys: `(slots, head_dim)`, segment behind segment, each with free slots at its end; `values` alike.
        starts: of each segment, `(segments,)` int64 on the CPU, the first 0; `lengths`, of what is filled, alike.
        kernel: `torch.nn.attention.varlen.varlen_attn`, or what takes the same arguments.

    Returns:
        `(segments, group, head_dim)`.
    """
    if kernel is None:
        from torch.nn.attention.varlen import varlen_attn

        kernel = varlen_attn
    segments, group, width = query.shape
    # one copy to the device, and none back
    told = torch.cat([starts, starts.new_tensor([len(keys)]), lengths]).to(query.device, torch.int32, non_blocking=True)
    first = torch.arange(0, segments * group + 1, group, dtype=torch.int32, device=query.device)
    out = kernel(
        query.reshape(-1, 1, width),
        keys[:, None],
        values[:, None],
        first,
        told[: segments + 1],
        group,
        int(lengths.max()),
        scale=scaling,
        seqused_k=told[segments + 1 :],
    )
    return out.view(segments, group, width)
