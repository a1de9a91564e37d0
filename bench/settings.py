"""What holds for a whole experiment, as the top of a config says it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench import model_names
from bench.stats import LOOKED_AT

NAME = re.compile(r"[a-z0-9_-]+")
MOST_BURSTS = 100
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str | float) -> float:
    """`90`, `90s`, `20m`, `1.5h` -> seconds.

    Raises:
        ValueError: it is no duration, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no duration; allowed: 90s, 20m, 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


class Settings(BaseModel):
    """What holds for a whole experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=f"^{NAME.pattern}$")
    """Names the folder of the results."""
    description: str = ""
    """One sentence for the report's head."""
    model: str = "smollm2-135m"
    """The target: smollm2-135m, tiny:*, synthetic:*, a hub id or ID@REVISION, a folder."""
    draft: str | None = None
    """The draft of speculative techniques; the embedded model brings its own."""
    reference: str | None = None
    """What `dpo` with reference=model is held to, in place of the policy's own start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and computation; auto: bfloat16 where the device computes in it, else float32."""
    replicates: int = Field(default=5, ge=1, le=100)
    """Processes per arm that time it; a verdict needs 5, a publishable one 10."""
    extend: bool = False
    """Go on to 10 and 20 replicates while a verdict on time or memory is open; intervals are 98 % ones then."""
    bursts: int = Field(default=2, ge=1, le=MOST_BURSTS)
    """Timed bursts per process, in turn with the other arms'; the shorter and the more, the more noise they share."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """One full training run per seed."""
    max_time: float = Field(default=1200.0, gt=0)
    """A plan beyond it is refused; a run that reaches it ends its cells as skipped [s]."""
    cell_timeout: float = Field(default=900.0, gt=0)
    """One command to one worker may take this long [s]."""
    inline: bool = False
    """All arms of a family in one process: quick, and never publishable."""
    quick: bool = False
    """Smallest sizes, one replicate, inline: shows that it runs, stamped so."""
    profile: bool = False
    """Also time the phases inside a step."""

    def helpers_of(self, target: str) -> dict[str, str]:
        """Role -> helper network: those that the run names, and the draft that comes with the target."""
        named = {"draft": self.draft or model_names.draft_of(target), "reference": self.reference}
        return {role: name for role, name in named.items() if name}

    @property
    def looks(self) -> tuple[int, ...]:
        """Replicates after which the run looks whether all is settled."""
        return LOOKED_AT if self.extend else ()

    @property
    def rounds(self) -> int:
        """Replicates at most."""
        return max(self.looks, default=self.replicates)

    @field_validator("max_time", "cell_timeout", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return seconds(value)

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value
