"""results.json keeps what was measured."""

import numpy as np
import pytest

from gptstar.errors import UserError
from gptstar.evaluation.results import harness_metrics, read_results, write_results


def row(**changes) -> dict:
    return {"task": "piqa", "fingerprint": "f", "num_fewshot": 0, "limit": None, "files": {}, "value": 1, **changes}


def test_rows_are_added_and_the_same_measurement_replaced(tmp_path):
    path = tmp_path / "out" / "results.json"
    assert read_results(path) == []
    write_results(path, [row(), row(task="lambada_openai")])
    write_results(path, [row(limit=10), row(value=2)])
    assert read_results(path) == [row(task="lambada_openai"), row(limit=10), row(value=2)]


@pytest.mark.parametrize("content", ["{", '{"results": []}', '{"format": "other", "results": []}', "[]"])
def test_a_file_that_is_something_else_is_not_overwritten(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json is no gptstar-evaluation-1 file"):
        write_results(tmp_path / "results.json", [row()])
    assert (tmp_path / "results.json").read_text() == content


def test_the_harness_flat_metrics_are_taken_apart():
    values = {"name": "x", "sample_len": 3, "acc,none": np.float64(0.5), "acc_stderr,none": 0.1}
    values |= {"ppl,none": 3.0, "ppl_stderr,none": "N/A", "exact_match,strict": 1.0, "exact_match_stderr,strict": 0.0}
    assert harness_metrics(values, {"acc": True, "ppl": False, "exact_match": True}) == {
        "acc": {"value": 0.5, "stderr": 0.1, "higher_is_better": True},
        "ppl": {"value": 3.0, "stderr": None, "higher_is_better": False},
        "exact_match,strict": {"value": 1.0, "stderr": 0.0, "higher_is_better": True},
    }
