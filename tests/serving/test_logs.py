from __future__ import annotations

import json
import logging
import sys

import pytest

from gptstar.serving.logs import JsonFormatter, TextFormatter, start_log


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r for r in caplog.records if r.name == "gptstar.requests"]


def test_one_line_a_request(client, lines):
    response = client.post("/generate", json={"text": {"plain": "abc def"}}, headers={"X-Request-ID": "mine-1"})
    (line,) = lines()
    said = line.fields
    assert said["request"] == "mine-1" == response.headers["x-request-id"]
    assert (said["method"], said["route"], said["status"], said["model"]) == ("POST", "/generate", 200, "tiny")
    assert said["prompt_tokens"] + said["new_tokens"] == 20
    assert 0 <= said["first_token_seconds"] <= said["seconds"]


def test_no_prompt_and_no_address_is_logged(client, lines):
    client.get("/talk", params={"input": "secret words"})
    client.get("/secret/words")
    said = str([vars(line) for line in lines()])
    assert "secret" not in said and "words" not in said
    assert lines()[1].fields["route"] == "other" and lines()[1].fields["status"] == 404


def test_prompts_are_logged_where_the_operator_wants_them(serve, lines):
    serve(log_prompts=True).get("/talk", params={"input": "abc def"})
    (line,) = lines()
    assert line.fields["prompts"] == ["abc def"] and len(line.fields["answers"]) == 1


@pytest.mark.parametrize("given", ["a b", "a\\nb", "x" * 65, "", 'a"b', "ä".encode()])
def test_request_ids_that_are_not_sane_are_replaced(client, given):
    found = client.get("/health", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert len(found) == 32 and found != given


def test_a_fault_of_ours_is_500_without_details_and_a_traceback_with_the_id(client, caplog, monkeypatch):
    served = client.app.state.models.default

    async def broken(*arguments):
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(served, "ask", broken)
    response = client.post("/", json={"text": {"plain": "a"}}, headers={"X-Request-ID": "mine-2"})
    assert response.status_code == 500 and "secret" not in response.text and list(response.json()) == ["error"]
    assert response.headers["x-request-id"] == "mine-2"
    (fault,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert fault.fields == {"request": "mine-2"} and fault.exc_info[0] is ZeroDivisionError


def made(message="said %s", *arguments, fields=None, fault=False):
    info = None
    if fault:
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            info = sys.exc_info()
    record = logging.LogRecord("x", logging.INFO, "file", 1, message, arguments, info)
    record.fields = fields or {}
    return record


def test_text_quotes_what_is_not_plain():
    line = TextFormatter().format(made("said %s", "it\nall", fields={"a": 1, "b": 'x "y"\nz', "c": None, "d": [1]}))
    assert line.split(" ", 1)[1] == 'INFO said it | all a=1 b="x \\"y\\"\\nz" d=[1]'


def test_json_is_one_object_a_line():
    line = JsonFormatter().format(made("said %s", "it\nall", fields={"a": 1, "c": None}, fault=True))
    assert "\n" not in line
    said = json.loads(line)
    assert said["message"] == "said it\nall" and said["a"] == 1 and "c" not in said and "one\ntwo" in said["traceback"]


def test_uvicorns_lines_have_the_same_format(settings, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    start_log(settings(log_format="json"))
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    assert json.loads(capsys.readouterr().err)["message"] == "Application startup complete."
