"""Exported models in transformers: the same numbers and the same text as here, through its own machinery."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from model.test_battery import PRESETS, build, configurations, shrunk

import gptstar
from gptstar.configuration import preset
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.pretrained.star import STAR
from gptstar.pretrained.stored import in_memory
from support import tiny_model

transformers = pytest.importorskip("transformers")
from gptstar.pretrained.modeling_gptstar import GPTStarConfig, GPTStarForCausalLM, left_padding  # noqa: E402

PROMPTS = ["the cat sat on", "a", "the dog sat. the cat"]


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """(folder, model, tokenizer): wide heads, one shared norm, ALiBi, and more embeddings than tokens.

    Embeddings without a token are so long that they would win wherever nothing holds them back.
    """
    tokenizer = train_tokenizer(["the cat sat on the mat. the dog sat."] * 3, TokenizerConfig(vocab_size=280))
    assert tokenizer.vocab_size < 290
    torch.manual_seed(0)
    model = gptstar.GPT(tiny_model(vocab_size=290, d_head=16, init_std=0.3)).eval()
    with torch.no_grad():
        model.embedding.weight[tokenizer.vocab_size :] *= 20
    folder = tmp_path_factory.mktemp("exported") / "star"
    gptstar.export(model, tokenizer, folder)
    return folder, model, tokenizer


def theirs(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def their_tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def loaded(star):
    return theirs(star[0]), their_tokenizer(star[0])


def written_here(star) -> list[str]:
    _, model, tokenizer = star
    return [gptstar.generate(model, tokenizer, prompt, max_new_tokens=20, temperature=0.0) for prompt in PROMPTS]


def test_logits_in_fp32_in_float64_and_in_bf16(star):
    folder, model, _ = star
    tokens = torch.randint(0, 280, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(theirs(folder)(tokens).logits, model(tokens), rtol=1e-6, atol=1e-6)
        exact = gptstar.load(folder, dtype=torch.float64)[0](tokens)
        actual = theirs(folder, dtype=torch.float64)(tokens).logits
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)
        half = theirs(folder, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert torch.equal(half(tokens).logits, gptstar.load(folder, dtype=torch.bfloat16)[0](tokens))


def test_greedy_text_alone_in_a_padded_batch_and_in_the_pipeline(star, loaded):
    model, tokenizer = loaded
    expected = written_here(star)
    greedy = dict(max_new_tokens=20, do_sample=False)

    def texts(inputs, **options):
        return tokenizer.batch_decode(model.generate(**inputs, **greedy, **options), skip_special_tokens=True)

    assert [texts(tokenizer(prompt, return_tensors="pt"))[0] for prompt in PROMPTS] == expected
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert not batch["attention_mask"].all() and batch["attention_mask"][:, -1].all()
    assert texts(batch) == expected
    assert texts(batch, use_cache=False) == expected
    assert texts(batch, prefill_chunk_size=2) == expected
    pipe = transformers.pipeline("text-generation", str(star[0]), trust_remote_code=True)
    assert [row[0]["generated_text"] for row in pipe(PROMPTS, batch_size=3, **greedy)] == expected


def test_beams_samples_and_guessed_tokens(star, loaded):
    model, tokenizer = loaded
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    beams = dict(num_beams=3, do_sample=False, max_new_tokens=12)
    cached, whole = (model.generate(**batch, **beams, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, model.generate(**batch, do_sample=False, max_new_tokens=12))
    torch.manual_seed(0)
    drawn = model.generate(**batch, do_sample=True, top_p=0.9, max_new_tokens=5, num_return_sequences=2)
    assert drawn.shape[0] == 6 and drawn.max() < len(tokenizer)
    one = tokenizer(PROMPTS[2], return_tensors="pt")  # guesses that fail are cut off the cache
    guessed = model.generate(**one, do_sample=False, max_new_tokens=20, prompt_lookup_num_tokens=3)
    assert tokenizer.decode(guessed[0], skip_special_tokens=True) == written_here(star)[2]


@pytest.mark.slow
def test_it_needs_only_torch_and_transformers(star, tmp_path):
    script = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gptstar", "hydra", "omegaconf", "lm_eval", "datasets"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import transformers
folder, prompt = sys.argv[1:]
pipe = transformers.pipeline("text-generation", folder, trust_remote_code=True)
assert not [name for name in sys.modules if name.startswith("gptstar")]
sys.stdout.buffer.write(pipe(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"].encode())
"""
    command = [sys.executable, "-P", "-c", script, str(star[0]), PROMPTS[0]]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == written_here(star)[0]


