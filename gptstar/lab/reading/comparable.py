"""Which runs can be compared with a baseline, in what unit, and what a reader has to know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from gptstar.errors import UserError
from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.settings import difference, flat, same_variant, window_length

SHOWN = 4  # names in a note
TEXT = ("data", "tokenizer")  # the sections that decide which tokens are validated on


@dataclass(frozen=True)
class Comparable:
    """kept and excluded together are all runs.

    kept       {variant: runs}, without those of which nothing is left
    excluded   {source: why}
    metric     loss (nats a token), or bits_per_byte where tokenizers differ
    notes      what cannot be seen in the figures
    """

    kept: dict[str, list[Run]]
    excluded: dict[str, str] = field(default_factory=dict)
    metric: str = "loss"
    notes: list[str] = field(default_factory=list)


def comparable(variants: Mapping[str, Sequence[Run]], baseline: str) -> Comparable:
    """Sorts out what must not be mixed: see the reasons below. Everything in the order given.

    The first run of the baseline without a problem is what the others are held against. Raises UserError where there
    is no such variant or run.
    """
    reference = _reference(variants, baseline)
    against = {baseline: reference}  # and, where it says nothing of its text, the first run that does
    excluded: dict[str, str] = {}
    kept: dict[str, list[Run]] = {}
    unsaid: list[str] = []
    for name, runs in variants.items():
        for run in runs:
            reasons = [_unfit(run), *(_other_text(run, other, called) for called, other in against.items())]
            reason = next((each for each in reasons if each), None)
            if reason:
                excluded[run.source] = reason
                continue
            kept.setdefault(name, []).append(run)
            if any(not _says_all(run, other) for other in against.values()):
                unsaid.append(run.source)
            if reference.held_out is None and len(against) == 1 and run.held_out is not None:
                against[run.source] = run
    kept, more = _one_budget(kept, baseline)
    excluded |= more
    metric = "loss"
    if any(_other_tokenizer(*pair) for pair in combinations(_all(kept), 2)):
        metric = "bits_per_byte"
        for run in _all(kept):
            if run.final_bits_per_byte is None:
                excluded[run.source] = "has no bits per byte, which a comparison across tokenizers needs"
        kept = {name: [run for run in runs if run.source not in excluded] for name, runs in kept.items()}
    kept = {name: runs for name, runs in kept.items() if runs}
    if baseline not in kept:
        raise UserError(f"baseline={baseline} has no run with bits per byte, which the other runs' tokenizers call for")
    order = [run.source for runs in variants.values() for run in runs if run.source in excluded]
    notes = _notes(kept, reference, metric, [source for source in unsaid if source not in excluded])
    gone = [name for name in variants if name not in kept]
    if gone:
        notes.insert(0, f"Nothing is left of {', '.join(gone)}: see why under the excluded runs.")
    return Comparable(kept, {source: excluded[source] for source in order}, metric, notes)


def _reference(variants: Mapping[str, Sequence[Run]], baseline: str) -> Run:
    if baseline not in variants:
        raise UserError(f"baseline={baseline} is none of the variants: choose one of {', '.join(variants) or '(none)'}")
    fit = [run for run in variants[baseline] if _unfit(run) is None]
    if fit:
        return next((run for run in fit if run.held_out is not None), fit[0])
    reasons = "; ".join(f"{run.source}: {_unfit(run)}" for run in variants[baseline])
    raise UserError(
        f"baseline={baseline} has no run to compare with ({reasons}): finish one, or choose another baseline"
    )


def _unfit(run: Run) -> str | None:
    if run.problem is not None:
        return run.problem
    return None if run.final_loss is not None else "has no final loss"


def _other_text(run: Run, reference: Run, called: str) -> str | None:
    """Why its validation is another one than the reference's."""
    own, wanted = run.held_out, reference.held_out
    if own is not None and wanted is not None and not _same_text(run, reference):
        return (
            f"was validated on other text than {called} ({own.bytes:,} bytes in {own.documents:,} documents with the "
            f"digest {own.digest}, not {wanted.bytes:,} in {wanted.documents:,} with {wanted.digest})"
        )
    length = own.length if own is not None else window_length(run.config)
    other = wanted.length if wanted is not None else window_length(reference.config)
    if length is not None and other is not None and length != other:
        return (
            f"was validated in windows of {length} tokens, {called} in windows of {other}: train both with "
            f"trainer.sequence_length={min(length, other)}, or at different lengths with the same trainer.eval_length"
        )
    if not _says_all(run, reference) and (differing := _differing(run.config, reference.config, TEXT)):
        return (
            "cannot be known to be validated on the same text with the same tokenizer, for one of the two does not say "
            f"it and {differing[0]} is another one than in {called}"
        )
    return None


