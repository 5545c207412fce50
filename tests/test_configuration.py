"""The command line: every mistake is one clear line and exit code 2, before any work."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gptstar import ideas
from gptstar.configuration import _literal_text, config_directory, preset
from gptstar.errors import EXIT_INTERRUPTED
from gptstar.evaluation.command import EvaluateConfig
from gptstar.evaluation.perplexity import PerplexityConfig
from gptstar.generation.command import SampleConfig, sample
from gptstar.model.describe import parameter_count
from gptstar.report import ReportConfig
from gptstar.training import loop
from gptstar.training.config import TrainConfig
from gptstar.training.loop import train
from gptstar.training.schedules import SCHEDULES


def composed(door, *arguments) -> list[TrainConfig]:
    configs: list[TrainConfig] = []
    door(*arguments, main=configs.append)
    return configs


MISTAKES = [
    (["trainer.max_stepz=5"], ["trainer.max_stepz is not a setting", "did you mean trainer.max_steps?"]),
    (["trainer.steps=5"], ["trainer.steps is not a setting"]),
    (["trainer.dtype=bf16"], ["did you mean trainer.precision?"]),
    (["output_dir=x"], ["did you mean run_dir?"]),
    (["trainer.context=5"], ["did you mean trainer.sequence_length?"]),
    (["trainer.max_length=5"], ["did you mean trainer.sequence_length?"]),
    (["model.sequence_length=5"], ["did you mean model.context?"]),
    (["checkpoint=x"], ["did you mean init_from?"]),
    (["modle=gpt127"], ["modle is not a setting", "did you mean model?"]),
    (["model=gpt128"], ["model=gpt128 is unknown", "gpt127", "star_next_3m\n"]),
    (["data=text_files", "data.paths=books/*.txt"], ["data.paths must be a list: write data.paths=[...]"]),
    (["optimizer.betas=[0.9]"], ["optimizer.betas"]),
    (["model.position=rope"], ["model.position='rope' is unknown", "rotary"]),
    (["experiment=gpt12"], ["experiment=gpt12 is unknown", "gpt127"]),
    (["trainer.max_steps=many"], ["trainer.max_steps", "many"]),
    (["trainer.clip=[1]"], ["trainer.clip"]),
    (["model=gpt2_3m", "model.n_head=7"], ["model.d_model=192", "model.n_head=7", "model.d_head"]),
    (["schedule.warmup_steps=5000"], ["schedule.warmup_steps=5000", "600 steps"]),
    (["data=text_files"], ["data.paths is empty"]),
    (["data=text_files", "data.paths=[nowhere/*.txt]"], ["no file matches 'nowhere/*.txt'"]),
    (["tokenizer.vocab_size=9000"], ["9000 tokens", "model.vocab_size=4096", "set model.vocab_size=9000"]),
    (["tokenizer=file"], ["tokenizer.source is not set"]),
    (["trainer.precision=fp8"], ["trainer.precision='fp8'", "bf16"]),
    (["trainer.device=cuda:99"], ["device=cuda:99 cannot be used here"]),
    (["resume=runs/a=b,c"], ["runs/a=b,c", "no such run"]),
    (["resume=runs/never"], ["runs/never", "no such run"]),
    (["run_dir=/proc/nope"], ["run_dir=/proc/nope cannot be made (No such file", "choose another one"]),
    (["resume=auto"], ["resume=auto needs to know where the run is", "set run_dir"]),
    (["trainer.parallel=tp"], ["trainer.parallel='tp' is unknown", "fsdp"]),
    (["trainer.parallel=fsdp"], ["trainer.parallel=fsdp needs several processes", "torchrun --nproc-per-node=N"]),
    (["x y"], ["'x y' is not of the form key=value", "quote values"]),
    (["--resume", "runs/a"], ["--resume is not an option", "so resume=runs/a; --help lists them"]),
    (["model=star_3m", "--max-steps=7"], ["--max-steps is not an option", "so trainer.max_steps=7;"]),
    (["--debug", "--fast", "a=1"], ["--debug is not an option", "so debug=VALUE;"]),
    (["-p", "hello"], ["-p is not an option: settings are KEY=VALUE, so p=hello; --help lists them"]),
    (["-n", "4"], ["-n is not an option: settings are KEY=VALUE, so n=4"]),
    (["epochs=1"], ["did you mean trainer.max_steps?"]),
    (["max_iters=1"], ["did you mean trainer.max_steps?"]),
    (["learning_rate=1"], ["did you mean optimizer.lr?"]),
    (["trainer.learning_rate=1"], ["did you mean optimizer.lr?"]),
    (["model.n_embd=1"], ["did you mean model.d_model?"]),
    (["block_size=1"], ["did you mean model.context?"]),
    (["model.dropout=0.1"], ["model.dropout is not a setting: --help lists them"]),
    (["data.paths=[mine.txt]"], ["data.paths=['mine.txt'] is not read by data=stdlib: add data=text_files"]),
    (["data.dataset=x/y"], ["data.dataset=x/y is not read by data=stdlib: add data=hub"]),
    (["data.epochs=2"], ["data.epochs=2.0 shares a pass out", "leave it out", "trainer.max_steps"]),
    (
        ["data=text_files", "data.paths=[/tmp]"],
        ["data.paths: /tmp is a folder: name its files, for example /tmp/*.txt"],
    ),
    (["plan"], ["'plan' is not of the form key=value: --help lists the settings"]),
    ([__file__], ["is it data=text_files data.paths=[", "test_configuration.py]?"]),
    (["gpt127"], ["'gpt127' is not of the form key=value: is it model=gpt127?"]),
    (["model=star_3m,gpt2_3m"], ["model=star_3m,gpt2_3m is several values", "add -m for a run of each"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(door, capsys, tmp_path, arguments, words, monkeypatch):
    monkeypatch.setattr(loop, "Trainer", None)  # no work may begin
    with pytest.raises(SystemExit) as exit_:
        door(*arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(word in lines[0] + "\n" for word in words), lines[0]
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "runs"])


def test_the_flag_of_a_sweep_may_stand_anywhere(door):
    assert [c.trainer.seed for c in composed(door, "run_dir=study", "-m", "trainer.seed=0,1")] == [0, 1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000 bytes."),
            "74.51 GiB",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "another 2.50 GiB:"),
        (MemoryError(), "not enough memory: a smaller batch"),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_too_little_memory_is_one_line(door, capsys, error, words):
    def main(config):
        raise error

    with pytest.raises(SystemExit) as exit_:
        door(main=main)
    said = capsys.readouterr().err
    assert exit_.value.code == 1 and said.startswith("error: not enough memory") and words in said
    assert said.count("\n") == 1


def test_a_misspelt_key_in_a_yaml_file_is_named(door, capsys, tmp_path):
    (tmp_path / "mine" / "trainer").mkdir(parents=True)
    (tmp_path / "mine" / "trainer" / "long.yaml").write_text("max_stepz: 10\n")
    with pytest.raises(SystemExit):
        door("--config-dir", str(tmp_path / "mine"), "trainer=long")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "trainer.max_stepz is not a setting: did you mean trainer.max_steps?" in error


IDEA = """
from gptstar.model.own import add
from gptstar.training.schedules import SCHEDULES

