"""Filters: logits (B, V) -> logits (B, V), -inf for what may not be chosen, the rest untouched.

Each takes its parameter as a number or as a tensor (B,) with one for every row, and a row gets exactly what it would
get alone: sums over the vocabulary are in float64, so that neither the order of summation nor the row's place in the
batch decides anything. At least one token of every row is left.

Ties: each filter comes down to one threshold a row, and what equals the threshold stays. So tokens of exactly equal
logits stay or go together. (transformers does the same but for top-p, where its sort decides which of them stay.)
"""

from __future__ import annotations

import torch
from torch import Tensor

N_BUCKET, BUCKETS_PER_NAT = 1024, 32


def scale_by_temperature(logits_BV: Tensor, temperature: float | Tensor) -> Tensor:
    """Divides by the temperature, which must be positive (Ackley, Hinton and Sejnowski, 1985)."""
    return logits_BV / per_row(temperature, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int | Tensor, k_max: int | None = None) -> Tensor:
    """Leaves the k largest logits of each row (Fan et al., arXiv:1805.04833); k = 0 leaves all.

    k_max: the largest of a tensor k, where it is known; otherwise the host waits for it.
    """
    n_token = logits_BV.shape[-1]
    if k_max is None:
        k_max = int(k.max()) if isinstance(k, Tensor) else k
    if k_max == 0:
        return logits_BV
    largest = logits_BV.topk(min(k_max, n_token)).values
    k_B1 = torch.as_tensor(k, device=logits_BV.device).reshape(-1, 1).expand(len(logits_BV), 1)
    kth = largest.gather(-1, (k_B1 - 1).clamp(0, largest.shape[-1] - 1)).masked_fill(k_B1 == 0, -torch.inf)
    return logits_BV.masked_fill(logits_BV < kth, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float | Tensor) -> Tensor:
    """Leaves the smallest set of most likely tokens whose probability reaches p (Holtzman et al., arXiv:1904.09751).

    p in (0, 1]; 1 leaves all.
    """
    p_B1 = per_row(p, logits_BV, torch.float64)
    threshold = _smallest_set(logits_BV, logits_BV.double().softmax(-1), p_B1)
    return logits_BV.masked_fill(logits_BV < threshold, -torch.inf)


def keep_min_p(logits_BV: Tensor, p: float | Tensor) -> Tensor:
    """Leaves tokens at least p times as likely as the most likely one (Nguyen et al., arXiv:2407.01082).

    p in [0, 1); 0 leaves all. Needs no probabilities: their ratio is a difference of logits.
    """
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + per_row(p, logits_BV).log(), -torch.inf)


def keep_typical(logits_BV: Tensor, tau: float | Tensor) -> Tensor:
    """Leaves the smallest set of tokens that reaches probability tau, those first whose information content is
    nearest to the entropy (Meister et al., arXiv:2202.00666). tau in (0, 1]; 1 leaves all.

    The most likely token may go: here likely and typical are two things.
    """
    tau_B1 = per_row(tau, logits_BV, torch.float64)
    logprob = logits_BV.double().log_softmax(-1)
    typical = -(logprob + _entropy(logprob)).abs()  # -inf for what is impossible already
    threshold = _smallest_set(typical, logprob.exp(), tau_B1)
    return logits_BV.masked_fill(typical < threshold, -torch.inf)


def keep_eta(logits_BV: Tensor, epsilon: float | Tensor) -> Tensor:
    """Leaves tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) or more (Hewitt et al.,
    arXiv:2210.15191), and the most likely one. epsilon in [0, 1); 0 leaves all.
    """
    epsilon_B1 = per_row(epsilon, logits_BV, torch.float64)
    logprob = logits_BV.double().log_softmax(-1)
    eta = epsilon_B1.minimum(epsilon_B1.sqrt() * (-_entropy(logprob)).exp())
    unlikely = (logprob.exp() < eta) & (logits_BV < logits_BV.amax(-1, keepdim=True))
    return logits_BV.masked_fill(unlikely, -torch.inf)


def _entropy(logprob_BV: Tensor) -> Tensor:
    """In nats, (B, 1); what is impossible adds nothing."""
    return -(logprob_BV.exp() * logprob_BV).nansum(-1, keepdim=True)


def _smallest_set(rank_BV: Tensor, probability_BV: Tensor, mass_B1: Tensor) -> Tensor:
    """The smallest rank, (B, 1), in the smallest set of highest-ranked tokens whose probability reaches the mass.

    -inf, so that all may stay, where the mass is 1.
    """
    search = _by_buckets if rank_BV.device.type == "cpu" else _by_sorting
    return search(rank_BV, probability_BV, mass_B1).masked_fill(mass_B1 >= 1, -torch.inf)


def _by_sorting(rank_BV: Tensor, probability_BV: Tensor, mass_B1: Tensor) -> Tensor:
    ranked, index = rank_BV.sort(descending=True)
    reached = probability_BV.gather(-1, index).cumsum(-1)
    last = (reached < mass_B1.minimum(reached[:, -1:])).sum(-1, keepdim=True)  # all together may round to less than 1
    return ranked.gather(-1, last)


def _by_buckets(rank_BV: Tensor, probability_BV: Tensor, mass_B1: Tensor) -> Tensor:
    """The same without sorting 50,257 numbers, which takes a CPU longer than all other sampling together.

    Ranks are thrown into buckets by their distance to the largest, and only the bucket in which the mass is reached
    is sorted. The host looks at its size, so a GPU had better sort.
    """
    distance_BV = (rank_BV.amax(-1, keepdim=True) - rank_BV).mul_(BUCKETS_PER_NAT)
    bucket_BV = distance_BV.nan_to_num_(nan=0).clamp_(max=N_BUCKET - 1).long()
    held = probability_BV.new_zeros(len(rank_BV), N_BUCKET).scatter_add_(-1, bucket_BV, probability_BV)
    reached = held.cumsum(-1)
    mass_B1 = mass_B1.minimum(reached[:, -1:])
    crossing = (reached < mass_B1).sum(-1, keepdim=True)
    before = (reached - held).gather(-1, crossing)
    inside = bucket_BV == crossing
    size = int(inside.sum(-1).max())
    ranked, index = rank_BV.masked_fill(~inside, -torch.inf).topk(size)
    probability = probability_BV.gather(-1, index)
    last = (probability.cumsum(-1) < mass_B1 - before).sum(-1, keepdim=True)
    return ranked.gather(-1, last.minimum(inside.sum(-1, keepdim=True) - 1))


def per_row(value: float | Tensor, logits_BV: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A parameter as (B, 1) or (1, 1), to stand beside (B, V)."""
    return torch.as_tensor(value, dtype=dtype or logits_BV.dtype, device=logits_BV.device).reshape(-1, 1)
