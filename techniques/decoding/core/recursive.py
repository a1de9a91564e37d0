"""Recursive rejection over the children of a node (SpecInfer, algorithm 2), children drawn without replacement.

A pure function of the two distributions and the children; drawing is `kseq.draw_sequential`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from techniques.decoding.core.acceptance import ratio
from techniques.decoding.core.kseq import SequentialAcceptance


def without_replacement(p: Tensor, q: Tensor, children: Tensor) -> SequentialAcceptance:
    """Try the children in the order they were drawn, each with `min(1, p / q)` of what p and q are by then.

    A rejected child leaves `norm(max(0, p - q))` of the target's law, and a draft's law without it, as the next child
    was drawn from (Jeon et al. 2024, Recursive Speculative Decoding).

    Args:
        p: the target's distribution, `(vocabulary,)`.
        q: what the first child was drawn from, `(vocabulary,)`.
        children: ids, distinct, in the order drawn, `(m,)`.
    """
    accept = []
    for child in children:
        accept.append(ratio(p[child], q[child]).clamp_max(1))
        left = (p - q).clamp_min(0)
        mass = left.sum()
        # nothing left: this child is always accepted, and what comes behind it is never asked for
        p = torch.where(mass > 0, left / mass, p)
        q = q.scatter(-1, child[None], 0.0)
        # q may be used up: no further child can have been drawn from it, and none is accepted
        q = ratio(q, q.sum())
    return SequentialAcceptance(torch.stack(accept), p)
