"""Log-probabilities that are reported beside what was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """What the model thought of a chosen token, and of the likeliest ones, most likely first; nats."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprobs(logits_BV: Tensor, token_B: Tensor, n_top: int) -> list[TokenLogprob]:
    """One a row, of the model's own distribution: logits before any penalty, temperature or filter.

    Reading the numbers makes the host wait for the device.
    """
    logprob_BV = logits_BV.float().log_softmax(-1)
    chosen = logprob_BV.gather(-1, token_B[:, None])[:, 0].tolist()
    values, tokens = logprob_BV.topk(min(n_top, logprob_BV.shape[-1]))
    rows = zip(token_B.tolist(), chosen, tokens.tolist(), values.tolist(), strict=True)
    return [TokenLogprob(token, value, list(zip(ids, of_ids, strict=True))) for token, value, ids, of_ids in rows]
