"""What 8 and 4 bits cost and save: memory at a 127M model's size, and perplexity of a model that was trained.

    python benchmarks/quantization.py [--checkpoint RUN --text FILE] [--model gpt127] [--json FILE]

Memory: a process for each dtype loads the model (random weights) and writes until its context is full. Reported is by
how much its resident memory grew at most, from after the imports and a tiny model's text; the limit is what weights and
key/value cache need in fp32. Perplexity: `python -m gptstar.perplexity` on the whole text, windows of the model's
context. Rounding: how far the trained matrices of its layers are from what they become.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from decode import number_tokenizer

from gptstar.allocator import keep_freed_memory

KINDS = ("fp32", "bf16", "int8", "int4")
TARGET = 0.35


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def worker(folder: str, kind: str) -> None:
    """Prints {"peak", "weights", "cache"} in bytes."""
    import torch

    import gptstar
    from gptstar.generation.decoding import Decoder
    from gptstar.generation.generate import generate_detailed
    from gptstar.generation.settings import SamplingSettings
    from gptstar.model.config import ModelConfig
    from gptstar.quantization.quantize import quantize

    _, tokenizer = gptstar.load(folder + "/tiny")
    shape = ModelConfig(vocab_size=50257, d_model=64, n_head=1, n_layer=1, block="parallel_shared", position="alibi")
    tiny = gptstar.GPT(shape).eval()
    wish = SamplingSettings(max_new_tokens=8, temperature=0)
    for model in (tiny, quantize(tiny, "int8"), quantize(tiny, "int4")):  # what libraries set up once
        generate_detailed(model, tokenizer, "t1 t2", wish)
    del tiny, model
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the tiny models left, the large one must not have for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    del tokenizer  # the large model brings the same again
    model, tokenizer = gptstar.load(folder + "/model", dtype=kind)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    context = model.config.context
    prompt = tokenizer.decode(list(range(100, 100 + context // 2)))
    wish = SamplingSettings(max_new_tokens=context // 2, min_new_tokens=context // 2, temperature=0)
    generate_detailed(model, tokenizer, prompt, wish, Decoder(model))
    cache = model.new_cache(1, context)
    held = sum(t.numel() * t.element_size() for layers in cache.kept.values() for t in layers)
    del torch
    print(json.dumps({"peak": resident("VmHWM") - before, "weights": weights, "cache": held}))


def memory(model_name: str) -> dict[str, dict]:
    """{kind: its figures}"""
    import torch

    import gptstar
    from gptstar.configuration import preset
    from gptstar.model.config import ModelConfig
    from gptstar.pretrained.native import save_weights

    tokenizer, found = number_tokenizer(), {}
    with tempfile.TemporaryDirectory() as root:
        torch.manual_seed(0)
        tiny = ModelConfig(vocab_size=50257, d_model=64, n_head=1, n_layer=1)
        for name, shape in (("tiny", tiny), ("model", preset(model_name))):
            (Path(root) / name).mkdir()
            save_weights(Path(root) / name, gptstar.GPT(shape), tokenizer, {})
        for kind in KINDS:
            command = [sys.executable, __file__, "--worker", root, kind]
            found[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def quality(checkpoint: str, text: str) -> dict[str, float]:
    """{kind: nats a token}"""
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "gptstar.perplexity", f"checkpoints=[{checkpoint}]", f"text=[{text}]"]
            subprocess.run([*command, f"dtype={kind}", f"output_dir={folder}"], check=True, capture_output=True)
            (row,) = json.loads((Path(folder) / "perplexity.json").read_text())["results"]
            found[kind] = math.log(row["metrics"]["token_perplexity"]["value"])
    return found


def rounding(checkpoint: str) -> dict[str, float]:
    """{kind: how far its matrices are from the exact ones, the root of the mean square relative to theirs}"""
    import torch

    import gptstar
    from gptstar.quantization.int4 import Int4Matrix
    from gptstar.quantization.int8 import Int8Matrix

    model, _ = gptstar.load(checkpoint, dtype="fp32")
    large = [tensor for name, tensor in model.state_dict().items() if tensor.ndim == 2 and name.startswith("blocks.")]
    found = {}
    for kind, matrix_of in (("int8", Int8Matrix), ("int4", Int4Matrix)):
        squares = torch.zeros(2, dtype=torch.float64)
        for tensor in large:
            fits = kind == "int8" or Int4Matrix.fits(*tensor.shape)
            matrix = (matrix_of if fits else Int8Matrix)(*tensor.shape)
            matrix.set_rows(0, tensor)
            error = (matrix.dense(torch.float32) - tensor).double().square().sum()
            squares += torch.stack((error, tensor.double().square().sum()))
        found[kind] = float((squares[0] / squares[1]).sqrt())
    return found


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt127")
    parser.add_argument("--checkpoint", help="a trained model; none: no perplexity")
    parser.add_argument("--text", help="what its perplexity is measured on")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        keep_freed_memory()  # before torch is imported
        worker(*options.worker)
        return
    from gptstar.environment import commit, cpu_name

    about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "model": options.model}
    print(f"{about['cpu']}, commit {about['commit']}")
    results: dict = {}
    if options.checkpoint:
        losses = results["nats_per_token"] = quality(options.checkpoint, options.text)
        print(f"{options.checkpoint} on {options.text}, nats/token")
        for kind, loss in losses.items():
            cost = math.exp(loss - losses["fp32"]) - 1
            print(f"  {kind}  {loss:.4f}  perplexity {math.exp(loss):.2f} ({cost:+.2%})")
        results["rounding"] = rounding(options.checkpoint)
        for kind, error in results["rounding"].items():
            print(f"  {kind}  weights off by {error:.2%} (root mean square, relative)")
    found = results["memory"] = memory(options.model)
    whole = found["fp32"]["weights"] + found["fp32"]["cache"]
    print(f"{options.model}: weights and cache in fp32 {whole / 2**20:.0f} MiB")
    for kind, row in found.items():
        sizes = f"weights {row['weights'] / 2**20:6.1f} MiB, peak {row['peak'] / 2**20:6.1f} MiB"
        print(f"  {kind}  {sizes}, {row['peak'] / whole:.2f} of fp32's weights and cache")
    print(f"int8 peak / fp32 weights and cache: {found['int8']['peak'] / whole:.2f} (target {TARGET})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
