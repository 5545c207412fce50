"""Entries of traininglog.md, written from a study: no number in them is typed by hand."""

from __future__ import annotations

import os
import re
import textwrap
from datetime import date
from pathlib import Path

from gptstar.files import replace_text
from gptstar.lab.report.markdown import table_markdown, verdict_lines
from gptstar.lab.report.tables import tables
from gptstar.lab.study import Study

WIDTH = 120
FIGURES = {"loss_tokens.png": "loss against tokens", "effects.png": "differences from the baseline"}
TABLES = ("Final loss", "To reach the baseline's final loss", "Speed and size", "Parts of the speed-up")


def add_entry(study: Study, title: str, report: Path, log: Path) -> None:
    """Appends what, why, the commands, commit, tables, figures and verdicts; an entry of the same title is replaced.

    report   the folder with the study's report, which the entry links to
    """
    text = log.read_text(encoding="utf-8")
    entry = log_entry(study, title, report, log.absolute().parent)
    old = re.search(rf"^## \S+ · {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    before, after = (text[: old.start()], text[old.end() :]) if old else (text, "")
    parts = [part.strip("\n") for part in (before, entry, after)]
    replace_text(log, "\n\n".join(part for part in parts if part) + "\n")


def log_entry(study: Study, title: str, report: Path, beside: Path) -> str:
    """The entry as markdown; `beside`: the folder that its links start from."""
    place = Path(os.path.relpath(report, beside)).as_posix()
    made = {table.title: table for table in tables(study)}
    commands = [command for command in (study.training_command, study.command) if command]
    parts = [f"## {date.today():%Y-%m-%d} · {title}", _folded(study.why)]
    parts.append("```\n" + "\n".join(commands) + "\n```" if commands else "")
    commits, hardware = ", ".join(study.commits) or "unknown", "; ".join(study.hardware) or "unknown"
    parts.append(_folded(f"Commit {commits}; {hardware}. The whole report: [{place}/report.md]({place}/report.md)."))
    parts.append("\n".join(_folded(line, "  ") for line in verdict_lines(study)))
    for name in TABLES:
        if name in made:
            parts += [_folded(f"**{name}.** {made[name].note}"), table_markdown(made[name])]
    parts += [f"![{caption}]({place}/{name})" for name, caption in FIGURES.items() if (report / name).is_file()]
    left_out = "; ".join(f"{Path(source).name} ({why})" for source, why in study.excluded.items())
    parts.append(_folded(f"Left out: {left_out}.") if left_out else "")
    parts.append("\n".join(_folded(f"- {note}", "  ") for note in study.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _folded(text: str, indent: str = "") -> str:
    """In lines of a readable width; words, links among them, stay whole."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
