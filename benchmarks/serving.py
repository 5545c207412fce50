"""32 clients at the server, against the same requests one after another at a server made of transformers.

    python benchmarks/serving.py [--rounds 3] [--requests 64] [--clients 32] [--model gpt2_small] [--dtype fp32]
                                 [--compile] [--temperature 0] [--json FILE]

Three processes on one machine, over loopback: `python -m gptstar.serving`, the peer (FastAPI and `generate` with its
cache, with the number of threads that it finds fastest for itself), and this one with the clients. Prompts have 8 to
200 tokens, continuations 16 to 128, drawn once from a fixed seed; weights are random, the same for both, and never end
a text early. Clients stream from /v1/completions and take the next request when one is done; the peer gets the same
requests one by one and answers them whole. Turns are interleaved, after one that warms up.

Then two clients more, once ordinary ones, and once one that hardly reads and one that hangs up again and again: what
the others wait for a token should be the same. Ratios last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients import EOT, TURN_SECONDS, Answer, Request, among, asking, crowd, requests, waits
from contestants import Contestant, serve
from decode import number_tokenizer

TARGET = 8.0
VOCABULARY = 50257
START_SECONDS = 600


# The servers


@contextlib.contextmanager
def ours(folder: Path, options: argparse.Namespace) -> Iterator[int]:
    """The port of the server, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"model_name": folder, "port": port, "max_rows": options.clients + 2, "max_queue": options.requests + 8}
    settings |= {"dtype": options.dtype, "compile": options.compile, "page": False, "device": "cpu"}
    command = [sys.executable, "-m", "gptstar.serving", *(f"{name}={value}" for name, value in settings.items())]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    # In a folder of its own, for the sake of a .env in this one.
    with tempfile.TemporaryDirectory() as apart, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=apart, env={**os.environ, "PYTHONPATH": path}, stderr=log)
        try:
            _wait(process, port)
            yield port
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen, port: int) -> None:
    from gptstar.serving.probe import probe

    end = time.monotonic() + START_SECONDS
    while not probe("127.0.0.1", port)[0]:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the server did not start: {probe('127.0.0.1', port)[1]}")
        time.sleep(0.2)


def peer(folder: Path, temperature: float) -> None:
    """The peer's process: says its port and threads once it is asked, and serves beside."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    how = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else dict(do_sample=False)

    def write(prompt: str, n_new: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        length = dict(max_new_tokens=n_new, min_new_tokens=n_new, use_cache=True)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **how, **length)
        return str(tokenizer.decode(out[0, ids.shape[1] :]))

    app = FastAPI()

    @app.post("/generate")
    async def generate(wanted: dict) -> dict:
        # In the loop's own thread, whose OpenMP threads exist: nobody else asks at the same time.
        return {"text": write(wanted["prompt"], wanted["n_new"])}

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    tuned: dict[str, Any] = {"port": listening.getsockname()[1]}
    ready = threading.Event()

    def run() -> None:
        prompt, speeds = requests(1)[0].prompt, {}
        for n_thread in sorted({1, (os.cpu_count() or 1) // 2 or 1, os.cpu_count() or 1}):
            torch.set_num_threads(n_thread)
            write(prompt, 2)
            start = time.perf_counter()
            write(prompt, 16)
            speeds[n_thread] = time.perf_counter() - start
        tuned["threads"] = min(speeds, key=speeds.__getitem__)
        torch.set_num_threads(tuned["threads"])
        ready.set()
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    serve(lambda _: tuned)


async def one_by_one(port: int, asked: list[Request]) -> tuple[float, list[Answer]]:
    """The peer's turn."""
    answers = []
    start = time.perf_counter()
    async with asyncio.timeout(TURN_SECONDS):
        for request in asked:
            try:
                async with asking(port, "/generate", {"prompt": request.prompt, "n_new": request.n_new}) as (reader, _):
                    answers.append(Answer(text=json.loads(await reader.read())["text"]))
            except (OSError, ValueError) as error:
                answers.append(Answer(error=str(error)))
    return time.perf_counter() - start, answers


