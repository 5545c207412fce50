import math

import pytest
import torch

from gptstar.pretrained.family import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype):
    for n in (1, 7, 33, 5000):
        good = torch.linspace(-1e4, 1e4, n).to(dtype)
        assert all_finite(good) and all_finite(good[:0])
        for place in {0, n // 2, n - 1}:
            for bad in (math.nan, math.inf, -math.inf):
                tensor = good.clone()
                tensor[place] = bad
                assert not all_finite(tensor)
