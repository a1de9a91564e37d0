"""Expected attention scores by the Gaussian of the prompt's queries, turned to the positions ahead."""

from __future__ import annotations

import pytest
import torch
from evicted import CONTEXT, IDS, NEW, best, run
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from techniques.kv_cache.core.rotation import Rotation
from techniques.kv_cache.core.scores import Seen
from techniques.kv_cache.expected_attention import ExpectedAttention


def unturned(model: torch.nn.Module) -> list[Tensor]:
    """Per layer, what comes out of the query projection: `(batch, heads, CONTEXT, 16)`."""
    found: list[Tensor] = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, inputs, out: found.append(out.double().view(2, CONTEXT, -1, 16).transpose(1, 2))
        )
        for layer in model.model.layers  # type: ignore[union-attr]
    ]
    with torch.inference_mode():
        model(input_ids=IDS[:, :CONTEXT], use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("future", "sinks"), [(512, 4), (1, 0), (30, 2)])
def test_scores_are_the_papers(future: int, sinks: int) -> None:
    technique = ExpectedAttention(budget=34, future=future, sinks=sinks)
    made = run(technique, new=0)
    cos, sin = made.model.model.rotary_emb(torch.zeros(1), torch.arange(CONTEXT, CONTEXT + future)[None])
    columns = torch.eye(16)[None, None].expand(1, 1, -1, -1)
    turns = []
    for at in range(future):
        turned, _ = apply_rotary_pos_emb(columns, columns, cos[:, at : at + 1], sin[:, at : at + 1])
        turns.append(turned[0, 0].T.double())  # columns are the turned unit vectors
    turn = torch.stack(turns).mean(0)
    queries = [
        query / query.norm(dim=-1, keepdim=True) * used.norm(dim=-1, keepdim=True)
        for query, used in zip(unturned(made.model), made.query, strict=True)
    ]
    for layer, row, head in made.each():
        keys, values = made.keys[layer][row, head], made.values[layer][row, head]
        total = torch.zeros(CONTEXT - sinks, dtype=torch.float64)
        for member in range(2):
            query = queries[layer][row, 2 * head + member, sinks:]
            mean = turn @ query.mean(0)
            covariance = turn @ torch.cov(query.T, correction=0) @ turn.T
            logits = [key @ mean / 4 + key @ covariance @ key / 32 for key in keys[sinks:]]
            total += torch.stack(logits).softmax(0) / 2
        total *= (values[sinks:] ** 2).sum(-1).sqrt()
        expected = {at + sinks for at in best(total, 22 - sinks)} | set(range(sinks))
        assert made.held[0][layer][row][head] == expected, (layer, row, head)


@pytest.mark.parametrize("name", ["tiny:qwen3", "tiny:gpt2"])
def test_works_with_normalised_queries_and_without_rotation(name: str) -> None:
    made = run(ExpectedAttention(budget=34), name, new=0)
    assert all(len(held) == 22 and {0, 1, 2, 3} < held for layer in made.held[0] for row in layer for held in row)


def test_statistics_of_queries_in_blocks() -> None:
    query = torch.randn(1, 2, 700, 8) * 3 + 5
    seen = Seen(0, 700, 1, query, query, query, torch.arange(700).expand(1, 2, -1), 1.0)
    mean, covariance = ExpectedAttention(sinks=5).statistics(seen)
    assert (mean - query[:, :, 5:].mean(2)).abs().max() < 1e-4
    assert (covariance[0, 1] - torch.cov(query[0, 1, 5:].T, correction=0)).abs().max() < 1e-3


def test_mean_rotation() -> None:
    rotation = Rotation(10000.0 ** -(torch.arange(3) / 3))
    states = torch.randn(4, 8)  # 6 of 8 dimensions turn
    turned = torch.stack([rotation(states, distance) for distance in (3, 4, 5)])
    assert (states @ rotation.matrix(torch.tensor([3, 4, 5]), 8).T - turned.mean(0)).abs().max() < 1e-6
    each = rotation.each(states, torch.tensor([3, 0, 5, 4]))
    assert torch.allclose(each[0], turned[0, 0], atol=1e-6)
    assert torch.equal(each[1], states[1])
    assert torch.allclose(each[2:], torch.stack([turned[2, 2], turned[1, 3]]), atol=1e-6)


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2"])
@pytest.mark.parametrize(("every", "window", "sinks"), [(1, 6, 2), (4, 9, 0), (5, 200, 4)])
def test_it_goes_on_by_the_latest_queries(name: str, every: int, window: int, sinks: int) -> None:
    made = run(ExpectedAttention(budget=30, future=20, sinks=sinks, every=every, window=window), name)
    width, tokens = 16, CONTEXT + NEW
    queries, turns = made.query, dict.fromkeys(range(tokens + 1), torch.eye(width, dtype=torch.float64))
    if name == "tiny:llama":
        cos, sin = (part.double() for part in made.model.model.rotary_emb(torch.zeros(1), torch.arange(200)[None]))
        queries = [apply_rotary_pos_emb(one, one, cos[:, :tokens], -sin[:, :tokens])[0] for one in queries]
        unit = torch.eye(width, dtype=torch.float64)[None, None].expand(200, 1, -1, -1)
        columns, _ = apply_rotary_pos_emb(unit, unit, cos[0, :, None], sin[0, :, None])
        turns = {at: columns[at : at + 20, 0].mean(0).T for at in turns}
    changed = 0
    for layer, row, head in made.each():
        expected = made.held[0][layer][row][head]
        for time, held in enumerate(made.held[1:], start=1):
            seen = CONTEXT + time
            expected = expected | {seen - 1}
            if time % every == 0:
                there = sorted(expected)[sinks:]
                keys, values = made.keys[layer][row, head, there], made.values[layer][row, head, there]
                total = torch.zeros(len(there), dtype=torch.float64)
                for member in range(made.group):
                    of_group = queries[layer][row, head * made.group + member]
                    # held from the prompt on, whose ring is as long as the prompt at most
                    latest = of_group[max(seen - min(window, CONTEXT), sinks) : seen]
                    mean = turns[seen] @ latest.mean(0)
                    covariance = turns[seen] @ torch.cov(latest.T, correction=0) @ turns[seen].T
                    logits = keys @ mean / 4 + ((keys @ covariance) * keys).sum(-1) / 32
                    total += logits.softmax(0) / made.group
                total *= values.norm(dim=-1)
                stay = {there[at] for at in best(total, 30 - every - sinks)} | set(range(sinks))
                changed += stay != expected - {min(expected - set(range(sinks)))}
                expected = stay
            assert held[layer][row][head] == expected, (layer, row, head, time)
    assert changed, "the oldest always went"
