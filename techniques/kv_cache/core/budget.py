"""How much a cache may hold: the parameters that all policies share, by the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from techniques.kv_cache.core.rows import RowByRow


class Budgeted(RowByRow):
    """Base of the techniques that hold a share of the tokens, or a number of them."""

    sizes: ClassVar[tuple[str, ...]] = ("ratio", "budget")
    """The fields that say how much is held: one of them is given."""

    ratio: float | None = Field(default=0.25, gt=0.0, le=1.0)
    """Share of context and new tokens that is held at most, the mean over heads and layers; or give `budget`."""
    budget: int | None = Field(default=None, ge=1)
    """Tokens held at most, the mean over heads and layers; or give `ratio` [tokens]."""

    @model_validator(mode="before")
    @classmethod
    def _another_size_instead(cls, data: Any) -> Any:
        usual = next(name for name in cls.sizes if cls.model_fields[name].default is not None)
        if isinstance(data, Mapping) and usual not in data and any(data.get(n) is not None for n in cls.sizes):
            return {**data, usual: None}
        return data

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = {name: getattr(self, name) for name in self.sizes}
        if sum(value is not None for value in given.values()) != 1:
            here = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"give one of {', '.join(self.sizes)}; here {here}")
        return self

    def size(self, tokens: int) -> int:
        """Tokens held at most of so many."""
        if self.ratio is not None:
            return round(self.ratio * tokens)
        assert self.budget is not None
        return min(self.budget, tokens)
