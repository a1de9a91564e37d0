"""DPO: pairs of completions train the policy directly, without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from bench.claim import Claim, above, below
from bench.errors import Unsupported
from bench.families.completions import completion_logprobs
from bench.families.preference import PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.preference.core import losses
from techniques.preference.core.policy import ReferredTechnique, reference_model

Loss = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge", "sppo", "apo_zero", "apo_down", "discopop"]
NOISY = ("cdpo", "robust")
"""Losses that know of wrong labels."""


@register
class Dpo(ReferredTechnique):
    """Raise the chosen completion's log-ratio to the reference above the rejected one's.

    Differs from the paper: low-rank adapters are trained unless `policy` says otherwise, so that the reference can be
    the same network with its adapters off; AdamW instead of RMSprop; the learning rate is an adapter's.
    """

    source: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, eq. 7"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="frontier_above_preferred_ft",
            headline="DPO gets more reward than imitation at the same KL divergence.",
            statement="At the same KL divergence, more reward than finetuning on the chosen texts.",
            source="Rafailov et al. 2023, Direct Preference Optimization, the experiment on controlled sentiment",
            expression="reward_at_kl(dpo) - reward_at_kl(sft_on_chosen)",
            expected=above(0.0),
            conditions={"model": "*gpt2-large*", "workload": "imdb*"},
            out_of_reach="the paper's reviews and classifier are no workload of this program",
            free=("learning_rate", "warmup_steps", "beta", "reference"),
            workload={"name": "controlled_sentiment", "steps": 32, "pairs": 256},
        ),
        Claim(
            name="frontier_above_ppo",
            headline="DPO gets more reward than PPO at the same KL divergence.",
            statement="Controls the sentiment of generations better than RLHF with PPO.",
            source="Rafailov et al. 2023, Direct Preference Optimization, abstract",
            expression="reward_at_kl(dpo) - reward_at_kl(ppo)",
            expected=above(0.0),
            conditions={"model": "*gpt2-large*", "workload": "imdb*"},
            out_of_reach="the paper's reviews and classifier are no workload of this program",
            free=("learning_rate", "warmup_steps", "beta", "reference"),
            workload={"name": "controlled_sentiment", "steps": 32, "pairs": 256},
        ),
        Claim(
            name="less_work_than_ppo",
            statement="Lightweight, without sampling while it trains: a step takes less than one of PPO.",
            source="Rafailov et al. 2023, Direct Preference Optimization, abstract",
            expression="time_per_step(ppo) / time_per_step(dpo)",
            expected=above(1.0),
            conditions={"model": "*gpt2-large*", "workload": "imdb*"},
            out_of_reach="the paper's reviews and classifier are no workload of this program",
            free=("learning_rate", "warmup_steps", "beta"),
            workload={"name": "controlled_sentiment", "steps": 32, "pairs": 256},
        ),
        Claim(
            name="robust_to_wrong_labels",
            statement="The robust loss stands wrong labels that DPO does not: where some are, it gets more reward.",
            source="Chowdhury et al. 2024, Provably Robust DPO, abstract (sentiment generation; the rate is ours)",
            expression="reward_at_kl(robust[label_smoothing=0.3]) - reward_at_kl(dpo)",
            expected=above(0.0),
            conditions={"workload": "imdb*"},
            needs={"workload.noise": ">=0.3"},
            out_of_reach="the paper's reviews and classifier are no workload of this program",
            free=("learning_rate", "beta", "reference"),
            workload={"name": "controlled_sentiment", "steps": 32, "pairs": 256, "noise": 0.3},
        ),
        Claim(
            name="robust_near_the_optimum",
            headline="With 3 labels in 10 wrong, the robust loss ends nearer to the best policy than DPO.",
            statement="Where labels are wrong, the robust loss ends nearer to the policy that is known to be best.",
            source="Chowdhury et al. 2024, Provably Robust DPO, abstract (sub-optimality gap; world and rate are ours)",
            expression="optimum_gap(robust[label_smoothing=0.3]) - optimum_gap(dpo)",
            expected=below(0.0),
            conditions={"workload": "imdb*"},
            needs={"workload.noise": ">=0.3"},
            out_of_reach="the paper's reviews and classifier are no workload of this program",
            free=("learning_rate", "warmup_steps", "reference"),
            workload={"name": "tabular_world", "steps": 40, "batch_size": 8, "pairs": 320, "noise": 0.3},
        ),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cdpo": {"loss": "cdpo", "label_smoothing": 0.1},
        "robust": {"loss": "robust", "label_smoothing": 0.1},
        "ipo": {"loss": "ipo"},
        "hinge": {"loss": "hinge"},
        "sppo": {"loss": "sppo"},
        "apo_zero": {"loss": "apo_zero"},
        "apo_down": {"loss": "apo_down"},
        "discopop": {"loss": "discopop"},
        "rpo": {"nll_weight": 1.0},
    }

    loss: Loss = "sigmoid"
    """`sigmoid` is the paper's; the others put another function on the same two log-ratios (core/losses.py)."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; the paper's default."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of labels that are taken to be wrong, for `cdpo` and `robust`; 0 makes them `sigmoid`."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Of the chosen completion's negative log-likelihood per token, added to the loss (Pang et al. 2024, RPO): a mean
    over pairs, where TRL's `sft` is one over the tokens of the batch."""
    reference: Literal["adapters_off", "copy", "precomputed", "model"] = "adapters_off"
    """`adapters_off`: no memory of its own; `copy`: a second frozen network, as the paper's code has it;
    `precomputed`: two numbers a pair, made before the first step; `model`: another network, the run's
    `reference`, which the loss alone knows: margins and divergences are from the policy's start, as those of all."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.refuse_unfit(self.reference)
        if self.label_smoothing and self.loss not in NOISY:
            raise ValueError(f"label_smoothing is for {' and '.join(NOISY)}; {self.loss} does not read it")
        return self

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.start(sources, self.reference)

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        """Loss `()` of a batch that knows the log-probabilities under the technique's reference (`referred`)."""
        assert batch.held_to is not None
        policy = completion_logprobs(prepared.model, batch.texts)
        chosen, rejected = (policy - batch.held_to).chunk(2)
        loss = self._of_ratios(chosen, rejected)
        if self.nll_weight:
            loss = loss - self.nll_weight * policy[: batch.pairs] / batch.texts.tokens[: batch.pairs]
        return loss.mean()

    @property
    def reference_known(self) -> bool:
        return self.reference == "precomputed"

    @property
    def train_work(self) -> float:
        return super().train_work + (0 if self.reference == "precomputed" else 2 / 6)

    def forward_texts(self, batch: PreferenceBatch) -> int:
        return 2 * batch.pairs * (1 if self.reference == "precomputed" else 2)

    def _of_ratios(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Loss `(pairs,)` of the log-ratios `(pairs,)`."""
        function: Any = getattr(losses, self.loss)
        noise = (self.label_smoothing,) if self.loss in NOISY else ()
        loss: Tensor = function(chosen, rejected, self.beta, *noise)
        return loss

    def referred(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> PreferenceBatch:
        """The batch with the log-probability of each completion under the technique's reference.

        Raises:
            Unsupported: it is to be computed before, and was not.
        """
        if self.reference == "precomputed":
            if batch.reference is None:
                raise Unsupported("reference=precomputed: these pairs come without the reference's log-probabilities")
            return replace(batch, held_to=batch.reference)
        with reference_model(prepared) as model:
            return replace(batch, held_to=completion_logprobs(model, batch.texts))
