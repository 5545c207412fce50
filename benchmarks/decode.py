"""Decoding on a CPU: tokens a second here, in transformers and in CTranslate2, against what the memory allows.

    python benchmarks/decode.py [--rounds 5] [--model gpt2_small gpt127] [--tokens 64] [--json FILE]

Every contestant is a process of its own, and all take turns: a turn is a greedy continuation of a 16-token prompt by
1 + --tokens tokens less one by 1 token, so that reading the prompt is not counted, through the public functions
(`generate_detailed` for one row, the engine for eight; transformers' `generate`; CTranslate2's `generate_batch`).
Weights are random and the same. The limit is measured in the same rounds: how fast a matrix as large as the model's
weights is multiplied with a vector, so limit = bytes a second / bytes of weights: at batch 1 every token reads all
weights once. Beside it stands what merely adding up the same numbers reads, which no program can exceed by much.
CTranslate2 has no GPT* architecture; transformers runs it through the modelling file of our export.
Medians over the rounds with their range; ratios last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contestants import Contestant, serve

from gptstar.allocator import keep_freed_memory

N_PROMPT = 16


def worker(name: str, folder: Path) -> None:
    """One contestant; a request is {"rows", "tokens"}, the answer seconds and the tokens of the first row."""
    peer, _, kind = name.partition("-")
    if peer in ("ours", "limit"):
        keep_freed_memory()  # before torch is imported
    import torch

    torch.manual_seed(0)
    if peer == "limit":
        numbers = json.loads((folder / "size.json").read_text())["parameters"]
        matrix, vector = torch.randn(numbers // 1024, 1024), torch.randn(1024)
        product = torch.compile(lambda w, x: (w * x).sum(-1))

        def limit(request: dict) -> dict:
            found = {}
            for name, run in (("product", lambda: product(matrix, vector)), ("sum", lambda: matrix.sum())):
                times = []
                for _ in range(8):
                    start = time.perf_counter()
                    run()
                    times.append(time.perf_counter() - start)
                found[name] = matrix.numel() * 4 / statistics.median(times)
            return found

        limit({})
        serve(limit)
    elif peer == "ours":
        serve(_ours(folder, kind))
    elif peer == "transformers":
        serve(_transformers(folder))
    elif peer == "ctranslate2":
        serve(_ctranslate2(folder, kind))


def _prompts(rows: int, vocabulary: int = 50257) -> list[list[int]]:
    return [[(7919 * (row + 1) * (place + 3)) % (vocabulary - 1) for place in range(N_PROMPT)] for row in range(rows)]


def _ours(folder: Path, kind: str) -> Any:
    import torch

    import gptstar
    from gptstar.generation.decoding import Decoder
    from gptstar.generation.engine import Engine
    from gptstar.generation.generate import generate_detailed
    from gptstar.generation.settings import SamplingSettings

    dtype, _, eager = kind.partition("-")
    model, tokenizer = gptstar.load(folder, dtype=dtype)
    decoder = Decoder(model, compiled=not eager)

    def answer(request: dict) -> dict:
        rows, n_new = request["rows"], request["tokens"]
        texts = [tokenizer.decode(prompt) for prompt in _prompts(rows)]
        wish = SamplingSettings(max_new_tokens=n_new, min_new_tokens=n_new, temperature=0)
        start = time.perf_counter()
        if rows == 1:
            tokens = generate_detailed(model, tokenizer, texts[0], wish, decoder)[0].tokens
        else:
            engine = Engine(model, tokenizer, max_rows=rows, capacity=256, decoder=decoder)
            first = engine.submit(texts[0], wish)
            for text in texts[1:]:
                engine.submit(text, wish)
            done = {event.request: event.done for event in engine.run() if event.done}
            tokens = done[first].tokens
        return {"seconds": time.perf_counter() - start, "tokens": tokens[:8]}

    with torch.inference_mode():
        return answer


def _transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    def answer(request: dict) -> dict:
        prompts = torch.tensor(_prompts(request["rows"]))
        settings = dict(max_new_tokens=request["tokens"], min_new_tokens=request["tokens"], do_sample=False)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, **settings)
        return {"seconds": time.perf_counter() - start, "tokens": out[0, N_PROMPT : N_PROMPT + 8].tolist()}

    return answer


def _ctranslate2(folder: Path, kind: str) -> Any:
    import ctranslate2

    generator = ctranslate2.Generator(str(folder.with_name(f"ct2-{kind}")), device="cpu", intra_threads=os.cpu_count())
    vocabulary = json.loads((folder.with_name(f"ct2-{kind}") / "vocabulary.json").read_text())

    def answer(request: dict) -> dict:
        prompts = [[vocabulary[token] for token in prompt] for prompt in _prompts(request["rows"])]
        n_new = request["tokens"]
        start = time.perf_counter()
        found = generator.generate_batch(
            prompts, max_length=n_new, min_length=n_new, include_prompt_in_result=False, sampling_topk=1
        )
        return {"seconds": time.perf_counter() - start, "tokens": found[0].sequences_ids[0][:8]}

    return answer


def number_tokenizer() -> Any:
    """Words that name their numbers, t0 to t50255: any tokenizer of this size will do."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers

    from gptstar.data.tokenizer import Tokenizer

    fast = Fast(models.WordLevel({**{f"t{i}": i for i in range(50256)}, "<|endoftext|>": 50256}, unk_token="t0"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(fast, "<|endoftext|>")


def prepare(name: str, root: Path) -> tuple[Path, list[str]]:
    """Writes the random model for all; its folder and who can run it."""
    import torch

    import gptstar
    from gptstar.configuration import preset

    torch.manual_seed(0)
    model = gptstar.GPT(preset(name, vocab_size=50257, init_std=0.1))
    folder = root / name / "model"
    folder.parent.mkdir()
    gptstar.export(model, number_tokenizer(), folder)
    n_parameter = sum(p.numel() for p in model.parameters())
    (folder / "size.json").write_text(json.dumps({"parameters": n_parameter}))
    names = ["ours-fp32", "ours-fp32-eager", "ours-int8", "ours-int8-eager", "ours-int4", "transformers"]
    if name != "gpt2_small":
        return folder, names
    try:
        from ctranslate2.converters import TransformersConverter

        for kind in ("float32", "int8"):
            target = folder.with_name(f"ct2-{kind}")
            TransformersConverter(str(folder)).convert(str(target), quantization=kind)
            # It writes null for a token that a tokenizer lacks, and then cannot read that.
            config = json.loads((target / "config.json").read_text())
            (target / "config.json").write_text(json.dumps(config | {"unk_token": "<|endoftext|>"}))
    except Exception as error:
        print(f"CTranslate2 is left out: {type(error).__name__}: {error}")
        return folder, names
    return folder, [*names, "ctranslate2-float32", "ctranslate2-int8"]


def race(model: str, options: argparse.Namespace) -> dict:
    """All contestants on one model: {(contestant, rows): [tokens a second]} and the limit."""
    with tempfile.TemporaryDirectory() as root:
        folder, names = prepare(model, Path(root))
        size = json.loads((folder / "size.json").read_text())["parameters"]
        all_of_them = {name: Contestant(__file__, name, str(folder)) for name in (*names, "limit")}
        speeds: dict[str, dict[str, list[float]]] = {}
        first: dict[str, list[int]] = {}
        bandwidth: dict[str, list[float]] = {"product": [], "sum": []}
        for number in range(options.rounds + 1):
            if number:  # the first round warms up
                for way, rate in all_of_them["limit"].turn().items():
                    bandwidth[way].append(rate)
            for name in names:
                for rows in options.rows:
                    first_alone = all_of_them[name].turn({"rows": rows, "tokens": 1})
                    found = all_of_them[name].turn({"rows": rows, "tokens": 1 + options.tokens})
                    if number:
                        rate = rows * options.tokens / (found["seconds"] - first_alone["seconds"])
                        speeds.setdefault(name, {}).setdefault(str(rows), []).append(rate)
                    elif rows == 1:
                        first[name] = found["tokens"]
        for contestant in all_of_them.values():
            contestant.close()
    exact = [name for name in names if name not in ("ours-int8", "ours-int8-eager", "ours-int4", "ctranslate2-int8")]
    for name in exact:
        if first[name] != first["ours-fp32"]:
            print(f"NOT the same text: {name} {first[name]}, ours {first['ours-fp32']}")
    return {"parameters": size, "bytes_per_second": bandwidth, "tokens_per_second": speeds}


def report(model: str, found: dict) -> dict:
    """Prints a model's table; its ratios."""
    middle = statistics.median
    memory, size = found["bytes_per_second"], found["parameters"]
    limits = {kind: middle(memory["product"]) / (size * width) for kind, width in (("fp32", 4), ("int8", 1))}
    print(f"\n{model}: {size:,} parameters")
    for way, rates in memory.items():
        print(f"  memory, {way}: {middle(rates) / 1e9:.1f} GB/s ({min(rates) / 1e9:.1f} - {max(rates) / 1e9:.1f})")
    print(f"limit at batch 1: fp32 {limits['fp32']:.1f}, int8 {limits['int8']:.1f} tokens/s")
    measured = found["tokens_per_second"]
    speeds = {name: {rows: middle(rates) for rows, rates in of.items()} for name, of in measured.items()}
    for name, of in measured.items():
        cells = [f"batch {rows} {middle(v):7.1f} ({min(v):.1f} - {max(v):.1f})" for rows, v in of.items()]
        print(f"  {name:20} " + "   ".join(cells))
    # A ratio of the same round's figures: the machine's memory may be slower in one round than in another.
    ratios = {}
    for name, way in (("fp32 / limit", "product"), ("fp32 / adding up", "sum")):
        pairs = zip(measured["ours-fp32"]["1"], memory[way], strict=True)
        ratios[name] = middle([rate / (b / (4 * size)) for rate, b in pairs])
    ratios["int8 / int8 limit"] = speeds["ours-int8"]["1"] / limits["int8"]
    for rows in speeds["ours-fp32"]:
        ratios[f"fp32 / transformers, batch {rows}"] = speeds["ours-fp32"][rows] / speeds["transformers"][rows]
        if "ctranslate2-int8" in speeds:
            for kind, theirs in (("fp32", "ctranslate2-float32"), ("int8", "ctranslate2-int8")):
                ratios[f"{kind} / CTranslate2 {kind}, batch {rows}"] = (
                    speeds[f"ours-{kind}"][rows] / speeds[theirs][rows]
                )
    return ratios


def main() -> None:
    """The race and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", nargs="+", default=["gpt2_small", "gpt127"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = sorted({1, *options.rows})
    if options.worker:
        worker(options.worker[0], Path(options.worker[1]))
        return
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit()}
    print(f"{about['cpu']}, commit {about['commit']}, {options.rounds} rounds of {options.tokens} tokens")
    results = {model: race(model, options) for model in options.model}
    for model, found in results.items():
        found["ratios"] = report(model, found)
    print()
    for model, found in results.items():
        for name, ratio in found["ratios"].items():
            target = {"fp32 / limit": 0.90, "int8 / CTranslate2 int8, batch 1": 1.1}.get(name)
            print(f"{model}: {name} {ratio:.2f}" + (f" (target {target})" if target else ""))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
