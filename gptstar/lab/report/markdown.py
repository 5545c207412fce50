"""report.md: a study to be read anywhere."""

from __future__ import annotations

import re

from gptstar.lab.report.tables import Table, tables
from gptstar.lab.study import Study


def report_markdown(study: Study, plots: dict[str, str]) -> str:
    """The whole report, verdicts first. plots: {file name: caption}, beside it."""
    made = tables(study)
    parts = [f"# {_text(study.title)}"]
    if study.why:
        parts.append(_text(study.why))
    parts.append("\n".join(verdict_lines(study)))
    parts += [_section(table) for table in made if not table.detail]
    if plots:
        parts.append("## Plots")
        parts += [f"![{_text(caption)}]({name})" for name, caption in plots.items()]
    if study.excluded:
        excluded = [f"- {_text(source)}: {_text(why)}" for source, why in study.excluded.items()]
        parts += ["## Runs left out", "\n".join(excluded)]
    if study.notes:
        parts += ["## Notes", "\n".join(f"- {_text(note)}" for note in study.notes)]
    parts += [_section(table) for table in made if table.detail]
    parts += ["## How it was made", "\n".join(_origin(study))]
    return "\n\n".join(parts) + "\n"


def verdict_lines(study: Study) -> list[str]:
    """A list item for every variant but the baseline; of the baseline alone, that there is nothing to compare."""
    others = [variant for variant in study.variants if variant.name != study.baseline]
    lines = [f"- **{_text(variant.name)}**: {_text(variant.verdict)}" for variant in others]
    return lines or [f"Only {_text(study.baseline)} is here: there is nothing to compare it with."]


def table_markdown(table: Table) -> str:
    """Its rows; without title and note."""
    rows = [table.header, ["---:" if numeric else "---" for numeric in table.numeric], *table.rows]
    lines = [f"| {' | '.join(cells if number == 1 else map(_text, cells))} |" for number, cells in enumerate(rows)]
    return "\n".join(lines)


def _section(table: Table) -> str:
    return "\n\n".join([f"## {_text(table.title)}", table_markdown(table), _text(table.note)])


def _origin(study: Study) -> list[str]:
    lines = []
    for title, found in (
        ("trained with", [study.training_command]),
        ("compared with", [study.command]),
        ("commits", study.commits),
        ("hardware", study.hardware),
    ):
        shown = [f"`{each}`" if "with" in title and "`" not in each else _text(each) for each in found if each]
        lines += [f"- {title}: {', '.join(shown)}"] if shown else []
    return [*lines, "- figures: `study.json`, as plain data"]


def _text(text: str) -> str:
    """The same text in markdown, on one line: what would begin an emphasis, a tag, a link or a column does not."""
    text = re.sub(r"([\\`*\[\]|~]|<(?=[\w/!?])|&(?=[\w#])|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([#+-]|\d+[.)])(?= )", r"\\\1", text)
