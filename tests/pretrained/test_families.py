"""Every family against transformers on random weights: the same logits, with and without cache, and back again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptstar
from families import MODELS, gpt2, neo, neox, perturbed
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.pretrained.transformers_folder import family_of
from support import exact_logits, tiny_model

transformers = pytest.importorskip("transformers")
TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
LLAMA_TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260, eot_token="</s>"))


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    (LLAMA_TOKENIZER if model.config.model_type == "llama" else TOKENIZER).save(folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_transformers_with_and_without_cache(name, tmp_path, monkeypatch):
    theirs = perturbed(MODELS[name])
    ours, _ = gptstar.load(save(theirs, tmp_path))
    tokens = torch.randint(0, 101, (2, 15))
    with torch.no_grad():
        references = [(torch.float32, 2e-5, theirs(tokens).logits)]
        references += [(torch.float64, 1e-10, exact_logits(theirs, tokens, monkeypatch))]
        for dtype, tolerance, expected in references:
            ours = ours.to(dtype)
            cache = ours.new_cache(2, 15)
            cached = torch.cat([ours(piece, cache=cache) for piece in tokens.split([6, 1, 5, 3], 1)], 1)
            for actual in (ours(tokens), cached):
                assert (actual - expected).norm() <= tolerance * expected.norm(), dtype


@pytest.mark.parametrize("name", MODELS)
def test_left_padded_batches_are_transformers(name, tmp_path, monkeypatch):
    theirs = perturbed(MODELS[name])
    ours, _ = gptstar.load(save(theirs, tmp_path))
    tokens, padding = torch.randint(0, 101, (3, 15)), torch.tensor([4, 0, 9])
    real = torch.arange(15) >= padding[:, None]
    options = {"attention_mask": real.long(), "position_ids": (real.long().cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        references = [(torch.float32, 2e-5, theirs(tokens, **options).logits)]
        references += [(torch.float64, 1e-10, exact_logits(theirs, tokens, monkeypatch, **options))]
        for dtype, tolerance, expected in references:
            ours = ours.to(dtype)
            cache = ours.new_cache(3, 15)
            pieces = [ours(piece, cache=cache, padding_B=padding) for piece in tokens.split([6, 1, 5, 3], 1)]
            for actual in (ours(tokens, padding_B=padding), torch.cat(pieces, 1)):
                assert actual.isfinite().all()
                assert (actual - expected)[real].norm() <= tolerance * expected[real].norm(), dtype


@pytest.mark.parametrize("name", MODELS)
def test_import_export_import_is_bit_exact_and_stock_classes_load_it(name, tmp_path):
    theirs = perturbed(MODELS[name])
    ours, tokenizer = gptstar.load(save(theirs, tmp_path / "theirs"))
    gptstar.export(ours, tokenizer, tmp_path / "exported")
    again, _ = gptstar.load(tmp_path / "exported")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert type(stock) is type(theirs)
    state = stock.state_dict()
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())
    tokens = torch.randint(0, 101, (1, 15))
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_exported_model_of_ours_writes_the_same_in_transformers(tmp_path):
    torch.manual_seed(0)
    config = tiny_model(block="sequential", position="learned", n_head=4, context=40, vocab_size=260, init_std=0.3)
    model = gptstar.GPT(config).eval()
    gptstar.export(model, TOKENIZER, tmp_path / "exported")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    prompt = tokenizer("abc abd", return_tensors="pt")
    text = tokenizer.decode(stock.generate(**prompt, max_new_tokens=20, do_sample=False)[0], skip_special_tokens=True)
    assert text == gptstar.generate(model, TOKENIZER, "abc abd", max_new_tokens=20, temperature=0.0)


def test_shards_and_old_pickles_load_the_same(tmp_path):
    theirs = perturbed(gpt2)
    whole, _ = gptstar.load(save(theirs, tmp_path / "one"))
    sharded, _ = gptstar.load(save(theirs, tmp_path / "many", max_shard_size="20KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    (tmp_path / "old").mkdir()
    state = {key.removeprefix("transformer."): value for key, value in theirs.state_dict().items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 40, 40), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    del state["lm_head.weight"]
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    TOKENIZER.save(tmp_path / "old" / "tokenizer.json")
    old, _ = gptstar.load(tmp_path / "old")
    for other in (sharded, old):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_missing_unknown_misshapen_and_broken_tensors_are_listed(tmp_path):
    folder = save(perturbed(gpt2), tmp_path)
    good = load_file(folder / "model.safetensors")

    def refused(change) -> str:
        weights = dict(good)
        change(weights)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(UserError) as error:
            gptstar.load(folder)
        return str(error.value)

    name = "transformer.h.1.mlp.c_fc.bias"
    assert f"missing tensors: {name}" in refused(lambda w: w.pop(name))
    assert "unknown tensors: transformer.extra" in refused(lambda w: w.update({"transformer.extra": torch.ones(1)}))
    assert f"not finite tensors: {name}" in refused(lambda w: w.update({name: good[name] * float("nan")}))
    assert f"mis-shaped tensors: {name} is (111,), not (112,)" in refused(
        lambda w: w.update({name: good[name][:-1].clone()})
    )


def test_what_is_not_supported_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type='bert' is not supported: gpt2, gpt_neo"):
        gptstar.load(tmp_path)
    with pytest.raises(UserError, match=r"nobody/nothing is neither a folder here .* nor could it be had"):
        gptstar.load("nobody/nothing")


def test_the_dtype_is_that_of_the_weights_whatever_buffers_come_first(tmp_path):
    theirs = perturbed(neo).half()
    folder = save(theirs, tmp_path)
    weights = {key: value.clone() for key, value in theirs.state_dict().items() if key != "lm_head.weight"}
    for first in (torch.ones(1, 1, 40, 40, dtype=torch.uint8), torch.ones(1, 1, 40, 40)):
        save_file({**weights, "transformer.h.0.attn.attention.bias": first}, folder / "model.safetensors")
        assert gptstar.load(folder)[0].dtype == torch.float16


def test_an_odd_number_of_rotary_channels_is_refused_and_exported_with_our_own_code(tmp_path):
    """transformers turns one channel more than there is a pair for, or fails."""
    with pytest.raises(UserError, match=r"3 rotary channels in heads of 12 are not supported: an even number is"):
        gptstar.load(save(neox(hidden_size=36), tmp_path / "theirs"))
    config = tiny_model(block="parallel", position="rotary", rotary_fraction=0.25, d_head=12, tie_head=False)
    assert family_of(config).model_type == "gptstar"
    assert family_of(dataclasses.replace(config, d_head=16)).model_type == "gptstar"  # wide heads
    square = dataclasses.replace(config, d_model=48, d_head=16)
    assert family_of(square).model_type == "gpt_neox"


def test_damaged_folders_are_one_line(tmp_path):
    folder = save(perturbed(gpt2), tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    save_file({}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing tensors: transformer.h.0"):
        gptstar.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer_config.json").write_text("[]")
    gptstar.load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index.json is damaged: it has no weight_map"):
        gptstar.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read"):
        gptstar.load(folder)
    (folder / "config.json").write_text('{"model_type": ["gpt2"]}')
    with pytest.raises(UserError, match="is not supported"):
        gptstar.load(folder)


def test_hub_names_with_and_without_an_owner_safetensors_before_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = save(perturbed(gpt2), tmp_path / "hub"), []
    weights = folder / "model.safetensors"

    def download(name, allow_patterns, ignore_patterns):
        asked.append((name, "*.bin" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    gptstar.load("gpt2"), gptstar.load("somebody/model")
    assert asked == [("gpt2", False), ("somebody/model", False)]
    torch.save(load_file(weights), tmp_path / "later.bin")
    weights.unlink()

    def download_later(name, allow_patterns, ignore_patterns):
        if "*.bin" in allow_patterns:
            (tmp_path / "later.bin").rename(folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_later)
    gptstar.load("somebody/old")