@add(SCHEDULES, "mine")
def mine(config, step, total):
    return nothing
"""


def test_a_mistake_in_an_idea_is_one_line_of_its_own(door, no_ideas, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(IDEA)

    def main(config):
        SCHEDULES[config.schedule.name](config.schedule, 0, 1)

    with pytest.raises(SystemExit) as exit_:
        door("ideas=mine.py", "schedule.name=mine", main=main)
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: mine.py, line 7, in mine: return nothing: NameError: name 'nothing' is not defined")


def test_what_an_idea_adds_is_no_file_of_its_group(door, capsys):
    for key, words in (("schedule", "schedule.name=mine"), ("model", "model.block=mine, model.position=mine")):
        with pytest.raises(SystemExit):
            door("ideas=mine.py", f"{key}=mine")
        assert f"; what ideas= adds is chosen with {words}" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            door(f"{key}=mine")
        assert "ideas" not in capsys.readouterr().err


def test_the_mixture_of_the_page_can_be_made(door, tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
    (mixture,) = re.findall(r"## Mixtures\n\n```yaml\n(.*?)```", page, re.S)
    line = r"# (\S+): python train\.py (.*?)   \(or (\S+), (.*)\)\n"
    ((path, command, elsewhere, other),) = re.findall(line, mixture)
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(mixture)
    (config,) = composed(door, *command.split())
    epochs = {name: corpus.epochs for name, corpus in config.data.corpora.items()}
    assert config.data.name == "mix" and epochs == {"web": 1.0, "books": 0.5, "code": 2.0}
    group, _, choice = other.partition("=")
    assert elsewhere == f"configs/{group}/{choice}.yaml" and (config_directory() / group).is_dir()


def test_a_neighbours_name_for_a_setting_is_known(door, capsys):
    for name, schema, argument, hint in (
        ("sample", SampleConfig, "precision=bf16", "did you mean dtype?"),
        ("evaluate", EvaluateConfig, "context=5", "did you mean max_length?"),
        ("perplexity", PerplexityConfig, "checkpoint=x", "did you mean checkpoints?"),
        ("report", ReportConfig, "run_dir=x", "did you mean output_dir?"),
        ("report", ReportConfig, "dtype=fp32", "--help lists them"),
    ):
        with pytest.raises(SystemExit):
            door(argument, name=name, schema=schema, main=sample)
        assert capsys.readouterr().err == f"error: {argument.partition('=')[0]} is not a setting: {hint}\n"


def test_options_of_other_programs_are_answered_with_the_setting_of_this_door(door, capsys):
    for option, setting in (("-p", "prompt"), ("--num_tokens", "num_tokens"), ("--precision", "dtype")):
        with pytest.raises(SystemExit):
            door(option, "x", name="sample", schema=SampleConfig, main=sample)
        assert f"{option} is not an option: settings are KEY=VALUE, so {setting}=x;" in capsys.readouterr().err


def test_sample_and_evaluate_need_a_checkpoint(door, capsys):
    for name, schema in (("sample", SampleConfig), ("evaluate", EvaluateConfig)):
        with pytest.raises(SystemExit):
            door(name=name, schema=schema, main=sample)
        assert "error: checkpoint is not set: add checkpoint=..." in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_run_may_be_as_short_as_one_likes(door, schedule):
    (config,) = composed(door, f"schedule={schedule}", "trainer.max_steps=5")
    config.check()


def test_the_recipes_are_those_of_the_publication(door):
    for name, parameters in (("gpt127", "gpt127"), ("gpt303", "gpt303")):
        (config,) = composed(door, f"experiment={name}")
        assert config.model.name == parameters
        assert (config.total_steps, config.tokens_per_step) == (51_000, 1024 * 512)
        assert (config.optimizer.lr, config.optimizer.weight_decay, config.trainer.clip) == (6e-4, 0.1, 1.0)
        schedule = config.schedule
        assert (schedule.name, schedule.warmup_steps, schedule.final_ratio, schedule.hold_share) == (
            "cosine",
            4000,
            0.1,
            0.1,
        )
        assert (config.data.clean, config.tokenizer.source) == ("ftfy", "gpt2")
        assert [corpus.epochs for corpus in config.data.parts.values()] == [1.0, 1.0, 0.5, 1.0, 1.0]
        config.check()


@pytest.mark.parametrize(
    "group", ["model", "data", "tokenizer", "optimizer", "schedule", "trainer", "logger", "experiment"]
)
def test_every_choice_of_every_group_composes(door, group):
    more = {
        "text_files": ["data.paths=[x]"],
        "hub": ["data.dataset=x"],
        "prepared": ["data.url=x"],
        "mixture": ["+data.corpora.x={corpus:text_files,paths:[x],epochs:2}"],
        "file": ["tokenizer.source=x"],
    }
    for path in sorted((config_directory() / group).glob("*.yaml")):
        (config,) = composed(door, f"{group}={path.stem}", "run_dir=here", *more.get(path.stem, []))
        assert isinstance(config, TrainConfig)
        if group == "model":
            assert config.model == preset(path.stem)
            assert parameter_count(config.model) == parameter_count(preset(path.stem))


def test_runs_go_where_they_are_told_and_sweeps_into_folders_of_their_own(door):
    assert composed(door, "run_dir=here")[0].run_dir == "here"
    assert composed(door)[0].run_dir.startswith("runs/")
    sweep = composed(door, "-m", "run_dir=study", "model=star_3m,gpt2_3m", "trainer.seed=0,1")
    assert [c.run_dir for c in sweep] == [
        f"study/{i}-model-{m}_trainer.seed-{s}"
        for i, (m, s) in enumerate([("star_3m", 0), ("star_3m", 1), ("gpt2_3m", 0), ("gpt2_3m", 1)])
    ]
    told = composed(
        door, "-m", "run_dir=study", "trainer.seed=0,1", "trainer.clip=1e0", "ideas=[]", "logger.project=a b"
    )
    assert [c.run_dir for c in told] == ["study/0-trainer.seed-0", "study/1-trainer.seed-1"]  # only what differs
    long = "/long/name" * 30
    many = composed(door, "-m", "run_dir=study", "data=text_files", f"data.paths=[{long}a],[{long}b]")
    assert [len(Path(c.run_dir).name) for c in many] == [120, 120]
    assert [Path(c.run_dir).parent for c in many] == [Path("study")] * 2


def test_one_bad_run_does_not_end_a_sweep(door, capsys):
    configs: list[TrainConfig] = []
    with pytest.raises(SystemExit) as exit_:
        door("-m", "trainer.max_steps=5,0,7", main=configs.append)
    assert [c.trainer.max_steps for c in configs] == [5, 7] and exit_.value.code == 2
    assert "trainer.max_steps=0 must be above 0" in capsys.readouterr().err


@settings(max_examples=60)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_prompt_arrives_as_it_was_typed(prompt):
    if prompt == "null" or (len(prompt) > 1 and prompt[0] == prompt[-1] and prompt[0] in "'\""):
        return  # quoted for Hydra already
    override = OverridesParser.create().parse_override(_literal_text(f"prompt={prompt}"))
    assert OmegaConf.create({"prompt": override.value()}).prompt == prompt


def test_paths_and_names_arrive_as_they_were_typed(door):
    for key, schema in (("quantized_dir", SampleConfig), ("reference", ReportConfig), ("cache_dir", PerplexityConfig)):
        found: list = []
        more = {"reference": ["results=[x]"], "cache_dir": ["checkpoints=[x]", "text=[y]"]}.get(key, ["checkpoint=x"])
        name = schema.__name__.removesuffix("Config").lower()
        door(f"{key}=GPT-127*, ctx {{1024}}", *more, name=name, schema=schema, main=found.append)
        assert getattr(found[0], key) == "GPT-127*, ctx {1024}"
    told = ["data.text_field=a,b", "data.url=https://x/?a=b&c=[d]", "tokenizer.source=a, b", "data.cache_dir=~/a (b)"]
    (config,) = composed(door, "run_dir=here, too", *told, "model.name=${data.name}", "data.revision=null")
    assert (config.run_dir, config.data.cache_dir, config.tokenizer.source) == ("here, too", "~/a (b)", "a, b")
    assert (config.data.text_field, config.data.url) == ("a,b", "https://x/?a=b&c=[d]")
    assert (config.model.name, config.data.revision) == ("stdlib", None)
    swept = composed(door, "-m", "run_dir=study", "data.name=a,b", "model.position=alibi,learned")
    assert [(c.data.name, c.model.position) for c in swept] == [
        (name, position) for name in "ab" for position in ("alibi", "learned")
    ]


def test_ctrl_c_is_a_line(door, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    for continues, line in ((False, ""), (True, ": the same command continues where this one stopped")):
        with pytest.raises(SystemExit) as exit_:
            door("checkpoint=x", name="sample", schema=SampleConfig, main=interrupted, continues=continues)
        assert exit_.value.code == EXIT_INTERRUPTED and capsys.readouterr().err == f"interrupted{line}\n"
    with pytest.raises(SystemExit) as exit_:
        door("-m", "trainer.seed=0,1", main=interrupted)
    assert exit_.value.code == EXIT_INTERRUPTED and capsys.readouterr().err == "interrupted\n"


def test_train_resume_evaluate_and_sample_by_command_line(door, corpus_dir, tmp_path, capsys):
    arguments = [
        "data=text_files",
        f"data.paths=[{corpus_dir}/*.txt]",
        f"data.cache_dir={tmp_path}/cache",
        "data.validation_fraction=0.2",
        "tokenizer.vocab_size=300",
        "model.vocab_size=300",
        "model.n_layer=1",
        "model.context=32",
        "trainer.batch_size=2",
        "trainer.peak_flops=1e11",
        "schedule.warmup_steps=2",
    ]
    door(*arguments, "run_dir=first", "trainer.max_steps=3", main=lambda config: train(config) and None)
    saved = yaml.safe_load(Path("first/config.yaml").read_text())
    assert saved["model"]["n_layer"] == 1 and saved["trainer"]["max_steps"] == 3
    door("resume=first", "trainer.max_steps=5")
    assert yaml.safe_load(Path("first/config.yaml").read_text())["model"]["n_layer"] == 1
    assert sorted(p.name for p in Path("first/checkpoints").iterdir()) == ["step-00000003", "step-00000005"]
    with pytest.raises(SystemExit):
        door("resume=first", "model=gpt2_3m", "trainer.max_steps=9")
    assert "model.n_layer 1 -> 4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        door("resume=first", "experiment=gpt127")
    assert "leave experiment=gpt127 out" in capsys.readouterr().err
    texts: list[str] = []
    for _ in range(2):
        door(
            "checkpoint=first", "prompt=abc", "max_new_tokens=8", name="sample", schema=SampleConfig,
            main=lambda config: texts.append(sample(config)),
        )  # fmt: skip
    assert texts[0] == texts[1] and texts[0].startswith("abc")


def test_what_a_launcher_starts_again_goes_on_where_it_was(door, train_config, monkeypatch):
    run = train(train_config).run
    same = ["experiment=gpt127", "resume=auto", f"run_dir={run}", "trainer.max_steps=12"]  # the command of the start
    (config,) = composed(door, *same)
    assert config.resume == str(run) and Path(config.run_dir).resolve() == run and config.model == train_config.model
    assert config.trainer.max_steps == 12
    (config,) = composed(door, "resume=auto", "run_dir=elsewhere", "trainer.max_steps=12")
    assert config.resume is None and config.run_dir == "elsewhere"
    (config,) = composed(door, f"run_dir={run}", f"resume={run}/checkpoints/step-00000004")
    assert config.resume.endswith("step-00000004")  # a branch, which is refused later
    entry = json.loads((run / "environment.json").read_text())[-1]
    for key, launch in (("TORCHELASTIC_RESTART_COUNT", "job-abc"), ("SLURM_RESTART_COUNT", "slurm-5-0")):
        with monkeypatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", "5")
            if launch == "job-abc":
                patch.setenv("TORCHELASTIC_RUN_ID", "abc")
            patch.setenv(key, "1")
            # Somebody else's run, which the first attempt has refused to touch.
            (run / "environment.json").write_text(json.dumps([{**entry, "launch": "job-other"}]))
            assert composed(door, f"run_dir={run}")[0].resume is None
            (run / "environment.json").write_text(json.dumps([{**entry, "launch": launch}]))
            assert composed(door, f"run_dir={run}")[0].resume == str(run)
            again = composed(door, f"run_dir={run}", "resume=runs/other/checkpoints/step-00000004")[0]
            assert again.resume == str(run)  # the branch has begun
            patch.setenv(key, "0")
            assert composed(door, f"run_dir={run}")[0].resume is None


def test_ranks_of_a_job_agree_on_a_folder_that_was_not_named(door, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert composed(door)[0].run_dir == "runs/job-abc"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert composed(door)[0].run_dir == composed(door)[0].run_dir and f"-{os.getppid()}-" in composed(door)[0].run_dir
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert composed(door)[0].run_dir == "runs/slurm-7-0"


def test_a_resumed_run_uses_its_own_copy_of_an_idea(door, train_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ideas, "_imported", {})
    monkeypatch.setattr(ideas, "_mark", lambda text: tmp_path / "marks" / "one")
    idea = tmp_path / "idea_of_a_test.py"
    idea.write_text("from gptstar.model.own import add\nadd({}, 'x')(object)\n".replace("object", "type('X', (), {})"))
    config = composed(door, f"ideas=[{idea}]")[0]
    assert config.ideas == [str(idea)] == composed(door, f"ideas={idea}")[0].ideas
    run = train(replace(train_config, ideas=[str(idea)])).run
    assert (run / "ideas" / idea.name).read_text() == idea.read_text()
    idea.write_text("raise SystemExit('another text')")
    assert composed(door, f"resume={run}")[0].ideas == [str(run / "ideas" / idea.name)]
    with pytest.raises(SystemExit):
        door(f"resume={run}", f"ideas=[{idea}]")
    assert "has copies of its ideas: leave ideas=" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        door("ideas=no where.py")
    assert "ideas=no where.py cannot be read" in capsys.readouterr().err


def test_init_from_brings_shape_and_tokenizer_which_the_command_line_may_change(door, train_config, capsys):
    run = str(train(train_config).run)
    config, changed = (
        composed(door, f"init_from={run}"),
        composed(door, f"init_from={run}", "model.adapter_width=4", "tokenizer.source=elsewhere"),
    )
    assert config[0].model == train_config.model and config[0].tokenizer.source == "init_from"
    assert changed[0].model.adapter_width == 4 and changed[0].model.d_ff == train_config.model.d_ff
    assert changed[0].tokenizer.source == "elsewhere"
    with pytest.raises(SystemExit):
        door(f"init_from={run}", "model=gpt127")
    assert "brings its own shape: leave model=... out" in capsys.readouterr().err
    for words, message in (
        ([f"init_from={run}", "experiment=gpt127"], "leave experiment=... out"),
        ([f"init_from={run}", "tokenizer.vocab_size=500"], "brings its own tokenizer"),
        ([f"resume={run}", "init_from=elsewhere"], "leave init_from=... out"),
    ):
        with pytest.raises(SystemExit):
            door(*words)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data=mixture"],
            "data.corpora is empty: add corpora, for example '+data.corpora.books={paths:",
        ),
        (["+data.corpora.x={paths:[a.txt],epoch:2}"], "data.corpora.x.epoch is not a setting: did you mean epochs?"),
        (["+data.corpora.x={paths:[a.txt],epochs:abc}"], "data.corpora.x.epochs='abc' must be a number"),
        (["+data.corpora.x={paths:a.txt}"], "data.corpora.x.paths='a.txt' must be a list of texts, [...]"),
        (["+data.corpora.x={paths:[a.txt],epochs:0}"], "data.corpora.x.epochs=0 must be above 0"),
        (["+data.corpora.x=a.txt"], "data.corpora.x='a.txt' must hold the keys of a corpus"),
        (["data=text_files", "data.paths=[a]", "+data.corpora.x={paths:[b]}"], "is not one of the data.corpora x"),
        (["data.name=a/b"], "'a/b' cannot name a corpus"),
    ],
)
def test_mistakes_in_a_mixture_are_one_line(door, capsys, arguments, words):
    with pytest.raises(SystemExit):
        door(*arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
