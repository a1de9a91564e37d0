"""The README says what the committed runs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.report import readme

ROOT = Path(__file__).parents[3]


def test_the_readme_agrees_with_the_committed_runs() -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.drawn(text, ROOT) == text, "draw its tables anew: ./scripts/readme"


def test_what_stands_between_the_marks_is_replaced_and_nothing_else() -> None:
    text = (ROOT / "README.md").read_text()
    figure = re.search(r"x0\.\d{3} \[", text)
    assert figure is not None
    spoiled = text.replace(figure[0], "x9.999 [").replace("# llm", "# other")
    assert readme.drawn(spoiled, ROOT) == text.replace("# llm", "# other")


def test_a_text_without_a_table_or_without_its_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table is marked"):
        readme.drawn("nothing", tmp_path)
    with pytest.raises(UsageError, match="holds no run"):
        readme.drawn("<!-- table: results/x -->\n<!-- end of table -->", tmp_path)
