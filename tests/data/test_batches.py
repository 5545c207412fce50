import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.batches import document_numbers, permute, read_windows, window_count
from gptstar.data.shards import TokenStream
from support import write_split


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_every_size_is_permuted_onto_itself(size, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


@settings(max_examples=50)
@given(st.integers(2, 10**12), st.integers(0, 100))
def test_one_index_of_a_huge_permutation_costs_no_table(size, seed):
    index = np.array([0, size // 2, size - 1])
    out = permute(index, size, seed, 0)
    assert ((out >= 0) & (out < size)).all() and len(set(out.tolist())) == len(set(index.tolist()))


def test_seeds_and_epochs_give_different_and_well_mixed_orders():
    n = 10_000
    orders = [permute(np.arange(n), n, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(np.arange(n), a)[0, 1]) < 0.05
        for b in orders[:i]:
            assert (a == b).sum() < 20  # about one coincidence is expected
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_windows_are_disjoint_inputs_with_the_next_token_as_target(tmp_path):
    split = write_split(tmp_path, [[start, start + 1] for start in range(1, 40, 3)], shard_tokens=10)
    stream = TokenStream(tmp_path, split, 300)
    flat = torch.from_numpy(stream.read(0, len(stream)))
    n = window_count(len(stream), 7)
    inputs, targets = read_windows(stream, np.arange(n) * 7, 7)
    assert torch.equal(inputs.flatten(), flat[: 7 * n]) and torch.equal(targets.flatten(), flat[1 : 7 * n + 1])


@given(st.integers(0, 1000), st.integers(1, 50))
def test_window_count_leaves_room_for_the_last_target(n_token, length):
    n = window_count(n_token, length)
    assert n * length + 1 <= n_token or n == 0
    assert (n + 1) * length + 1 > n_token


def test_a_document_ends_with_its_end_of_text():
    tokens = torch.tensor([[5, 0, 7, 8, 0, 0, 9], [1, 2, 3, 4, 5, 6, 7], [0, 1, 1, 1, 1, 1, 0]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0] * 7, [0, 1, 1, 1, 1, 1, 1]]
    assert document_numbers(tokens, 0).tolist() == expected
