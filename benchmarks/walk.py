"""A newcomer's walk: README's first commands as they stand there, timed as whole processes, in a folder of their own.

    python benchmarks/walk.py [--json FILE]

The server's time is that until its page answers. Nothing is cached but what earlier commands of the walk have cached.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from gptstar.environment import commit, cpu_name

ROOT = Path(__file__).resolve().parents[1]
PAIR = "model=gpt2_3m,star_3m trainer.seed=0,1 trainer.max_steps=100 trainer.sequence_length=256"
WALK = {
    "train": "python train.py",
    "a sample": "python sample.py checkpoint=RUN prompt='def '",
    "held-out loss": "python evaluate.py checkpoint=RUN tasks=[held_out]",
    "perplexity of your text": "python -m gptstar.perplexity checkpoints=[RUN] text=[README.md] contexts=[64,256]",
    "beside published models": "python -m gptstar.report results=[RUN] baselines=[all]",
    "two architectures, two seeds each": f"python train.py -m run_dir=runs/pair {PAIR}",
    "which is better, and how sure": "python compare.py runs/pair",
    "a page, REST, OpenAI's API": "python serve.py MODEL_NAME=RUN",
    "what a run will cost": "python train.py plan=true experiment=gpt127 hardware=a5000x4",
}


def seconds_of(command: str, folder: Path) -> float:
    """Of one command, run in a folder that has what README's commands read. SystemExit where it fails."""
    _, *words = shlex.split(command.replace("RUN", "runs/first"))
    words[0] = str(ROOT / words[0]) if words[0].endswith(".py") else words[0]
    if words[0].endswith("train.py") and "-m" not in words and "plan=true" not in words:
        words.append("run_dir=runs/first")
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    if words[0].endswith("train.py") and "plan=true" not in words:
        words.append(f"data.cache_dir={folder}/cache/gptstar")
    start = time.perf_counter()
    if words[0].endswith("serve.py"):
        return _until_it_answers([sys.executable, *words], folder, environment)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def _until_it_answers(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.perf_counter()
    server = subprocess.Popen([*command, f"PORT={port}"], cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - start < 120 and server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    if b"ready" in answer.read():
                        return time.perf_counter() - start
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit("the server did not answer")
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """The walk and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options, revision = parser.parse_args(), commit()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "README.md").write_text((ROOT / "README.md").read_text())
        print(f"{cpu_name()}, commit {revision}")
        for what, command in WALK.items():
            found[what] = seconds_of(command, folder)
            print(f"{found[what]:7.1f} s  {what:36} {command}", flush=True)
    if options.json:
        about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
