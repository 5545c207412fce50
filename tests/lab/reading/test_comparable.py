import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.errors import UserError
from gptstar.lab.reading.comparable import comparable
from gptstar.lab.reading.read import read_run
from gptstar.lab.reading.variants import variants
from gptstar.training.loop import train
from lab.run_folders import HELD_OUT, make_config, make_run
from support import tiny_model

OTHER_TEXT = dataclasses.replace(HELD_OUT, digest="bbbb", bytes=1, documents=1)
OTHER_TOKENS = dataclasses.replace(HELD_OUT, digest="cccc", tokens=800)  # of the same text
LONGER = dataclasses.replace(HELD_OUT, length=64)
ABSENT = {"held_out": None, "tokenizer": None}


def compare(*others, base=None, **variants_):
    """What comes of one run of the baseline and one other."""
    own = [base or make_run("base")]
    found = {"base": own, **{f"v{i}": [run] for i, run in enumerate(others)}, **variants_}
    return comparable(found, "base")


def test_what_can_be_compared_is_kept_as_it_was():
    found = {"a": [make_run("1"), make_run("2")], "b": [make_run("3")]}
    result = comparable(found, "b")
    assert (result.kept, result.excluded, result.metric, result.notes) == (found, {}, "loss", [])


def test_problems_are_out_and_named():
    result = compare(make_run("x", problem="stopped at step 3 of 6"), make_run("y", final_loss=None), make_run("z"))
    assert result.excluded == {"x": "stopped at step 3 of 6", "y": "has no final loss"}
    assert list(result.kept) == ["base", "v2"]
    assert result.notes == ["Nothing is left of v0, v1: see why under the excluded runs."]


def test_other_text_is_out():
    result = compare(make_run("x", held_out=OTHER_TEXT))
    assert result.excluded["x"].startswith("was validated on other text than base (1 bytes in 1 documents")
    same_size = dataclasses.replace(HELD_OUT, digest="dddd", tokens=901)  # the same tokenizer makes more of it
    assert compare(make_run("x", held_out=same_size)).excluded["x"].startswith("was validated on other text than base")


def test_other_windows_are_out_unless_all_share_them():
    result = compare(make_run("x", held_out=LONGER))
    assert result.excluded["x"] == (
        "was validated in windows of 64 tokens, base in windows of 32: train both with "
        "trainer.sequence_length=32, or at different lengths with the same trainer.eval_length"
    )
    assert compare(make_run("x", held_out=LONGER), base=make_run("b", held_out=LONGER)).excluded == {}
    older = make_run("x", config=make_config(**{"trainer.sequence_length": 16}), **ABSENT)
    assert "in windows of 16 tokens" in compare(older).excluded["x"]


def test_other_tokenizers_are_compared_in_bits_per_byte():
    other = make_run("x", tokenizer="t2", held_out=OTHER_TOKENS)
    silent = make_run("y", final_bits_per_byte=None)
    result = compare(other, silent)
    assert (result.metric, list(result.kept)) == ("bits_per_byte", ["base", "v0"])
    assert result.excluded == {"y": "has no bits per byte, which a comparison across tokenizers needs"}
    assert "Tokenizers differ: runs are compared in bits per byte, raw losses are not comparable." in result.notes
    with pytest.raises(UserError, match="baseline=base has no run with bits per byte"):
        compare(other, base=silent)


def test_the_same_text_in_other_tokens_is_another_tokenizer():
    assert compare(make_run("x", tokenizer=None, held_out=OTHER_TOKENS)).metric == "bits_per_byte"


def test_a_tokenizer_saved_in_another_way_is_the_same_one():
    result = compare(make_run("x", tokenizer="t1-again"))  # the same tokens
    assert (result.metric, result.notes) == ("loss", [])


def test_without_facts_equal_settings_have_to_do():
    result = compare(make_run("x", **ABSENT), make_run("y", tokenizer=None, held_out=None))
    assert list(result.kept) == ["base", "v0", "v1"]
    assert result.notes == [
        "x, y: taken to be validated on the same text with the same tokenizer, for their data and tokenizer settings "
        "are equal."
    ]
    elsewhere = {"data.cache_dir": "/fast", "data.workers": 3}
    assert compare(make_run("x", config=make_config(**elsewhere), **ABSENT)).excluded == {}
    for key, value in (("data.paths", ["b.txt"]), ("tokenizer.vocab_size", 400)):
        result = compare(make_run("x", config=make_config(**{key: value}), **ABSENT))
        assert result.excluded["x"] == (
            "cannot be known to be validated on the same text with the same tokenizer, for one of the two does not say "
            f"it and {key} is another one than in base"
        )


