"""What a task leaves behind besides its numbers: nothing."""

import random

import numpy as np
import torch

from gptstar.evaluation.run import harness_seeds


def test_the_harness_seeds_rule_inside_and_leave_no_trace():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = draw(), draw()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    first = draw()
    with harness_seeds():
        inside = draw()
    assert (first, draw()) == expected
    random.seed(0)
    np.random.seed(1234)  # noqa: NPY002
    torch.manual_seed(1234)
    assert inside == draw()
