"""docs/serving.md: its commands run as they are written, against a server whose model has the name they ask for."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
PLACE = "http://127.0.0.1:7860"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", MANUAL, re.MULTILINE | re.DOTALL)


CURLS = [command.strip() for block in blocks("sh") for command in block.split("\n\n")]


@pytest.fixture
def here(listen, folder, tmp_path) -> str:
    """The address of a server."""
    named = shutil.copytree(folder, tmp_path / "gpt-neo-125M")
    return f"http://127.0.0.1:{listen(model_name=str(named)).port}"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_curl_is_answered(here):
    assert len(CURLS) == 7
    said = []
    for command in CURLS:
        assert PLACE in command
        command = command.replace(PLACE, here).replace("curl ", "curl --fail-with-body --max-time 60 ", 1)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said.append(done.stdout)
    plain, coded, talk, models, completion, stream, chat = said
    assert json.loads(plain)["sentences"][0]["generated_text"].startswith("Once upon a time")
    sentences = json.loads(coded)["sentences"]
    assert len(sentences) == 2 and all(one["generated_text"].startswith("Once upon a time") for one in sentences)
    assert json.loads(talk).keys() == {"output"}
    assert [one["id"] for one in json.loads(models)["data"]] == ["gpt-neo-125M"]
    assert json.loads(completion)["choices"][0]["logprobs"]
    assert stream.rstrip().endswith("data: [DONE]")
    assert json.loads(chat)["choices"][0]["message"]["role"] == "assistant"


def test_the_python_client_is_answered(here):
    (code,) = blocks("python")
    assert PLACE in code
    code = code.replace(PLACE, here)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CompletionUsage(" in done.stdout


def test_all_metrics_are_named_with_their_labels(here):
    httpx.post(f"{here}/generate", json={"text": {"plain": "a"}}, timeout=60)
    told = httpx.get(f"{here}/metrics", timeout=60).text
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", told, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    for name, of in re.findall(r"^(\w+)\{(.*)\} ", told, re.MULTILINE):
        family = next(f for f in (name, re.sub("_(bucket|sum|count)$", "", name)) if f in kinds)
        labels.setdefault(family, set()).update(set(re.findall(r'(\w+)="', of)) - {"le"})
    found = {name: labels[name] for name in kinds if not name.endswith("_created")}
    rows = re.findall(r"^\| `(gptstar_\w+)` \| ([a-z, ]+) \|", MANUAL, re.MULTILINE)
    assert {name: set(of.split(", ")) for name, of in rows} == found
