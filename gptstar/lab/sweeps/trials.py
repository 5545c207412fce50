"""The trials of a search: Optuna proposes, successive halving prunes, each trial trains in a process of its own.

What Optuna knows is in STUDY/optuna.log, an append-only journal, so that a search that was killed goes on: the trial
that was running continues from its last checkpoint, and the next proposals are those that would have come.

Pruning is asynchronous successive halving (Li et al., arXiv:1810.05934): with `reduction` 3 and `rungs` 2, the best
third of what has come to 1/9 of the budget so far goes on, and of these the best third at 1/3 of it. A trial is
compared with others at the same tokens of the SAME learning-rate schedule, the one of the full budget. Were the
schedules shortened to the rung, every promotion would need a new run, and each rung would answer a question about a
shorter training. The price: losses in the middle of a schedule are no final losses. What pays only as the rate decays
(a high learning rate, little weight decay) looks worse at a rung than it is, so such late bloomers can be pruned.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from gptstar.errors import EXIT_BAD_INPUT, EXIT_NONFINITE, UserError
from gptstar.files import locked
from gptstar.lab.sweeps.launcher import end_with_parent
from gptstar.lab.sweeps.space import Between, Choice
from gptstar.training.interrupt import Interrupt

POLL = 0.5  # seconds between two looks at a trial
GRACE = 120.0  # seconds that a trial may take to save itself, or an earlier search to end

Settings = dict[str, str]


@dataclass(frozen=True)
class Trial:
    """What became of one setting.

    state        complete, pruned, failed or running; reason: why it failed
    settings     {key: value} as on a command line; folder: its run, in the search's folder
    validations  [(tokens, nats a token)]; final: on all of the held-out text, where it is complete
    """

    number: int
    state: str
    settings: Settings
    folder: str
    validations: list[tuple[int, float]]
    final: float | None
    reason: str | None


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    command   what trains, as a command line without the trial's settings, run_dir and resume
    space     {key: what it may be}; default: the settings a run has without a search, the first trial; None: they are
              not in the space
    budget    tokens of a trial that is not pruned
    trials    how many; timeout: seconds of one start of the search after which no further trial begins
    reduction of the trials that reach a rung one in so many goes on; rungs: how many there are, the last one at
              budget / reduction
    startup   trials at random before proposals are made by the tree-structured Parzen estimator
    """

    folder: Path
    command: list[str]
    space: dict[str, Choice | Between]
    default: dict[str, str | float] | None
    budget: int
    trials: int
    seed: int
    reduction: int
    rungs: int
    startup: int
    timeout: float | None

    @property
    def first_rung(self) -> int:
        """Tokens before the first decision."""
        return max(1, self.budget // self.reduction**self.rungs)

    def run(self, finished: Callable[[list[Trial], optuna.Study], None], say: Callable[[str], None]) -> bool:
        """Until all trials are done (True) or a signal comes (False); calls `finished` after each.

        UserError where the very first trial is refused by what trains, and where another search is at work here.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # The trial of a search that was killed may still save itself, and hold the lock until it has.
        with locked(self.folder / ".lock", GRACE) as lock, Interrupt() as interrupt:
            if lock is None:
                raise UserError(
                    f"run_dir={self.folder}: another search is at work there: wait for it, or choose another run_dir"
                )
            study = self._study()
            began = time.monotonic()
            while interrupt.requested is None:
                trial = self._next(study, began)
                if trial is None:
                    finished(trials_of(study), study)
                    return True
                settings = {key: values.suggest(trial, key) for key, values in self.space.items()}
                trial.set_user_attr("settings", settings)
                name, words = folder_of(trial.number), shlex.join(f"{key}={value}" for key, value in settings.items())
                say(f"{name} ({trial.number + 1} of {self.trials}): {words}")
                said = self._train(study, trial, settings, interrupt, lock)
                if said is not None:
                    say(f"{name}: {said}")
                    finished(trials_of(study), study)
        return False

    def _study(self) -> optuna.Study:
        log = self.folder / "optuna.log"
        if log.is_file():  # a line that a kill has torn would spoil the next one
            whole = log.read_bytes()
            if not whole.endswith(b"\n"):
                os.truncate(log, whole.rfind(b"\n") + 1)
        study = optuna.create_study(
            study_name="search",
            storage=JournalStorage(JournalFileBackend(str(log), lock_obj=_Alone(str(log)))),
            pruner=optuna.pruners.NopPruner(),  # `_behind` decides, from what is on disk alone
            load_if_exists=True,
        )
        if self.default is not None and not study.trials:
            study.enqueue_trial(self.default)
        return study

    def _next(self, study: optuna.Study, began: float) -> optuna.Trial | None:
        """The trial that was running when the search was ended, or a new one; None: no more."""
        trials = study.get_trials(deepcopy=False)
        running = [each for each in trials if each.state == TrialState.RUNNING]
        asked = [each for each in trials if each.state != TrialState.WAITING]
        late = self.timeout is not None and time.monotonic() - began > self.timeout
        if not running and (len(asked) >= self.trials or late):
            return None
        number = running[0].number if running else len(asked)
        # A seed a trial, so that a search that goes on proposes what it would have proposed.
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=seed)
        return optuna.Trial(study, running[0]._trial_id) if running else study.ask()

    def _train(
        self, study: optuna.Study, trial: optuna.Trial, settings: Settings, interrupt: Interrupt, lock: int
    ) -> str | None:
        """Trains it as far as it is worth; what became of it, in words, or None where the search was interrupted."""
        run = self.folder / folder_of(trial.number)
        log = self.folder / f"{folder_of(trial.number)}.log"
        arguments = [f"{key}={value}" for key, value in settings.items()]
        lines = _validations(run)
        code, fallen = 0, self._behind(study, trial, lines)
        if fallen is None and not _ended(lines):
            with log.open("ab") as output:
                command = [*self.command, *arguments, f"run_dir={run}", "resume=auto"]
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is the search's to pass on
                    pass_fds=[lock],  # nobody else searches here while it lives
                    preexec_fn=end_with_parent,
                )
            with _stopped_at_last(process):
                while process.poll() is None and interrupt.requested is None and fallen is None:
                    time.sleep(POLL)
                    fallen = self._behind(study, trial, _validations(run))
            if interrupt.requested is not None and fallen is None and process.returncode != 0:
                return None
            code, lines = process.returncode, _validations(run)
            fallen = fallen or self._behind(study, trial, lines)
        if fallen is not None:
            study.tell(trial, state=TrialState.PRUNED)
            at = dict(study.trials[trial.number].intermediate_values)[fallen]
            return f"pruned after {fallen:,} of {self.budget:,} tokens at a held-out loss of {at:.4f}"
        if code == os.EX_TEMPFAIL:  # somebody else has stopped it: it is saved, and so is the search
            interrupt.requested = "SIGTERM"
            return None
        final = next((line["final_loss"] for line in lines if "final_loss" in line), None)
        if code == 0 and final is not None:
            study.tell(trial, final)
            return f"{final:.4f} nats/token on all held-out text"
        reason = _reason(code, log)
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        useful = (TrialState.COMPLETE, TrialState.PRUNED)
        if code == EXIT_BAD_INPUT and not study.get_trials(deepcopy=False, states=useful):
            raise UserError(f"the trial {shlex.join(arguments)} was refused: {reason}")
        return f"failed: {reason}"

    def _behind(self, study: optuna.Study, trial: optuna.Trial, lines: list[dict]) -> int | None:
        """Tells Optuna what is new; the tokens at which it has fallen behind, or None."""
        validations = {line["tokens"]: line["validation_loss"] for line in lines if "validation_loss" in line}
        trials = study.get_trials(deepcopy=False)
        before = [each.intermediate_values for each in trials[: trial.number]]
        fallen = self._rung_missed(validations, before)
        for tokens, loss in validations.items():
            if (trials[trial.number].last_step or 0) < tokens <= (fallen or self.budget):
                trial.report(loss, tokens)
        return fallen

    def _rung_missed(self, validations: dict[int, float], before: list[dict[int, float]]) -> int | None:
        """The tokens at which it was not among the best of those that had come to a rung before it, or None."""
        for rung in range(self.rungs):
            at = self.first_rung * self.reduction**rung
            reached = _first_from(validations, at)
            if reached is None or reached >= self.budget:
                break
            rivals = [each[step] for each in before if (step := _first_from(each, at)) is not None]
            best = sorted([*rivals, validations[reached]])[: max(1, (len(rivals) + 1) // self.reduction)]
            if validations[reached] > best[-1]:
                return reached
        return None


def _first_from(validations: dict[int, float], tokens: int) -> int | None:
    """The first validation from there on."""
    return min((step for step in validations if step >= tokens), default=None)


def folder_of(number: int) -> str:
    """Of a trial, in the search's."""
    return f"trial-{number:03d}"


def trials_of(study: optuna.Study) -> list[Trial]:
    """All that were started, by number."""
    words = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return [
        Trial(
            each.number,
            words.get(each.state, "running"),
            each.user_attrs.get("settings", {}),
            folder_of(each.number),
            sorted(each.intermediate_values.items()),
            each.value if each.state == TrialState.COMPLETE else None,
            each.user_attrs.get("reason"),
        )
        for each in study.trials
        if each.state != TrialState.WAITING
    ]


def _validations(run: Path) -> list[dict]:
    """The complete lines of metrics.jsonl that are validations, the last one too; the others are not parsed."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if '"validation_loss"' in line or '"final_loss"' in line]


def _ended(lines: list[dict]) -> bool:
    return any("final_loss" in line for line in lines)


def _reason(code: int, log: Path) -> str:
    """Why a trial failed."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = said[-1].strip().removeprefix("error: ") if said else "it said nothing"
    if code == EXIT_NONFINITE:
        return f"its loss was not finite ({last})"
    if code == EXIT_BAD_INPUT:
        return last
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (out of memory?), its output is in {log}"
    return f"exit code {code} ({last}), its output is in {log}"


class _Alone(JournalFileOpenLock):
    """The folder's lock is enough; Optuna's own would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def _stopped_at_last(process: subprocess.Popen) -> Iterator[None]:
    """Whatever happens, no trial is left running: it saves itself, and is killed where it does not."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
