"""Padding, prompts and neighbours in a row change nothing of what is learnt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from bench.errors import Unsupported, UsageError
from bench.families.finetuning import Finetuning
from bench.families.texts import IGNORED, Text, collate, packed, targets, whole
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from techniques.finetuning.lora import Lora
from techniques.finetuning.peft_adapter import PeftAdapter

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
TEXTS = [
    Text(ids=[11, 12, 13, 14, 15], prompt=3),
    Text(ids=[21, 22, 23], prompt=0),
    Text(ids=[31, 32, 33, 34], prompt=1),
]


class Everything(Finetuning):
    """Trains all weights."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        model: Any = sources.target.model()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter *= 5  # so that every mistake shows in the loss
        return self.trained(model)


def test_padded_rows():
    batch = collate([[text] for text in TEXTS], "cpu")
    assert batch.ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 23, 0, 0], [31, 32, 33, 34, 0]]
    no = IGNORED
    assert batch.labels.tolist() == [[no, no, no, 14, 15], [no, 22, 23, no, no], [no, 32, 33, 34, no]]
    assert batch.positions is None
    assert batch.tokens == 7 == sum(map(targets, TEXTS))


def test_packed_rows():
    batch = collate([TEXTS[:2], TEXTS[2:]], "cpu", 10)
    no = IGNORED
    assert batch.ids.tolist() == [[11, 12, 13, 14, 15, 21, 22, 23, 0, 0], [31, 32, 33, 34, *[0] * 6]]
    # 21 is not predicted from the text before it
    assert batch.labels.tolist() == [[no, no, no, 14, 15, no, 22, 23, no, no], [no, 32, 33, 34, *[no] * 6]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]
    assert batch.tokens == 7


def test_nothing_to_learn_is_said():
    with pytest.raises(UsageError, match="a batch has no token to learn"):
        collate([[Text(ids=[1, 2, 3], prompt=3)], [Text(ids=[1], prompt=0)]], "cpu")


def test_every_text_is_packed_once_and_fits():
    draw = random.Random(0)
    lengths = [draw.randint(1, 40) for _ in range(200)]
    rows = packed(lengths, 40)
    assert sorted(number for row in rows for number in row) == list(range(200))
    sizes = [sum(lengths[number] for number in row) for row in rows]
    assert max(sizes) <= 40
    assert len(rows) <= 1.05 * sum(lengths) / 40 + 1
    assert packed([40, 40], 40) == [[0], [1]]


def by_hand(technique: Everything, arm: TrainedPrepared) -> torch.Tensor:
    """Mean loss of all learnt tokens, each from a pass of its own over what stands before it in its text."""
    model: Any = arm.model
    found = []
    for text in TEXTS:
        for place in range(max(text["prompt"], 1), len(text["ids"])):
            logits = model(input_ids=torch.tensor([text["ids"][:place]])).logits[0, -1]
            found.append(-logits.detach().log_softmax(-1)[text["ids"][place]])
    return torch.stack(found).mean()


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_packing_change_no_loss(name: str):
    technique = Everything()
    arm = technique.prepare(Sources(Source(name)))
    expected = by_hand(technique, arm)
    padded, together = collate([[t] for t in TEXTS], "cpu"), collate([TEXTS[:2], TEXTS[2:]], "cpu", 10)
    for batch in (padded, together):
        torch.testing.assert_close(technique.batch_loss(arm, batch).detach(), expected, atol=2e-5, rtol=1e-5)
    # without positions the second text would attend to the first
    leaking = technique.batch_loss(arm, together._replace(positions=None)).detach()
    assert abs(float(leaking - expected)) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_packing_changes_no_gradient(name: str):
    technique = Lora(rank=2)
    gradients = []
    for rows, length in ([[t] for t in TEXTS], 0), ([TEXTS], 14):
        torch.manual_seed(0)
        arm = technique.prepare(Sources(Source(name)))
        technique.batch_loss(arm, collate(rows, "cpu", length)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in arm.trainable if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_a_technique_that_knows_no_packing_says_so():
    technique = PeftAdapter(method="prompt_tuning")
    arm = technique.prepare(Sources(Source("tiny:llama")))
    with pytest.raises(Unsupported, match="set packing=false"):
        technique.batch_loss(arm, collate([TEXTS], "cpu"))


def test_whole_texts():
    assert whole([[1, 2]]) == [{"ids": [1, 2], "prompt": 0}]
