"""GPT-NeoX-20B in a few calls, named as in "minimal GPT-NeoX-20B in PyTorch" (Phang, 2022):

    from gptstar import neox20b

    model = neox20b.create_model("20B_checkpoints/global_step150000", use_cache=True, device="cuda:0")
    tokenizer = neox20b.create_tokenizer("20B_checkpoints/20B_tokenizer.json")
    text = neox20b.greedy_generate_text(model, tokenizer, "GPT-NeoX-20B is", max_seq_len=100)

The model is a `gptstar.GPT` like any other, and everything else here takes any of them. `gptstar.load` and
`gptstar.generate` are the same with more to choose.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from gptstar.configuration import preset
from gptstar.device import free_memory, pick_device
from gptstar.errors import UserError
from gptstar.generation.decoding import Decoder
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta, with_storage
from gptstar.model.transformer import GPT
from gptstar.pretrained.load import load
from gptstar.progress import progress
from gptstar.sizes import say_bytes


def create_model(
    checkpoint_path: str | Path,
    use_cache: bool = False,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str | None = None,
) -> GPT:
    """The published weights: the folder that holds global_step*/, or that one itself, in the precision they have.

    use_cache: whether `greedy_generate` keeps keys and values instead of reading everything again for each token.
    dtype: another precision, or int8, int4. Raises UserError for what is missing or damaged.
    """
    model, _ = load(checkpoint_path, pick_device(str(device)), dtype)
    return _keeping(model, use_cache)


def create_dummy_model(
    use_cache: bool = False, device: torch.device | str = "auto", config: ModelConfig | None = None
) -> GPT:
    """The same shape, or that of `config`, with random weights in fp16. Raises UserError where memory is too small."""
    config, place = config or preset("neox_20b"), pick_device(str(device))
    with on_meta():
        model = GPT(config).to(torch.float16)
    needed, free = sum(p.numel() * p.element_size() for p in model.parameters()), free_memory(place)
    if needed > free:
        raise UserError(
            f"{config.name} takes {say_bytes(needed)} in fp16 and {place} has {say_bytes(free)} free: "
            "pass a smaller config, such as gptstar.configuration.preset('pythia_1b')"
        )
    model = with_storage(model, place)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=config.init_std)
            else:
                parameter.fill_(float(name.endswith("norm.weight")))
    return _keeping(model.eval(), use_cache)


def create_tokenizer(tokenizer_path: str | Path) -> Tokenizer:
    """20B_tokenizer.json, or any other tokenizer.json. Raises UserError for a file that is none."""
    if not Path(tokenizer_path).is_file():
        raise UserError(f"{tokenizer_path} is no file: name 20B_tokenizer.json or another tokenizer.json")
    try:
        return Tokenizer.from_file(str(tokenizer_path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{tokenizer_path} is no tokenizer.json: {str(error)[:200]}") from error


@torch.inference_mode()
def greedy_generate(model: GPT, input_ids: Tensor, max_seq_len: int, verbose: bool = True) -> Tensor:
    """The likeliest token, again and again: (B, T) int64 tokens -> (B, max_seq_len), the prompt's included.

    Texts of a batch have the same number of tokens; the end of a text ends nothing. verbose: progress, on stderr.
    Raises UserError for a prompt that is longer, and for more tokens than the model can read.
    """
    n_prompt, longest = input_ids.shape[1], model.longest
    if not 0 < n_prompt <= max_seq_len:
        raise UserError(f"the prompt has {n_prompt} tokens and max_seq_len={max_seq_len}: it counts the prompt's too")
    if longest is not None and max_seq_len > longest:
        raise UserError(f"max_seq_len={max_seq_len} is more than the {longest} tokens the model can read")
    if max_seq_len == n_prompt:
        return input_ids
    decoder, tokens = Decoder(model), input_ids.to(model.device)
    cache = decoder.new_cache(len(tokens), max_seq_len)
    with progress(Console(stderr=True) if verbose else None, "tokens", max_seq_len - n_prompt) as advance:
        logits = decoder.read(tokens, cache)
        while True:
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), 1)
            advance(1)
            if tokens.shape[1] == max_seq_len:
                return tokens.to(input_ids.device)
            if getattr(model, "use_cache", True):
                logits = decoder(tokens[:, -1], cache)
            else:
                logits = decoder.read(tokens, decoder.new_cache(len(tokens), max_seq_len))


def greedy_generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    initial_str: str,
    max_seq_len: int,
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> str:
    """A text and its likeliest continuation, max_seq_len tokens in all. device: not needed, the model has one."""
    tokens = torch.tensor([tokenizer.encode(initial_str).ids], dtype=torch.int64)
    return tokenizer.decode(greedy_generate(model, tokens, max_seq_len, verbose)[0].tolist())


def _keeping(model: GPT, use_cache: bool) -> GPT:
    model.use_cache = use_cache  # type: ignore[assignment]
    return model
