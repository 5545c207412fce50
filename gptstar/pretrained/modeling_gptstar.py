"""GPT* in transformers: what `gptstar.export` puts beside the weights of an architecture that transformers has no class
for. `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs it.

Here it is a module like any other; in an exported folder its imports from `gptstar.model` name the copies of those
files that stand beside it (`remote_code.py`). It needs torch and transformers and nothing else, and nothing in gptstar
imports it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from gptstar.model.cache import KeyValueCache
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.projections import FusedLinear
from gptstar.model.transformer import GPT


class GPTStarConfig(PretrainedConfig):
    """`model` holds the fields of a ModelConfig; what transformers wants under names of its own follows from them.

    max_position_embeddings is ModelConfig.context, the tokens a training sequence had. Only learned positions and gMLP
    blocks end there (`GPT.longest`, a ValueError beyond); every other model reads on.
    """

    model_type = "gptstar"

    def __init__(self, model: dict[str, Any] | None = None, use_cache: bool = True, **common: Any) -> None:
        shape = ModelConfig(**(model or {}))
        self.model = asdict(shape)
        self.vocab_size = shape.vocab_size
        self.hidden_size = shape.d_model
        self.intermediate_size = shape.d_feedforward
        self.num_hidden_layers = shape.n_layer
        self.num_attention_heads = shape.n_head
        self.num_key_value_heads = shape.n_key_value
        self.head_dim = shape.head_size
        self.max_position_embeddings = shape.context
        self.use_cache = use_cache
        super().__init__(**{**common, "tie_word_embeddings": shape.tie_head})


class Whole(FusedLinear):
    """A FusedLinear whose state dict holds it as it lies in memory: transformers fills parameters by name."""

    _save_to_state_dict = nn.Module._save_to_state_dict


class BorrowedCache(KeyValueCache):
    """A cache of transformers, which grows, can be reordered for beam search and cropped, seen as one of ours.

    State number n of a layer is its layer `layer * len(names) + n`: keys (B, heads, length, channels) without values.
    """

    def __init__(self, cache: Cache, names: list[str]) -> None:
        if cache.is_compileable:
            raise ValueError(f"past_key_values is a {type(cache).__name__}: only one that grows (DynamicCache) will do")
        self.cache, self.names = cache, names
        self.length = cache.get_seq_length()

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        index = layer * len(self.names) + self.names.index(name)
        while len(self.cache.layers) <= index:
            self.cache.layers.append(DynamicLayer())
        return self.cache.update(x_BKTD, x_BKTD[..., :0], index)[0]


def left_padding(attention_mask: Tensor, n_token: int) -> Tensor | None:
    """How many tokens at the left of each row are padding, (B,), or None where there is none.

    attention_mask: (B, n_token), 0 where a token is padding, of all tokens, those in the cache included. The real
    tokens of a row stand side by side. What follows them is padding on the right: no real token sees it, so nothing has
    to be done about it until a token is appended. Raises ValueError for any other mask.
    """
    if attention_mask.dim() != 2 or attention_mask.shape[1] != n_token:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: it must be (batch, {n_token}), "
            "one number for each token, those in past_key_values included"
        )
    real = attention_mask != 0
    if real.all():
        return None
    runs = (real[:, 1:] & ~real[:, :-1]).sum(-1) + real[:, 0]
    if (runs > 1).any():
        raise ValueError(
            f"attention_mask has padding between the tokens of row {int(runs.argmax())}: "
            "pad on the left, tokenizer.padding_side='left'"
        )
    return (real.cumsum(-1) == 0).sum(-1)


class GPTStarForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT with transformers' interface: `generate`, `pipeline("text-generation")`, `Trainer`, `save_pretrained`."""

    config_class = GPTStarConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: GPTStarConfig) -> None:
        super().__init__(config)
        self.built = False
        self._no_split_modules = {"GPT"}  # what layers see is made once for all of them, so they share a device
        self.model = GPT(ModelConfig(**config.model))
        self.model._load_state_dict_pre_hooks.clear()  # it looks for the parts of fused layers
        for module in self.model.modules():
            if isinstance(module, FusedLinear):
                module.__class__ = Whole
        self.states = list(BLOCKS[self.model.config.block].cached(self.model.config))
        self.post_init()
        self.built = True

    def _init_weights(self, module: nn.Module) -> None:
        """A GPT initialises itself; when it is asked again, a checkpoint has left something out."""
        if self.built:
            names = [name for name, value in self.named_parameters() if not getattr(value, "_is_hf_initialized", False)]
            raise ValueError(f"the checkpoint is damaged, it lacks: {', '.join(names)}")

    def get_input_embeddings(self) -> nn.Embedding:
        """(padded V, C)."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the embedding itself."""
        return self.model.head

    def resize_token_embeddings(self, *sizes: Any, **options: Any) -> nn.Embedding:
        """Refused: the vocabulary is part of the architecture."""
        raise ValueError(f"the vocabulary of {self.config.vocab_size} tokens is fixed: use tokens that it has")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits (B, T, V) of input_ids (B, T), which continue what past_key_values has seen; of the last
        `logits_to_keep` alone, or at those positions, unless 0.

        attention_mask: see `left_padding`; positions are counted from each row's first real token. labels (B, T): the
        loss is the mean cross-entropy of labels[:, 1:] in nats, where -100 does not count. use_cache: None means yes
        in evaluation mode. Raises ValueError for a sequence too long and for inputs it would have to ignore.
        """
        n_items = others.pop("num_items_in_batch", None)
        ignored = [name for name, value in others.items() if value is not None and value is not False]
        if ignored:
            raise ValueError(f"GPT* takes no {', '.join(ignored)}")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        cache = None if past_key_values is None else BorrowedCache(past_key_values, self.states)
        n_before = 0 if cache is None else cache.length
        padding_B = None if attention_mask is None else left_padding(attention_mask, n_before + input_ids.shape[1])
        hidden_BTC = self.model.hidden(input_ids, cache, padding_B)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.model.logits(hidden_BTC[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, self.config.vocab_size, num_items_in_batch=n_items)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output
