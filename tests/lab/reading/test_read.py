import dataclasses
import json

import numpy as np
import pytest
import yaml

from gptstar.errors import UserError
from gptstar.lab.reading.read import read_run
from gptstar.lab.reading.runs import HeldOut, Run, Validation
from gptstar.lab.reading.variants import variants
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.training.loop import train
from lab.run_folders import HELD_OUT, make_config, make_lines, write_run
from support import tiny_model


def test_a_finished_run_is_all_there(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    assert run.problem is None
    assert (run.source, run.name, run.seed, run.variant, run.budget) == (str(tmp_path / "a"), "a", 0, None, 6 * 128)
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.tokens.tolist() == [128, 256, 384, 512, 640, 768]
    assert run.losses == pytest.approx(6.0 - np.arange(1, 7) / 10)
    assert run.seconds.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert run.validations == [Validation(3, 384, 1.5, 5.8, 2.0), Validation(6, 768, 3.0, 5.5, 2.0)]
    assert (run.final_loss, run.final_bits_per_byte) == (5.5, 1.9)
    assert (run.tokens_per_second, run.mfu, run.memory_gib) == (253.5, 0.4, pytest.approx(0.6))
    assert (run.parameters, run.flops_per_token, run.tokenizer, run.held_out) == (7, 42, "t1", HELD_OUT)
    assert (run.hardware, run.commit, run.command) == ("Abacus, 2 cores", "c0ffee", "train.py model=tiny")


def test_a_run_older_than_its_facts_is_described_from_its_configuration(tmp_path):
    run = read_run(write_run(tmp_path / "a", facts=None))
    model = tiny_model()
    assert (run.parameters, run.flops_per_token) == (parameter_count(model), flops_per_token(model, 32))
    assert (run.tokenizer, run.held_out, run.problem) == (None, None, None)


def test_settings_of_another_version_do_no_harm(tmp_path):
    config = make_config()
    del config["trainer"]["batch_warmup"], config["model"]["qk_norm"]
    run = read_run(write_run(tmp_path / "a", config, facts=None))
    assert (run.budget, run.parameters) == (768, parameter_count(tiny_model()))
    config["model"]["of_the_future"] = True
    run = read_run(write_run(tmp_path / "b", config, facts=None))
    assert (run.budget, run.parameters, run.problem) == (768, None, None)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"trainer.max_steps": None, "trainer.max_tokens": 800}, (6, 768)),
        ({"trainer.sequence_length": 16}, (6, 384)),
        ({"trainer.batch_warmup": {"first": 2, "increment": 2, "steps": 3}}, (6, None)),
    ],
)
def test_the_budget_is_in_tokens(tmp_path, train_config, changes, wanted):
    run = read_run(write_run(tmp_path / "a", make_config(**changes)))
    steps, tokens = wanted
    if tokens is None:  # three steps lead up to the batch of 4
        from gptstar.training.config import BatchWarmup, batch_sizes

        options = dataclasses.replace(train_config.trainer, batch_warmup=BatchWarmup(first=2, increment=2, steps=3))
        tokens = sum(batch_sizes(options).size(step) for step in range(steps)) * 32
    assert (run.budget, run.problem) == (tokens, None)


def lines_with(change):
    lines = make_lines()
    change(lines)
    return lines


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "no metrics yet"),
        (make_lines(3, final=False), "stopped at step 3 of 6"),
        (make_lines(3), "stopped at step 3 of 6"),  # to be continued, and killed before its next step
        (make_lines(final=False), "stopped at step 6, before its final validation"),
        (lines_with(lambda lines: lines[-1].update(final_loss=float("nan"))), "its final loss is not finite"),
        (
            [*make_lines(2, final=False), *({"step": s, "tokens": 128 * s, "loss": None} for s in (3, 4))],
            "its loss became infinite at step 3",
        ),
    ],
)
def test_what_is_wrong_is_said_and_the_rest_read(tmp_path, lines, problem):
    run = read_run(write_run(tmp_path / "a", lines=lines))
    assert run.problem == problem
    assert run.hardware == "Abacus, 2 cores"
    assert len(run.steps) == len([line for line in lines if "loss" in line])


def test_a_skipped_step_is_no_problem(tmp_path):
    run = read_run(write_run(tmp_path / "a", lines=lines_with(lambda lines: lines[1].update(loss=None))))
    assert run.problem is None
    assert np.isnan(run.losses).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    "line", ["{", "3", '{"loss": 1.0}', '{"step": 2, "loss": 1.0}', '{"step": 2, "tokens": 9, "loss": "high"}', "\xff"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    folder = write_run(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_text().split("\n")
    (folder / "metrics.jsonl").write_bytes("\n".join([*lines[:4], line, *lines[4:]]).encode("latin1"))
    run = read_run(folder)
    assert run.problem == "metrics.jsonl line 5 cannot be read"
    assert len(run.steps) == 6


def test_a_line_torn_by_a_kill_is_none(tmp_path):
    folder = write_run(tmp_path / "a", lines=make_lines(2, final=False))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tok')
    assert read_run(folder).problem == "stopped at step 2 of 6"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "a: [", "config.yaml cannot be read: "),
        ("config.yaml", "", "config.yaml cannot be read: "),
        ("facts.json", "{}", "facts.json cannot be read"),
        ("facts.json", "{", "facts.json cannot be read"),
        ("environment.json", "{", None),
        ("environment.json", "3", None),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, problem):
    folder = write_run(tmp_path / "a")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    run = read_run(folder)
    assert run.problem == problem or run.problem.startswith(problem)
    assert len(run.steps) == 6


