"""Entries of traininglog.md, written from a study: no number in them is typed by hand."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from gptstar.files import replace_text
from gptstar.lab.report.markdown import table_markdown, verdict_lines
from gptstar.lab.report.tables import tables
from gptstar.lab.study import Study

WIDTH = 120
FIGURES = {"loss_tokens.png": "loss against tokens", "effects.png": "differences from the baseline"}
TABLES = ("Final loss", "To reach the baseline's final loss", "Speed and size", "Parts of the speed-up")


def add_entry(study: Study, title: str, report: Path, log: Path, own: Sequence[Path] = ()) -> None:
    """Appends what, why, the commands, commit, tables, figures and verdicts; an entry of the same title is replaced.

    report   the folder with the study's report, which the entry links to
    own      what a study that asks something else than which variant is better has to say, in files in that folder: it
             stands in the place of verdicts and tables
    """
    text = log.read_text(encoding="utf-8")
    entry = log_entry(study, title, report, log.absolute().parent, own)
    old = re.search(rf"^## \S+ · {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    before, after = (text[: old.start()], text[old.end() :]) if old else (text, "")
    parts = [part.strip("\n") for part in (before, entry, after)]
    replace_text(log, "\n\n".join(part for part in parts if part) + "\n")


def log_entry(study: Study, title: str, report: Path, beside: Path, own: Sequence[Path] = ()) -> str:
    """The entry as markdown; `beside`: the folder that its links start from."""
    place = Path(os.path.relpath(report, beside)).as_posix()
    made = {table.title: table for table in tables(study)}
    commands = [command for command in (study.training_command, study.command) if command]
    parts = [f"## {date.today():%Y-%m-%d} · {title}", _folded(study.why)]
    parts.append("```\n" + "\n".join(commands) + "\n```" if commands else "")
    commits, hardware = ", ".join(study.commits) or "unknown", "; ".join(study.hardware) or "unknown"
    parts.append(_folded(f"Commit {commits}; {hardware}. The whole report: [{place}/report.md]({place}/report.md)."))
    if own:
        parts += [_within(path.read_text(encoding="utf-8"), place) for path in own]
    else:
        parts.append("\n".join(_folded(line, "  ") for line in verdict_lines(study)))
        for name in TABLES:
            if name in made:
                parts += [_folded(f"**{name}.** {made[name].note}"), table_markdown(made[name])]
        parts += [f"![{caption}]({place}/{name})" for name, caption in FIGURES.items() if (report / name).is_file()]
    left_out = "; ".join(f"{Path(source).name} ({why})" for source, why in study.excluded.items())
    parts.append(_folded(f"Left out: {left_out}.") if left_out else "")
    notes = [] if own else study.notes  # they are about verdicts and tables
    parts.append("\n".join(_folded(f"- {note}", "  ") for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _within(text: str, place: str) -> str:
    """A report as a part of an entry: headings two levels down, pictures from where they lie, lines folded."""
    text = re.sub(r"^(#+ )", r"##\1", text.strip(), flags=re.MULTILINE)
    text = re.sub(r"(!\[[^]]*\]\()", rf"\1{place}/", text)
    lines = [
        line if line.startswith(("|", "!", "#")) else _folded(line, "  " * line.startswith("- "))
        for line in text.splitlines()
    ]
    return "\n".join(lines)


def _folded(text: str, indent: str = "") -> str:
    """In lines of a readable width; words, links among them, stay whole."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
