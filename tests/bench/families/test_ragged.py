"""Rows of different lengths and trees of drafts read as each row and each path alone."""

from __future__ import annotations

import pytest
import torch

from bench.families import cache as kv
from bench.families.ragged import keep, lengths, read_rows, read_tree
from bench.models import Source

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
ROWS = [torch.arange(9) * 5 % 256, torch.arange(4) * 11 % 256, torch.arange(17) * 3 % 256]


def alone(model: object, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0]  # type: ignore[operator]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_padded_rows_read_as_they_do_alone(name: str) -> None:
    model = Source(name).model()
    cache = kv.preallocated(model.config, 32)
    for got, ids in zip(read_rows(model, ROWS, cache, every=True), ROWS, strict=True):
        assert torch.allclose(got, alone(model, ids), atol=1e-5)
    assert lengths(cache, 3) == [9, 4, 17]
    more = [torch.tensor([7, 8, 9]), torch.tensor([10]), torch.tensor([11, 12])]
    texts = [torch.cat(pair) for pair in zip(ROWS, more, strict=True)]
    for got, ids in zip(read_rows(model, more, cache), texts, strict=True):
        assert torch.allclose(got[0], alone(model, ids)[-1], atol=1e-5)
    # each row forgets another number of tokens, and goes on
    keep(cache, [9, 5, 10])
    texts = [text[:held] for text, held in zip(texts, (9, 5, 10), strict=True)]
    again = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6])]
    for got, text, ids in zip(read_rows(model, again, cache, every=True), texts, again, strict=True):
        assert torch.allclose(got, alone(model, torch.cat([text, ids]))[-len(ids) :], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_path_of_a_tree_reads_as_it_does_alone(name: str) -> None:
    model = Source(name).model()
    cache = kv.preallocated(model.config, 17, ahead=8)
    text = ROWS[2]
    read_rows(model, [text], cache)
    tokens, parents = [20, 30, 40, 50, 60, 70], [-1, -1, 0, 0, 1, 4]
    paths = [[20], [30], [20, 40], [20, 50], [30, 60], [30, 60, 70]]
    expected = [alone(model, torch.cat([text, torch.tensor(path)]))[-1] for path in paths]
    # read in two goes, as a draft grows level by level
    first = read_tree(model, torch.tensor(tokens[:2]), parents[:2], cache, len(text))
    rest = read_tree(model, torch.tensor(tokens[2:]), parents, cache, len(text))
    for got, path, wanted in zip(torch.cat([first, rest]), paths, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-5), path
    # the path 30, 60 is accepted
    keep(cache, [len(text)], [[1, 4]])
    assert lengths(cache, 1) == [19]
    (got,) = read_rows(model, [torch.tensor([99])], cache)
    assert torch.allclose(got[0], alone(model, torch.cat([text, torch.tensor([30, 60, 99])]))[-1], atol=1e-5)


@torch.inference_mode()
def test_a_sliding_window_is_kept_in_rows_and_trees() -> None:
    model = Source("tiny:llama").model()
    model.config.sliding_window = 6
    model.config.layer_types = ["sliding_attention"] * model.config.num_hidden_layers
    cache = kv.preallocated(model.config, 32)
    wide = read_rows(Source("tiny:llama").model(), ROWS, kv.preallocated(Source("tiny:llama").config, 32))
    narrow = read_rows(model, ROWS, cache)
    assert torch.allclose(narrow[1], wide[1], atol=1e-5), "4 tokens see each other within a window of 6"
    assert not torch.allclose(narrow[0], wide[0], atol=1e-3), "9 tokens do not"


def test_what_a_masked_place_holds_never_matters() -> None:
    layer = kv.PreallocatedLayer(8)
    layer.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    assert torch.isfinite(layer.keys).all(), "nothing times NaN is NaN"


def test_keep_moves_the_places_asked_for() -> None:
    layer = kv.PreallocatedLayer(8)
    numbers = torch.arange(12.0).reshape(2, 1, 6, 1)
    layer.update(numbers, -numbers)
    layer.keep([2, 3], [[1, 3], []])
    assert layer.lengths == [4, 3]
    assert layer.keys[0, 0, :4, 0].tolist() == [0, 1, 3, 5]
    assert layer.values[0, 0, :4, 0].tolist() == [0, -1, -3, -5]
    keys, _ = layer.update(torch.full((2, 1, 1, 1), 99.0), torch.full((2, 1, 1, 1), 99.0))
    assert keys[0, 0, :, 0].tolist() == [0, 1, 3, 5, 99]
    assert keys[1, 0, :4, 0].tolist() == [6, 7, 8, 99]
