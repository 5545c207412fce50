"""The published figures, against the table they were taken from."""

from __future__ import annotations

import pytest

from gptstar.configuration import preset
from gptstar.errors import UserError
from gptstar.evaluation.baselines import BASELINES, baseline_rows
from gptstar.model.describe import parameter_count


def test_each_row_names_its_source_and_has_no_standard_error():
    rows = baseline_rows(["all"])
    assert len({row["checkpoint"] for row in rows}) == len(BASELINES) == 8
    for row in rows:
        assert row["published"] and row["source"] and row["training_tokens"] in (21e9, 26e9, 300e9)
        for name, metric in row["metrics"].items():
            assert metric["stderr"] is None and metric["higher_is_better"] == (name == "acc")
            assert 0 < metric["value"] < (1 if name == "acc" else 40)


@pytest.mark.parametrize("name", ["gpt127", "gpt303", "gpt354", "gpt_neo_125m"])
def test_parameters_are_those_of_the_preset(name):
    assert BASELINES[name].parameters == parameter_count(preset(name))


def test_the_two_wikitext_perplexities_are_different_tasks():
    tasks = {name: {(row["task"], *row["metrics"]) for row in baseline_rows([name])} for name in BASELINES}
    assert ("wikitext", "word_perplexity") in tasks["gpt_neo_125m"]
    assert ("wikitext2", "token_perplexity") in tasks["gpt127"]
    for found in tasks.values():
        assert not {("wikitext", "token_perplexity"), ("wikitext2", "word_perplexity")} & found


def test_the_context_sweep_is_the_original_protocol():
    rows = {(row["text"], row["max_length"]): row for row in baseline_rows(["gpt127"]) if "text" in row}
    assert len(rows) == 15
    for row in rows.values():
        assert row["protocol"] == "original" and row["stride"] == row["max_length"] and row["trained_length"] == 512
    assert rows["wikitext2", 3072]["metrics"]["token_perplexity"]["value"] == 35.30
    assert rows["enwik8", 8192]["metrics"]["bits_per_byte"]["value"] == 1.317
    assert rows["text8", 1024]["metrics"]["bits_per_character"]["value"] == 1.342


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(UserError, match="baselines=gpt4 is unknown: choose among all, gpt127, gpt2_small_21b"):
        baseline_rows(["gpt127", "gpt4"])
