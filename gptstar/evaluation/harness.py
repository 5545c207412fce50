"""Our models in lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness): the
numbers of its HFLM, sooner.

Every rule that decides a number is HFLM's: how context and continuation are split into tokens, what is cut off where
both are too long, the rolling windows, which token stands before an empty context. Two things differ, beyond the digits
that are reported: log-likelihoods are summed in float64, and the softmax of a half-precision model is in fp32.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from rich.console import Console
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.evaluation.budget import token_budget
from gptstar.evaluation.checkpoint import context_length, load_for_evaluation
from gptstar.evaluation.completion import complete
from gptstar.evaluation.generation_settings import GenerationSettings
from gptstar.evaluation.scoring import Query, Scorer
from gptstar.evaluation.store import RequestStore, request_key
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings
from gptstar.model.describe import parameter_count
from gptstar.model.transformer import GPT
from gptstar.offload.load import Limits
from gptstar.progress import progress

Show = Callable[[int], AbstractContextManager[Callable[[int], None]]]
# (arguments, keys, numbers of those that are finished, progress) -> {number: answer} as they are finished
Computation = Callable[[list[tuple], list[str], Collection[int], Show], Iterator[dict[int, Any]]]


@register_model("gptstar")
class GPTStarLM(TemplateLM):
    """A model of ours for the harness.

    max_length    tokens it may read at once; None: its own context (with learned positions also the limit)
    batch_tokens  tokens a forward pass, padding included; auto: what memory holds and the device is fast at
    store         where finished requests are kept; None keeps nothing
    console       where progress is shown; None shows none
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        batch_tokens: str | int = "auto",
        store: RequestStore | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.model, self.store, self.console = model, store, console
        self.max_length = context_length(model, max_length)
        self.scorer = Scorer(model, token_budget(batch_tokens, model))
        self.reused = 0  # requests that were answered from the store
        # In the harness's texts a special token that is spelt out is that token; elsewhere in gptstar it stays text.
        self.fast = FastTokenizer.from_str(tokenizer.fast.to_str())
        self.eot_id = tokenizer.eot_id
        opening = self.fast.encode("", add_special_tokens=True).ids  # Llama's tokenizer begins every text with one
        self.prefix_id = opening[0] if opening else self.eot_id
        self.prefix_text, self.eot_text = (
            self.fast.decode([token], skip_special_tokens=False) for token in (self.prefix_id, self.eot_id)
        )

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> GPTStarLM:
        """From `--model_args checkpoint=RUN,KEY=VALUE,...` of the harness's command line; keys as in `evaluate.py`.

        Its `--device` counts; its `--batch_size` does not, because batches are made of tokens here.
        """
        values = {"device": "auto", "dtype": "auto", **(additional_config or {}), **arg_dict}
        device = str(values["device"] or "auto")
        if device == "cuda:0" and "device" not in arg_dict and not torch.cuda.is_available():
            device = "auto"  # it is what the harness says when it was told nothing
        budgets = ("memory_budget", "gpu_memory_budget", "quantized_dir")
        known = ("checkpoint", "dtype", "max_length", "batch_tokens", *budgets)
        unknown = sorted(arg_dict.keys() - {*known, "device"})
        if unknown or "checkpoint" not in values:
            problem = f"{unknown[0]} is unknown" if unknown else "checkpoint is not set"
            raise UserError(f"--model_args: {problem}, write checkpoint=RUN and, if needed, {', '.join(known[1:])}")
        max_length = values.get("max_length")
        if max_length is not None and type(max_length) is not int:
            raise UserError(f"--model_args: max_length={max_length} must be a whole number of tokens, as in 1024")
        limits = Limits(*(str(values[key]) if key in values else None for key in budgets))
        batch_tokens = str(values.get("batch_tokens", "auto"))
        model, tokenizer = load_for_evaluation(
            values["checkpoint"], device, str(values["dtype"]), limits, batch_tokens, max_length
        )
        return cls(model, tokenizer, max_length, batch_tokens, console=Console(stderr=True))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> GPTStarLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return self.eot_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: the token a tokenizer begins every text with, else end of text."""
        return self.prefix_id

    @property
    def max_gen_toks(self) -> int:
        """How many tokens are generated for a task that does not say."""
        return 256

    def get_model_info(self) -> dict:
        """What the harness notes about the model."""
        n_parameter = parameter_count(self.model.config)
        return {
            "model_num_parameters": n_parameter,
            "model_dtype": str(self.model.dtype),
            "max_length": self.max_length,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token numbers, with what the tokenizer puts around a text unless the text begins with it already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.prefix_text)
        return self.fast.encode(string, add_special_tokens=add_special_tokens).ids

    def _encode_all(self, strings: list[str]) -> dict[str, list[int]]:
        """tok_encode of many texts, on all cores."""
        found = {string: self.tok_encode(string) for string in strings if string.startswith(self.prefix_text)}
        plain = [string for string in dict.fromkeys(strings) if string not in found]
        encodings = self.fast.encode_batch_fast(plain, add_special_tokens=True)
        return found | {string: encoding.ids for string, encoding in zip(plain, encodings, strict=True)}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers = self._answered("loglikelihood", requests, self._score_pairs, disable_tqdm)
        return [(value, greedy) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._answered("loglikelihood_rolling", requests, self._score_texts, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._answered("generate_until", requests, self._complete, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs
    ) -> list[tuple[float, bool]]:
        """For callers who split into tokens themselves: (the texts, context, continuation) a request."""
        queries = [Query.continuation(context, rest, self.max_length) for _, context, rest in requests]
        found = dict(pair for pairs in self.scorer.answers(queries) for pair in pairs)
        return [(found[n].log_likelihood, found[n].greedy) for n in range(len(queries))]

    def _answered(self, kind: str, requests: list[Instance], compute: Computation, silent: bool) -> list[Any]:
        """One answer a request: from the store, or computed and put there as soon as it is finished."""
        arguments = [request.args for request in requests]
        keys = _keys(kind, arguments)
        answers = {n: old for n, key in enumerate(keys) if self.store and (old := self.store.get(key)) is not None}
        self.reused += len(answers)
        show = partial(progress, None if silent else self.console, _title(requests))
        for found in compute(arguments, keys, frozenset(answers), show):
            if self.store is not None:
                self.store.add({keys[n]: answer for n, answer in found.items()})
            for n, answer in found.items():
                answers[n] = answer
                self.cache_hook.add_partial(kind, arguments[n], answer)  # for the harness's own --use_cache
        return [answers[n] for n in range(len(requests))]

    def _score_pairs(self, pairs: list, keys: list[str], done: Collection[int], show: Show) -> Iterator[dict]:
        """[log-likelihood, greedy] of (context, continuation)."""
        # Byte-pair encodings keep a space with the word that follows, so a context's last spaces go to what follows.
        pairs = [(context.rstrip(), context[len(context.rstrip()) :] + rest) for context, rest in pairs]
        tokens = self._encode_all([text for a, b in pairs if a for text in (a, a + b)])
        queries = []
        for context, rest in pairs:
            if context:
                before = tokens[context]
                after = tokens[context + rest][len(before) :]
            else:
                before, after = [self.prefix_id], self.tok_encode(rest, add_special_tokens=False)
                after = after[1:] if after[:1] == before else after
            queries.append(Query.continuation(before, after, self.max_length))
        with show(_work(queries, done)) as advance:
            for answers in self.scorer.answers(queries, done):
                yield {n: [answer.log_likelihood, answer.greedy] for n, answer in answers}
                advance(sum(len(queries[n].tokens) for n, _ in answers))

    def _score_texts(self, texts: list, keys: list[str], done: Collection[int], show: Show) -> Iterator[dict]:
        """The log-likelihood of a whole text, over disjoint windows that each follow one token."""
        tokens = self._encode_all([text for (text,) in texts])
        queries: list[Query] = []
        owner: list[int] = []
        for n, (text,) in enumerate(texts):
            for window in get_rolling_token_windows(tokens[text], self.prefix_id, self.max_length, context_len=1):
                before, after = make_disjoint_window(window)
                queries.append(Query.continuation(before, after, self.max_length))
                owner.append(n)
        sums: list[list[float]] = [[] for _ in texts]
        missing = Counter(owner)
        yield {n: 0.0 for n in range(len(texts)) if not missing[n]}  # empty texts
        finished = [number for number, n in enumerate(owner) if n in done]
        with show(_work(queries, finished)) as advance:
            for answers in self.scorer.answers(queries, finished):
                for number, answer in answers:
                    sums[owner[number]].append(answer.log_likelihood)
                complete_now = [n for n in {owner[number] for number, _ in answers} if len(sums[n]) == missing[n]]
                yield {n: math.fsum(sums[n]) for n in complete_now}  # exact, so in any order
                advance(sum(len(queries[number].tokens) for number, _ in answers))

    def _complete(self, requests: list, keys: list[str], done: Collection[int], show: Show) -> Iterator[dict]:
        """The text that follows each context, up to the first of the strings that end it."""
        tokens = self._encode_all([context for context, _ in requests])
        alike: dict[str, list[int]] = {}  # requests with the same settings
        for n, (_, wanted) in enumerate(requests):
            alike.setdefault(json.dumps(wanted, sort_keys=True), []).append(n)
        with show(len(requests) - len(done)) as advance:
            for group in alike.values():
                settings = GenerationSettings.of(
                    requests[group[0]][1], self.eot_text, self.max_length, self.max_gen_toks
                )
                room = self.max_length - settings.n_new
                prompts = [(tokens[requests[n][0]] or [self.prefix_id])[-room:] for n in group]
                pick = partial(_pick, settings, [keys[n] for n in group])
                ends = partial(self._ends, settings)
                finished = [place for place, n in enumerate(group) if n in done]
                for rows in complete(self.model, prompts, settings.n_new, pick, ends, finished):
                    found = {group[place]: settings.cut(self.fast.decode(new)) for place, new in rows.items()}
                    yield {n: text for n, text in found.items() if n not in done}
                    advance(sum(n not in done for n in found))

    def _ends(self, settings: GenerationSettings, new: list[int]) -> bool:
        if new[-1] == self.eot_id:
            return True
        text = self.fast.decode(new[-settings.tail :], skip_special_tokens=False)
        return any(stop and stop in text for stop in settings.stops)


def _pick(settings: GenerationSettings, keys: list[str], logits_RV: Tensor, rows: list[tuple[int, int]]) -> list[int]:
    """One token a row. What is drawn depends on request and place alone, not on the rows beside it."""
    if not settings.temperature:
        return logits_RV.argmax(-1).tolist()
    wanted = SamplingSettings(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    seeds = [int.from_bytes(hashlib.sha256(keys[number].encode()).digest()[:7]) for number, _ in rows]
    sampler = Sampler([wanted] * len(rows), seeds, logits_RV.shape[-1], 0, logits_RV.device)
    return sampler(logits_RV, torch.tensor([place for _, place in rows], device=logits_RV.device)).tolist()


def _keys(kind: str, arguments: list[tuple]) -> list[str]:
    """Names of requests. One that is generated several times has a name for each: they may be drawn at random."""
    if kind != "generate_until":
        return [request_key(kind, *request) for request in arguments]
    seen: Counter[str] = Counter()
    keys = []
    for request in arguments:
        first = request_key(kind, *request)
        seen[first] += 1
        keys.append(request_key(kind, *request, seen[first]))
    return keys


def _title(requests: list[Instance]) -> str:
    names = sorted({str(request.task_name) for request in requests})
    return names[0] if len(names) == 1 else f"{len(names)} tasks"


def _work(queries: list[Query], done: Collection[int]) -> int:
    return sum(len(query.tokens) for n, query in enumerate(queries) if n not in done)
