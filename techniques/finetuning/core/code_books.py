"""Code books: the values that 4 and 8 bits can stand for, all in [-1, 1]."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from torch import Tensor

QuantType = Literal["nf4", "fp4", "int4"]
QUANT_TYPES: tuple[QuantType, ...] = get_args(QuantType)

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NormalFloat (Dettmers et al. 2023, appendix E): `normal_float()` in the rounding that every checkpoint uses."""

OFFSET = 1 - (1 / 32 + 1 / 30) / 2
"""Outermost probability of NormalFloat: halfway between those of 16 and of 15 even bins. 0.9677083 in its code."""


def normal_float() -> Tensor:
    """The 16 values of NF4 from their definition, `(16,)`, float64.

    Quantiles of N(0, 1) at even probabilities, 7 of the negative side, 8 of the positive one and an exact zero,
    divided by the largest (Dettmers et al. 2023, section 3).

    Differs from the paper: eq. 4 taken literally asks for the quantile of probability 0, which is infinite; its code
    starts at `OFFSET` instead.
    """
    negative = torch.special.ndtri(torch.linspace(1 - OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    positive = torch.special.ndtri(torch.linspace(0.5, OFFSET, 9, dtype=torch.float64)[1:])
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive])
    return values / positive[-1]


def _fp4() -> list[float]:
    """E2M1 as bitsandbytes has it, in the order of its bits: sign, two of exponent, one of mantissa."""
    positive = [value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
    return positive + [-value for value in positive]


def _int4() -> list[float]:
    """Even steps of 1/7, zero at code 8; code 0 lies below -1 and is never used."""
    return [(code - 8) / 7 for code in range(16)]


@functools.cache
def code_book(kind: QuantType, device: str = "cpu") -> Tensor:
    """Value of each code, `(16,)`, float32."""
    values = {"nf4": list(NF4), "fp4": _fp4(), "int4": _int4()}[kind]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _dynamic() -> list[float]:
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*middles.tolist(), *(-middles).tolist()]
    return sorted(values)


DYNAMIC = _dynamic()
"""Worked out once and for all: tensors without contents, as a prediction has them, could not say it later."""


@functools.cache
def dynamic(device: str = "cpu") -> Tensor:
    """The signed 8-bit dynamic type, `(256,)`, float32, ascending (Dettmers 2015, section 2.1).

    Seven decades, of 1, 2, 4 ... 64 even bins on each side, and 0 and 1.

    Differs from the paper: QLoRA's text says that the constants are held in FP8; its code holds them in this type.
    """
    return torch.tensor(DYNAMIC, dtype=torch.float32, device=device)
