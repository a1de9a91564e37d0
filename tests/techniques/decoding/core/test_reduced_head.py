from __future__ import annotations

import torch

from bench.models import Source
from techniques.decoding.core.reduced_head import reduce


def test_kept_tokens_have_their_logits_and_the_others_no_chance() -> None:
    whole, cut = Source("tiny:qwen3").model(), Source("tiny:qwen3").model()
    kept = torch.tensor([7, 3, 100])
    reduce(cut, kept)
    ids = torch.arange(12)[None]
    expected, got = whole(ids).logits, cut(ids).logits
    assert got.shape == expected.shape
    assert torch.allclose(got[..., kept], expected[..., kept], atol=1e-6)
    assert torch.equal(got.softmax(-1) > 0, torch.isin(torch.arange(264), kept).expand_as(got))
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
