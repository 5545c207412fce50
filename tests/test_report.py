"""The door: files in, comparison and per-run tables out; mistakes in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gptstar.errors import UserError
from gptstar.evaluation.results import FORMAT
from gptstar.report import ReportConfig, report

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path) -> str:
    row = {
        "task": "piqa",
        "checkpoint": "runs/a/checkpoints/step-1",
        "metrics": {"acc": {"value": 0.6, "stderr": 0.01}},
    }
    folder = tmp_path / "a" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"format": FORMAT, "results": [row]}))
    return str(tmp_path / "a")


def test_a_run_and_published_models_give_a_report_a_chart_and_the_runs_own_table(run, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    path = report(ReportConfig([run], ["all"], "gpt_neo_125m", str(tmp_path / "out")), console)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "out" / "comparison.md" and "better or worse than GPT-Neo 125M" in text
    assert text.count("(published)") == 0 and text.count("\n- GPT-") == 8
    assert (tmp_path / "out" / "accuracies.png").is_file() and (Path(run) / "evaluation" / "results.md").is_file()
    assert "60.00 ± 1.00 ▽" in console.file.getvalue() and "comparison.md has the rest" in console.file.getvalue()


def test_mistakes_are_one_line(run, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match="there is nothing to compare: name results="):
        ReportConfig()
    for settings, words in (
        (([str(tmp_path)],), "no results.json or perplexity.json there"),
        (([run], ["gpt4"]), "baselines=gpt4 is unknown"),
        (([run], [], "b"), "reference='b' is not in the table: choose among a"),
        (([run], [], None, str(tmp_path / "taken")), "taken cannot be made"),
        (([str(tmp_path / "taken")],), "taken is no gptstar-evaluation-1 file"),
    ):
        with pytest.raises(UserError, match=words) as error:
            report(ReportConfig(*settings))
        assert "\n" not in str(error.value)


def test_the_command_line(run, tmp_path):
    command = [sys.executable, "-m", "gptstar.report", f"results=[{run}]", "baselines=[gpt127]", "output_dir=out"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "60.00 ± 1.00" in done.stdout, done.stderr
