"""A dummy slim-weights folder, written by the inverse of the merging rules, against the merged transformers model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.configuration import preset
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.pretrained.neox_slim import infer_config
from support import exact_logits

transformers = pytest.importorskip("transformers")
TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
STEP = "global_step150000"
SUMMED = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")
SIZES = {  # heads of 16 channels, known by inv_freq; the 20B's heads of 96
    "small": dict(vocab_size=102, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=70),
    "wide": dict(vocab_size=60, hidden_size=192, num_hidden_layers=2, num_attention_heads=2, intermediate_size=46),
}


def reference(size: str, dtype=torch.float32):
    """A random model of 20B's kind."""
    torch.manual_seed(0)
    rope = dict(rope_type="default", rope_theta=10_000.0, partial_rotary_factor=0.25)
    config = dict(SIZES[size], max_position_embeddings=40, initializer_range=0.3, hidden_act="gelu_new")
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config, rope_parameters=rope)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


def write_slim(model, top: Path, inv_freq: bool) -> Path:
    """Makes `model` the merged one: its summed biases become what the two written addends add up to."""
    n_layer = model.config.num_hidden_layers
    names = {"gpt_neox.embed_in": (0, "word_embeddings"), "gpt_neox.final_layer_norm": (n_layer + 3, "norm")}
    names |= {"embed_out": (n_layer + 4, "final_linear"), "lm_head": (n_layer + 4, "final_linear")}
    halves: dict = {}
    for their_name, tensor in model.state_dict().items():
        module, _, kind = their_name.rpartition(".")
        if module in names:
            number, name = names[module]
        else:
            layer, _, name = module.removeprefix("gpt_neox.layers.").partition(".")
            number = int(layer) + 2
        name = f"{name}.{kind}"
        if name in SUMMED:
            first = torch.randn_like(tensor)
            parts = (first, tensor - first)
            tensor.copy_((parts[0].double() + parts[1].double()).to(tensor.dtype))
        elif "norm" in name:
            parts = (tensor, tensor)
        else:
            parts = tensor.chunk(2, 1 if name in ("attention.dense.weight", "mlp.dense_4h_to_h.weight") else 0)
        for half, part in enumerate(parts):
            halves.setdefault((number, half), {})[name] = part.clone()
    turning = model.config.hidden_size // model.config.num_attention_heads // 4
    (top / STEP).mkdir(parents=True)
    for (number, half), tensors in halves.items():
        if inv_freq and 2 <= number < n_layer + 2:
            tensors["attention.rotary_emb.inv_freq"] = 10_000.0 ** (-torch.arange(0, turning, 2) / turning)
        torch.save(tensors, file(top, number, half))
    (top / STEP / "mp_rank_00_model_states.pt").write_bytes(b"other things lie there too")
    TOKENIZER.save(top / "20B_tokenizer.json")
    return top


def file(top: Path, number: int, half: int) -> Path:
    return top / STEP / f"layer_{number:02d}-model_{half:02d}-model_states.pt"


@pytest.mark.parametrize(("size", "inv_freq"), [("small", True), ("wide", False)])
def test_logits_are_the_merged_transformers_models(tmp_path, monkeypatch, size, inv_freq):
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-10)):
        theirs = reference(size, dtype)
        top = write_slim(theirs, tmp_path / str(dtype), inv_freq)
        ours, tokenizer = gptstar.load(top)
        tokens = torch.randint(0, 60, (2, 15))
        with torch.no_grad():
            expected = theirs(tokens).logits if dtype == torch.float32 else exact_logits(theirs, tokens, monkeypatch)
            actual = ours(tokens)
        assert actual.dtype == dtype
        assert (actual - expected).norm() <= tolerance * expected.norm()
        assert not ours.training and tokenizer.vocab_size == TOKENIZER.vocab_size


