"""The files that a comparison leaves."""

from __future__ import annotations

from pathlib import Path

from gptstar.files import replace_text
from gptstar.lab.report.html import report_html
from gptstar.lab.report.markdown import report_markdown
from gptstar.lab.report.plots import draw_plots
from gptstar.lab.study import Study


def write_report(study: Study, folder: Path) -> Path:
    """study.json, PNGs, report.html and report.md in a folder, each replaced at once; the path of report.md.

    study.json comes first: whatever happens to the drawing, the figures are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study.write(folder / "study.json")
    plots = draw_plots(study, folder)
    replace_text(folder / "report.html", report_html(study))
    replace_text(folder / "report.md", report_markdown(study, plots))
    return folder / "report.md"
