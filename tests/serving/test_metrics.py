from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families


def value_of(client, name: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels."""
    response = client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture
def read(serve):
    """A client, and what its /metrics say."""
    client = serve()
    return client, partial(value_of, client)


def test_requests_by_route_method_and_status(read):
    client, value = read
    client.post("/generate", json={"text": {"plain": "a"}})
    client.post("/generate", json={})
    assert value("gptstar_requests_total", route="/generate", method="POST", status="200") == 1
    assert value("gptstar_requests_total", route="/generate", status="422") == 1
    assert value("gptstar_request_seconds_count", route="/generate") == 2


def test_every_route_has_its_whole_path(read):
    client, value = read
    for path in [p for p in client.app.openapi()["paths"] if p != "/metrics"]:
        client.get(path)
        template = path.replace("{model}", "{model:path}")  # what the description leaves out
        assert value("gptstar_requests_total", route=template, method="GET") == 1, path


def test_what_clients_make_up_is_one_series(read):
    client, value = read
    for i in range(20):
        client.get(f"/nowhere/{i}")
        client.request(f"ODD{i}", "/health")
    assert value("gptstar_requests_total", route="other") == 20
    text = client.get("/metrics").text
    assert "nowhere" not in text and "ODD" not in text
    assert len([line for line in text.splitlines() if line.startswith("gptstar_requests_total")]) < 6


def test_tokens_are_counted_by_model(read):
    client, value = read
    assert value("gptstar_generated_tokens_total") == 0
    client.post("/", json={"text": {"plain": "abc def"}})
    assert value("gptstar_generated_tokens_total", model="tiny") + value("gptstar_prompt_tokens_total") == 20
    assert value("gptstar_first_token_seconds_count", model="tiny") == 1
    assert value("gptstar_jobs_total", model="tiny", end="done") == 1
    assert value("gptstar_tokens_per_second", model="tiny") > 0


def test_what_runs_and_waits(listen, gate, wait_until):
    server = listen(max_rows=2)
    rounds = gate(server.app)
    assert value_of(server.client, "gptstar_ready", model="tiny") == 1
    assert value_of(server.client, "gptstar_cache_tokens_capacity") == 2 * 128
    body = {"text": {"plain": "abc"}, "do_sample": True, "num_return_sequences": 3}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.client.post, "/", json=body)
        wait_until(lambda: value_of(server.client, "gptstar_sequences_waiting") > 0)
        rounds.open()
        assert asked.result().status_code == 200
    assert value_of(server.client, "gptstar_sequences_running") == 0
    assert value_of(server.client, "gptstar_sequences_waiting") == 0
    assert value_of(server.client, "gptstar_cache_tokens") == 0


def test_each_application_has_its_own(serve):
    one, two = serve(), serve()
    one.get("/nowhere")
    assert "other" in one.get("/metrics").text and "other" not in two.get("/metrics").text
