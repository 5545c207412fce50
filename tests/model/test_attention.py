import pytest
import torch

from gptstar.model.attention import Attention, make_sight
from gptstar.model.block import key_value_cache
from gptstar.model.cache import KeyValueCache
from gptstar.model.kernels import Case, View
from gptstar.model.positions import SCHEMES
from support import tiny_model


def test_a_full_cache_says_so():
    config = tiny_model()
    attention = Attention(config, 0)
    cache = KeyValueCache(key_value_cache(config), 1, 1, 4, torch.device("cpu"), torch.float32)
    sight = make_sight(View(Case(config, SCHEMES["none"](config), 0, "cpu", 5), torch.arange(5), torch.float32))
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        attention(torch.zeros(1, 5, config.d_model), sight, cache)
