"""A scaling law over a ladder of runs: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv:2203.15556).

L is the final held-out loss in nats a token, D the tokens trained on, N the trainable parameters with the tied
embedding table counted once. The table is counted because it is the head too, whose FLOPs are in C = 6 N D; leaving it
out (Kaplan et al., arXiv:2001.08361) at small sizes is much of why two published laws disagree (Pearce and Song,
arXiv:2406.12907). As it is a fifth to four fifths of these N, the law without it is fitted too, to be judged beside the
other by what was held out.

The fit is their third approach: the Huber loss of residuals of log L, whose model is a log-sum-exp, minimised by L-BFGS
from a grid of starts. What Besiroglu et al. (arXiv:2404.10102) found wrong in the original is avoided: residuals are
summed, not averaged, and scaled by the Huber threshold, so that the optimizer does not stop early at a tiny objective;
nothing is rounded before it is used; intervals come from refits. For given exponents L is linear in E, A and B, so the
grid of starts is over the exponents alone and the rest is solved for.

Each point is a run of its own whose learning rate has decayed at its own budget. The middle of a longer schedule has a
higher loss than a run that ends there, which would bend beta and the optimal sizes: Hoffmann et al. hold that against
the earlier law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize, nnls
from threadpoolctl import threadpool_limits

from gptstar.errors import UserError
from gptstar.lab.reading.runs import Run
from gptstar.lab.study import Interval

DELTA = 1e-3  # where the Huber loss turns linear, in log L
EXPONENTS = np.linspace(0.05, 1.5, 11)  # of the grid of starts
BOUNDS = [(-20.0, 20.0)] * 3 + [(0.01, 2.0)] * 2
STARTS = 3  # of the grid, from which the best fit is sought
DRAWS = 400  # of the bootstrap
N_FREE = 5
LEAST_RUNS, LEAST_VALUES = 7, 3


@dataclass(frozen=True)
class Point:
    """One run: parameters, tokens, final loss, and what the law says; held_out: not fitted to.

    predicted   the law's value, and the 95% interval in which a run of this size should fall
    """

    name: str
    parameters: int
    tokens: int
    loss: float
    predicted: Interval
    held_out: bool

    @property
    def error(self) -> float:
        """Measured over predicted, less one."""
        return self.loss / self.predicted.value - 1


@dataclass(frozen=True)
class Optimum:
    """Which size and how many tokens give the lowest loss for a budget in FLOPs. beyond: the largest run's, so an
    extrapolation.
    """

    flops: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    beyond: bool


@dataclass(frozen=True)
class Law:
    """A fitted law.

    floor      E; scale_parameters, scale_tokens: A and B
    spread     standard deviation of a run around the law, as a share of its loss
    other      the mean absolute error of what was held out where the embedding table is not counted, and where it is
    notes      what a reader has to know
    """

    floor: Interval
    scale_parameters: Interval
    scale_tokens: Interval
    alpha: Interval
    beta: Interval
    spread: float
    points: list[Point]
    optima: list[Optimum]
    other: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Predicted, in nats a token."""
        theta = (self.floor, self.scale_parameters, self.scale_tokens, self.alpha, self.beta)
        e, a, b, alpha, beta = (each.value for each in theta)
        return e + a / np.asarray(parameters) ** alpha + b / np.asarray(tokens) ** beta