@pytest.mark.parametrize("section", ["model", "data", "trainer", "logger", "tokenizer"])
@pytest.mark.parametrize("value", [None, 3, "x", {"max_steps": "x", "context": "y", "sequence_length": [1]}])
def test_a_configuration_of_odd_values_raises_nothing(tmp_path, section, value):
    run = read_run(write_run(tmp_path / "a", make_config() | {section: value}, facts=None))
    assert run.problem is None


def test_no_folder_at_all_is_a_run_that_has_not_begun(tmp_path):
    assert read_run(tmp_path / "a").problem == "it has not begun"


def test_the_study_beside_a_run_names_its_variant_and_seed(tmp_path):
    folder = write_run(tmp_path / "one")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"runs": {"one": {"variant": "gpt2", "seed": 3}}}))
    assert (read_run(folder).variant, read_run(folder).seed) == ("gpt2", 3)
    (tmp_path / "study.yaml").write_text("runs: [1]")
    with pytest.raises(UserError, match=r"study.yaml cannot be read .*: mend it, or take it away"):
        read_run(folder)


def test_a_run_of_a_study_keeps_its_variant_where_study_yaml_is_not(tmp_path):
    config = make_config(**{"logger.group": "ablate_star", "trainer.seed": 2})
    assert read_run(write_run(tmp_path / "wide-heads-2", config)).variant == "wide-heads"
    assert read_run(write_run(tmp_path / "wide-heads-1", config)).variant is None  # not its seed


def test_a_run_moved_to_another_machine_names_both(tmp_path):
    folder = write_run(tmp_path / "a")
    entries = json.loads((folder / "environment.json").read_text())
    entries += [entries[0], {"device": "NVIDIA H200", "cpu": "x", "cores": 9, "commit": "beef", "command": "again"}]
    (folder / "environment.json").write_text(json.dumps(entries))
    run = read_run(folder)
    assert (run.hardware, run.commit) == ("Abacus, 2 cores; NVIDIA H200", "c0ffee, beef")
    assert run.command == "train.py model=tiny"


def test_a_run_trained_here_and_resumed_with_a_larger_budget(train_config):
    folder = train(train_config).run
    first = read_run(folder)
    facts = json.loads((folder / "facts.json").read_text())
    assert (first.problem, first.budget, first.steps.tolist()) == (None, 8 * 128, [*range(1, 9)])
    assert first.held_out == HeldOut(**facts["held_out"])
    longer = dataclasses.replace(train_config.trainer, max_steps=10)
    train(dataclasses.replace(train_config, trainer=longer, resume=str(folder)))
    run = read_run(folder)
    assert (run.problem, run.budget, run.steps.tolist()) == (None, 10 * 128, [*range(1, 11)])
    assert run.losses[:8].tolist() == first.losses.tolist()
    assert run.tokens.tolist() == [128 * step for step in range(1, 11)]
    assert [check.step for check in run.validations] == [4, 8, 10]
    assert run.final_loss not in (None, first.final_loss)
    (folder / "facts.json").unlink()
    older = read_run(folder)
    assert (older.tokenizer, older.parameters, older.flops_per_token) == (
        first.tokenizer,
        first.parameters,
        first.flops_per_token,
    )


def test_an_idea_is_its_text_and_not_its_path(tmp_path):
    def run(name: str, path: str, text: str, **changes) -> Run:
        folder = write_run(tmp_path / name, make_config(**changes, ideas=[path], **{"trainer.seed": int(name[-1])}))
        (folder / "ideas").mkdir()
        (folder / "ideas" / "warm.py").write_text(text)
        return read_run(folder)

    text = '@add(ACTIVATIONS, "warm")\ndef warm(x): return x\n'
    warm = {"model.activation": "warm"}
    runs = [
        run("base-0", "warm.py", text),
        run("one-0", "warm.py", text, **warm),
        run("one-1", "/elsewhere/warm.py", text, **warm),
        run("other-0", "warm.py", text + "# edited", **warm),
    ]
    grouped = {name: [each.name for each in group] for name, group in variants(runs).items()}
    base, one, other = grouped.items()
    assert base == ("tiny", ["base-0"])
    assert one[1] == ["one-0", "one-1"] and other[1] == ["other-0"]
    assert one[0].startswith("tiny ideas=warm.py@") and other[0].startswith("tiny ideas=warm.py@")
    assert all(each.problem is None for each in runs)
