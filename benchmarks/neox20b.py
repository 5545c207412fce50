"""GPT-NeoX-20B under a memory budget smaller than its weights, from its own files.

    python benchmarks/neox20b.py [--folder DIR] [--layers 44] [--width 6144] [--budget 12GiB] [--tokens 3]
                                 [--peer-layers 2] [--json FILE]

Writes random weights of the true shape in the published slim layout (41 GB for 44 layers; fewer layers where the disk
has no room, which is said), then measures in turns: the disk's own time for the bytes that a pass streams (large direct
reads, nothing else), a pass of ours, and a pass of accelerate's disk offload over a few layers of the same width in
transformers' layout, scaled by the bytes. Its files are dropped from the page cache before each pass, as they would be
were there all of them. Seconds a token, and the ratios last.
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
ROOM = 20 * 10**9  # bytes that stay free on the disk
DISK_TARGET, PEER_TARGET = 1.2, 5.0


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
def accelerated(root: Path, n_layer: int, width: int, heads: int) -> Iterator[Any]:
    """A function that gives the seconds of accelerate's pass over so many layers, and the bytes of those."""
    import torch
    from transformers import AutoModelForCausalLM

    import gptstar
    from gptstar.configuration import preset
    from gptstar.neox20b import create_dummy_model

    folder = root / "peer"
    config = preset("neox_20b", n_layer=n_layer, d_model=width, n_head=heads, vocab_size=VOCABULARY)
    gptstar.export(create_dummy_model(device="cpu", config=config), number_tokenizer(), folder)
    where = {"gpt_neox.embed_in": "cpu", "gpt_neox.final_layer_norm": "cpu", "gpt_neox.rotary_emb": "cpu"}
    where |= {"lm_head": "cpu"} | {f"gpt_neox.layers.{n}": "disk" for n in range(n_layer)}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, device_map=where, offload_folder=root / "offloaded"
    ).eval()
    ids = torch.tensor([[5]])

    def once() -> float:
        for file in (*folder.glob("*.safetensors"), *(root / "offloaded").glob("*")):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with torch.inference_mode():
            start = time.perf_counter()
            model(input_ids=ids, use_cache=True)
            return time.perf_counter() - start

    once()
    yield once


def measure(options: argparse.Namespace) -> dict:
    """All turns."""
    import torch

    from gptstar.offload.load import load_under_budget
    from gptstar.offload.plan import Room
    from gptstar.sizes import parse_bytes

    root = Path(options.folder or tempfile.mkdtemp(prefix="neox20b-"))
    root.mkdir(parents=True, exist_ok=True)
    heads = max(2, options.width // 96 // 2 * 2)
    a_layer = 24 * options.width**2
    there = sum(file.stat().st_size for file in root.glob("slim/*/*.pt"))
    room = shutil.disk_usage(root).free + there - ROOM - options.peer_layers * a_layer
    n_layer = max(1, min(options.layers, int((room - 4 * VOCABULARY * options.width) // a_layer)))
    if n_layer < options.layers:
        print(f"the disk has room for {n_layer} of {options.layers} layers: a token of all is scaled from those")
    try:
        start = time.perf_counter()
        written = _apart(write_slim, root / "slim", n_layer, options.width)
        print(f"{written / 1e9:.1f} GB in {n_layer} layers, {time.perf_counter() - start:.0f} s to make")
        made = load_under_budget(root / "slim", parse_bytes(options.budget), room=Room(64), say=print)
        cache, token, peak = made.model.new_cache(1, 64), torch.tensor([[5]]), 0
        seconds: dict[str, list[float]] = {"ours": [], "disk": [], "peer": []}
        for _ in range(2):
            token_pass(made.model, cache, token)  # layers that stay are read now
            # One after the other: while nobody asks, the next layers are read already.
            passes = [token_pass(made.model, cache, token) for _ in range(options.tokens)]
            seconds["ours"].append(sum(passes) / len(passes))
            peak = peak or peak_memory()  # what follows has buffers of its own
            time.sleep(3)  # until the read-ahead has come to rest
            seconds["disk"].append(disk_pass(made.layers) if made.layers.streamed else 0.0)
        made.close()
        with accelerated(root, options.peer_layers, options.width, heads) as peer:
            for _ in range(2):
                seconds["peer"].append(peer() * n_layer / options.peer_layers)
        found = {
            "layers": n_layer,
            "of_layers": options.layers,
            "bytes": written,
            "streamed_bytes": made.plan.from_disk,
            "resident_layers": len(made.plan.resident),
            "plan_seconds": made.plan.seconds,
            "peak_bytes": peak,
            "seconds": seconds,
        }
    finally:
        if options.folder is None:
            shutil.rmtree(root, ignore_errors=True)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return found | {
        "seconds_per_token": middle["ours"] * options.layers / n_layer,
        "over_disk": middle["ours"] / middle["disk"] if middle["disk"] else None,
        "peer_over_ours": middle["peer"] / middle["ours"],
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
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--peer-layers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "budget": options.budget}
    print(f"{about['cpu']}, commit {about['commit']}: width {options.width}, budget {options.budget}")
    found = measure(options)
    for name, times in found["seconds"].items():
        print(f"  {name:5} {statistics.median(times):8.2f} s a pass ({min(times):.2f} - {max(times):.2f})")
    print(f"  peak {found['peak_bytes'] / 2**30:.2f} GiB, planned {found['plan_seconds']:.2f} s")
    print(f"a token of {options.layers} layers: {found['seconds_per_token']:.2f} s")
    if found["over_disk"]:
        print(f"ours / the disk alone: {found['over_disk']:.2f} (target {DISK_TARGET} or less)")
    print(f"accelerate / ours: {found['peer_over_ours']:.1f} (target {PEER_TARGET:.0f})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
