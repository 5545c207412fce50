"""search.md, search.png and search.json: what a search has found so far, and how far that can be believed."""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import asdict
from pathlib import Path

import optuna

from gptstar.environment import door_command
from gptstar.figure import BLUE, GREY, RED, new_figure, save_figure
from gptstar.files import replace_text
from gptstar.lab.sweeps.trials import Search, Trial, folder_of

COLOURS = {"complete": BLUE, "pruned": GREY, "failed": RED, "running": "#ddaa33"}
SEEDS = 4  # of the confirmation
ENOUGH = 8  # complete trials below which importances say nothing


def write_search(search: Search, trials: list[Trial], study: optuna.Study) -> None:
    """All three into the search's folder; trials in the order of `ranked`."""
    order = ranked(trials)
    importance = _importance(study, order)
    best = order[0] if order and order[0].state == "complete" else None
    found = {
        "budget": search.budget,
        "rungs": rungs_of(search),
        "seed": search.seed,
        "trials_wanted": search.trials,
        "best": None if best is None else best.number,
        "best_command": None if best is None else command_of(search, best, "runs/best"),
        "confirm": None if best is None else confirmation(search, best),
        "importance": importance,
        "trials": [asdict(trial) for trial in order],
    }
    replace_text(search.folder / "search.json", json.dumps(found, indent=1) + "\n")
    replace_text(search.folder / "search.md", _markdown(search, order, best, importance))
    _draw(search, trials, best, search.folder / "search.png")


def ranked(trials: list[Trial]) -> list[Trial]:
    """Complete ones by final loss; then those pruned, the latest first and by loss; then the others."""

    def place(trial: Trial) -> tuple:
        tokens, loss = trial.validations[-1] if trial.validations else (0, float("inf"))
        states = ("complete", "pruned", "running", "failed")
        return states.index(trial.state), *((trial.final,) if trial.final is not None else (-tokens, loss))

    return sorted(trials, key=place)


def rungs_of(search: Search) -> list[int]:
    """Tokens at which trials are compared: at the first validation from there on."""
    return [search.first_rung * search.reduction**rung for rung in range(search.rungs)]


def command_of(search: Search, trial: Trial, run_dir: str) -> str:
    """One run with a trial's settings."""
    settings = [f"{key}={value}" for key, value in trial.settings.items()]
    return shlex.join(["python", *search.command[1:], *settings, f"run_dir={run_dir}", "resume=auto"])


def confirmation(search: Search, best: Trial) -> str:
    """A few fresh seeds of the best setting and of what a run has without a search, in turns, and their comparison."""
    first = next((int(word.partition("=")[2]) for word in search.command if word.startswith("trainer.seed=")), 0) + 1
    place = search.folder / "confirm"
    common = [word for word in search.command[1:] if not word.startswith("trainer.seed=")]
    settings = [f"{key}={value}" for key, value in best.settings.items()]
    runs = [
        f'  {shlex.join(["python", *common, *words])} trainer.seed=$seed run_dir="{place}/{name}-$seed" resume=auto'
        for name, words in (("default", []), ("best", settings))
    ]
    seeds = " ".join(str(first + i) for i in range(SEEDS))
    runs = [f"for seed in {seeds}; do", *runs, "done"]
    return "\n".join([*runs, f'{door_command("compare")} "{place}"/* baseline="{place}/default-{first}"'])


