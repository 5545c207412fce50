"""A search over a stand-in for training: a script that writes the losses its settings would have, in real processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from gptstar.errors import UserError
from gptstar.lab.sweeps import trials
from gptstar.lab.sweeps.search_report import confirmation, ranked, write_search
from gptstar.lab.sweeps.space import Between, Choice
from gptstar.lab.sweeps.trials import Search, Trial

STAND_IN = """
import json, os, pathlib, signal, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
run = pathlib.Path(words["run_dir"])
run.mkdir(exist_ok=True)
(run / "starts").open("a").write("x")
path = run / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.is_file() else 0
ending = []
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
kind, lr = words["optimizer"], float(words["lr"])
level = 3 + abs(lr - 0.3) + (0.5 if kind == "lion" else 0)
if kind == "refused":
    sys.exit(print("error: optimizer=refused cannot be", file=sys.stderr) or 2)
with path.open("a") as log:
    for i in range(done + 1, 10):  # a validation each 100 tokens
        for _ in range(20):
            time.sleep(float(words.get("pause", 0)) / 20)
            if ending:
                sys.exit(75)
        if kind == "spoilt" and i == 2:
            sys.exit(print("error: step 7: loss nan: stopped", file=sys.stderr) or 3)
        if kind == "killed" and i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        log.write(json.dumps({"step": i, "tokens": 100 * i, "validation_loss": level + 9 / i}) + chr(10))
        log.flush()
    log.write(json.dumps({"step": 9, "tokens": 900, "final_loss": level}) + chr(10))
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "POLL", 0.02)
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def search(*options, folder="study", pause=0.0, kinds=("adamw", "lion"), **changes) -> Search:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        values: dict = dict(
            folder=place,
            command=[sys.executable, str(script), f"pause={pause}", *options],
            space={"lr": Between(0.01, 1.0, True, False), "optimizer": Choice(kinds)},
            default={"lr": 0.1, "optimizer": kinds[0]},
            budget=900,
            trials=6,
            seed=0,
            reduction=3,
            rungs=2,
            startup=3,
            timeout=None,
        )
        return Search(**{**values, **changes})

    return search


def run(search: Search, report: bool = False) -> tuple[list[Trial], list[str]]:
    found: list[list[Trial]] = [[]]
    said: list[str] = []

    def finished(trials, study):
        found.append(trials)
        if report:
            write_search(search, trials, study)

    assert search.run(finished, said.append)
    return found[-1], said


def outcome(found: list[Trial]) -> list[tuple]:
    return [(each.state, each.settings, each.validations, each.final) for each in found]


