"""The page's own routes: its files, the cards, and texts that come token by token."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from gptstar.generation.randomness import sequence_seed
from gptstar.model.describe import drawing
from gptstar.serving.app import create_app
from gptstar.serving.page_routes import FOLDER
from gptstar.serving.stream import BIGGEST_SEED
from gptstar.training.loop import train
from serving.page_support import CONTEXT, of, site, wait_until, write_model

ASKED = {"prompt": "a b c", "max_new_tokens": 40, "temperature": 0.9, "seed": 3, "top": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / "first"), write_model(folder / "second", 1)]


@pytest.fixture(scope="module")
def client(models):
    app = create_app(of(models, max_new_tokens=100, max_sequences=4, max_input_token_length=8))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: all(each.state == "ready" for each in app.state.models.served.values()))
        yield client


def events(client, **changes) -> list[dict]:
    answer = client.post("/api/stream", json={**ASKED, **changes})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def texts(events: list[dict]) -> list[str]:
    n = len(events[0]["seeds"])
    return ["".join(e["text"] for e in events if e["type"] == "token" and e["index"] == i) for i in range(n)]


def test_the_page_comes_with_what_keeps_it_safe_and_lets_browsers_keep_it(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    names = [path.name for path in FOLDER.iterdir()]
    assert {"index.html", "style.css", "main.js", "icon.svg"} <= set(names)
    for path in ("/", *(f"/page/{name}" for name in names)):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self';"), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        again = client.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    kinds = {name: client.get(f"/page/{name}").headers["content-type"].partition(";")[0] for name in names}
    assert kinds["main.js"] == "text/javascript" and kinds["style.css"] == "text/css"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fstream.py", "%2e%2e/stream.py", "stream.py", "index.html%00"])
def test_nothing_else_is_given_out(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_everything_the_page_asks_for_is_in_the_package_and_nothing_is_inline():
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    scripts = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js")}
    asked = re.findall(r'(?:src|href)="([^"]*)"', html)
    asked += [f"page/{name}" for script in scripts.values() for name in re.findall(r'from "\./([^"]*)"', script)]
    assert {name.removeprefix("page/") for name in asked} == {p.name for p in FOLDER.iterdir()} - {"index.html"}
    assert not re.search(r"<style|style=|\son\w+=|<script>", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", "".join(scripts.values()))
    # The wheel takes the package's folder whole, whatever its files are called, but for what git ignores.
    built = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert built["targets"]["wheel"]["packages"] == ["gptstar"] and "exclude" not in built["targets"]["wheel"]


def test_without_the_page_there_is_none_of_it(models):
    with TestClient(create_app(of(models, page=False))) as client:
        assert client.get("/").status_code == 405  # POST / is another contract's
        assert client.get("/api/models").status_code == client.get("/page/main.js").status_code == 404


def test_cards_say_what_the_models_are(client):
    said = client.get("/api/models").json()
    assert (said["max_new_tokens"], said["max_sequences"]) == (100, 4)
    first, second = said["models"]
    assert (first["name"], second["name"], first["state"]) == ("first", "second", "ready")
    model = client.app.state.models.default.model
    made = first["architecture"]
    assert made["parameters"] == sum(p.numel() for p in model.parameters())
    assert made["drawing"] == drawing(model.config)
    assert (made["layers"], made["width"], made["heads"], made["head_width"]) == (2, 32, 4, 8)
    assert (made["context"], made["longest"], made["vocabulary"]) == (CONTEXT, CONTEXT, model.config.vocab_size)
    assert (first["dtype"], first["device"], first["most_tokens"]) == ("fp32", "cpu", CONTEXT)
    assert first["training"] is None  # nobody knows how it was trained


def test_the_card_of_a_run_has_its_curve(train_config):
    train(train_config)
    run = Path(train_config.run_dir)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    app = create_app(of([run]))
    with TestClient(app) as client:
        wait_until(lambda: app.state.models.default.state == "ready")
        said = client.get("/api/models").json()["models"][0]["training"]
    steps = [row for row in rows if "loss" in row]
    checks = [row for row in rows if "validation_loss" in row]
    assert said["tokens"] == [row["tokens"] for row in steps]
    assert said["losses"] == pytest.approx([row["loss"] for row in steps], abs=1e-4)
    assert said["validation_losses"] == [row["validation_loss"] for row in checks]
    assert said["validation_tokens"] == [row["tokens"] for row in checks]
    assert said["final_loss"] == rows[-1]["final_loss"]


def test_a_model_that_is_not_there_yet_has_a_state_alone(models):
    app = create_app(of(models))
    app.state.models.load = lambda: _never()
    with TestClient(app) as client:
        served = app.state.models.default
        served.state, served.progress = "loading", 0.25
        card = client.get("/api/models").json()["models"][0]
        assert (card["state"], card["progress"], card["architecture"]) == ("loading", 0.25, None)
        refused = client.post("/api/stream", json=ASKED)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json() == {"error": "the model first is loading"}


async def _never() -> None:
    pass


def test_pieces_make_the_text_though_tokens_are_parts_of_characters(client):
    got = events(client, n=3)
    start, *_ = got
    assert start == {
        "type": "start",
        "model": "first",
        "prompt": "a b c",
        "tokens": start["tokens"],
        "dropped": 0,
        "seeds": [3, sequence_seed(3, 1), sequence_seed(3, 2)],
    }
    tokenizer = client.app.state.models.default.tokenizer
    for index, text in enumerate(texts(got)):
        tokens = [e["token"]["id"] for e in got if e["type"] == "token" and e["index"] == index]
        end = next(e for e in got if e["type"] == "end" and e["index"] == index)
        if end["finish_reason"] == "end_of_text":
            assert tokens.pop() == tokenizer.eot_id
        else:
            assert (end["finish_reason"], len(tokens)) == ("length", 40)
        assert text == tokenizer.decode(tokens)
        assert end["seed"] == start["seeds"][index]
    shown = [choice for e in got if e["type"] == "token" for choice in (e["token"], *e["top"])]
    parts = [choice for choice in shown if choice["text"].startswith("bytes:")]
    assert parts and all(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", choice["text"]) for choice in parts)
    for choice in shown:
        assert "\ufffd" not in choice["text"]


def test_probabilities_are_the_models_own(client):
    tokens = [e for e in events(client, temperature=0.3) if e["type"] == "token"]
    for event in tokens:
        probs = [choice["prob"] for choice in event["top"]]
        assert len(probs) == 4 and probs == sorted(probs, reverse=True)
        assert 0 < sum(probs) <= 1.001
        for choice in event["top"]:
            if choice["id"] == event["token"]["id"]:
                assert choice == event["token"]
    greedy = [e for e in events(client, temperature=0) if e["type"] == "token"]
    assert all(event["token"] == event["top"][0] for event in greedy)
    assert all(event["top"] == [] for event in events(client, top=0) if event["type"] == "token")


def test_a_seed_gives_its_text_again_and_each_sample_has_one_of_its_own(client):
    got = events(client, n=3)
    assert texts(events(client, n=3)) == texts(got)
    for seed, text in zip(got[0]["seeds"], texts(got), strict=True):
        assert texts(events(client, seed=seed)) == [text]
    drawn = events(client, seed=None)
    assert texts(events(client, seed=drawn[0]["seeds"][0])) == texts(drawn)
    assert texts(events(client, model="second")) != texts(events(client))


def test_sliders_at_their_ends_mean_something(client):
    greedy = texts(events(client, temperature=0))
    assert texts(events(client, top_p=0)) == greedy
    assert texts(events(client, top_k=1)) == greedy
    free = texts(events(client))
    assert texts(events(client, top_k=0)) == texts(events(client, top_p=1)) == texts(events(client, tau=1)) == free
    assert texts(events(client, tau=0)) == texts(events(client, tau=0, seed=99)) != free
    assert texts(events(client, temperature=0, repetition_penalty=2)) != greedy
    assert [e["type"] for e in events(client, max_new_tokens=0)] == ["start", "end"]


@pytest.mark.parametrize("temperature", [1.1e-5, 5e-324, 100])
@pytest.mark.parametrize("penalty", [0.01, 100])
def test_extremes_break_nothing(client, temperature, penalty):
    for filters in ({"top_p": 5e-324, "tau": 5e-324}, {"tau": 1e-12}, {"top_p": 0.999999, "tau": 0.999999}):
        got = events(client, temperature=temperature, repetition_penalty=penalty, max_new_tokens=12, n=2, **filters)
        assert [e["type"] for e in got].count("end") == 2
    assert client.get("/health").status_code == 200


def test_what_does_not_fit_loses_its_beginning_and_says_so(client, models):
    start = events(client, prompt="a b c d e f " * 5 + "f f")[0]
    assert start["tokens"] == 8 and start["dropped"] > 0 and start["prompt"].endswith(" f f")
    app = create_app(of(models))
    with TestClient(app) as whole:
        wait_until(lambda: app.state.models.default.state == "ready")
        start = events(whole, prompt="x" * 200)[0]
        assert start["tokens"] + ASKED["max_new_tokens"] == CONTEXT
        assert start["dropped"] == 200 - start["tokens"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "third"}, "model=third is not served: it may be one of first, second"),
        ({"max_new_tokens": 101}, "101 new tokens are more than the 100"),
        ({"n": 5}, "n=5 is more than the 4"),
        ({"top": 11}, "top=11: Input should be less than or equal to 10"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"seed": BIGGEST_SEED + 1}, "seed="),
        ({"surprise": True}, "surprise is not among the fields model, prompt"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(client, changes, words):
    answer = client.post("/api/stream", json={**ASKED, **changes})
    assert answer.status_code == 422
    assert words in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_half_a_character_is_refused(client):
    answer = client.post("/api/stream", content=b'{"prompt": "\\ud800"}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and "half of a character" in answer.json()["error"]


def test_the_description_tells_of_all_fields(client):
    described = client.get("/openapi.json").json()
    stream = described["paths"]["/api/stream"]["post"]
    assert "start (model, prompt, tokens, dropped, seeds)" in stream["responses"]["200"]["description"]
    kinds = {status: list(response["content"]) for status, response in stream["responses"].items()}
    assert kinds.pop("200") == ["text/event-stream"]
    assert set(map(tuple, kinds.values())) == {("application/json",)} and "422" in kinds
    fields = described["components"]["schemas"]["Asked"]["properties"]
    assert set(fields) >= {*ASKED, "model", "n", "top_k", "top_p", "tau", "repetition_penalty"}
    assert "get" in described["paths"]["/api/models"] and "get" in described["paths"]["/"]


def test_whoever_hangs_up_ends_the_work(models):
    with site(of(models[:1])) as here:
        here.ready().hold()
        with httpx.stream("POST", here.url + "api/stream", json={**ASKED, "n": 2}) as answer:
            lines = answer.iter_lines()
            assert '"start"' in next(lines)
            here.allow(3)
            assert next(line for line in lines if '"token"' in line)
        wait_until(lambda: here.ended == ["cancelled"])
        assert here.app.state.models.default.worker.pending == 0


def test_a_text_that_takes_too_long_ends_with_a_reason(models):
    with site(of(models[:1], request_timeout=0.2)) as here:
        here.ready().hold()
        answer = httpx.post(here.url + "api/stream", json=ASKED)
        last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
        assert (last["type"], last["status"]) == ("error", 504) and "not done within 0.2 s" in last["error"]
        assert here.ended == ["cancelled"]


def test_a_fault_of_ours_is_told_without_details(models, monkeypatch, caplog):
    def broken(tokenizer):
        raise KeyError("a secret")

    monkeypatch.setattr("gptstar.serving.openai.writing.token_bytes", broken)
    with site(of(models[:1])) as here:
        here.ready().hold()
        here.allow(3)  # it has not ended by itself
        answer = httpx.post(here.url + "api/stream", json=ASKED)
        here.allow()
        last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
        assert (last["type"], last["status"]) == ("error", 500)
        assert "secret" not in answer.text and "secret" in caplog.text
        wait_until(lambda: here.ended == ["cancelled"])
