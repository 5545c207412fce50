"""The standard error of a perplexity is the harness's own."""

import random

import pytest
from lm_eval.api import metrics

from gptstar.evaluation.bootstrap import fast_bootstrap, perplexity_stderr


def test_it_is_the_harness_number(monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    values = [random.Random(0).gauss(-3, 1) for _ in range(40)]
    for iterations in (300, 2000):
        expected = metrics.bootstrap_stderr(metrics.perplexity, values, iterations)
        assert perplexity_stderr(values, iterations) == pytest.approx(expected, rel=1e-12)


def test_it_takes_the_place_of_the_harness_own_for_perplexity_alone_and_for_a_while(monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    theirs, values = metrics.bootstrap_stderr, [-1.0, -2.0, -4.0]
    with fast_bootstrap():
        assert metrics.stderr_for_metric(metrics.perplexity, 1000)(values) == perplexity_stderr(values, 1000)
        assert metrics.bootstrap_stderr(metrics.median, values, 1000) == theirs(metrics.median, values, 1000)
    assert metrics.bootstrap_stderr is theirs
