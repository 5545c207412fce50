import pytest
import torch

import gptstar
from support import tiny_model


@pytest.mark.parametrize("block", ["parallel_shared", "sequential", "gmlp", "amlp"])
def test_reordered_rows_go_on_as_if_they_had_been_read_in_that_order(block):
    torch.manual_seed(0)
    position = "none" if block == "gmlp" else "alibi"
    net = gptstar.GPT(tiny_model(block=block, position=position)).eval()
    tokens, more = torch.randint(0, 300, (3, 6)), torch.randint(0, 300, (4, 3))
    for rows in ([2, 0, 0], [1], [0, 1, 2, 2]):
        cache, order = net.new_cache(3, 9), torch.tensor(rows)
        with torch.no_grad():
            net(tokens, cache=cache)
            cache.reorder(order)
            continued = net(more[: len(rows)], cache=cache)
            expected = net(torch.cat([tokens[order], more[: len(rows)]], 1))[:, 6:]
        torch.testing.assert_close(continued, expected, rtol=1e-5, atol=1e-5)
