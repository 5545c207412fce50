"""Links between the pages, and paths they name, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_that_are_named_are_there(page):
    if page.name in ("CHANGELOG.md", "traininglog.md"):  # what was, too
        return
    path = r"`((?:gptstar|tests|benchmarks|configs|docs)/[\w./-]+\.(?:py|md|yaml|json|cpp|png))`"
    missing = [
        path
        for path in re.findall(path, page.read_text())
        if not (ROOT / path).exists() and path != "configs/experiment/mine.yaml"
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@[A-Z_]+@|\bTODO\b|\bTBD\b|\bXXX\b", page.read_text())