def hosted(model):
    """A model of ours in their class, without the way over the disk."""
    host = GPTStarForCausalLM(GPTStarConfig(model=asdict(model.config))).to(next(model.parameters()).dtype).eval()
    host.load_state_dict(STAR.export_weights(model.state_dict(), model.config))
    return host


def same_with_and_without_cache(config):
    model = build(config)
    host, state = hosted(model), model.state_dict()
    back = copy.deepcopy(model)
    for parameter in back.parameters():
        parameter.detach().zero_()
    STAR.fill(back, in_memory(host.state_dict()))
    assert all(torch.equal(value, state[name]) for name, value in back.state_dict().items())
    tokens, mask = torch.randint(0, config.vocab_size, (3, 13)), torch.ones(3, 13, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(host(tokens).logits, model(tokens))
        for padding in (torch.zeros(3, dtype=torch.int64), torch.tensor([2, 0, 9])):
            mask = (torch.arange(13) >= padding[:, None]).long()
            expected, cache, pieces = model(tokens, padding_B=padding), None, []
            for start, end in ((0, 6), (6, 7), (7, 12), (12, 13)):
                output = host(tokens[:, start:end], mask[:, :end], past_key_values=cache)
                cache = output.past_key_values
                pieces.append(output.logits)
            actual = torch.cat(pieces, 1)
            torch.testing.assert_close(actual[mask > 0], expected[mask > 0], rtol=1e-9, atol=1e-9)
            assert cache.get_seq_length() == 13


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_in_their_class(name):
    same_with_and_without_cache(shrunk(preset(name)))


@settings(max_examples=40)
@given(configurations())
def test_every_point_of_the_space_in_their_class(config):
    same_with_and_without_cache(config)


@pytest.mark.parametrize(
    "changes",
    [dict(block="amlp"), dict(block="gmlp", position="none"), dict(adapter_width=3, head_bias=True, tie_head=False)],
)
def test_other_blocks_through_the_whole_export(changes, star, tmp_path):
    tokenizer = star[2]
    torch.manual_seed(1)
    config = tiny_model(vocab_size=tokenizer.vocab_size, context=40, init_std=0.3, n_layer=3, **changes)
    model = build(config).eval().float()
    gptstar.export(model, tokenizer, tmp_path / "other")
    host, tokenize = theirs(tmp_path / "other"), their_tokenizer(tmp_path / "other")
    batch = tokenize(PROMPTS, return_tensors="pt", padding=True)
    actual = tokenize.batch_decode(host.generate(**batch, max_new_tokens=20, do_sample=False), skip_special_tokens=True)
    assert actual == written_here((tmp_path, model, tokenizer))


def test_the_loss_is_ours_and_trains(star, loaded):
    host, model = hosted(star[1]).train(), star[1]
    tokens = torch.randint(0, 280, (2, 12))
    output = host(tokens, labels=tokens)
    torch.testing.assert_close(output.loss, model(tokens[:, :-1], tokens[:, 1:]))
    assert output.past_key_values is None
    labels = tokens.masked_fill(torch.arange(12) < 5, -100)
    expected = torch.nn.functional.cross_entropy(model(tokens)[:, 4:-1].flatten(0, 1), tokens[:, 5:].flatten())
    torch.testing.assert_close(host(tokens, labels=labels, return_dict=False)[0], expected)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in host.parameters())
    last = host(tokens, logits_to_keep=2).logits
    torch.testing.assert_close(last, model(tokens)[:, -2:])
    padded = hosted(gptstar.GPT(tiny_model(pad_vocab_to=64)))
    assert padded(tokens, labels=tokens).loss.isfinite()


