"""Does a model see what it is to predict? Asked of ideas of one's own before they train."""

from __future__ import annotations

import torch

from gptstar.errors import UserError
from gptstar.model.choices import chosen
from gptstar.model.own import is_own
from gptstar.model.transformer import GPT

N_TOKEN = 12
SHARE = 1e-3  # of what a changed token does to its own logits: rounding is far below, anything that is read far above


@torch.no_grad()
def refuse_foresight(model: GPT) -> None:
    """Raises UserError where a changed token changes an earlier logit of a model with ideas of one's own, or where it
    cannot read tokens.

    Such a model trains to a wonderful loss that means nothing.
    """
    if not any(map(is_own, chosen(model.config))):
        return
    device, n_token = model.device, min(N_TOKEN, model.longest or N_TOKEN)
    tokens = torch.arange(n_token, device=device).repeat(2, 1) % model.config.vocab_size
    changed = n_token // 2
    tokens[1, changed] = (tokens[1, changed] + 1) % model.config.vocab_size
    training = model.training
    try:
        one, other = (_logits(model.eval(), row[None]) for row in tokens)
    except ValueError as error:  # of `GPT`: a block that makes something else than it should
        raise UserError(str(error)) from error
    finally:
        model.train(training)
    difference = (one - other).abs().amax(-1)[0]
    if difference[:changed].max() > SHARE * difference[changed]:
        names = ", ".join(getattr(thing, "__name__", str(thing)) for thing in chosen(model.config) if is_own(thing))
        raise UserError(
            f"the model sees tokens that come later (with {names}): a changed token changes the logits before it, so "
            "its loss would mean nothing; python -m gptstar.check FILE.py says more"
        )


def _logits(model: GPT, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The same noise each time, for an idea that draws some; the model is on the CPU still."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        return model(tokens_BT).double()
    finally:
        torch.set_rng_state(state)
