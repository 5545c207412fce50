"""Entries of the training log."""

from pathlib import Path

from gptstar.lab.report.log import add_entry, log_entry
from gptstar.lab.report.tables import tables
from gptstar.lab.report.write import write_report
from lab.studies import ablation


def test_an_entry_holds_what_the_report_holds_and_links_to_it(tmp_path):
    study, log = ablation(), tmp_path / "traininglog.md"
    report = tmp_path / "docs" / "studies" / "one"
    write_report(study, report)
    log.write_text("# Training log\n\nEvery number comes from a command.\n\n## 2026-01-01 · Before\n\nText.\n")
    add_entry(study, "A title (with signs)", report, log)
    text = log.read_text()
    assert text.startswith("# Training log\n\nEvery number") and "## 2026-01-01 · Before\n\nText.\n\n## " in text
    assert "docs/studies/one/report.md" in text and "![loss against tokens](docs/studies/one/loss_tokens.png)" in text
    for variant in study.variants:
        assert variant.name in text
    for cell in tables(study)[0].rows[1][3:5]:
        assert cell in text
    for command in (study.training_command, study.command):
        assert command in text


def test_the_same_title_replaces_its_entry_and_no_other(tmp_path):
    study, log = ablation(), tmp_path / "traininglog.md"
    log.write_text("# Training log\n\n## 2026-01-01 · Mine\n\nold figures\n\n## 2026-01-02 · Mine too\n\nkept\n")
    add_entry(study, "Mine", tmp_path / "report", log)
    once = log.read_text()
    assert "old figures" not in once and "## 2026-01-02 · Mine too\n\nkept\n" in once
    assert once.index("· Mine\n") < once.index("· Mine too\n")
    add_entry(study, "Mine", tmp_path / "report", log)
    assert log.read_text() == once


def test_lines_are_of_a_readable_width_but_tables_and_commands_stay_whole(tmp_path):
    entry = log_entry(ablation(), "T", tmp_path / "r", Path(tmp_path))
    long = [line for line in entry.splitlines() if len(line) > 120]
    assert all(line.startswith(("|", "python")) for line in long)


def test_a_study_with_a_question_of_its_own_is_logged_by_its_own_report(tmp_path):
    study, report = ablation(), tmp_path / "docs" / "law"
    report.mkdir(parents=True)
    words = " ".join(["word"] * 40)
    (report / "scaling.md").write_text(
        f"# Scaling law\n\n{words}\n\n| a | b |\n|---|---|\n\n## Held out\n\n![loss](scaling.png)\n"
    )
    log = tmp_path / "traininglog.md"
    log.write_text("# Training log\n")
    for _ in range(2):  # the second time it replaces itself, headings within and all
        add_entry(study, "A law", report, log, [report / "scaling.md"])
    text = log.read_text()
    assert text.count("### Scaling law\n") == text.count("#### Held out\n") == 1
    assert "![loss](docs/law/scaling.png)" in text and "| a | b |\n|---|---|" in text
    assert "Final loss" not in text and "docs/law/report.md" in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(("|", "python")))