def test_what_is_behind_at_a_rung_is_stopped_and_the_best_is_found(make):
    search = make(trials=9)
    found, said = run(search, report=True)
    assert len(found) == 9 and found[0].settings == {"lr": "0.1", "optimizer": "adamw"}  # the default, first
    assert found[0].state == "complete" and len({trial.settings["lr"] for trial in found}) == 9
    at_first = []
    for trial in found:  # by hand: the best third, at least the best one, of those that had come to a rung goes on
        at_first.append(trial.validations[0][1])
        kept = at_first[-1] <= sorted(at_first)[max(0, len(at_first) // 3 - 1)]
        assert kept == (len(trial.validations) > 1)
        assert trial.state in ("complete", "pruned")
    pruned = [each for each in found if each.state == "pruned"]
    assert pruned and all(each.validations[-1][0] in (100, 300) for each in pruned)
    best = ranked(found)[0]
    assert best.final == min(each.final for each in found if each.final is not None) and best.final < found[0].final
    report = json.loads((search.folder / "search.json").read_text())
    assert report["best"] == best.number and report["trials"][0]["final"] == best.final
    text = (search.folder / "search.md").read_text()
    assert f"**{best.final:.4f} nats/token**, {best.folder}" in text and "best of 9" in text
    assert (search.folder / "search.png").stat().st_size > 5000
    assert any("pruned after 100 of 900 tokens" in line for line in said)


def test_a_trial_at_its_end_is_complete_however_bad(make):
    found, _ = run(make(rungs=1, reduction=2, trials=8))
    at_end = [each.state for each in found if len(each.validations) == 9]
    assert len(at_end) > 2 and set(at_end) == {"complete"}


def test_the_seed_and_the_losses_decide_everything(make):
    first, again, other = (run(make(folder=name, seed=seed))[0] for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert outcome(first) == outcome(again) != outcome(other)


def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(make):
    whole, _ = run(make(folder="whole"))
    slow = make(folder="killed", pause=0.15)
    child = multiprocessing.get_context("fork").Process(target=run, args=(slow,))
    child.start()
    second = slow.folder / "trial-001" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (second.is_file() and second.read_text().count("\n") >= 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with (slow.folder / "optuna.log").open("a") as log:
        log.write('{"op_code": 4, "wor')  # torn
    found, _ = run(replace(slow, command=[word for word in slow.command if not word.startswith("pause")]))
    assert outcome(found) == outcome(whole)
    if found[1].state == "complete" or len(found[1].validations) > 1:
        assert (slow.folder / "trial-001" / "starts").read_text() == "xx"  # went on, not over again


def test_a_signal_ends_the_search_and_its_trial_saves_itself(make):
    search = make(pause=0.2)

    def ctrl_c(say):
        if say.startswith("trial-000 (1"):
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        assert search.run(lambda *_: None, ctrl_c) is False
    finally:
        signal.signal(signal.SIGALRM, before)
    kept = (search.folder / "trial-000" / "metrics.jsonl").read_text()
    found, _ = run(replace(search, command=search.command[:2], trials=1))
    assert found[0].state == "complete"
    assert (search.folder / "trial-000" / "metrics.jsonl").read_text().startswith(kept)


@pytest.mark.parametrize(
    ("kind", "reason"), [("spoilt", "not finite (step 7: loss nan: stopped)"), ("killed", "SIGKILL")]
)
def test_a_trial_that_fails_is_named_and_the_search_goes_on(make, kind, reason):
    search = make(kinds=("adamw", kind), trials=4, default={"lr": 0.1, "optimizer": kind})
    found, said = run(search, report=True)
    assert found[0].state == "failed" and reason in found[0].reason
    assert {each.state for each in found} > {"failed"} and len(found) == 4
    assert any("failed" in line and reason in line for line in said)
    assert reason in (search.folder / "search.md").read_text()


def test_what_is_refused_at_once_ends_the_search_with_its_line(make):
    with pytest.raises(UserError, match=r"optimizer=refused was refused: optimizer=refused cannot be"):
        run(make(kinds=("refused", "adamw")))


def test_a_refusal_later_is_a_failed_trial(make):
    found, _ = run(make(kinds=("adamw", "refused"), trials=8))
    assert "refused cannot be" in next(each.reason for each in found if each.state == "failed")


def test_more_trials_and_no_time_left(make):
    assert len(run(make(trials=2))[0]) == 2
    assert len(run(make(trials=4))[0]) == 4  # those of before are not run again
    assert len(run(make(trials=9, timeout=1e-9))[0]) == 4


def test_two_searches_in_one_folder_are_refused(make, monkeypatch):
    search = make()
    monkeypatch.setattr(trials, "GRACE", 0.2)
    holder = subprocess.Popen(
        ["flock", str(search.folder / ".lock"), "sleep", "30"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        time.sleep(0.3)
        with pytest.raises(UserError, match="another search is at work"):
            run(search)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_the_confirmation_uses_fresh_seeds_for_both(make):
    search = make("trainer.seed=7", folder="a b")
    best = Trial(3, "complete", {"lr": "0.3", "optimizer": "lion"}, "trial-003", [(900, 3.1)], 3.0, None)
    text = confirmation(search, best)
    assert text.startswith("for seed in 8 9 10 11; do") and "trainer.seed=7" not in text
    assert 'lr=0.3 optimizer=lion trainer.seed=$seed run_dir="' in text and text.count("trainer.seed=$seed") == 2
    assert f'baseline="{search.folder}/default-8"'.replace("/default", "/confirm/default") in text


def test_trials_are_ranked_by_how_far_they_came():
    def trial(number, state, validations, final=None):
        return Trial(number, state, {}, "", validations, final, None)

    made = [
        trial(0, "failed", [(100, 1.0)]),
        trial(1, "pruned", [(100, 5.0)]),
        trial(2, "pruned", [(100, 4.0)]),
        trial(3, "pruned", [(100, 4.0), (300, 6.0)]),
        trial(4, "complete", [(900, 3.0)], 3.2),
        trial(5, "complete", [(900, 3.0)], 3.1),
    ]
    assert [each.number for each in ranked(made)] == [5, 4, 3, 2, 1, 0]


def test_values_as_on_a_command_line():
    assert Choice(("true", "false")).place(False) == "false" and Choice(("null", "1")).place(None) == "null"
    assert Choice(("gelu",)).place("relu") is None
    assert Between(0.1, 1.0, False, False).place(0.5) == 0.5 and Between(0.1, 1.0, False, False).place(2.0) is None
    assert Between(1, 8, False, True).place(4) == 4 and Between(1, 8, False, True).place(None) is None
    assert Between(0, 1, False, True).place(True) is None
