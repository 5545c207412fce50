"""How long `gptstar.load` takes and how much memory it needs, GPT-127* from one local safetensors file.

    python benchmarks/load.py [--rounds 5] [--json benchmarks/results/load_cpu.json]

Each load is a process of its own: the seconds are those of `gptstar.load` alone (imports before it are not counted),
the peak is the process's highest resident memory less what it had before, as a share of the weights' bytes. Mapped file
pages count as resident. The peer is transformers' from_pretrained, on GPT-2 Small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gptstar.configuration import preset
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.environment import commit, cpu_name
from gptstar.model.transformer import GPT
from gptstar.pretrained.export import export
from gptstar.pretrained.native import save_weights

CHILD = """
import sys, time, json
from pathlib import Path
import torch
kind, folder = sys.argv[1:]
if kind == "ours":
    import gptstar, gptstar.pretrained.load, safetensors.torch
    load = lambda: gptstar.load(folder)[0]
else:
    import transformers
    from transformers import GPT2LMHeadModel
    load = lambda: GPT2LMHeadModel.from_pretrained(folder)
torch.ones(1) @ torch.ones(1)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory starts anew
before, began = status("VmRSS"), time.perf_counter()
model = load()
seconds = time.perf_counter() - began
size = sum(p.numel() * p.element_size() for p in model.parameters())
peak, kept = ((status(key) - before) / size for key in ("VmHWM", "VmRSS"))
print(json.dumps({"seconds": seconds, "peak": peak, "kept": kept}))
"""


def main() -> None:
    """Writes both models, loads them in turns, prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the raw figures here")
    options, revision = parser.parse_args(), commit()
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["some text"], TokenizerConfig(vocab_size=300))
    with tempfile.TemporaryDirectory() as scratch:
        native, folder = Path(scratch) / "native", Path(scratch) / "gpt2"
        native.mkdir()
        save_weights(native, GPT(preset("gpt127")), tokenizer, {})
        export(GPT(preset("gpt2_small")), tokenizer, folder)
        cases = {
            "GPT-127*, our own folder": ("ours", native),
            "GPT-2 Small, transformers' folder": ("ours", folder),
            "GPT-2 Small, transformers' folder, loaded by transformers": ("theirs", folder),
        }
        results: dict[str, list[dict]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, (kind, place) in cases.items():
                done = subprocess.run(
                    [sys.executable, "-c", CHILD, kind, str(place)], capture_output=True, text=True, check=True
                )
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, rows in results.items():
        seconds, peaks = ([row[key] for row in rows] for key in ("seconds", "peak"))
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f}), "
            f"peak {statistics.median(peaks):.2f} x the weights"
        )
    if options.json:
        record = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision, "results": results}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
