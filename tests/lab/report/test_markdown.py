"""A reader who stops after ten lines knows the answer."""

from __future__ import annotations

import re

from gptstar.lab.report.markdown import report_markdown
from lab.studies import ODD, alone, five, many


def test_the_answer_comes_first():
    lines = report_markdown(five(), {}).splitlines()
    assert lines[0] == "# Does a wide and shallow GPT learn faster?"
    assert lines[5] == "- **star_3m**: Better: 3.1% (p as in the table), Dunnett's test."
    assert sum(line.startswith("- **") for line in lines[:10]) == 4


def test_everything_else_is_there():
    text = report_markdown(five(), {"loss_tokens.png": "Loss", "effects.png": "Effects"})
    for part in (
        "![Loss](loss_tokens.png)",
        "- runs/gpt2-7: stopped at step 300 of 600",
        "- Runs are of two commits.",
        "- trained with: `python train.py -m experiment=ablate_star trainer.seed=0,1,2`",
        "- compared with: `python compare.py runs/ablation baseline=gpt2`",
        "- commits: 84abd84c0ffe",
        "- hardware: 2 cores of an AMD EPYC",
        "| model.position | learned | alibi |",
    ):
        assert part in text


def test_a_run_alone_is_said_to_be():
    text = report_markdown(alone(), {})
    assert "Only gpt2 is here: there is nothing to compare it with." in text.splitlines()[:4]
    assert "left out" not in text and "## Notes" not in text


def test_odd_names_break_neither_tables_nor_tags():
    text = report_markdown(many(), {})
    assert not re.search(r"(?<!\\)<(?=[\w/])", text) and "\u2028" not in text
    rows = [line for line in text.splitlines() if line.startswith("| a ")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) in (5, 4, 9) for row in rows)
    back = re.sub(r"\\(.)", r"\1", text.splitlines()[0].removeprefix("# "))
    assert back == " ".join(ODD.split())
