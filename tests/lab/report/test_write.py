"""What a comparison leaves is whole, or as it was."""

from __future__ import annotations

import json

import pytest

from gptstar.lab.report import write as report
from gptstar.lab.report.write import write_report
from lab.studies import five


def test_all_files_are_there_and_linked(tmp_path):
    folder = tmp_path / "new" / "study"
    path = write_report(five(), folder)
    pngs = {"loss_tokens.png", "loss_time.png", "loss_flops.png", "effects.png"}
    assert {each.name for each in folder.iterdir()} == {"study.json", "report.md", "report.html", *pngs}
    text = path.read_text()
    assert all(f"]({name})" in text for name in pngs)
    assert json.loads((folder / "study.json").read_text())["baseline"] == "gpt2"


def test_a_failed_drawing_keeps_the_figures_and_the_last_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_plots", lambda study, folder: {})
    write_report(five(), tmp_path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    monkeypatch.setattr(report, "report_html", lambda study: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(five(title="another"), tmp_path)
    after = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["report.md"] == before["report.md"] and after["report.html"] == before["report.html"]
    assert json.loads(after["study.json"])["title"] == "another"
