"""GPT-NeoX-20B on a machine too small for it, from its own files.

    python benchmarks/neox20b.py [--folder DIR] [--layers 44] [--width 6144] [--budget 12GiB] [--int4-budget 24GiB]
                                 [--tokens 3] [--rounds 2] [--peer-layers 4] [--json FILE]

Writes random weights of the true shape in the published slim layout (41 GB for 44 layers; fewer layers where the disk
has no room, which is said), then measures, each in a process of its own and by turns:

streamed   fp16 under the budget: seconds a token, 8 prompts at a time too, and the disk's own time for the bytes that a
           pass streams (large direct reads, nothing else)
int4       4 bits under its budget, all of it in memory: how long it takes to quantise, to start again, and a token
peer       accelerate's disk offload over a few layers of the same width in transformers' layout, of which as large a
           share is in memory as of ours, scaled to all layers; its files are dropped from the page cache before each
           pass, as they would be were there all of them

A process's peak is the system's own count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from decode import number_tokenizer

from gptstar.allocator import keep_freed_memory

keep_freed_memory()

LAYERS, WIDTH, HEADS, VOCABULARY = 44, 6144, 64, 50432
ROOM = 8 * 10**9  # bytes that stay free on the disk
DISK_TARGET, PEER_TARGET, INT4_TARGET = 1.2, 5.0, 1.0


def write_slim(folder: Path, n_layer: int, width: int) -> int:
    """Random halves of every layer; the bytes written. What is there already, whole, stays."""
    import torch

    torch.manual_seed(0)
    step = folder / "global_step150000"
    step.mkdir(parents=True, exist_ok=True)
    number_tokenizer().save(folder / "20B_tokenizer.json")
    d_ff = 4 * width
    shapes: dict[int, dict[str, tuple[int, ...]]] = {}
    shapes[0] = {"word_embeddings.weight": (VOCABULARY // 2, width)}
    for layer in range(n_layer):
        shapes[layer + 2] = {
            "input_layernorm.weight": (width,),
            "input_layernorm.bias": (width,),
            "attention.query_key_value.weight": (3 * width // 2, width),
            "attention.query_key_value.bias": (3 * width // 2,),
            "attention.dense.weight": (width, width // 2),
            "attention.dense.bias": (width,),
            "post_attention_layernorm.weight": (width,),
            "post_attention_layernorm.bias": (width,),
            "mlp.dense_h_to_4h.weight": (d_ff // 2, width),
            "mlp.dense_h_to_4h.bias": (d_ff // 2,),
            "mlp.dense_4h_to_h.weight": (width, d_ff // 2),
            "mlp.dense_4h_to_h.bias": (width,),
        }
    shapes[n_layer + 3] = {"norm.weight": (width,), "norm.bias": (width,)}
    shapes[n_layer + 4] = {"final_linear.weight": (VOCABULARY // 2, width)}
    largest = max(math.prod(shape) for layer in shapes.values() for shape in layer.values())
    pool = (0.01 * torch.randn(largest)).half()
    total = 0
    for number, tensors in shapes.items():
        for half in (0, 1):
            made: dict[str, torch.Tensor] = {}
            for name, shape in tensors.items():
                some = pool[: math.prod(shape)].view(shape).clone()
                made[name] = torch.ones_like(some) if "norm.weight" in name else some
            path = step / f"layer_{number:02d}-model_{half:02d}-model_states.pt"
            if not path.exists():
                torch.save(made, path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
            total += path.stat().st_size
    return total


def disk_pass(layers: Any) -> float:
    """Seconds to read what a pass streams, and to do nothing else."""
    from gptstar.offload.reading import Disk, finish, new_buffer

    extents = [layers.extents[n] for n in layers.streamed]
    buffers = [new_buffer(max(extent.n_byte for extent in extents)) for _ in range(2)]
    for buffer in buffers:
        buffer[::4096] = 0  # the system hands memory out now, not while it is timed
    with Disk() as disk:
        start, before = time.perf_counter(), None
        for i, extent in enumerate(extents):
            under_way = disk.start(extent, buffers[i % 2])
            if before is not None:
                finish(before)
            before = under_way
        finish(before or [])
        return time.perf_counter() - start


def token_pass(model: Any, cache: Any, token: Any) -> float:
    """Seconds of a token."""
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        model.logits(model.hidden(token, cache)[:, -1])
        return time.perf_counter() - start


@contextlib.contextmanager
def accelerated(root: Path, n_layer: int, n_kept: int, width: int, heads: int) -> Iterator[Any]:
    """A function that gives the seconds of accelerate's pass over so many layers, n_kept of them in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    import gptstar
    from gptstar.configuration import preset
    from gptstar.neox20b import create_dummy_model

    folder, offloaded = root / f"peer-{n_layer}", root / "offloaded"
    config = preset("neox_20b", n_layer=n_layer, d_model=width, n_head=heads, vocab_size=VOCABULARY)
    if not folder.exists():
        gptstar.export(create_dummy_model(device="cpu", config=config), number_tokenizer(), folder)
    where = {"gpt_neox.embed_in": "cpu", "gpt_neox.final_layer_norm": "cpu", "gpt_neox.rotary_emb": "cpu"}
    where |= {"lm_head": "cpu"} | {f"gpt_neox.layers.{n}": "cpu" if n < n_kept else "disk" for n in range(n_layer)}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, device_map=where, offload_folder=offloaded
    ).eval()
    ids = torch.tensor([[5]])

    def once() -> float:
        for file in (*folder.glob("*.safetensors"), *offloaded.glob("*")):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with torch.inference_mode():
            start = time.perf_counter()
            model(input_ids=ids, use_cache=True)
            return time.perf_counter() - start

    once()
    yield once