def _importance(study: optuna.Study, trials: list[Trial]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al., arXiv:2304.10255) over complete trials, from 0 to 1; empty where they are few."""
    if sum(trial.state == "complete" for trial in trials) < ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        return optuna.importance.get_param_importances(study)


def _markdown(search: Search, order: list[Trial], best: Trial | None, importance: dict[str, float]) -> str:
    count = {state: sum(trial.state == state for trial in order) for state in COLOURS}
    spent = sum(trial.validations[-1][0] for trial in order if trial.validations)
    said = ", ".join(f"{n} {state}" for state, n in count.items() if n)
    lines = ["# Search", "", f"{len(order)} of {search.trials} trials: {said}. ", ""]
    lines[2] += f"{spent:,} tokens were trained on, {spent / search.budget:.1f} times the budget of one run."
    if best is not None:
        default = _default(search, order)
        lines += [f"The lowest final loss: **{best.final:.4f} nats/token**, {folder_of(best.number)}"]
        if default is not None and default.final is not None and default is not best:
            lines[-1] += f" (the default settings, {folder_of(default.number)}: {default.final:.4f})"
        lines += ["", "```", command_of(search, best, "runs/best"), "```"]
        lines += [
            "",
            f"That is the best of {len(order)} with one seed each, so part of its lead is luck: the loss of the winner "
            "is biased low, the more so the more trials there were and the closer they are. Whether it is better than "
            "the default settings, fresh seeds of both tell:",
            *("", "```", confirmation(search, best), "```"),
        ]
    else:
        lines += ["No trial is complete yet."]
    keys = list(search.space)
    lines += ["", "## Trials", "", "![losses of all trials](search.png)", ""]
    lines += [
        f"| trial | {' | '.join(keys)} | tokens | held-out loss | |",
        "|---|" + "---|" * len(keys) + "---|---|---|",
    ]
    for trial in order:
        tokens, loss = trial.validations[-1] if trial.validations else (0, float("nan"))
        shown = trial.final if trial.final is not None else loss
        what = f"failed: {trial.reason}" if trial.reason else trial.state
        cells = [trial.settings.get(key, "") for key in keys]
        lines.append(f"| {folder_of(trial.number)} | {' | '.join(cells)} | {tokens:,} | {shown:.4f} | {what} |")
    rungs = " and ".join(f"{rung:,}" for rung in rungs_of(search)) or "no number of"
    lines += [
        "",
        f"Trials were compared after {rungs} tokens, where one in {search.reduction} of those that had come so far "
        "went on. A pruned trial's loss is that of the middle of its learning-rate schedule, on part of the held-out "
        "text; a complete one's is final, on all of it. Settings that pay late, as the learning rate decays, may be "
        "among the pruned.",
        *("", "## Importance", ""),
    ]
    if importance:
        lines += ["| setting | importance |", "|---|---|"]
        lines += [f"| {key} | {value:.2f} |" for key, value in importance.items()]
        lines += ["", "Shares of what tells the better complete trials from the others (PED-ANOVA), of few trials."]
    else:
        lines += [f"Fewer than {ENOUGH} trials are complete: too few to say which setting matters."]
    return "\n".join(lines) + "\n"


def _default(search: Search, trials: list[Trial]) -> Trial | None:
    """The trial with the settings a run has without a search."""
    return next((trial for trial in trials if trial.number == 0), None) if search.default is not None else None


def _draw(search: Search, trials: list[Trial], best: Trial | None, path: Path) -> None:
    """Held-out losses of all trials against tokens, and the best final loss against the number of trials."""
    figure = new_figure(10, 4.2)
    curves, progress = figure.subplots(1, 2, width_ratios=(3, 2))
    named = set()
    for trial in trials:
        if trial.validations:
            x, y = zip(*trial.validations, strict=True)
            label = None if trial.state in named else trial.state
            style = {"linewidth": 2.2, "zorder": 3} if trial is best else {"linewidth": 0.9}
            colour = "#117733" if trial is best else COLOURS[trial.state]
            label = f"best ({folder_of(trial.number)})" if trial is best else label
            named.add(trial.state if trial is not best else "best")
            curves.plot([tokens / 1e6 for tokens in x], y, ".-", color=colour, label=label, **style)
    for rung in rungs_of(search):
        curves.axvline(rung / 1e6, color="#888888", linestyle=":", linewidth=0.9)
    curves.set(xlabel="tokens (millions)", ylabel="held-out loss (nats/token)", title="trials; dotted: the rungs")
    complete = [trial for trial in trials if trial.final is not None]
    if complete:
        numbers = [trial.number for trial in complete]
        finals = [trial.final for trial in complete if trial.final is not None]
        progress.plot(numbers, finals, "o", color=COLOURS["complete"], label="complete")
        lowest = [min(finals[: i + 1]) for i in range(len(finals))]
        progress.step(numbers, lowest, where="post", color="#117733", label="best so far")
        progress.legend(frameon=False)
    progress.xaxis.get_major_locator().set_params(integer=True)
    progress.set(xlabel="trial", ylabel="final loss (nats/token)", title="complete trials")
    for axes in (curves, progress):
        axes.grid(alpha=0.25)
    if named:
        curves.legend(frameon=False)
    save_figure(figure, path)
