"""lm-evaluation-harness's own client for OpenAI's contract against this server: its scores are the model's."""

from __future__ import annotations

import json

import pytest
import torch
from lm_eval.api.instance import Instance

from gptstar.generation.generate import generate
from serving.openai_support import NAME, TOKENIZER, live

pytest.importorskip("tenacity")  # the harness asks for it where it asks over a network

REQUESTS = [
    ("the cat", " sat"),
    ("the cat sat on", " the mat é ☃."),
    ("User: hi\n", "the ca"),
    ("a", " "),
    ("the", " mat\n"),
    ("the mat sat", "\n\n"),
]


@pytest.fixture(scope="module")
def server():
    with live(max_sequences=4) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder / "tokenizer.json")
    special = {"eos_token": TOKENIZER.eot_token, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return str(folder)


def harness(server, tokenizer, **more):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model=NAME,
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=tokenizer,
        max_length=128,
        max_retries=1,
        **more,
    )


@torch.inference_mode()
def own(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    tokens = torch.tensor([context + continuation])
    logprob_TV = model(tokens)[0, len(context) - 1 : -1, : TOKENIZER.vocab_size].log_softmax(-1)
    chosen = torch.tensor(continuation)
    total = logprob_TV.gather(1, chosen[:, None]).sum().item()
    return total, bool((logprob_TV.argmax(-1) == chosen).all())


@pytest.mark.parametrize(("tokenized", "batch"), [(True, 1), (True, 4), (False, 1), (False, 4)])
def test_log_likelihoods_are_the_models_own(server, tokenizer, tokenized, batch):
    model = harness(server, tokenizer, tokenized_requests=tokenized, batch_size=batch)
    wanted = list(REQUESTS)
    greedy = generate(server.model, TOKENIZER, "the cat", max_new_tokens=3, temperature=0).removeprefix("the cat")
    if "\ufffd" not in greedy:
        wanted.append(("the cat", greedy))
    if tokenized:
        wanted.append(("", "the cat"))  # as text, end of text is only spelt out
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(wanted)]
    scores = model.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(wanted, scores, strict=True):
        pair = (
            model._encode_pair(context, continuation)
            if context
            else ([TOKENIZER.eot_id], TOKENIZER.encode(continuation))
        )
        expected, is_greedy = own(server.model, *pair)
        assert score == pytest.approx(expected, abs=1e-5), (context, continuation)
        assert greedy == is_greedy


def test_generation(server, tokenizer):
    model = harness(server, tokenizer)
    wish = {"until": ["M", "\n\n", "zz", "yy", "xx"], "max_gen_toks": 12, "temperature": 0}
    (text,) = model.generate_until(
        [Instance(request_type="generate_until", doc={}, arguments=("the cat sat", wish), idx=0)], disable_tqdm=True
    )
    expected = generate(
        server.model,
        TOKENIZER,
        "the cat sat",
        max_new_tokens=12,
        temperature=0,
        stop=[*wish["until"], TOKENIZER.eot_token],
    )
    assert text == expected.removeprefix("the cat sat")
