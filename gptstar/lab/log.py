"""Entries of traininglog.md, written from a study: no number in them is typed by hand."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path

from gptstar.files import replace_text
from gptstar.lab.markdown import table_markdown, verdict_lines
from gptstar.lab.plots import plot_names
from gptstar.lab.study import Study
from gptstar.lab.tables import tables

WIDTH = 120


def add_entry(study: Study, title: str, report: Path, log: Path) -> None:
    """Appends what, why, the commands, commit, tables, figure and verdicts; an entry of the same title is replaced.

    report   the folder with the study's report, to which the entry links
    """
    text = log.read_text(encoding="utf-8")
    entry = log_entry(study, title, Path(os.path.relpath(report, log.absolute().parent)))
    old = re.search(rf"^## \S+ · {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if old:
        text = text[: old.start()] + entry + text[old.end() :].lstrip("\n")
    else:
        text = text.rstrip("\n") + "\n\n" + entry
    replace_text(log, text.rstrip("\n") + "\n")


def log_entry(study: Study, title: str, report: Path) -> str:
    """The entry as markdown."""
    commands = [command for command in (study.training_command, study.command) if command]
    lines = [f"## {date.today():%Y-%m-%d} · {title}"]
    if study.why:
        lines.append(study.why)
    if commands:
        lines.append("```\n" + "\n".join(commands) + "\n```")
    lines.append(_made(study, report))
    lines += verdict_lines(study)
    lines += [
        f"{table.title}:\n\n{table_markdown(table)}"
        for table in tables(study)
        if table.key in ("verdicts", "reach", "speed", "parts")
    ]
    lines += [
        f"![{name}]({(report / file).as_posix()})"
        for name, file in plot_names(study).items()
        if name in ("tokens", "effects")
    ]
    if study.excluded:
        lines.append(
            "Left out: " + "; ".join(f"{Path(source).name} ({why})" for source, why in study.excluded.items()) + "."
        )
    lines += study.notes
    return "\n\n".join(lines) + "\n"


def _made(study: Study, report: Path) -> str:
    commits = ", ".join(study.commits) or "unknown"
    hardware = "; ".join(study.hardware) or "unknown"
    return f"Commit {commits}; {hardware}. All of it: [{(report / 'report.md').as_posix()}]({(report / 'report.md').as_posix()})."
