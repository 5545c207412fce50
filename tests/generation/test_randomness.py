"""The generator is a pure function, and its numbers look like independent Gumbel numbers."""

import torch

from gptstar.generation.randomness import fresh_seed, gumbel_noise, mix, sequence_seed

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """The finalizer in plain integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seeds, steps, n_token: int) -> torch.Tensor:
    return (-(-gumbel_noise(torch.tensor(seeds), torch.tensor(steps), n_token)).exp()).exp()


def is_flat(counts: torch.Tensor) -> bool:
    """Whether equally likely cells were hit evenly: chi-square within 4 standard deviations of what is expected."""
    expected, freedom = counts.sum() / counts.numel(), counts.numel() - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return bool((statistic - freedom).abs() < 4 * (2 * freedom) ** 0.5)


def pairs_are_independent(a: torch.Tensor, b: torch.Tensor, cells: int = 16) -> bool:
    return is_flat(torch.bincount(((a * cells).long() * cells + (b * cells).long()).flatten(), minlength=cells**2))


def test_mix_is_splitmix64():
    numbers = [0, 1, -1, 2**62, -(2**63), 123456789]
    expected = [splitmix64(n & MASK) for n in numbers]
    assert [n & MASK for n in mix(torch.tensor(numbers)).tolist()] == expected


def test_a_row_has_the_same_noise_in_any_batch():
    seeds, steps = [0, 1, -(2**63), 2**63 - 1], [0, 5, 7, 10**6]
    together = gumbel_noise(torch.tensor(seeds), torch.tensor(steps), 50_257)
    assert together.isfinite().all()
    for row in range(4):
        alone = gumbel_noise(torch.tensor(seeds[row : row + 1]), torch.tensor(steps[row : row + 1]), 50_257)
        assert torch.equal(alone[0], together[row])


def test_the_numbers_are_uniform_and_independent():
    seeds, steps = torch.arange(40).repeat_interleave(25), torch.arange(25).repeat(40)
    u = uniform(seeds.tolist(), steps.tolist(), 200).view(40, 25, 200)
    assert is_flat(torch.bincount((u * 1000).long().flatten(), minlength=1000))
    assert pairs_are_independent(u[:, :, 1:], u[:, :, :-1])  # neighbouring tokens
    assert pairs_are_independent(u[:, 1:], u[:, :-1])  # neighbouring steps
    assert pairs_are_independent(u[1:], u[:-1])  # neighbouring seeds
    assert pairs_are_independent(u[1:, 1:], u[:-1, :-1])
    assert not pairs_are_independent(u, u)  # the test can fail


def test_sequences_have_seeds_of_their_own():
    seeds = [sequence_seed(seed, i) for seed in range(20) for i in range(20)]
    assert len(set(seeds)) == 400 and sequence_seed(7, 0) == 7
    assert all(0 <= seed < 2**40 for seed in seeds)
    assert fresh_seed() != fresh_seed()