def test_runs_without_configuration_are_taken_at_their_word_among_themselves():
    nothing = {"config": {}, "hardware": None, "commit": None, **ABSENT}
    result = compare(make_run("x", **nothing), base=make_run("b", **nothing))
    assert list(result.kept) == ["base", "v0"]
    assert result.notes == [
        "b, x: taken to be validated on the same text with the same tokenizer, for nothing was said against it."
    ]
    assert "cannot be known" in compare(make_run("x", **nothing)).excluded["x"]


def test_a_silent_baseline_does_not_let_different_texts_through():
    result = compare(make_run("x"), make_run("y", held_out=OTHER_TEXT), base=make_run("b", **ABSENT))
    assert result.excluded["y"].startswith("was validated on other text than x (")
    assert list(result.kept) == ["base", "v0"]
    result = compare(make_run("x"), make_run("y", tokenizer="t2", held_out=OTHER_TOKENS), base=make_run("b", **ABSENT))
    assert result.metric == "bits_per_byte"


def test_the_baselines_runs_are_held_to_the_same():
    base = [make_run("silent", **ABSENT), make_run("b"), make_run("odd", held_out=OTHER_TEXT)]
    assert list(comparable({"base": base}, "base").excluded) == ["odd"]


def test_one_variant_has_one_budget_and_others_may_differ():
    runs = [make_run("1", budget=100), make_run("2", budget=200), make_run("3", budget=200)]
    result = compare(x=runs)
    assert result.excluded == {"1": "was trained on 100 tokens, other runs of x on 200"}
    assert result.notes == ["Budgets differ: 768 tokens (base); 200 tokens (x)."]
    tie = [make_run("1", budget=100), make_run("2", budget=768)]
    assert list(compare(x=tie).excluded) == ["1"]


def test_what_times_and_code_a_reader_has_to_know_of():
    result = compare(make_run("x", hardware="NVIDIA H200", commit="beef"), make_run("y", hardware=None, commit=None))
    assert result.notes == [
        "Hardware differs, so times are not comparable unless speeds were measured interleaved: Abacus, 2 cores "
        "(base); NVIDIA H200 (x).",
        "Commits differ: c0ffee (base); beef (x).",
    ]


def test_a_variant_of_different_settings_is_named():
    runs = [make_run("1"), make_run("2", config=make_config(**{"optimizer.lr": 0.5, "trainer.seed": 1}))]
    assert compare(x=runs).notes == ["Runs of x have different settings: optimizer.lr."]


def test_a_baseline_that_is_not_there_or_broken():
    with pytest.raises(UserError, match="baseline=nothing is none of the variants: choose one of a, b"):
        comparable({"a": [], "b": []}, "nothing")
    with pytest.raises(UserError, match=r"baseline=base has no run to compare with \(b: no metrics yet\): finish one"):
        compare(base=make_run("b", problem="no metrics yet"))


RUNS = st.fixed_dictionaries(
    {},
    optional={
        "problem": st.just("broken"),
        "held_out": st.sampled_from([None, OTHER_TEXT, OTHER_TOKENS, LONGER]),
        "tokenizer": st.sampled_from([None, "t2"]),
        "final_bits_per_byte": st.none(),
        "budget": st.sampled_from([None, 100]),
    },
)


@given(st.lists(st.tuples(st.sampled_from("abc"), RUNS), max_size=8))
def test_kept_and_excluded_together_are_all_runs(chosen):
    found = {"base": [make_run("base")]}
    for i, (name, changes) in enumerate(chosen):
        found.setdefault(name, []).append(make_run(str(i), **changes))
    result = comparable(found, "base")
    kept = [run.source for runs in result.kept.values() for run in runs]
    assert sorted([*kept, *result.excluded]) == sorted(run.source for runs in found.values() for run in runs)
    assert [name for name in found if name in result.kept] == list(result.kept)
    texts = {run.held_out.bytes for runs in result.kept.values() for run in runs if run.held_out}
    assert texts == {HELD_OUT.bytes}
    if result.metric == "loss":
        assert {run.held_out.tokens for runs in result.kept.values() for run in runs if run.held_out} == {900}
    else:
        assert all(run.final_bits_per_byte for runs in result.kept.values() for run in runs)


def test_two_real_runs_that_read_different_lengths(train_config, tmp_path):
    runs = []
    for name, length in (("a", None), ("b", 32)):
        trainer = dataclasses.replace(train_config.trainer, max_steps=2, sequence_length=16, eval_length=length)
        model = tiny_model(n_layer=1)
        config = dataclasses.replace(train_config, trainer=trainer, model=model, run_dir=str(tmp_path / name))
        runs.append(read_run(train(config).run))
    found = variants(runs)
    assert list(found) == ["tiny", "tiny trainer.eval_length=32"]
    assert "in windows of 32 tokens, tiny in windows of 16" in comparable(found, "tiny").excluded[runs[1].source]
