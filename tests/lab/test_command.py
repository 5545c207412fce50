"""compare.py from its command line to its files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from gptstar.configuration import with_list
from gptstar.lab.command import CompareConfig, compare_runs
from gptstar.lab.reading.read import read_run
from gptstar.lab.reading.variants import digest
from gptstar.lab.speed import Measured, Speeds, write_speeds
from gptstar.training.loop import train


@pytest.fixture
def compare(door):
    def call(*arguments: str):
        found = []
        given = with_list(list(arguments), "runs", options=("log",))
        door(
            *given,
            name="compare",
            schema=CompareConfig,
            main=lambda config: found.append(compare_runs(config, Console())),
        )
        return found[0]

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Where `study` is kept once it has been made."""
    return tmp_path_factory.mktemp("trained") / "study"


@pytest.fixture
def study(train_config, tmp_path, trained) -> Path:
    """Two variants, two seeds, as `StudySweeper` leaves them."""
    folder = tmp_path / "study"
    if not trained.exists():
        _train_study(train_config, trained)
    shutil.copytree(trained, folder)
    return folder


def _train_study(train_config, folder: Path) -> None:
    runs = {}
    for name, d_ff in (("narrow", 24), ("wide", 48)):
        for seed in (0, 1):
            config = replace(train_config, run_dir=str(folder / f"{name}-{seed}"))
            config.model = replace(config.model, d_ff=d_ff)
            config.trainer = replace(config.trainer, seed=seed)
            train(config)
            runs[f"{name}-{seed}"] = {"variant": name, "seed": seed}
    about = {
        "name": "study",
        "why": "does width help?",
        "commands": ["python train.py -m experiment=x"],
        "baseline": "narrow",
        "variants": {"narrow": {"why": "24"}, "wide": {"why": "48"}},
        "runs": runs,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(about))


def test_a_study_becomes_a_report_and_an_entry_of_the_log(compare, study, capsys):
    Path("traininglog.md").write_text("# Training log\n")
    found = compare(str(study), "--log", "Width, and what it buys")
    assert [v.name for v in found.variants] == ["narrow", "wide"] and not found.excluded
    assert all(len(v.seeds) == 2 and v.parameters and v.flops_per_token for v in found.variants)
    assert found.variants[1].difference == {"model.d_ff": (24, 48)}
    assert (
        found.variants[0].curves["tokens"].x == [128.0 * 4, 128.0 * 8] or len(found.variants[0].curves["tokens"].x) == 2
    )
    report = study / "comparison"
    names = {path.name for path in report.iterdir()}
    assert {"report.md", "report.html", "study.json", "loss_tokens.png", "effects.png"} <= names
    assert json.loads((report / "study.json").read_text())["variants"][1]["name"] == "wide"
    assert "does width help?" in (report / "report.md").read_text()
    log = Path("traininglog.md").read_text()
    assert "· Width, and what it buys" in log and "python train.py -m experiment=x" in log
    said = capsys.readouterr().out
    assert "wide" in said and "report.md" in said


def test_speeds_measured_before_are_used_and_broken_runs_named(compare, study):
    names = ("narrow", "wide")
    measured = {name: Measured([10.0, 12.0], [0.5, 0.5], 1.0) for name in names}
    settings = {name: digest(read_run(study / f"{name}-0").config) for name in names}
    speeds = Speeds("quiet", "c0ffee", 2, 2, measured, settings)
    write_speeds(speeds, Path("out"))
    metrics = study / "wide-1" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:3]))
    found = compare(*(str(run) for run in sorted(study.glob("*-*"))), "output_dir=out", "title=Mine, all of it")
    assert found.title == "Mine, all of it" and found.variants[0].speed.interleaved
    assert [str(study / "wide-1")] == list(found.excluded)
    assert "wide-1" in Path("out/report.md").read_text()


def test_columns_of_other_peoples_tables(compare):
    rows = ["run,step,tokens,val/ce"]
    for name, level in (("a", 5), ("b", 4)):
        rows += [f"{name}-{seed},{i},{100 * i},{level / i}" for seed in (0, 1) for i in (1, 2)]
    Path("export.csv").write_text("\n".join(rows) + "\n")
    found = compare("export.csv", "columns={validation_loss: val/ce}")
    assert [v.name for v in found.variants] == ["a", "b"] and len(found.variants[0].seeds) == 2


def test_two_studies_with_a_variant_of_one_name_are_not_mixed(compare, study, train_config, tmp_path):
    other = tmp_path / "other"
    config = replace(train_config, run_dir=str(other / "wide-5"))
    config.model, config.trainer = replace(config.model, d_ff=50), replace(config.trainer, seed=5)
    train(config)
    (other / "study.yaml").write_text(yaml.safe_dump({"runs": {"wide-5": {"variant": "wide", "seed": 5}}}))
    found = compare(str(study), str(other), "output_dir=out", "baseline=narrow")
    assert [(v.name, len(v.seeds)) for v in found.variants] == [("narrow", 2), ("study/wide", 2), ("other/wide", 1)]


MISTAKES = [
    ([], "runs is not set"),
    (["nowhere"], "nowhere"),
    (["{study}", "baseline=broad"], "baseline=broad is neither a variant nor a run here: choose one of narrow, wide"),
    (["{study}", "measure=-1"], "measure=-1"),
    (["{study}", "log=Title", "log_file=no.md"], "log_file=no.md is not there"),
    (["{study}", "--log"], "--log needs the title"),
    (["{study}", "output_dir=/proc/nope"], "output_dir=/proc/nope cannot be made"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_one_line(compare, study, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        compare(*(argument.format(study=study) for argument in arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(lines) == 1 and words in lines[0]
    assert not (study / "comparison").exists()


def test_a_run_alone_does_not_replace_the_report_of_its_study(compare, study):
    compare(str(study))
    report = study / "comparison" / "report.md"
    before = report.read_text()
    run = next(path.parent for path in sorted(study.glob("*/config.yaml")))
    compare(str(run))
    assert report.read_text() == before and (run / "comparison" / "report.md").is_file()


def test_words_are_runs_and_the_rest_are_settings():
    assert with_list(["++columns.x=y", "~why", "--log=T"], "runs", ("log",)) == [
        "++columns.x=y",
        "log=T",
        "runs=['~why']",
    ]
    given = ["runs/a=b", "it's", "baseline=x", "--log", "A title", "--help", "out/*.csv"]
    assert with_list(given, "runs", ("log",)) == [
        *("baseline=x", "log=A title", "--help", r"runs=['runs/a=b','it\'s','out/*.csv']"),
    ]
