"""muP: what changes with the width, so that a learning rate found on a narrow model holds on a wide one.

Tensor Programs V (Yang et al., arXiv:2203.03466), table 8, for Adam, with m = d_model / mup_base_width:

what                                     initial std   learning rate          weight decay
------------------------------------------------------------------------------------------------
matrices that read channels              / sqrt(m)     / m, Muon: / sqrt(m)   times as much, so
                                                                              that lr * decay stays
embeddings, positions, untied head,      unchanged     unchanged              unchanged
  biases, norms, adapters' second matrix
logits (what the head reads)             / m in the forward pass, tied or not
attention scores                         / sqrt(d_head); * sqrt(mup_base_head) / d_head where heads grow

A matrix that reads channels has d_model, d_attention or d_ff inputs. One m serves all of them: the model that the
learning rate was found on has the same d_attention / d_model and d_ff / d_model as this one (star_3m and gpt127 nearly
do). Depth, batch size and the length of training are not widths: muP does not transfer across them.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from gptstar.model.adapters import ZeroLinear
from gptstar.model.projections import FusedLinear


def channel_readers(model: nn.Module) -> list[nn.Parameter]:
    """The matrices whose inputs are as many as the model is wide: of linear layers, all but an adapter's second one."""
    layers = (m for m in model.modules() if isinstance(m, (FusedLinear, nn.Linear)) and not isinstance(m, ZeroLinear))
    return [cast(nn.Parameter, layer.weight) for layer in layers]
