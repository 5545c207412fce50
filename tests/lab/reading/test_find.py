import json
import shutil

import pytest
import yaml

from gptstar.errors import UserError
from gptstar.lab.reading.find import find_runs
from lab.run_folders import make_config, make_lines, write_run
from lab.wandb_files import track


def names(*sources, **options):
    return [run.name for run in find_runs([str(source) for source in sources], **options)]


def test_a_run_a_folder_of_runs_and_a_glob(tmp_path):
    for name in ("b-10", "b-2", "a", "deep/er/c"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "report.md").touch()
    (tmp_path / "runs" / ".hidden").mkdir()
    assert names(tmp_path / "runs" / "a") == ["a"]
    assert names(tmp_path / "runs") == ["a", "b-2", "b-10", "c"]
    assert names(f"{tmp_path}/runs/b-*") == ["b-2", "b-10"]
    assert names(f"{tmp_path}/runs/*") == ["a", "b-2", "b-10", "c"]
    assert names(tmp_path / "runs" / "b-2", tmp_path / "runs", tmp_path / "runs" / "deep" / ".." / "a") == [
        *("b-2", "a", "b-10", "c")
    ]


def test_a_link_is_the_run_it_leads_to(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "z").symlink_to(tmp_path / "a")
    assert names(tmp_path / "a", tmp_path / "z") == ["a"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_runs_are_looked_for_three_deep(tmp_path, depth):
    write_run(tmp_path.joinpath(*"wxyz"[:depth]))
    if depth <= 3:
        assert len(names(tmp_path)) == 1
    else:
        with pytest.raises(UserError, match="holds no run: name a run folder"):
            names(tmp_path)


def test_a_study_gives_order_and_variants_and_misses_nothing(tmp_path):
    for name in ("zero-0", "alpha-0", "stray"):
        write_run(tmp_path / name)
    places = {f"{v}-{s}": {"variant": v, "seed": s} for s in (0, 1) for v in ("zero", "alpha")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"runs": places}, sort_keys=False))
    runs = find_runs([str(tmp_path)])
    assert [run.name for run in runs] == ["zero-0", "alpha-0", "zero-1", "alpha-1", "stray"]
    assert [run.variant for run in runs] == ["zero", "alpha", "zero", "alpha", None]
    assert [run.problem for run in runs] == [None, None, "it has not begun", "it has not begun", None]
    assert [run.seed for run in runs[:4]] == [0, 0, 1, 1]


def test_a_damaged_run_is_found_too(tmp_path):
    folder = write_run(tmp_path / "runs" / "a")
    (folder / "config.yaml").unlink()
    assert [run.problem for run in find_runs([str(tmp_path)])] == ["config.yaml is missing"]


def test_a_csv_file_by_name_and_by_glob(tmp_path):
    (tmp_path / "e.csv").write_text("run,step,tokens,their\nx,1,10,4.0\ny,1,10,4.0\n")
    columns = {"validation_loss": "their"}
    assert names(tmp_path / "e.csv", columns=columns) == ["x", "y"]
    assert names(f"{tmp_path}/*.csv", tmp_path / "e.csv", columns=columns) == ["x", "y"]
    with pytest.raises(UserError, match="holds no run"):  # a folder may hold tables of anything
        names(tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A foreign project of two runs, the second one in two files, as after a resumption."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "config.yaml").write_text("theirs: 1\n")
    for i, (name, steps) in enumerate((("one", [1, 2]), ("two", [1, 2, 3]), ("two", [2, 3, 4]))):
        rows = [{"train_loss": 5.0 - step, "val_loss": 5.0 - step, "tokens": step} for step in steps]
        newest = track(folder, rows, steps[0], name=name, id=f"id-{name}")[-1].parent
        newest.rename(newest.with_name(f"offline-run-20200101_00000{i}-id-{name}"))
    return folder


def test_wandb_folders(project):
    for source in (project, project / "wandb", f"{project}/wandb/offline-run-*"):
        one, two = find_runs([str(source)])
        assert (one.name, two.name, one.problem, two.problem) == ("one", "two", None, None)
        assert (one.steps.tolist(), two.steps.tolist()) == ([1, 2], [1, 2, 3, 4])
    part = next((project / "wandb").glob("*_000001-*"))
    assert find_runs([str(part)])[0].steps.tolist() == [1, 2, 3]
    assert names(next(part.glob("*.wandb"))) == ["two"]
    assert names(project / "wandb", part) == ["one", "two"]


def test_a_run_and_its_wandb_files_are_one_run(project, tmp_path):
    folder = write_run(tmp_path / "runs" / "ours")
    (folder / "wandb_id").write_text("id-two\n")
    shutil.copytree(project / "wandb", tmp_path / "copies" / "wandb", symlinks=True)
    shutil.copytree(project / "wandb", folder / "wandb", symlinks=True)
    assert names(tmp_path / "runs") == ["ours"]  # what lies in a run is that run's
    assert names(tmp_path / "copies", tmp_path / "runs") == ["one", "ours"]
    assert names(tmp_path / "runs", folder / "wandb") == ["ours", "one"]
    assert names(folder / "wandb") == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: no such file or folder .*: name a run folder, a folder with runs in it"),
        ("no*where", r"no\*where matches no files and no run: name"),
        ("*", r"\* matches 2 files and no run: name"),
        ("empty", "empty holds no run: name"),
        ("text.txt", "text.txt holds no run: name"),
    ],
)
def test_a_source_without_runs_is_named(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    with pytest.raises(UserError, match=message):
        names(source)


def test_no_source_at_all():
    with pytest.raises(UserError, match="no runs were named: name a run folder"):
        find_runs([])


def test_a_folder_with_odd_characters_is_no_glob(tmp_path):
    write_run(tmp_path / "lr[1]" / "a", make_config(), make_lines())
    assert names(tmp_path / "lr[1]") == ["a"]
    assert json.loads((tmp_path / "lr[1]" / "a" / "facts.json").read_text())