def streamed(root: Path, budget: int, tokens: int) -> dict:
    """A round of fp16 under a budget."""
    import torch

    from gptstar.generation.decoding import Decoder
    from gptstar.offload.load import load_under_budget
    from gptstar.offload.plan import Room

    made = load_under_budget(root / "slim", budget, room=Room(256), say=print)
    cache, token = made.model.new_cache(1, 64), torch.tensor([[5]])
    token_pass(made.model, cache, token)  # until everything is under way
    # One after the other: while nobody asks, the next layers are read already.
    passes = [token_pass(made.model, cache, token) for _ in range(tokens)]
    decoder, many = Decoder(made.model), made.model.new_cache(8, 16)
    decoder.read(token.expand(8, 1), many)
    start = time.perf_counter()
    for _ in range(2):
        decoder(token[0].expand(8), many)
    batch, peak = (time.perf_counter() - start) / 2, peak_memory()  # what follows has buffers of its own
    time.sleep(3)  # until the read-ahead has come to rest
    disk = disk_pass(made.layers) if made.layers.streamed else 0.0
    made.close()
    return {
        "seconds": sum(passes) / len(passes),
        "batch_seconds": batch,
        "disk_seconds": disk,
        "peak_bytes": peak,
        "streamed_bytes": made.plan.from_disk,
        "resident_layers": len(made.plan.resident),
        "plan_seconds": made.plan.seconds,
    }


def in_int4(root: Path, budget: int, tokens: int) -> dict:
    """Loading and some tokens in 4 bits."""
    import torch

    from gptstar.offload.load import load_under_budget
    from gptstar.offload.plan import Room

    start = time.perf_counter()
    made = load_under_budget(root / "slim", budget, "int4", Room(64), say=print, quantized_dir=root / "quantized")
    loaded = time.perf_counter() - start
    cache, token = made.model.new_cache(1, 64), torch.tensor([[5]])
    first = token_pass(made.model, cache, token)  # compares every layer with its checksum
    passes = [token_pass(made.model, cache, token) for _ in range(4 * tokens)]
    made.close()
    return {
        "load_seconds": loaded,
        "first_token_seconds": first,
        "seconds": sum(passes) / len(passes),
        "peak_bytes": peak_memory(),
        "streamed_layers": len(made.layers.streamed),
    }


def peer(root: Path, n_layer: int, n_kept: int, width: int, heads: int) -> float:
    """Seconds of accelerate's pass over so many layers, n_kept of them in memory."""
    with accelerated(root, n_layer, n_kept, width, heads) as once:
        return once()