@dataclass(frozen=True)
class Fit:
    """Of the law, in coordinates around the ladder's middle: log E, log A', log B', alpha, beta."""

    theta: np.ndarray
    middle: tuple[float, float]  # of log N and log D

    def log_loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Predicted log L."""
        return _log_loss(self.theta, np.log(n) - self.middle[0], np.log(d) - self.middle[1])[0]

    def constants(self) -> np.ndarray:
        """E, A, B, alpha, beta."""
        e, a, b, alpha, beta = self.theta
        return np.array([*np.exp([e, a + alpha * self.middle[0], b + beta * self.middle[1]]), alpha, beta])

    def best(self, flops: float) -> tuple[float, float]:
        """The N and D with the lowest loss where 6 N D is `flops`."""
        _, a, b, alpha, beta = self.theta
        total = np.log(flops / 6) - sum(self.middle)  # of both logarithms, from the middle
        log_n = (np.log(alpha) + a - np.log(beta) - b + beta * total) / (alpha + beta)
        return float(np.exp(log_n + self.middle[0])), float(np.exp(total - log_n + self.middle[1]))


def fit_law(n: np.ndarray, d: np.ndarray, loss: np.ndarray, start: Fit | None = None) -> Fit:
    """The law that fits runs of n parameters and d tokens best. start: a fit of nearly the same losses, from which
    this one is sought instead of from the grid.
    """
    middle = float(np.log(n).mean()), float(np.log(d).mean())
    x, y, target = np.log(n) - middle[0], np.log(d) - middle[1], np.log(loss)
    starts = _grid(x, y, loss) if start is None else [start.theta]
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-7}
    with threadpool_limits(1):  # ten times as fast: the matrices are tiny
        found = [
            minimize(_objective, each, (x, y, target), method="L-BFGS-B", jac=True, bounds=BOUNDS, options=options)
            for each in starts
        ]
    return Fit(min(found, key=lambda each: each.fun).x, middle)


def _grid(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> list[np.ndarray]:
    """The best starts: for each pair of exponents, E, A and B that are not negative by least squares of L / loss."""
    made = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y)], 1) / loss[:, None]
            linear, rest = nnls(columns, np.ones_like(x))
            made.append((rest, [*np.log(np.maximum(linear, 1e-4)), alpha, beta]))
    return [np.array(theta) for _, theta in sorted(made)[:STARTS]]


def _log_loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(E + A e^(-alpha x) + B e^(-beta y)), and the share of each term in it (3, runs)."""
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
    value = np.logaddexp.reduce(terms)
    return value, np.exp(terms - value)


