"""A workload is a question put to one family: data, prompts, quality metrics.

`build` makes what all arms share once per run, in a process of its own; the result is plain data, hashed by its
content. From it every worker takes the same jobs.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from bench.models import Source, Sources
    from bench.technique import Axis, Job, Prepared, Technique

Built = dict[str, Any]
"""What `build` made: JSON data only."""


def content_hash(data: Any) -> str:
    """sha256 of JSON data, independent of the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Gate:
    """A check of correctness: the arm is INVALID where it fails."""

    name: str
    passed: bool
    detail: str


@dataclass
class Quality:
    """What the quality pass found out about one arm."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> one value per item, the same items in the same order for every arm."""
    outputs: list[list[int]] = field(default_factory=list)
    """Emitted ids per prompt, for families that generate."""
    texts: list[dict[str, str]] = field(default_factory=list)
    """A few samples to read: prompt and output."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Name -> points (x, y): a loss over steps."""
    half_widths: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Curve -> half the 95 % interval of each point over the items, (x, y); none where it is not known."""
    counts: dict[str, float] = field(default_factory=dict)
    """Totals of what the steps counted: drafted, accepted, kept ..."""
    gates: list[Gate] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """What the reader is to know of the items, as what was cut or left out, and what to do about it. A note that names
    a metric says that its figure stands for something else: no claim is decided by it."""

    train_seconds: float | None = None
    """That the training's steps took, without what was scored between them; None where nothing was trained [s]."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """The size of one piece of work, for the plan's arithmetic [tokens]."""

    prefill: int = 0
    """Tokens read in parallel, forward only."""
    decode: int = 0
    """Tokens emitted one after the other."""
    train: int = 0
    """Tokens trained on: forward, backward, update."""

    def __add__(self, other: Work) -> Work:
        return Work(self.prefill + other.prefill, self.decode + other.decode, self.train + other.train)

    def times(self, count: int) -> Work:
        return Work(self.prefill * count, self.decode * count, self.train * count)


class Workload(BaseModel, ABC):
    """Base of all workloads: the parameters are its fields, frozen and checked.

    Never derived from directly: a workload derives from its family's class in `bench.families`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    family: ClassVar[str]
    """Name of the family, set by the family's class."""
    source: ClassVar[str] = ""
    """Where the data comes from, with its licence."""
    primary: ClassVar[Mapping[Axis, str]] = {}
    """The metric that is judged instead of the family's, on the axes named."""
    trains: ClassVar[bool] = True
    """Whether techniques that train are trained before they are scored."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name -> parameters: variants that only set parameters."""
    smallest: ClassVar[Mapping[str, int]] = {}
    """Field -> the value that a quick run does not exceed."""

    @property
    def label(self) -> str:
        """What stands beside the labels of an arm, since it decides what they mean for its figures; '' for most."""
        return ""

    def quick(self) -> Self:
        """The same workload at its smallest."""
        smaller = {field: min(getattr(self, field), bound) for field, bound in self.smallest.items()}
        return type(self)(**{**self.model_dump(), **smaller})

    def check(self) -> None:
        """Read the user's data file, if there is one, before anything is started.

        Raises:
            UsageError: it is missing, empty or malformed (with the line).
        """

    @abstractmethod
    def build(self, sources: Sources, seed: int) -> Built:
        """Make what all arms share: token ids of prompts, texts, pairs. JSON data only.

        Raises:
            UsageError: a data file is missing, empty or malformed (with the line).
            Unsupported: the model cannot be asked this.
        """

    def fitted(self, technique: Technique, prepared: Prepared, built: Built) -> Built:
        """What was built, as one arm gets it: with what its own network alone can say of the inputs. Not timed."""
        return built

    @abstractmethod
    def burst(self, built: Built, index: int, seed: int, device: str) -> Job:
        """The timed job number `index`: the same for all arms, another one for every index."""

    def groups(self, built: Built, index: int) -> list[str]:
        """What kind each prompt of a timed job is of, where the report tells kinds apart; none by default."""
        return []

    @abstractmethod
    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        """Score the arm on the workload's items and run the family's gates.

        `reference` is the baseline's result, None for the baseline itself.
        """

    @abstractmethod
    def work(self) -> tuple[Work, Work, Work]:
        """Sizes of `build`, of one burst and of the quality pass, for the plan."""

    def train_work(self, technique: Technique, baseline: Technique) -> float:
        """What the technique's training takes beside a full one of as many steps, for the plan."""
        return technique.train_work

    def timed_work(self) -> Work:
        """Size of a burst behind the warm-up, where it is less than the first one's."""
        return self.work()[1]
