"""Options that several verbs of the command line take, and where they print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

Wanted = Annotated[list[str] | None, typer.Argument(help="Configs, families or techniques; nothing: the suite.")]
Model = Annotated[str | None, typer.Option("--model", help="smollm2-135m, tiny:*, synthetic:*, hub id or folder.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Draft = Annotated[str | None, typer.Option("--draft", help="Draft model of speculative techniques.")]
Reference = Annotated[str | None, typer.Option("--reference", help="What dpo with reference=model is held to.")]
Form = Literal["table", "md", "json", "csv"]
Sets = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; a list of values spans an axis.")]


def printer() -> Console:
    from rich.console import Console

    # no emoji: `tiny:llama: it ...` is the name of a model
    if sys.stdout.isatty():
        return Console(emoji=False)
    # a pipe has no width: let tables be as wide as they need, and no status is drawn even where colours are forced
    return Console(width=200, force_interactive=False, emoji=False)