def _objective(theta: np.ndarray, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The Huber loss in units of DELTA squared, and its gradient."""
    value, (share_e, share_a, share_b) = _log_loss(theta, x, y)
    scaled = (value - target) / DELTA
    slope = np.clip(scaled, -1, 1)
    total = float((slope * (scaled - slope / 2)).sum())
    gradient = np.stack([share_e, share_a, share_b, -x * share_a, -y * share_b]) @ slope / DELTA
    return total, gradient


def refits(fit: Fit, n: np.ndarray, d: np.ndarray, loss: np.ndarray, draws: int, seed: int = 0) -> list[tuple]:
    """[(fit, spread)]: what might have been found with other seeds, by a parametric bootstrap over runs.

    Each draw makes up losses around the law and fits anew. How far runs are from the law is itself known from few of
    them only, so each draw takes a spread from its own distribution (chi-squared, runs less constants).
    """
    rng = np.random.default_rng(seed)
    expected = fit.log_loss(n, d)
    free = len(n) - N_FREE
    squares = ((np.log(loss) - expected) ** 2).sum()
    made = []
    for _ in range(draws):
        spread = float(np.sqrt(squares / rng.chisquare(free)))
        made.append((fit_law(n, d, np.exp(expected + spread * rng.standard_normal(len(n))), fit), spread))
    return made


def find_law(runs: list[Run], hold_out: list[str], draws: int = DRAWS) -> Law:
    """The law of all runs but those of the variants named in `hold_out`, which it then predicts.

    UserError for runs that cannot be compared, too few of them, and a name that none has.
    """
    usable, notes = _usable(runs)
    known = {name_of(run) for run in usable}
    if unknown := sorted(set(hold_out) - known):
        raise UserError(f"hold_out={unknown[0]} is no finished run: choose of {', '.join(sorted(known))}")
    out = np.array([name_of(run) in hold_out for run in usable])
    n, d, loss = (np.array([each(run) for run in usable], float) for each in (_parameters, _tokens, _final))
    kept = ~out
    for what, values in (("sizes", n[kept]), ("budgets", d[kept])):
        if len(values) < LEAST_RUNS or len(np.unique(values)) < LEAST_VALUES:
            raise UserError(
                f"{len(values)} runs with {len(np.unique(values))} {what} are too few for the {N_FREE} constants of a "
                f"scaling law: it takes {LEAST_RUNS} runs with {LEAST_VALUES} sizes and {LEAST_VALUES} budgets beside "
                "those held out"
            )
    fit = fit_law(n[kept], d[kept], loss[kept])
    drawn = refits(fit, n[kept], d[kept], loss[kept], draws)
    rng = np.random.default_rng(1)
    points = []
    for i, run in enumerate(usable):
        center = float(np.exp(fit.log_loss(n[i : i + 1], d[i : i + 1])[0]))
        might = [other.log_loss(n[i : i + 1], d[i : i + 1])[0] + s * rng.standard_normal() for other, s in drawn]
        predicted = _interval(center, np.exp(might))
        points.append(Point(name_of(run), int(n[i]), int(d[i]), float(loss[i]), predicted, bool(out[i])))
    constants = fit.constants()
    each = np.array([other.constants() for other, _ in drawn])
    e, a, b, alpha, beta = (_interval(float(constants[i]), each[:, i]) for i in range(N_FREE))
    residuals = np.log(loss[kept]) - fit.log_loss(n[kept], d[kept])
    spread = float(np.sqrt((residuals**2).sum() / (len(residuals) - N_FREE)))
    for name, at, bounds in zip(("alpha", "beta"), fit.theta[3:], BOUNDS[3:], strict=True):
        if at < bounds[0] * 1.01 or at > bounds[1] * 0.99:
            notes.append(f"{name} is at the end of what was tried ({at:g}): these runs do not tell it")
    most = float((6 * n * d).max())
    optima = [_optimum(float(flops), fit, drawn, most) for flops in most * np.array([0.1, 1.0, 10.0, 100.0])]
    other = None
    tables = np.array([_table(run) for run in usable])
    if out.any() and tables.all():
        bare = n - tables
        without = fit_law(bare[kept], d[kept], loss[kept])
        other = _error(without, bare[out], d[out], loss[out]), _error(fit, n[out], d[out], loss[out])
    return Law(e, a, b, alpha, beta, spread, points, optima, other, notes)


def name_of(run: Run) -> str:
    """By which a run is held out."""
    return run.variant or run.name


def _usable(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Those that have ended, and a note for each that has not. UserError where they were not measured alike."""
    notes = []
    usable = []
    for run in runs:
        lacks = [what for what in ("final_loss", "parameters") if not math.isfinite(getattr(run, what) or math.nan)]
        if run.problem or lacks or not _tokens(run):
            notes.append(f"{run.source} is left out: {run.problem or 'it has no ' + [*lacks, 'tokens'][0]}")
        else:
            usable.append(run)
    for what, of in (("tokenizers", lambda run: run.tokenizer), ("held-out texts", lambda run: run.held_out)):
        found = {of(run) for run in usable} - {None}
        if len(found) > 1:
            raise UserError(f"the runs have {len(found)} different {what}, so their losses cannot be compared")
    return usable, notes


def _parameters(run: Run) -> float:
    return float(run.parameters or 0)


def _final(run: Run) -> float:
    return float(run.final_loss or 0)


def _tokens(run: Run) -> float:
    return float(run.tokens[-1] if len(run.tokens) else run.budget or 0)


def _table(run: Run) -> int:
    """Parameters of the embedding table, and of the positions' where there is one that is learned; an untied head is
    none of them.
    """
    model = run.config.get("model", {})
    multiple = model.get("pad_vocab_to", 1)
    rows = -(-model.get("vocab_size", 0) // multiple) * multiple
    rows += model.get("context", 0) if model.get("position") == "learned" else 0
    return rows * model.get("d_model", 0)


def _error(fit: Fit, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> float:
    return float(np.abs(loss / np.exp(fit.log_loss(n, d)) - 1).mean())


def _interval(value: float, draws: np.ndarray | list[float]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _optimum(flops: float, fit: Fit, drawn: list[tuple], most: float) -> Optimum:
    n, d = fit.best(flops)
    each = np.array([other.best(flops) for other, _ in drawn])
    losses = [
        float(np.exp(other.log_loss(*np.array([best]).T)[0])) for best, (other, _) in zip(each, drawn, strict=True)
    ]
    loss = float(np.exp(fit.log_loss(np.array([n]), np.array([d]))[0]))
    beyond = bool(flops > 1.01 * most)
    return Optimum(flops, _interval(n, each[:, 0]), _interval(d, each[:, 1]), _interval(loss, losses), beyond)