def measure(options: argparse.Namespace) -> dict:
    """All turns."""
    from gptstar.sizes import parse_bytes

    root = Path(options.folder or tempfile.mkdtemp(prefix="neox20b-"))
    root.mkdir(parents=True, exist_ok=True)
    heads = max(2, options.width // 96 // 2 * 2)
    a_layer = 24 * options.width**2
    there = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    room = shutil.disk_usage(root).free + there - ROOM - 2 * options.peer_layers * a_layer
    n_layer = max(1, min(options.layers, int((room - 4 * VOCABULARY * options.width) // (1.35 * a_layer))))
    if n_layer < options.layers:
        print(f"the disk has room for {n_layer} of {options.layers} layers: a token of all is scaled from those")
    budget, int4_budget = parse_bytes(options.budget), parse_bytes(options.int4_budget)
    rounds: list[dict] = []
    peers: list[float] = []
    try:
        start = time.perf_counter()
        written = _apart(write_slim, root / "slim", n_layer, options.width)
        print(f"{written / 1e9:.1f} GB in {n_layer} layers, {time.perf_counter() - start:.0f} s to make", flush=True)
        for _ in range(options.rounds):
            rounds.append(_apart(streamed, root, budget, options.tokens))
            n_kept = round(options.peer_layers * rounds[0]["resident_layers"] / n_layer)
            seconds = _apart(peer, root, options.peer_layers, n_kept, options.width, heads)
            peers.append(seconds * n_layer / options.peer_layers)
        int4 = [_apart(in_int4, root, int4_budget, options.tokens) for _ in range(2)]
    finally:
        if options.folder is None:
            shutil.rmtree(root, ignore_errors=True)
    scale = options.layers / n_layer
    seconds = {
        "ours": [one["seconds"] for one in rounds],
        "ours, 8 rows": [one["batch_seconds"] for one in rounds],
        "disk": [one["disk_seconds"] for one in rounds],
        "peer": peers,
        "int4": [one["seconds"] for one in int4],
    }
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "layers": n_layer,
        "of_layers": options.layers,
        "bytes": written,
        **{key: rounds[-1][key] for key in ("streamed_bytes", "resident_layers", "plan_seconds")},
        "peak_bytes": max(one["peak_bytes"] for one in rounds),
        "seconds": seconds,
        "int4": int4,
        "seconds_per_token": middle["ours"] * scale,
        "batch_tokens_per_second": 8 / (middle["ours, 8 rows"] * scale),
        "over_disk": middle["ours"] / middle["disk"] if middle["disk"] else None,
        "peer_over_ours": middle["peer"] / middle["ours"],
        "int4_tokens_per_second": 1 / (middle["int4"] * scale),
    }


def _apart(function: Callable, *arguments: Any) -> Any:
    """In a process of its own, whose memory ends with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> int:
    """The most bytes that this process has held, by the system's own count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """The race and its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept for the next run")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH, help="a multiple of 192; 6144 is the 20B's")
    parser.add_argument("--budget", default="12GiB")
    parser.add_argument("--int4-budget", default="24GiB")
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-layers", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "budget": options.budget}
    print(f"{about['cpu']}, commit {about['commit']}: width {options.width}, budget {options.budget}")
    found = measure(options)
    for name, times in found["seconds"].items():
        print(f"  {name:5} {statistics.median(times):8.2f} s a pass ({min(times):.2f} - {max(times):.2f})")
    held = found["peak_bytes"] / 2**30
    first, again = found["int4"]
    print(f"  peak {held:.2f} GiB of {options.budget}, planned {found['plan_seconds']:.2f} s a token")
    print(f"a token of {options.layers} layers: {found['seconds_per_token']:.2f} s")
    if found["over_disk"]:
        print(f"ours / the disk alone: {found['over_disk']:.2f} (target {DISK_TARGET} or less)")
    print(f"accelerate / ours: {found['peer_over_ours']:.1f} (target {PEER_TARGET:.0f})")
    print(f"8 rows at a time: {found['batch_tokens_per_second']:.2f} tokens/s")
    print(
        f"int4: {found['int4_tokens_per_second']:.2f} tokens/s (target {INT4_TARGET:.0f}), peak "
        f"{again['peak_bytes'] / 2**30:.2f} GiB; {first['load_seconds']:.0f} s to quantise and load, "
        f"{again['load_seconds']:.0f} s to load again, {again['first_token_seconds']:.1f} s for the first token"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