def _same_text(run: Run, reference: Run) -> bool:
    own, wanted = run.held_out, reference.held_out
    if own is None or wanted is None:
        return False
    same_tokenizer = run.tokenizer is not None and run.tokenizer == reference.tokenizer
    return own.same_text(wanted) and (not same_tokenizer or own.tokens == wanted.tokens)


def _same_tokens(run: Run, reference: Run) -> bool:
    own, wanted = run.held_out, reference.held_out
    return own is not None and wanted is not None and own.digest == wanted.digest


def _other_tokenizer(run: Run, other: Run) -> bool:
    """Whether the same text is other tokens to them, as far as they say."""
    if run.held_out is not None and other.held_out is not None:
        if _same_tokens(run, other):
            return False
        if run.held_out.tokens != other.held_out.tokens:
            return True
    return None not in (run.tokenizer, other.tokenizer) and run.tokenizer != other.tokenizer


def _says_all(run: Run, reference: Run) -> bool:
    """Whether text and tokenizer of both are known; otherwise configurations have to do."""
    texts = None not in (run.held_out, reference.held_out)
    return texts and (_same_tokens(run, reference) or None not in (run.tokenizer, reference.tokenizer))


def _differing(config: dict, other: dict, sections: Iterable[str] | None = None) -> list[str]:
    """Flat keys that differ, of these sections or all; those apart that seeds of one variant may differ in."""
    keys = [key for key in difference(config, other) if not same_variant(key)]
    return [key for key in keys if sections is None or key.partition(".")[0] in sections]


def _one_budget(kept: dict[str, list[Run]], baseline: str) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """The runs of each variant with the budget that most of them have (of several: the baseline's, else the first's),
    and why the others are none.
    """
    common: dict[str, int] = {}
    for name in [baseline, *kept]:
        budgets = Counter(trained(run) for run in kept.get(name, []))
        if budgets:
            most = max(budgets.values())
            often = [tokens for tokens, count in budgets.items() if count == most]
            common[name] = common[baseline] if common.get(baseline) in often else often[0]
    excluded = {
        run.source: f"was trained on {trained(run):,} tokens, other runs of {name} on {common[name]:,}"
        for name, runs in kept.items()
        for run in runs
        if trained(run) != common[name]
    }
    return {name: [r for r in runs if r.source not in excluded] for name, runs in kept.items()}, excluded


def trained(run: Run) -> int:
    """The tokens of its budget or, where nothing says what that was, those that it has seen."""
    if run.budget is not None:
        return run.budget
    if len(run.tokens):
        return int(run.tokens[-1])
    return run.validations[-1].tokens if run.validations else 0


def _notes(kept: dict[str, list[Run]], reference: Run, metric: str, unsaid: list[str]) -> list[str]:
    notes = []
    if metric == "bits_per_byte":
        notes.append("Tokenizers differ: runs are compared in bits per byte, raw losses are not comparable.")
    if unsaid:
        silent = not any(flat(run.config) for run in _all(kept) if run.source in unsaid)
        grounds = "nothing was said against it" if silent else "their data and tokenizer settings are equal"
        notes.append(
            f"{_listed(unsaid)}: taken to be validated on the same text with the same tokenizer, for {grounds}."
        )
    for name, runs in kept.items():
        differing = dict.fromkeys(key for run in runs[1:] for key in _differing(run.config, runs[0].config))
        if differing:
            notes.append(f"Runs of {name} have different settings: {', '.join(differing)}.")
    budgets = {name: trained(runs[0]) for name, runs in kept.items()}
    if len(set(budgets.values())) > 1:
        notes.append(f"Budgets differ: {_by_value({name: f'{tokens:,} tokens' for name, tokens in budgets.items()})}.")
    hardware = {run.hardware for run in _all(kept)} - {None}
    if len(hardware) > 1:
        found = _by_value({run.source: run.hardware for run in _all(kept) if run.hardware})
        notes.append(f"Hardware differs, so times are not comparable unless speeds were measured interleaved: {found}.")
    commits = {run.commit for run in _all(kept)} - {None}
    if len(commits) > 1:
        found = _by_value({run.source: run.commit for run in _all(kept) if run.commit})
        notes.append(f"Commits differ: {found}.")
    return notes


def _by_value(values: Mapping[str, str | None]) -> str:
    """{"a": "x", "b": "y", "c": "x"} -> "x (a, c); y (b)"."""
    named: dict[str | None, list[str]] = {}
    for name, value in values.items():
        named.setdefault(value, []).append(name)
    return "; ".join(f"{value} ({_listed(names)})" for value, names in named.items())


def _listed(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _all(kept: Mapping[str, Sequence[Run]]) -> list[Run]:
    return [run for runs in kept.values() for run in runs]
