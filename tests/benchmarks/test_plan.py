"""The table of published costs."""

from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_in_the_docs_is_what_is_planned(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    run_path(str(ROOT / "benchmarks" / "plan.py"))["print_published"]()
    assert capsys.readouterr().out in (ROOT / "docs/lab/plan.md").read_text()
