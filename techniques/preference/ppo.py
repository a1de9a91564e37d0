"""PPO: the policy writes, a reward judges, and the policy moves a clipped step; what DPO's paper argues against."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.errors import Unsupported
from bench.families.completions import Completions, completion_logits, laid_out
from bench.families.preference import PreferenceBatch, PreferenceJob
from bench.families.rollout import Rollout, permitted, scored
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from bench.technique import Phase, Step
from techniques.preference.core import advantages as ppo
from techniques.preference.core.policy import Held, PolicyTechnique, reference_model


@dataclass
class State:
    """What goes on from batch to batch."""

    decode: Callable[[list[int]], str]
    beta: Tensor
    """Weight of the KL divergence, `()`."""


@dataclass(frozen=True)
class Experience:
    """Completions of one batch, and what was known of them when they were written; `(rows, completion)` each."""

    texts: Completions
    banned: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    tokens: int


@register
class Ppo(PolicyTechnique):
    """Write completions, score them, and take several clipped steps on the same batch.

    A value head on the policy's last hidden state says what a token is expected to bring; the KL divergence from the
    reference is taken off the reward token by token, with a weight that follows a target. The pairs lend their prompts
    only. A step is one batch: generation, scoring and all epochs.

    Differs from the paper of PPO: one sequence of actions ends with each completion, rewards are not discounted, and
    one network with two heads is trained, as for language models since Ziegler et al. 2019.
    """

    writes: ClassVar[bool] = True
    source: ClassVar[str] = "Schulman et al. 2017, PPO, eq. 7; Ziegler et al. 2019 (KL divergence, adaptive weight)"

    learning_rate: float = Field(default=3e-4, gt=0)
    """An adapter's. Found on controlled sentiment with the numbers of completions and epochs below."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the KL divergence from the reference before the first batch."""
    reference: Held = "adapters_off"
    """`adapters_off`: no memory of its own; `copy`: a second frozen network."""
    completions: int = Field(default=1, ge=1)
    """Of each prompt in a batch; 2 are as many texts as the pairs have."""
    epochs: int = Field(default=2, ge=1)
    """Steps of the optimizer on one batch."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability ratio is followed."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far a value is followed in one batch."""
    value_weight: float = Field(default=0.1, ge=0)
    """Of the values' loss."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Gamma, per token."""
    decay: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the generalised advantages."""
    kl_target: float = Field(default=3.0, gt=0)
    """Divergence of a completion that the weight aims for [nat]."""
    kl_gain: float = Field(default=0.1, ge=0)
    """How fast the weight follows, per batch; 0 leaves it as it is."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.refuse_unfit(self.reference)
        return self

    @property
    def train_work(self) -> float:
        """Writing a text token by token takes about three forward passes over it, judging it two, then the epochs."""
        return self.completions / 2 * (5 * 2 / 6 + self.epochs * super().train_work)

    def prepare(self, sources: Sources) -> TrainedPrepared:
        prepared = self.start(sources, self.reference)
        model: Any = prepared.model
        head = nn.Linear(model.config.get_text_config(decoder=True).hidden_size, 1).to(sources.target.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        model.add_module("value_head", head)
        prepared = self.trained(model, prepared.helpers, prepared.compute_dtype)
        decode = sources.target.tokenizer.decode
        prepared.state = State(
            lambda ids: str(decode(ids, skip_special_tokens=True)), torch.tensor(self.beta, device=head.weight.device)
        )
        return prepared

    def steps(self, prepared: TrainedPrepared, job: PreferenceJob) -> Generator[Step]:
        if job.rollout is None:
            raise Unsupported("it writes completions of its own: use a workload with a reward, as controlled_sentiment")
        trained = prepared.trainable
        for step, batch in enumerate(job.batches, start=job.first_step):
            generator = torch.Generator(job.rollout.banned.device).manual_seed(job.seed * 1_000_003 + step)
            experience = self.experience(prepared, batch, job.rollout, generator, job.phase)
            losses = [
                self.update(prepared, trained, experience, self.rate(step), job.phase) for _ in range(self.epochs)
            ]
            rows = len(experience.texts.ids)
            # under the old policy, the reference, and the policy once an epoch
            counts = {"forward_texts": rows * (2 + self.epochs), "generated_tokens": experience.tokens}
            yield Step("train", experience.tokens, (torch.stack(losses).mean(),), counts)

    @torch.no_grad()
    def experience(
        self,
        prepared: TrainedPrepared,
        batch: PreferenceBatch,
        rollout: Rollout,
        generator: torch.Generator,
        phase: Phase,
    ) -> Experience:
        """Write completions of a batch's prompts and judge them; the weight of the divergence then follows it."""
        state: State = prepared.state
        prompts = [prompt for prompt in batch.prompts for _ in range(self.completions)]
        with phase("rollout"):
            written = self.generate(prepared, prompts, rollout, generator)
        with phase("reward"):
            rewarded = scored(rollout, list(map(state.decode, written)), list(map(state.decode, prompts)))
            scores = torch.tensor(rewarded, device=state.beta.device)
        texts = laid_out(prompts, written, str(rollout.banned.device))
        with phase("old policy"), prepared.precision():
            logprobs, values = read(prepared.model, texts, rollout.banned)
        with phase("reference"), prepared.precision(), reference_model(prepared) as model:
            reference = picked(completion_logits(model, texts), texts, rollout.banned)
        mask = texts.completion
        rewards = ppo.token_rewards(scores, logprobs, reference, mask, state.beta)
        gained, returns = ppo.generalised_advantages(rewards, values, mask, self.discount, self.decay)
        divergence = (logprobs - reference).masked_fill(~mask, 0.0).sum(-1).mean()
        prepared.state = replace(state, beta=ppo.adapted(state.beta, divergence, self.kl_target, self.kl_gain))
        tokens = sum(map(len, written))
        return Experience(texts, rollout.banned, logprobs, values, ppo.whitened(gained, mask), returns, tokens)

    def batch_loss(self, prepared: TrainedPrepared, batch: Experience) -> Tensor:
        logprobs, values = read(prepared.model, batch.texts, batch.banned)
        mask = batch.texts.completion
        moved = ppo.clipped_objective(logprobs, batch.logprobs, batch.advantages, mask, self.clip)
        missed = ppo.clipped_values(values, batch.values, batch.returns, mask, self.value_clip)
        return moved + self.value_weight * missed


def read(model: nn.Module, texts: Completions, banned: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token drawn, and the value before it, `(rows, completion)` each, float32."""
    hidden: list[Tensor] = []
    network: Any = model
    # what the output head reads is what the value head reads: (rows, completion, hidden)
    hook = network.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: hidden.append(inputs[0]))
    try:
        logits = completion_logits(model, texts)
    finally:
        hook.remove()
    values = network.value_head(hidden[0].float())[..., 0]
    return picked(logits, texts, banned), values.float()


def picked(logits: Tensor, texts: Completions, banned: Tensor) -> Tensor:
    """Log-probabilities `(rows, completion)` of the tokens, as they were drawn: without the banned ids."""
    targets = texts.ids[:, -texts.completion.shape[1] :].masked_fill(~texts.completion, 0)[..., None]
    # padding may be a banned id, whose log-probability is no number to compute with
    found = permitted(logits, banned).gather(-1, targets)[..., 0]
    return found.masked_fill(~texts.completion, 0.0)
