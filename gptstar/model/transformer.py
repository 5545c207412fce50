"""GPT: embedding, blocks, final norm, head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptstar.model.attention import Sight, make_sight
from gptstar.model.cache import KeyValueCache, RowsCache
from gptstar.model.choices import BLOCKS, attends_only, check_choices, chosen, longest, with_own_settings
from gptstar.model.config import ModelConfig
from gptstar.model.initialization import initialize
from gptstar.model.kernels import Case, Kernel, View
from gptstar.model.loss import linear_cross_entropy, softcapped
from gptstar.model.mix import Mix
from gptstar.model.norms import build_norm
from gptstar.model.own import empty_is_marked, is_own
from gptstar.model.positions import SCHEMES, NoPosition
from gptstar.model.projections import TokenTable, load_fused_parts


class GPT(nn.Module):
    """A decoder-only transformer built from a ModelConfig, initialised from torch's global random state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_choices(config)
        self.config = config = with_own_settings(config)
        with empty_is_marked(any(map(is_own, chosen(config)))):
            self._build(config)
        self.attention_kernel = "auto"  # or the name of one (`kernel_choice.py`), for sequences read without a cache
        self.row_attention: type[Kernel] | None = None  # for one more token of each row; decoding puts one here
        self.recomputed = 0  # so many layers, from the first, keep no activations for the backward pass
        self.register_load_state_dict_pre_hook(load_fused_parts)
        initialize(self, config)

    def _build(self, config: ModelConfig) -> None:
        rows = config.padded_vocab_size
        self.embedding = TokenTable(rows, config.d_model)
        self.embedding_norm = build_norm(config, config.d_model) if config.embedding_norm else nn.Identity()
        # One object a scheme, shared by the layers that use it.
        self.position = nn.ModuleDict({scheme: SCHEMES[scheme](config) for scheme in dict.fromkeys(config.schemes)})
        self.blocks = nn.ModuleList(BLOCKS[config.block](config, layer) for layer in range(config.n_layer))
        shortened = range(1, config.n_layer) if config.embedding_shortcut else ()
        self.shortcut = nn.ModuleDict({str(layer): Mix(1.0, 0.0) for layer in shortened})
        self.norm = build_norm(config, config.d_model)
        self.head = None if config.tie_head else TokenTable(rows, config.d_model)
        self.head_bias = nn.Parameter(torch.empty(rows)) if config.head_bias else None

    @property
    def head_table(self) -> TokenTable:
        """What the last hidden states are multiplied with: the token embedding itself when tied."""
        return self.embedding if self.head is None else self.head

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._exact_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers it computes; a quantised model keeps its matrices in others."""
        return self._exact_weight.dtype

    @property
    def _exact_weight(self) -> Tensor:
        """One that is not quantised: of the last norm, where that has any."""
        weight = getattr(self.norm, "weight", None)
        if isinstance(weight, Tensor):
            return weight
        every = chain(self.norm.parameters(), self.parameters(), self.buffers())
        return next(each for each in every if each.is_floating_point())

    @property
    def longest(self) -> int | None:
        """The longest sequence the model can read, or None where nothing limits it."""
        return longest(self.config)

    def new_cache(self, batch: int, capacity: int, whole: bool = False) -> KeyValueCache:
        """An empty cache for up to `capacity` tokens of `batch` sequences, in the model's dtype and on its device.

        Layers that see a window keep little more than it; whole: all tokens all the same, so that one may go back to
        any length.
        """
        layout = BLOCKS[self.config.block].cached(self.config)
        seen = [self.config.window(layer) for layer in range(self.config.n_layer)]
        windows = seen if attends_only(self.config) and not whole else []  # other blocks see everything
        return KeyValueCache(layout, self.config.n_layer, batch, capacity, self.device, self.dtype, windows)

    def new_rows_cache(self, batch: int, capacity: int) -> RowsCache:
        """The same for sequences that differ in length; every layer keeps all tokens."""
        layout = BLOCKS[self.config.block].cached(self.config)
        return RowsCache(layout, self.config.n_layer, batch, capacity, self.device, self.dtype)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: KeyValueCache | None = None,
        padding_B: Tensor | None = None,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, C): the final norm's output, which muP divides by the width's growth (`mup.py`).

        With a cache the tokens continue what the cache has seen.
        padding_B: how many tokens at the left of each row are padding, of all the row's tokens, those in the cache
        included. Where a token is padding the output means nothing.
        document_BT: a number for each token's document: attention stays within it. Without a cache only.
        """
        assert document_BT is None or cache is None
        n_token = tokens_BT.shape[1]
        if cache is not None and not cache.make_room(n_token):  # more than layers with a window can take at once
            pieces = [self.hidden(piece, cache, padding_B) for piece in tokens_BT.split(cache.slack, 1)]
            return torch.cat(pieces, 1)
        x_BTC, sights = self._enter(tokens_BT, cache, padding_B, document_BT)
        embedding_BTC = x_BTC if self.config.embedding_shortcut else None
        value_BKTD: Tensor | None = None
        recomputed = self.recomputed if torch.is_grad_enabled() and cache is None else 0
        for layer, sight in enumerate(sights):
            below = (layer, x_BTC, embedding_BTC, value_BKTD, sight, cache)
            if layer < recomputed:  # Chen et al., arXiv:1604.06174
                x_BTC, value_BKTD = checkpoint(self._layer, *below, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTC, value_BKTD = self._layer(*below)
        if cache is not None:
            cache.advance(n_token)
        return self._leave(x_BTC)

    def hidden_of_many(self, parts: Sequence[tuple[Tensor, KeyValueCache]]) -> list[Tensor]:
        """`hidden` of sequences that differ in length, (B, T) tokens and a cache each, a layer of all at a time.

        For weights that are expensive to get to; the numbers are those of one call after the other.
        """
        found: list[Tensor | None] = [None] * len(parts)
        entered = []
        for i, (tokens_BT, cache) in enumerate(parts):
            if cache.make_room(tokens_BT.shape[1]):
                x_BTC, sights = self._enter(tokens_BT, cache, None, None)
                entered.append((i, x_BTC if self.config.embedding_shortcut else None, sights, cache))
                found[i] = x_BTC
            else:  # layers with a window take it in pieces
                found[i] = self.hidden(tokens_BT, cache)
        values: dict[int, Tensor | None] = {i: None for i, *_ in entered}
        for layer in range(self.config.n_layer):
            for i, embedding_BTC, sights, cache in entered:
                below = (layer, cast(Tensor, found[i]), embedding_BTC, values[i], sights[layer], cache)
                found[i], values[i] = self._layer(*below)
        for i, _, _, cache in entered:
            cache.advance(parts[i][0].shape[1])
            found[i] = self._leave(cast(Tensor, found[i]))
        return cast(list[Tensor], found)

    def _enter(
        self, tokens_BT: Tensor, cache: KeyValueCache | None, padding_B: Tensor | None, document_BT: Tensor | None
    ) -> tuple[Tensor, list[Sight]]:
        """What the first layer reads, and what each may see."""
        n_token, device = tokens_BT.shape[1], tokens_BT.device
        n_key = n_token if cache is None else cache.n_key(n_token)
        self._check_length(n_key, padding_B)
        slot = torch.arange(n_token, device=device) if cache is None else cache.slots(n_token, device)
        position = slot if padding_B is None else (slot - padding_B[:, None]).clamp(min=0)
        x_BTC = self.embedding(tokens_BT)
        for scheme in self._schemes().values():
            x_BTC = scheme.embed(x_BTC, position)
        x_BTC = self.embedding_norm(x_BTC)
        return x_BTC, self._sights(x_BTC, slot, n_key, padding_B, cache, document_BT)

    def _leave(self, x_BTC: Tensor) -> Tensor:
        """What the head reads."""
        ratio, normed_BTC = self.config.width_ratio, self.norm(x_BTC)
        return normed_BTC if ratio == 1 else normed_BTC / ratio

    def _layer(
        self,
        layer: int,
        x_BTC: Tensor,
        embedding_BTC: Tensor | None,
        value_BKTD: Tensor | None,
        sight: Sight,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer, with what reaches it past those between: what the first one read, and its values.

        The layer's output and these values, which are None until the first layer has run, and without value_residual.
        They come and go as arguments, so that a layer that is recomputed gets the tensors it had.
        """
        if embedding_BTC is not None and layer:
            x_BTC = self.shortcut[str(layer)](x_BTC, embedding_BTC)
        if not self.config.value_residual:
            return self._same_shape(layer, x_BTC, self.blocks[layer](x_BTC, sight, cache)), None
        found = [] if value_BKTD is None else [value_BKTD]
        y_BTC = self.blocks[layer](x_BTC, replace(sight, first_value=found), cache)
        return self._same_shape(layer, x_BTC, y_BTC), found[0]

    def _same_shape(self, layer: int, x_BTC: Tensor, y_BTC: Tensor) -> Tensor:
        """What a block made: one of another shape could train, on another loss than is thought."""
        if not isinstance(y_BTC, Tensor) or y_BTC.shape != x_BTC.shape:
            made = f"a tensor {tuple(y_BTC.shape)}" if isinstance(y_BTC, Tensor) else f"a {type(y_BTC).__name__}"
            raise ValueError(
                f"model.block={self.config.block} (layer {layer}) makes {made} of one {tuple(x_BTC.shape)}: a block "
                "returns a tensor of the shape it reads, (B, T, C)"
            )
        return y_BTC

    def _check_length(self, n_token: int, padding_B: Tensor | None) -> None:
        limit = self.longest
        if limit is None or n_token <= limit:
            return
        if padding_B is not None:
            n_token -= int(padding_B.min())
        if n_token > limit:
            raise ValueError(
                f"a sequence of {n_token} tokens is longer than the {limit} this model can read (model.context): "
                "shorten the input, or use a model with relative positions (alibi)"
            )

    def _sights(
        self,
        x_BTC: Tensor,
        slot: Tensor,
        n_key: int,
        padding_B: Tensor | None,
        cache: KeyValueCache | None = None,
        document_BT: Tensor | None = None,
    ) -> list[Sight]:
        """What each layer may see; layers with the same position and window share one."""
        device = x_BTC.device
        autocasting = torch.is_autocast_enabled(device.type)
        # SDPA wants bias and queries in one dtype.
        dtype = torch.get_autocast_dtype(device.type) if autocasting else x_BTC.dtype
        schemes, n_token = self._schemes(), x_BTC.shape[1]
        made: dict[tuple[str, int], Sight] = {}
        keys = [(scheme, self.config.window(layer)) for layer, scheme in enumerate(self.config.schemes)]
        for scheme, window in keys:
            if (scheme, window) not in made:
                case = Case(
                    self.config,
                    schemes[scheme],
                    window if window < n_key else 0,
                    device.type,
                    n_key,
                    documents=document_BT is not None,
                    whole=cache is None and padding_B is None,
                    gradients=torch.is_grad_enabled(),
                    compiled=torch.compiler.is_compiling(),
                    rows=slot.ndim == 2 and n_token == 1 and padding_B is None and dtype == torch.float32,
                )
                first = 0 if cache is None else cache.first(window)
                view = View(case, slot, dtype, first, padding_B, document_BT)
                made[scheme, window] = make_sight(view, self.attention_kernel, self.row_attention)
        return [made[key] for key in keys]

    def _schemes(self) -> dict[str, NoPosition]:
        return cast(dict[str, NoPosition], self.position)

    def logits(self, hidden_BTC: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, (..., V), from what `hidden` gives, (..., C)."""
        logits = self.head_table.scores(hidden_BTC, self.head_bias)[..., : self.config.vocab_size]
        return softcapped(logits, self.config.logit_softcap)

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        padding_B: Tensor | None = None,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for int64 tokens (B, T); with targets (B, T) the mean cross-entropy in nats instead.

        cache, padding_B, document_BT: see `hidden`. Raises ValueError for a sequence longer than the model or the cache
        can take.
        """
        hidden_BTC = self.hidden(tokens_BT, cache, padding_B, document_BT)
        if targets_BT is None:
            return self.logits(hidden_BTC)
        return linear_cross_entropy(
            hidden_BTC.flatten(0, 1),
            self.head_table.dense,
            targets_BT.flatten(),
            bias_V=self.head_bias,
            softcap=self.config.logit_softcap,
            n_valid=self.config.vocab_size,
        )