def test_masks():
    def padding(*rows):
        found = left_padding(torch.tensor(rows), len(rows[0]))
        return found if found is None else found.tolist()

    assert padding([1, 1, 1], [1, 1, 1]) is None
    assert padding([0, 0, 1], [1, 1, 1], [0, 0, 0]) == [2, 0, 3]
    assert padding([0, 1, 0], [1, 0, 0]) == [1, 0]
    with pytest.raises(ValueError, match="between the tokens of row 1: pad on the left"):
        padding([0, 1, 1, 1], [1, 0, 1, 1])
    with pytest.raises(ValueError, match=r"shape \(1, 2\): it must be \(batch, 3\)"):
        left_padding(torch.ones(1, 2), 3)


def test_what_it_cannot_do_is_an_error(loaded):
    model, tokenizer = loaded
    batch = tokenizer(PROMPTS[:1], return_tensors="pt")
    with pytest.raises(ValueError, match="takes no position_ids"):
        model(**batch, position_ids=torch.arange(3)[None])
    with pytest.raises(ValueError, match="past_key_values is a StaticCache"):
        model.generate(**batch, max_new_tokens=4, cache_implementation="static")
    with pytest.raises(ValueError, match="the vocabulary of 290 tokens is fixed"):
        model.resize_token_embeddings(300)


def test_padding_on_the_right_changes_nothing(star):
    host, tokens = hosted(star[1]), torch.randint(0, 280, (2, 12))
    mask = torch.arange(12) < torch.tensor([12, 7])[:, None]
    with torch.no_grad():
        output = host(tokens, attention_mask=mask.long())
        assert torch.equal(output.logits[mask], host(tokens).logits[mask])
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.bool)], 1)
        with pytest.raises(ValueError, match="between the tokens of row 1"):
            host(tokens[:, :1], attention_mask=longer, past_key_values=output.past_key_values)


def test_saved_again_by_transformers_it_loads_in_both(star, loaded, tmp_path):
    model, tokenizer = loaded
    model.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    for other in (theirs(tmp_path / "again").model, gptstar.load(tmp_path / "again")[0]):
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), star[1].parameters(), strict=True))


def test_weights_that_are_missing_are_an_error_and_a_fresh_model_is_initialised_by_our_table(star, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, model, tokenizer = star
    gptstar.export(model, tokenizer, tmp_path / "star")
    weights = load_file(folder / "model.safetensors")
    del weights["model.blocks.1.outputs.weight"]
    save_file(weights, tmp_path / "star" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks: model\.blocks\.1\.outputs\.weight$"):
        theirs(tmp_path / "star")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(3)
    fresh = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(3)
    expected = gptstar.GPT(model.config)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), expected.parameters(), strict=True))
    assert config.max_position_embeddings == model.config.context and config.vocab_size == 290
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eot_id


def test_lm_eval_reads_it(star):
    hf = pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)
    from lm_eval.api.instance import Instance

    folder, model, tokenizer = star
    texts = [("the cat", " sat"), ("the dog sat. the", " mat on")]
    harness = hf.HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2)
    requests = [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]
    for (context, continuation), (actual, _) in zip(texts, harness.loglikelihood(requests), strict=True):
        before, after = tokenizer.encode(context), tokenizer.encode(continuation)
        with torch.no_grad():
            log_p = model(torch.tensor([before + after])).log_softmax(-1)[0, len(before) - 1 : -1]
        assert actual == pytest.approx(sum(float(log_p[i, token]) for i, token in enumerate(after)), abs=1e-4)