def test_half_precision_weights_are_those_of_the_merged_model_bit_for_bit(tmp_path):
    theirs = reference("small", torch.float16)
    top = write_slim(theirs, tmp_path / "slim", inv_freq=True)
    theirs.save_pretrained(tmp_path / "merged")
    TOKENIZER.save(tmp_path / "merged" / "tokenizer.json")
    ours, merged = gptstar.load(top / STEP)[0].state_dict(), gptstar.load(tmp_path / "merged")[0].state_dict()
    assert ours.keys() == merged.keys()
    assert all(value.dtype == torch.float16 and torch.equal(value, ours[name]) for name, value in merged.items())
    assert gptstar.load(top, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_size_of_the_published_model_is_told_from_its_tensors():
    width, rows = 6144, 50432
    layer = {"mlp.dense_h_to_4h.weight": torch.empty(2 * width, width, device="meta")}
    shards = {(number, half): dict(layer) for number in range(2, 46) for half in (0, 1)}
    for half in (0, 1):
        shards[0, half] = {"word_embeddings.weight": torch.empty(rows // 2, width, device="meta")}
        shards[47, half] = {"norm.weight": torch.empty(width, device="meta")}
        shards[48, half] = {"final_linear.weight": torch.empty(rows // 2, width, device="meta")}
    published = replace(preset("neox_20b"), name="neox_slim", d_ff=4 * width)
    assert infer_config(shards) == published
    shards[2, 0]["attention.rotary_emb.inv_freq"] = torch.empty(12)
    assert infer_config(shards) == published


@pytest.fixture(scope="module")
def slim(tmp_path_factory) -> Path:
    return write_slim(reference("small"), tmp_path_factory.mktemp("slim") / "20B", inv_freq=True)


def refused(slim: Path, tmp_path: Path, damage) -> str:
    """What loading says of a copy in which `damage(number, half, tensors)` changed the tensors, or returned bytes."""
    (tmp_path / STEP).mkdir()
    (tmp_path / "20B_tokenizer.json").symlink_to(slim / "20B_tokenizer.json")
    for path in (slim / STEP).glob("layer_*"):
        number, half = int(path.name[6:8]), int(path.name[15:17])
        tensors = torch.load(path, weights_only=True)
        content = damage(number, half, tensors)
        if isinstance(content, bytes):
            file(tmp_path, number, half).write_bytes(content)
        elif content is None:
            torch.save(tensors, file(tmp_path, number, half))
    with pytest.raises(UserError) as error:
        gptstar.load(tmp_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_tensors_that_do_not_fit_are_listed_with_their_files(slim, tmp_path):
    def damage(number, half, tensors):
        if (number, half) == (3, 0):
            del tensors["mlp.dense_4h_to_h.bias"]
        if (number, half) == (4, 1):
            tensors["attention.extra"] = torch.ones(1)
            tensors["attention.dense.weight"] = tensors["attention.dense.weight"].t().clone()
        if (number, half) == (7, 1):
            tensors["final_linear.weight"] = tensors["final_linear.weight"][:-1]

    message = refused(slim, tmp_path, damage)
    assert "missing tensors: mlp.dense_4h_to_h.bias in layer_03-model_00-model_states.pt;" in message
    assert "unknown tensors: attention.extra in layer_04-model_01-model_states.pt;" in message
    dense = "attention.dense.weight in layer_04-model_01-model_states.pt is (32, 64), not (64, 32)"
    assert f"mis-shaped tensors: {dense}, final_linear.weight in layer_07-model_01" in message


def test_values_that_cannot_be_are_listed_with_their_files(slim, tmp_path):
    def damage(number, half, tensors):
        if (number, half) == (2, 1):
            tensors["attention.query_key_value.weight"][5, 7] = float("nan")
        if (number, half) == (7, 0):
            tensors["final_linear.weight"][0, 0] = float("inf")
        if number == 3 and half == 1:
            tensors["input_layernorm.bias"] = torch.randn(64)

    message = refused(slim, tmp_path, damage)
    query = "attention.query_key_value.weight in layer_02-model_01-model_states.pt"
    assert f"not finite tensors: {query}, final_linear.weight in layer_07-model_00-model_states.pt;" in message
    norm = "input_layernorm.bias in layer_03-model_00-model_states.pt and layer_03-model_01-model_states.pt"
    assert message.endswith(f"norms that differ between the halves: {norm}")


def test_norms_that_drifted_a_little_are_averaged(slim, tmp_path):
    name, where = "post_attention_layernorm.weight", (3, 1)
    for path in (slim / STEP).glob("layer_*"):
        (tmp_path / STEP).mkdir(exist_ok=True)
        tensors = torch.load(path, weights_only=True)
        if path == file(slim, *where):
            tensors[name] *= 1.02
        torch.save(tensors, tmp_path / STEP / path.name)
    TOKENIZER.save(tmp_path / "20B_tokenizer.json")
    before, after = (gptstar.load(top)[0].blocks[1].norm2.weight for top in (slim, tmp_path))
    torch.testing.assert_close(after, 1.01 * before)


def test_files_that_are_missing_cut_off_or_too_many_are_listed(slim, tmp_path):
    def damage(number, half, tensors):
        if (number, half) in ((3, 1), (6, 0), (7, 0), (7, 1)):
            return False
        if (number, half) == (4, 0):
            return file(slim, 4, 0).read_bytes()[:-500]
        if (number, half) == (0, 0):
            torch.save(tensors, file(tmp_path, 0, 2))

    message = refused(slim, tmp_path, damage)
    gone = [f"layer_{name}-model_states.pt" for name in ("03-model_01", "06-model_00", "07-model_00", "07-model_01")]
    assert f"missing files: {', '.join(gone)}; unreadable files: layer_04-model_00-model_states.pt cannot be" in message
    assert message.endswith("unknown files: layer_00-model_02-model_states.pt")


def test_of_a_long_list_the_rest_is_counted(slim, tmp_path):
    message = refused(slim, tmp_path, lambda number, half, tensors: tensors.clear() if number in (3, 4) else None)
    assert message.count(" in layer_0") == 20 and message.endswith(", and 28 more")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("word_embeddings.weight", "no file has a matrix word_embeddings.weight, or none"),
        ("attention.rotary_emb.inv_freq", "64 channels cannot be two halves of whole heads of 96 channels (as in the"),
    ],
)
def test_sizes_that_cannot_be_told_or_cannot_be_are_named(slim, tmp_path, gone, words):
    def damage(number, half, tensors):
        tensors.pop(gone, None)

    assert words in refused(slim, tmp_path, damage)


def test_a_folder_without_tokenizer_without_weights_or_with_two_models_is_named(slim, tmp_path):
    (tmp_path / "20B_tokenizer.json").symlink_to(slim / "20B_tokenizer.json")
    with pytest.raises(UserError, match=r"no global_step\*/ with files like layer_00-model_00-model_states.pt"):
        gptstar.load(tmp_path)
    for step in ("global_step1", "global_step2"):
        (tmp_path / step).symlink_to(slim / STEP)
    with pytest.raises(UserError, match=r"holds several models: name one of .*global_step1, .*global_step2"):
        gptstar.load(tmp_path)
    (tmp_path / "20B_tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"its tokenizer is missing: put 20B_tokenizer.json into"):
        gptstar.load(tmp_path / "global_step1")
