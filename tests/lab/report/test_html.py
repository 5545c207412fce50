"""The page as text: one file, nothing from elsewhere, the same figures as report.md, no content that breaks out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gptstar.lab.report import html
from gptstar.lab.report.html import report_html
from gptstar.lab.report.markdown import report_markdown
from lab.report.test_plots import luminance
from lab.studies import ODD, alone, drawn_from, five, many


class Reader(HTMLParser):
    """Elements in order, scripts, and the cells of tables."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside in ("th", "td"):
            self.tables[-1][-1][-1] += data
        elif self.inside != "style":
            self.text.append(data)


def figures(cells: list[str]) -> list[str]:
    return re.findall(r"[+-]?\d[\d,.]*", " ".join(cells))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, as a reader of markdown sees them."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        found.append([[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in (rows[:1] + rows[2:])])
    return found


@pytest.mark.parametrize("name", drawn_from())
def test_its_figures_are_those_of_the_markdown(name):
    study = drawn_from()[name]
    page, text = Reader(report_html(study)).tables, markdown_tables(report_markdown(study, {}))
    assert len(page) == len(text) > 2
    for ours, theirs in zip(page, text, strict=True):
        assert [figures(row) for row in ours] == [figures(row) for row in theirs]
        assert [[" ".join(cell.split()) for cell in row] for row in ours] == theirs


def test_the_study_comes_along_whole():
    study = five()
    data = json.loads(Reader(report_html(study)).scripts[0])
    assert data["study"] == json.loads(json.dumps(html.asdict(study)))
    assert [axis["key"] for axis in data["axes"]] == ["tokens", "seconds", "flops"]


def test_odd_names_do_not_break_out():
    page = report_html(many())
    read = Reader(page)
    assert len(read.scripts) == 2 and page.count("</script>") == 2
    assert json.loads(read.scripts[0])["study"]["title"] == ODD
    assert "<" not in read.scripts[0]  # "</script x" would end it too
    assert not any(tag == "b" for tag, _ in read.elements)
    assert ODD in read.text
    assert json.loads(read.scripts[0])["study"]["variants"][-1]["final"] == {"value": None, "low": None, "high": None}


def test_nothing_comes_from_elsewhere():
    page = report_html(five())
    for tag, attributes in Reader(page).elements:
        assert tag not in ("img", "iframe", "object", "embed")
        assert not {"src", "srcset", "action"} & set(attributes)
        assert attributes.get("href", "data:,") == "data:,"
    style, script = (Path(html.PAGE / name).read_text() for name in ("report.css", "report.js"))
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"\beval\b|\bFunction\b|innerHTML|fetch|XMLHttpRequest|import\(", script)
    assert "default-src 'none'" in page


def test_verdicts_are_above_all_else():
    read = Reader(report_html(five()))
    assert [
        attributes["data-word"] for tag, attributes in read.elements if tag == "li" and "data-word" in attributes
    ] == [*("better", "better", "better", "worse")]
    words = [each for each in read.text if each.strip()]
    assert words.index("Verdicts") < words.index("Effects") < words.index("Loss on the way")
    assert "Only gpt2 is here: there is nothing to compare it with." in Reader(report_html(alone())).text


def test_effects_lie_on_one_axis():
    page = report_html(five())
    marks = [float(x) for x in re.findall(r'class="mark" cx="([\d.]+)%"', page)]
    whiskers = [(float(a), float(b)) for a, b in re.findall(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', page)]
    zero = float(re.findall(r'class="zero" x1="([\d.]+)%"', page)[0])
    assert len(marks) == len(whiskers) == 4
    assert marks[2] < marks[1] < marks[0] < zero < marks[3]
    assert all(0 <= low < mark < high <= 100 for mark, (low, high) in zip(marks, whiskers, strict=True))
    scale = (zero - marks[2]) / 5.2
    assert zero - marks[1] == pytest.approx(3.1 * scale, abs=0.02)
    assert set(re.findall(r'y="18">([^<]+)<', page)) == {"-6", "-4", "-2", "+2", "0"}


def test_text_stands_out_in_both_themes():
    style = (html.PAGE / "report.css").read_text()
    pairs = dict(re.findall(r"--([a-z]+): light-dark\((#\w+, #\w+)\)", style))
    for theme in (0, 1):
        shown = {name: luminance(value.split(", ")[theme]) for name, value in pairs.items()}
        for text in ("ink", "quiet", "better", "worse", "focus"):
            for paper in ("paper", "raised"):
                dark, bright = sorted([shown[text], shown[paper]])
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (theme, text, paper)
        dark, bright = sorted([shown["edge"], shown["paper"]])
        assert (bright + 0.05) / (dark + 0.05) >= 3, (theme, "edge")
