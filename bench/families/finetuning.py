"""Finetuning: how a model's weights, or a few beside them, learn a text.

The loop and the loss are shared; a technique says which weights are trained and in what precision they are
held.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.errors import Unsupported
from bench.families.texts import IGNORED, PAD, TextBatch
from bench.families.training import TrainedPrepared, Training, TrainingJob
from bench.models import Sources
from bench.technique import Axis

SCORED_LOGITS = 2**26
"""Logits held at once where held-out text is scored: 256 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class FinetuningJob(TrainingJob):
    """Learn each batch in turn."""

    batches: tuple[TextBatch, ...]


class Scores(NamedTuple):
    """What a model makes of a text, token by token behind the first."""

    logprobs: Tensor
    """Log-probability of each token, `(batch, seq - 1)`, float32."""
    hits: Tensor
    """Whether the token is the model's first choice, `(batch, seq - 1)`, bool."""


class Finetuning(Training):
    """Base of the finetuning techniques."""

    family: ClassVar[str] = "finetuning"
    primary: ClassVar[Mapping[Axis, str]] = {
        "quality": "nll",
        "latency": "time_per_step",
        "memory": "peak_memory",
    }
    train_mode: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, sources: Sources) -> TrainedPrepared: ...

    def logits(self, prepared: TrainedPrepared, ids: Tensor) -> Tensor:
        """Logits `(batch, seq, vocabulary)` of the token behind each of `ids` (batch, seq).

        Training and scoring both go through here: override it where the plain model is not what is trained.
        """
        logits: Tensor = prepared.model(input_ids=ids, use_cache=False).logits
        return logits

    def packed_logits(self, prepared: TrainedPrepared, ids: Tensor, positions: Tensor) -> Tensor:
        """The same for rows of several texts, none of which attends to another.

        The library sees from positions that begin anew where a text begins, and masks what came before.

        Args:
            positions: place of each token within its own text, `(batch, seq)`.

        Raises:
            Unsupported: the technique's own `logits` knows nothing of packed rows.
        """
        if self.own_forward:
            raise Unsupported(f"{type(self).__name__} has no forward pass for packed texts: set packing=false")
        logits: Tensor = prepared.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits

    def batch_loss(self, prepared: TrainedPrepared, batch: TextBatch) -> Tensor:
        """Mean negative log-likelihood per target, `()`."""
        if batch.positions is None:
            logits = self.logits(prepared, batch.ids)
        else:
            logits = self.packed_logits(prepared, batch.ids, batch.positions)
        # the labels are shifted, not the logits: a slice of those would be copied, and nothing is larger
        targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def score(self, prepared: TrainedPrepared, ids: Tensor) -> Scores:
        """Score the texts `ids` (batch, seq), a few rows at a time so that their logits stay small."""
        config: Any = prepared.model.config
        vocabulary: int = config.get_text_config(decoder=True).vocab_size
        rows = max(1, SCORED_LOGITS // (ids.shape[1] * vocabulary))
        parts = [self._score(prepared, part) for part in ids.split(rows)]
        return Scores(torch.cat([part.logprobs for part in parts]), torch.cat([part.hits for part in parts]))

    def _score(self, prepared: TrainedPrepared, ids: Tensor) -> Scores:
        with prepared.precision():
            logits = self.logits(prepared, ids)[:, :-1].float()
        targets = ids[:, 1:, None]
        logprobs = logits.log_softmax(-1).gather(-1, targets)
        return Scores(logprobs[..., 0], logits.argmax(-1) == targets[..., 0])

    def logprobs(self, prepared: TrainedPrepared, ids: Tensor) -> Tensor:
        """Log-probabilities `(batch, seq - 1)` of the tokens of `ids` (batch, seq) behind the first."""
        return self.score(prepared, ids).logprobs

    @torch.no_grad()
    def answers(
        self, prepared: TrainedPrepared, prompts: Sequence[Sequence[int]], new_tokens: int, end: int | None
    ) -> list[list[int]]:
        """Greedy continuations of prompts, without their end-of-text id.

        Args:
            new_tokens: at most, of each [tokens].
            end: the end-of-text id; None: all are of full length.
        """
        groups: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            # a forward pass of one's own may know nothing of padding: then prompts of one length go together
            groups.setdefault(len(prompt) if self.own_forward else 0, []).append(number)
        found: dict[int, list[int]] = {}
        for numbers in groups.values():
            rows = self._continued(prepared, [prompts[number] for number in numbers], new_tokens, end)
            found |= dict(zip(numbers, rows, strict=True))
        return [found[number] for number in range(len(prompts))]

    @property
    def own_forward(self) -> bool:
        """Whether `logits` are not simply the model's, and may know nothing of padded or packed rows."""
        return type(self).logits is not Finetuning.logits

    def _continued(
        self, prepared: TrainedPrepared, prompts: Sequence[Sequence[int]], new_tokens: int, end: int | None
    ) -> list[list[int]]:
        from transformers import GenerationConfig

        device = next(prepared.model.parameters()).device
        width = max(map(len, prompts))
        # padded left, so that all continuations begin at one column
        ids = torch.tensor([[PAD] * (width - len(prompt)) + [*prompt] for prompt in prompts], device=device)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        config = GenerationConfig(
            max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=PAD, do_sample=False, repetition_penalty=1.0
        )
        model: Any = prepared.model
        if end is None:  # else the library takes the model's own
            model.generation_config.eos_token_id = None
        with prepared.precision():
            out = model.generate(input_ids=ids, attention_mask=attention, generation_config=config)
        rows: list[list[int]] = out[:, width:].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]