def prepare(name: str, root: Path) -> Path:
    """A random model that never ends a text, in transformers' layout."""
    import torch

    import gptstar
    from gptstar.configuration import preset

    torch.manual_seed(0)
    model = gptstar.GPT(preset(name, vocab_size=VOCABULARY, init_std=0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape[0] == VOCABULARY:
                parameter[EOT] = 0.0  # its score is 0, and there is always a better one
    gptstar.export(model, number_tokenizer(), root / name)
    return root / name


def race(options: argparse.Namespace) -> dict:
    """All turns."""
    asked, heat = requests(options.requests), options.temperature
    n_new = sum(r.n_new for r in asked)
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    felt: dict[str, list[dict[str, float]]] = {"alone": [], "polite": [], "rude": []}
    with tempfile.TemporaryDirectory() as root:
        folder = prepare(options.model, Path(root))
        other = Contestant(__file__, "transformers", str(folder), str(heat))
        tuned = other.turn()
        errors: list[str] = []
        with ours(folder, options) as port:
            asyncio.run(crowd(port, asked, options.clients, heat))
            asyncio.run(one_by_one(tuned["port"], asked[:1]))
            for _ in range(options.rounds):
                took, here = asyncio.run(crowd(port, asked, options.clients, heat))
                seconds["ours"].append(took)
                felt["alone"].append(waits(here))
                took, there = asyncio.run(one_by_one(tuned["port"], asked))
                seconds["transformers"].append(took)
                company = []
                for kind in ("polite", "rude"):
                    found = asyncio.run(among(port, asked, options.clients, heat, kind == "rude"))
                    felt[kind].append(waits(found))
                    company += found
                errors += [a.error for a in (*here, *there, *company) if a.error]
        other.close()
    same = sum(a.text.strip() == b.text.strip() for a, b in zip(here, there, strict=True))
    pairs = list(zip(seconds["transformers"], seconds["ours"], strict=True))
    return {
        "requests": len(asked),
        "new_tokens": n_new,
        "peer_threads": tuned["threads"],
        "errors": len(errors),
        "first_errors": errors[:5],
        "same_text": same,
        "seconds": seconds,
        "waits": felt,
        "first_p95": statistics.median(w["first_p95"] for w in felt["alone"]),
        "rude_over_polite": {key: _over(felt, key) for key in ("first_p95", "next_p95")},
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def _over(felt: dict[str, list[dict[str, float]]], key: str) -> float:
    return statistics.median(r[key] / p[key] for r, p in zip(felt["rude"], felt["polite"], strict=True))


def report(found: dict, options: argparse.Namespace) -> None:
    """What was found, the ratio last."""
    middle = statistics.median
    print(f"  {found['errors']} errors {found['first_errors'] or ''}")
    names = {"ours": f"{options.clients} clients, ours", "transformers": "one by one, peer"}
    for key, times in found["seconds"].items():
        rates = [found["new_tokens"] / t for t in times]
        spread = f"({min(rates):.1f} - {max(rates):.1f})"
        per_second = found["requests"] / middle(times)
        print(f"  {names[key]:20} {per_second:6.2f} requests/s {middle(rates):8.1f} tokens/s {spread}")
    print(
        f"  the peer's threads: {found['peer_threads']}; the same text in {found['same_text']} of {found['requests']}"
    )
    titles = {"alone": "", "polite": " with 2 clients more", "rude": " with a slow and a leaving client"}
    for kind, rows in found["waits"].items():
        cells = {key: middle(row[key] for row in rows) for key in rows[0]}
        print(
            f"  first token p50 {cells['first_p50']:.2f} s, p95 {cells['first_p95']:.2f} s; "
            f"next token p50 {cells['next_p50'] * 1e3:.0f} ms, p95 {cells['next_p95'] * 1e3:.0f} ms{titles[kind]}"
        )
    over = found["rude_over_polite"]
    print(f"a slow and a leaving client / two others, p95: first {over['first_p95']:.2f}, next {over['next_p95']:.2f}")
    print(f"{options.clients} clients / one after another in transformers: {found['ratio']:.1f} (target {TARGET:.0f})")


def main() -> None:
    """The race and its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", default="gpt2_small", help="a preset; star_3m for a quick look")
    parser.add_argument("--dtype", default="fp32", help="of ours: fp32, int8, int4")
    parser.add_argument("--compile", action="store_true", help="of ours")
    parser.add_argument("--temperature", type=float, default=0.0, help="of both; 0 is greedy")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer(Path(options.worker[1]), float(options.worker[2]))
        return
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "model": options.model}
    print(f"{about['cpu']}, commit {about['commit']}: {options.requests} requests, {options.model}, {options.dtype}")
    found = race(options)
    report(found, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | found, indent=1) + "\n")
    sys.exit(found["errors"] > 0)


if __name__ == "__main__":
    main()
