"""Where the command line prints."""

from __future__ import annotations

import pytest
from rich.padding import Padding
from rich.table import Table

from bench.options import printer


@pytest.mark.parametrize("terminal", [True, False])
def test_names_with_colons_are_told_as_they_are(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    console = printer()
    cells = Table(box=None)
    cells.add_row("tiny:llama: one", "[bold]tiny:llama: two[/bold]")
    console.print("tiny:llama: three", markup=False)
    console.print(cells, Padding("tiny:llama: [red]four[/red]", 1), "[bold]tiny:llama: five[/bold]")
    assert capsys.readouterr().out.count("tiny:llama: ") == 5
