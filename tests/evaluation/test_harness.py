"""Against HFLM on the same random weights: every request and every metric of the five tasks, and generated text."""

from __future__ import annotations

import pytest
import torch

import gptstar
from gptstar.evaluation.harness import GPTStarLM
from gptstar.evaluation.run import run_task
from gptstar.evaluation.store import RequestStore
from gptstar.evaluation.tasks import load_tasks
from support import save_transformers, tiny_model, tiny_tokenizer, write_tasks

transformers = pytest.importorskip("transformers")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

TASKS = ["lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande"]
TOKENIZER = tiny_tokenizer()


def star():
    """GPT*'s own shape, which transformers reads through the modelling file that the export brings."""
    return gptstar.GPT(tiny_model(vocab_size=400, context=52, init_std=0.25))


def gpt2():
    config = dict(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=400, initializer_range=0.25)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))


def neo():
    config = dict(hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=56, vocab_size=400, window_size=9)
    config |= dict(attention_types=[[["global", "local"], 1]], initializer_range=0.25)
    return transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**config))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module", params=[gpt2, neo, star])
def pair(request, tmp_path_factory):
    """HFLM and ours with the same weights."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("model"), request.param().eval()
    if isinstance(model, gptstar.GPT):
        gptstar.export(model, TOKENIZER, folder / "exported")
        folder /= "exported"
    else:
        save_transformers(model, TOKENIZER, folder)
    return hflm(folder, torch.float32), GPTStarLM(*gptstar.load(folder), batch_tokens=200)


def hflm(folder, dtype):
    """HFLM adds up in the softmax's precision: in fp32 a page of text would be off by more than the models are."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float64")


def answers(lm, data_dir, names=TASKS):
    """{task: (metrics, [[log-likelihoods and greedy flags of a document]])}"""
    found = {}
    for task in load_tasks(names, str(data_dir)):
        result = evaluate(lm, task.loaded, bootstrap_iters=0)
        metrics = {k: v for k, v in result["results"][task.name].items() if isinstance(v, float)}
        found[task.name] = metrics, [[r[0] for r in sample["resps"]] for sample in result["samples"][task.name]]
    return found


def test_every_metric_of_the_five_tasks_is_hflms(pair, data_dir):
    expected, actual = (answers(lm, data_dir) for lm in pair)
    for name in TASKS:
        assert actual[name][0] == pytest.approx(expected[name][0], rel=1e-5)
        assert len({value for value in map(str, actual[name][1])}) == 5  # documents differ, or nothing is tested
        for ours, theirs in zip(actual[name][1], expected[name][1], strict=True):
            if name == "wikitext":
                assert ours == pytest.approx(theirs, abs=1e-4)
            else:
                assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
                assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    for name, metric in (("piqa", "acc"), ("hellaswag", "acc_norm"), ("winogrande", "acc"), ("lambada_openai", "acc")):
        assert actual[name][0][f"{metric},none"] == expected[name][0][f"{metric},none"]


def test_in_float64_they_agree_to_the_last_digits(data_dir, tmp_path):
    torch.manual_seed(0)
    folder = save_transformers(gpt2().double().eval(), TOKENIZER, tmp_path)
    ours = GPTStarLM(*gptstar.load(folder, dtype=torch.float64), batch_tokens=200)
    both = (hflm(folder, torch.float64), ours)
    expected, actual = (answers(lm, data_dir, ["wikitext", "hellaswag"]) for lm in both)
    for name in expected:
        assert actual[name][0] == pytest.approx(expected[name][0], rel=1e-10)
    for ours_, theirs_ in zip(actual["wikitext"][1], expected["wikitext"][1], strict=True):
        assert ours_ == pytest.approx(theirs_, abs=1e-8)


def requests(kind, *arguments):
    return [Instance(kind, {}, argument, n) for n, argument in enumerate(arguments)]


def test_odd_requests_are_hflms_too(pair):
    """Empty contexts, spaces at the joint, spelt-out special tokens, repeats, texts far too long."""
    long = "abc def " * 60
    pairs = [("", "abc def"), ("", "<|endoftext|>abc"), ("abc  ", "def"), ("abc\n", " def"), ("<|endoftext|>", "abc")]
    pairs += [("abc", "<|endoftext|>"), (long, "def"), (long, long[:60]), ("abc  ", "def"), ("a<|endoftext|>b ", "c")]
    theirs, ours = (lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True) for lm in pair)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    texts = [("",), ("abc",), (long,), ("<|endoftext|>abc def",)]
    theirs, ours = (
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True) for lm in pair
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_text_is_generated_as_hflm_generates_it(pair):
    contexts = ["abc", "abc def, ghi", "a b c d e f g h i j a b c d e f g h i j a b c d e f g h i j " * 3, "ij."]
    wanted = [{"until": ["a"], "max_gen_toks": 12}, {"until": ["\n", "b."], "do_sample": False, "max_gen_toks": 30}]
    wanted += [{"until": [], "max_gen_toks": 9, "temperature": 0.0}]
    arguments = [(context, settings) for settings in wanted for context in contexts]
    theirs, ours = (lm.generate_until(requests("generate_until", *arguments), disable_tqdm=True) for lm in pair)
    assert ours == theirs
    assert any("a" not in text and text for text in ours[:4]) and len(set(ours)) > 6


@pytest.mark.parametrize("pair", [gpt2], indirect=True)
def test_drawn_text_depends_on_the_request_alone(pair):
    lm = pair[1]
    settings = {"until": ["zzz"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.9}
    one = requests("generate_until", ("abc", settings), ("def ghi", settings), ("abc", settings))
    texts = lm.generate_until(one, disable_tqdm=True)
    assert texts[0] != texts[2]  # asked twice, drawn twice
    assert lm.generate_until(one[1:2], disable_tqdm=True) == texts[1:2]
    assert lm.generate_until(one, disable_tqdm=True) == texts


@pytest.mark.parametrize("pair", [star], indirect=True)
def test_an_interrupted_evaluation_continues_and_ends_with_the_same_numbers(pair, data_dir, tmp_path, monkeypatch):
    _, plain = pair

    def fresh(path):
        lm = GPTStarLM(plain.model, TOKENIZER, batch_tokens=100, store=RequestStore(path))
        return lm, lambda: [run_task(lm, task) for task in load_tasks(TASKS, str(data_dir))]

    _, run = fresh(tmp_path / "whole.jsonl")
    whole = run()
    lm, run = fresh(tmp_path / "broken.jsonl")
    add, left = lm.store.add, [9]

    def killed(answers):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(answers)

    monkeypatch.setattr(lm.store, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write('["torn", [-1')
    finished = (tmp_path / "broken.jsonl").read_text().count("\n")
    lm, run = fresh(tmp_path / "broken.jsonl")
    continued = run()
    assert 0 < lm.reused == finished < sum(rows[0]["requests"] for rows in whole)
    for before, after in zip(whole, continued, strict=True):
        assert after[0]["metrics"] == before[0]["metrics"]
    assert sum(rows[0]["requests_reused"] for rows in continued) == finished
