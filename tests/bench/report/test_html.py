"""The page as a browser, a screen reader and a second drawing find it."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench import outcome
from bench.report import files, html, table
from bench.store import Run

COMMITTED = sorted((Path(__file__).parents[3] / "results").glob("cpu/*"))[0]
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements with their attributes; fails where an element is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture
def text(records: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    return html.as_html(manifest, outcome.rows(records), ["x<y>.json is no record"])


def tables_of(text: str) -> list[str]:
    return [
        base64.b64decode(data).decode() for data in re.findall(r"data:text/csv;charset=utf-8;base64,([^\"]+)", text)
    ]


def test_the_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [value for _, a in page.elements for key, value in a.items() if key in {"href", "xlink:href"} and value]
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert all(target.startswith(("#", "data:text/csv")) for target in targets)
    assert not list(page.all("script"))
    assert not list(page.all("link"))
    assert not re.search(r"@import|src=", text)


def test_it_can_be_read_without_seeing(text: str) -> None:
    page = Page(text)
    assert text.count("<table") == text.count("<caption>") > 5
    assert all(a.get("scope") in {"col", "row", "rowgroup"} for a in page.all("th"))
    drawn = list(page.all("svg"))
    assert len(drawn) == 8  # three of decoding, four of training, memory alone of random weights
    for attributes in drawn:
        assert attributes["role"] == "img"
        title, words = (attributes["aria-labelledby"] or "").split()
        assert f'<title id="{title}">' in text
        assert re.search(f'<desc id="{re.escape(words)}">[^<]{{20,}}', text)
    assert 'lang="en"' in text
    for word, symbol in (("BETTER", "▲"), ("WORSE", "▼"), ("SAME", "="), ("INCONCLUSIVE", "?")):
        assert f'<span aria-hidden="true">{symbol}</span> {word}</span>' in text


def test_counts_stand_beside_the_metrics(manifest: dict[str, Any], records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["quality"] and record["comparison"] == "finetuning.text":
            record["quality"]["counts"] = {"output_tokens": 10.0 + record["seed"]}
            if record["arm"] == "adapters":
                record["quality"]["counts"]["margin_length_correlation"] = -0.125
    text = html.as_html(manifest, outcome.rows(records), [])
    line = text.partition('<th scope="row">output tokens</th>')[2].partition("</tr>")[0]
    assert line.count("<td>10.5</td>") == 2  # mean of two seeds, of both arms
    line = text.partition('<th scope="row">margin length correlation</th>')[2].partition("</tr>")[0]
    assert "<td>-0.125</td>" in line
    assert "not counted" in line


def test_light_and_dark_have_all_colours(text: str) -> None:
    style = text[text.index("<style>") : text.index("</style>")]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", text)) <= set(re.findall(r"(--[a-z0-9-]+):", light))
    assert set(re.findall(r"(--[a-z0-9-]+):", light)) == set(re.findall(r"(--[a-z0-9-]+):", dark))
    assert not re.search(r"#[0-9a-f]{6}", text[text.index("</style>") :].replace("&#", ""))


def test_nothing_of_a_record_is_markup(text: str) -> None:
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text
    assert "<b>kernel" not in text
    assert "x&lt;y&gt;.json is no record" in text
    assert "one &amp; two" in text


def test_withheld_figures_are_nowhere(text: str, records: list[dict[str, Any]]) -> None:
    comparisons = outcome.rows(records)
    wrong = next(row for row in comparisons["decoding.chat"] if row.arm == "wrong")
    for name in ("tpot", "peak_memory", "throughput"):
        hidden = wrong.estimates[name]
        assert hidden.change is not None
        for shown in (f"{hidden.value:.3g}", f"{hidden.change:.3f}"):
            assert f"x{shown} " not in text
        assert table.value(html.GLOSSARY[name], hidden.value) not in text
    assert all("wrong" not in lines for lines in tables_of(text))
    made_up = next(line for line in table.flat(comparisons) if line["metric"] == "output_nll" and line["arm"] == "fast")
    assert made_up["value"] is None


def test_every_ending_is_visible_with_its_reason(text: str) -> None:
    for words in ("INVALID", "UNGATED", "token 3 differs", "needs rotary positions", "loss is not finite", "withheld"):
        assert words in text
    assert "not measured" in text
    assert "not applicable: random weights" in text
    assert "said by unchecked" in text
    assert "<h1>fabricated: some-model (1.5B parameters) and shapes (7B parameters) on Test CPU" in text


def test_the_overview_comes_first(text: str) -> None:
    places = [text.index(f'<section id="{name}"') for name in ("overview", "cautions", "comparison-0", "glossary")]
    assert places == sorted(places)


def test_a_committed_run_is_drawn_twice_with_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(COMMITTED, folder)
    assert files.write(Run(folder)) == []
    first = (folder / "report.html").read_bytes()
    files.write(Run(folder))
    assert (folder / "report.html").read_bytes() == first
    assert len(first) < 2_000_000
    Page(first.decode())
    curves = [lines for lines in tables_of(first.decode()) if lines.startswith("arm,step,loss")]
    assert len(curves) == 2
    assert curves[0].count("\n") == 1 + 2 * 30


def test_an_arm_may_be_called_anything(manifest: dict[str, Any], records: list[dict[str, Any]]) -> None:
    names = {"unchecked": "_hidden $x^2$", "<script>alert('x')</script>": "=1+1 " + "long " * 30}
    renamed = [{**record, "arm": names.get(record["arm"], record["arm"])} for record in records]
    text = html.as_html(manifest, outcome.rows(renamed), [])
    assert "_hidden $x^2$</text>" in text
    assert any(line.startswith("'=1+1") for lines in tables_of(text) for line in lines.splitlines())


def test_a_run_without_a_record_or_a_description_has_a_page(manifest: dict[str, Any]) -> None:
    text = html.as_html({**manifest, "config": {}}, {}, [])
    Page(text)
    assert "fabricated: no record yet on Test CPU" in text
    assert "No arm but baselines has finished." in text
