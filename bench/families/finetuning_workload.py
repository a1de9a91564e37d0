"""What finetuning workloads share: texts become batches, and a trained model is scored along the way."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import Unsupported
from bench.families import repeated_data
from bench.families.finetuning import Finetuning, FinetuningJob
from bench.families.texts import IGNORED, Text, collate
from bench.families.training import TrainedPrepared, TrainingWorkload, frozen, order, training_gates
from bench.models import Source, Sources
from bench.technique import Prepared, Technique
from bench.workload import Built, Gate, Quality, Work

COMPARED_PLACES = 16
"""Places of a text at which whole distributions are compared: each holds as many numbers as the vocabulary has."""


class Scored(NamedTuple):
    """What a model makes of texts, one number per text."""

    nll: list[float]
    """Mean negative log-likelihood of the learnt tokens [nat/token]."""
    hits: list[float]
    """Share of the learnt tokens that are the model's first choice."""


class FinetuningWorkload(TrainingWorkload):
    """Base of the finetuning workloads.

    `build` gives lists of texts: `train`, `heldout` and, if wanted, `other`, of another domain, where forgetting shows.
    Where several texts share a row of a batch, `rows` lists their numbers. `notes` goes into every record.
    """

    family: ClassVar[str] = "finetuning"
    smallest: ClassVar[Mapping[str, int]] = {
        "batch_size": 2,
        "sequence": 32,
        "steps": 3,
        "items": 4,
        "other_items": 2,
        "looks": 2,
    }

    sequence: int = Field(default=128, ge=2, le=65536)
    """Length of every training and held-out sequence, or their longest [tokens]."""
    looks: int = Field(default=4, ge=1)
    """How often held-out texts are scored during the training, evenly, the last time at its end."""
    other_items: int = Field(default=8, ge=0)
    """Sequences of another domain, scored before and after the training for what was forgotten; 0: none."""

    @property
    def row_tokens(self) -> int:
        """About how long a row of a batch is, for the plan [tokens]."""
        return self.sequence

    def check_context(self, source: Source, new_tokens: int = 0) -> None:
        """Raises Unsupported where the model cannot read a whole sequence, and write `new_tokens` behind it."""
        context = getattr(source.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if context is not None and self.sequence + new_tokens > context:
            asked = f"sequence={self.sequence}" + (f" with new_tokens={new_tokens}" if new_tokens else "")
            raise Unsupported(
                f"{asked} exceeds the context of {source.name}, {context} tokens; "
                f"set sequence={context - new_tokens} or less"
            )

    def job(self, built: Built, first: int, count: int, seed: int, device: str) -> FinetuningJob:
        train, rows = built["train"], self.rows(built)
        packed = "rows" in built
        batches = tuple(
            collate([[train[text] for text in rows[row]] for row in chosen], device, self.sequence if packed else 0)
            for chosen in order(len(rows), self.batch_size, seed, first, count)
        )
        return FinetuningJob(batches=batches, first_step=first, seed=seed)

    def rows(self, built: Built) -> list[list[int]]:
        """Numbers of the training texts in each row that a batch can have."""
        return built.get("rows") or [[number] for number in range(len(built["train"]))]

    def work(self) -> tuple[Work, Work, Work]:
        step = Work(train=self.batch_size * self.row_tokens)
        scored = Work(prefill=((self.looks + 2) * self.items + 5 * self.other_items) * self.row_tokens)
        return Work(), step.times(self.burst_steps), step.times(self.steps) + scored

    def score(self, technique: Finetuning, prepared: TrainedPrepared, texts: Sequence[Text], device: str) -> Scored:
        """Score texts one by one; padding and prompts count for nothing."""
        nll: list[float] = []
        hits: list[float] = []
        for first in range(0, len(texts), self.batch_size):
            batch = collate([[text] for text in texts[first : first + self.batch_size]], device)
            scores = technique.score(prepared, batch.ids)
            learnt = batch.labels[:, 1:] != IGNORED
            count = learnt.sum(-1)
            nll += (-scores.logprobs.masked_fill(~learnt, 0.0).sum(-1) / count).tolist()
            hits += ((scores.hits & learnt).sum(-1) / count).tolist()
        return Scored(nll, hits)

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        """Held-out likelihood before, during and after the whole training on the seed's order; forgetting beside it.

        At the end adapters are merged: what the model is behind that is scored too. Then the model is let go of, and
        what was trained is loaded into a new one: `prepared` is used up.

        Raises:
            Diverged: a loss is not finite.
        """
        assert isinstance(technique, Finetuning)
        assert isinstance(prepared, TrainedPrepared)
        heldout: list[Text] = built["heldout"]
        other: list[Text] = built.get("other", [])
        scored = self.score(technique, prepared, heldout, source.device)
        curve = [[0.0, mean(scored.nll)]]
        others = self.score(technique, prepared, other, source.device)
        starts = distributions(technique, prepared, other, source.device)
        gates = [keeps_apart(technique, prepared, [heldout[0], heldout[-1]], source)] if "rows" in built else []
        bits = frozen(prepared)
        due = {round(self.steps * part / self.looks) for part in range(1, self.looks + 1)} - {0}

        def watch(step: int, share: float) -> None:
            nonlocal scored
            if step in due:
                # training goes on as if nobody had looked
                prepared.model.eval()
                scored = self.score(technique, prepared, heldout, source.device)
                prepared.model.train(technique.train_mode)
                curve.append([float(step), mean(scored.nll)])

        course = self.train(technique, prepared, built, seed, watch)
        epochs = self.steps * self.batch_size / len(self.rows(built))
        quality = Quality(
            metrics={"nll": scored.nll, "next_token_accuracy": scored.hits},
            curves={"loss": [[float(step), loss] for step, loss in enumerate(course.losses)], "heldout_nll": curve},
            counts={
                "nll_before": curve[0][1],
                "trained_weights": float(sum(p.numel() for p in prepared.trainable)),
                "steps": float(self.steps),
                "epochs": epochs,
                "epochs_worth": repeated_data.worth(epochs),
                "bits_per_parameter": bits_per_parameter(prepared),
                **prepared.facts,
            },
            gates=[*gates, *training_gates(bits, frozen(prepared), scored.nll)],
            notes={**built.get("notes", {}), **repeated_data.notes(epochs)},
            train_seconds=course.seconds,
        )
        ends: list[Tensor] = []
        if other:
            quality.counts["other_nll_before"] = mean(others.nll)
            quality.metrics["other_nll"] = self.score(technique, prepared, other, source.device).nll
            ends = distributions(technique, prepared, other, source.device)
            quality.metrics["drift"] = [divergence(a, b) for a, b in zip(starts, ends, strict=True)]
        quality.counts |= built.get("counts", {})
        self.ask(technique, prepared, built, source, quality)
        if self.steps and prepared.is_adapted:
            saved = trained_file(prepared)
            quality.metrics["adapter_bytes"] = [float(len(saved))]
            (trained,) = distributions(technique, prepared, heldout[:1], source.device)
            if prepared.merge is not None:
                prepared.merge()
                quality.metrics["merged_nll"] = self.score(technique, prepared, heldout, source.device).nll
                merged = distributions(technique, prepared, other, source.device)
                quality.metrics["merge_divergence"] = [divergence(a, b) for a, b in zip(ends, merged, strict=True)]
            if not prepared.helpers:  # else only the run knows what the technique was made of
                let_go(prepared)
                quality.gates.append(loads_again(technique, saved, heldout[0], trained, source, seed))
        return quality

    def ask(
        self, technique: Finetuning, prepared: TrainedPrepared, built: Built, source: Source, quality: Quality
    ) -> None:
        """Add to `quality` what else the trained model is asked, before its adapters are merged; nothing by default."""


def bits_per_parameter(prepared: TrainedPrepared) -> float:
    """Bits of storage per weight of the model without its adapters; a technique that quantises says its own."""
    adapted = prepared.is_adapted
    own = [p for p in prepared.model.parameters() if not (adapted and p.requires_grad)]
    return 8 * sum(p.nbytes for p in own) / sum(p.numel() for p in own)


def trained_file(prepared: TrainedPrepared) -> bytes:
    """What was trained, as the bytes of a safetensors file."""
    return safetensors.torch.save(
        {name: p.detach().contiguous() for name, p in prepared.model.named_parameters() if p.requires_grad}
    )


def let_go(prepared: TrainedPrepared) -> None:
    """Free the model's memory, though others hold `prepared`: two models may be more than a device has."""
    prepared.close()
    prepared.model = nn.Module()
    gc.collect()


@torch.no_grad()
def loads_again(technique: Finetuning, saved: bytes, text: Text, trained: Tensor, source: Source, seed: int) -> Gate:
    """Whether a new model computes what the trained one did, once the file is loaded.

    Args:
        saved: the safetensors file.
        text: what the trained model has read.
        trained: its `distributions` of the text, `(places, vocabulary)`.
        seed: of the run: what a technique draws to change frozen weights must be drawn again.
    """
    torch.manual_seed(seed)
    new = technique.prepare(Sources(source, seed=seed))
    new.model.eval()
    (before,) = distributions(technique, new, [text], source.device)
    loaded = safetensors.torch.load(saved)
    places = {name: p for name, p in new.model.named_parameters() if p.requires_grad}
    for name in loaded.keys() & places.keys():
        places[name].copy_(loaded[name])
    (after,) = distributions(technique, new, [text], source.device)
    let_go(new)
    apart, without = float((after - trained).abs().max()), float((before - trained).abs().max())
    # the same kernels on the same bits; a GPU may add them up in another order
    allowed = 0.0 if source.device == "cpu" else 16 * torch.finfo(source.torch_dtype).eps
    detail = (
        f"saved, and loaded into a model built anew, log-likelihoods are {apart:.2g} nat from what they were "
        f"({without:.2g} before loading), {allowed:.2g} allowed"
    )
    return Gate("saved", apart <= allowed and loaded.keys() == places.keys(), detail)


@torch.no_grad()
def distributions(technique: Finetuning, prepared: TrainedPrepared, texts: Sequence[Text], device: str) -> list[Tensor]:
    """Log-probabilities of the next token at a few places of each text, spread evenly: `(places, vocabulary)`."""
    found = []
    for text in texts:
        count = len(text["ids"])
        places = torch.linspace(0, count - 1, min(COMPARED_PLACES, count), device=device).round().long()
        with prepared.precision():
            logits = technique.logits(prepared, torch.tensor([text["ids"]], device=device))[0, places]
        found.append(logits.float().log_softmax(-1))
    return found


@torch.no_grad()
def keeps_apart(technique: Finetuning, prepared: TrainedPrepared, texts: Sequence[Text], source: Source) -> Gate:
    """Whether the last of some texts in one row is read as if it stood alone.

    A model that does not see from its positions where a text begins would learn from its neighbours.

    Raises:
        Unsupported: the technique's forward pass knows nothing of packed rows.
    """
    batch = collate([texts], source.device)
    start = sum(len(text["ids"]) for text in texts[:-1])
    assert batch.positions is not None
    with prepared.precision():
        together = technique.packed_logits(prepared, batch.ids, batch.positions)[0, start:].float()
        alone = technique.logits(prepared, batch.ids[:, start:])[0].float()
    ids = batch.ids[0, start + 1 :, None]
    scores = [logits[:-1].log_softmax(-1).gather(-1, ids) for logits in (together, alone)]
    apart = float((scores[0] - scores[1]).abs().mean())
    # what the rounding of one dtype may do; a text that is seen moves a likelihood by far more
    allowed = max(16 * torch.finfo(source.torch_dtype).eps, 1e-4)
    detail = f"a text behind another is {apart:.2g} nat per token from what it is alone, {allowed:.2g} allowed"
    return Gate("packing", apart <= allowed, detail)


def divergence(start: Tensor, end: Tensor) -> float:
    """KL(start || end) of the next token, mean over places [nat/token].

    Args:
        start: log-probabilities `(places, vocabulary)`.
        end: the same of another model.
    """
    apart = functional.kl_div(end, start, reduction="none", log_target=True).sum(-1)
    return float(apart.mean().clamp(min=0.0))  # rounding may leave it a little below


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
