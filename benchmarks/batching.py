"""32 requests of mixed length: decoded together here, against one after another in transformers.

    python benchmarks/batching.py [--rounds 3] [--requests 32] [--model gpt2_small] [--dtype fp32] [--json FILE]

Prompts have 8 to 200 tokens, continuations 16 to 128, drawn once from a fixed seed; both are greedy, with random
weights, and have to give the same text. The two processes take turns, both warmed up (ours has compiled its step); a
turn is all requests. Reported are new tokens a second, medians over the rounds with their range; the ratio last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from contestants import Contestant, serve
from decode import prepare

from gptstar.allocator import keep_freed_memory

TARGET = 8.0


def requests(number: int) -> list[tuple[list[int], int]]:
    """(prompt, new tokens) of each."""
    rng = random.Random(0)
    return [([rng.randrange(50256) for _ in range(rng.randint(8, 200))], rng.randint(16, 128)) for _ in range(number)]


def worker(name: str, folder: Path, number: int) -> None:
    """One contestant; the answer is seconds, and the tokens of each request."""
    peer, _, dtype = name.partition("-")
    asked = requests(number)
    if peer == "transformers":
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

        def answer(count: int) -> dict:
            start, tokens = time.perf_counter(), []
            with torch.inference_mode():
                for prompt, n_new in asked[:count]:
                    ids = torch.tensor([prompt])
                    length = dict(max_new_tokens=n_new, min_new_tokens=n_new)
                    mask = torch.ones_like(ids)
                    out = model.generate(ids, attention_mask=mask, pad_token_id=0, do_sample=False, **length)
                    tokens.append(out[0, len(prompt) :].tolist())
            return {"seconds": time.perf_counter() - start, "tokens": tokens}

        serve(answer)
        return
    keep_freed_memory()  # before torch is imported
    import gptstar
    from gptstar.generation.decoding import Decoder
    from gptstar.generation.engine import Engine
    from gptstar.generation.settings import SamplingSettings

    ours, tokenizer = gptstar.load(folder, dtype=dtype)
    decoder = Decoder(ours, compiled=True)
    texts = [(tokenizer.decode(prompt), n_new) for prompt, n_new in asked]

    def together(count: int) -> dict:
        start = time.perf_counter()
        engine = Engine(ours, tokenizer, max_rows=number, capacity=384, decoder=decoder)
        order = []
        for text, n_new in texts[:count]:
            wish = SamplingSettings(max_new_tokens=n_new, min_new_tokens=n_new, temperature=0)
            order.append(engine.submit(text, wish))
        done = {event.request: event.done.tokens for event in engine.run() if event.done}
        return {"seconds": time.perf_counter() - start, "tokens": [done[request] for request in order]}

    serve(together)


def main() -> None:
    """The race and its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--model", default="gpt2_small")
    parser.add_argument("--dtype", default="fp32", help="of ours: fp32, int8, int4")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder, number = options.worker
        worker(name, Path(folder), int(number))
        return
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "model": options.model}
    n_new = sum(n for _, n in requests(options.requests))
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as root:
        folder, _ = prepare(options.model, Path(root))
        names = {"ours": f"ours-{options.dtype}", "transformers": "transformers"}
        racers = {key: Contestant(__file__, name, str(folder), str(options.requests)) for key, name in names.items()}
        racers["ours"].turn(options.requests)  # compiles
        racers["transformers"].turn(2)
        for _ in range(options.rounds):
            found = {key: racer.turn(options.requests) for key, racer in racers.items()}
            for key in names:
                seconds[key].append(found[key]["seconds"])
        for racer in racers.values():
            racer.close()
    same = sum(a == b for a, b in zip(found["ours"]["tokens"], found["transformers"]["tokens"], strict=True))
    print(
        f"{about['cpu']}, commit {about['commit']}: {options.requests} requests, {n_new:,} new tokens, {options.model}"
    )
    for key, times in seconds.items():
        rates = [n_new / t for t in times]
        print(f"  {names[key]:14} {statistics.median(rates):7.1f} tokens/s ({min(rates):.1f} - {max(rates):.1f})")
    ratio = statistics.median(a / b for a, b in zip(seconds["transformers"], seconds["ours"], strict=True))
    print(f"the same text in {same} of {options.requests}")
    print(f"together / one after another in transformers: {ratio:.1f} (target {TARGET:.0f})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found_all = {"new_tokens": n_new, "seconds": seconds, "same_text": same, "ratio": ratio}
        options.json.write_text(json.dumps(about | found_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
