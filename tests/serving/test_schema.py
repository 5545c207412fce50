"""Requests made up from the application's own description of itself (schemathesis), for whatever routes it has.

All cases:  python -m pytest -m slow tests/serving/test_schema.py
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gptstar.serving import cards, health, metrics, page_routes, rest, stream, talk
from gptstar.serving.app import create_app
from gptstar.serving.openai import chat, completions, models

FEW, MANY = 300, 5000  # cases
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture
def schema(settings, wait_until):
    """Of an application that is ready, in this process."""
    app = create_app(settings(max_queue=10_000))
    made = schemathesis.openapi.from_asgi("/openapi.json", app)
    wait_until(lambda: app.state.models.default.state == "ready")
    yield made
    asgi.shutdown_lifespans()


def ask(schema, wanted: int) -> Counter:
    """So many cases, spread over operations; each kind of them by its answers' status."""
    operations = [result.ok() for result in schema.get_all_operations()]
    kinds = [(operation, mode) for operation in operations for mode in GenerationMode]
    told: Counter = Counter()
    left = wanted
    # Operations with little to make up run dry: the others, which come last, make up for them.
    kinds.sort(key=lambda kind: (bool(kind[0].body), bool(kind[0].query)))
    for i, (operation, mode) in enumerate(kinds):
        here = cases(operation, mode, math.ceil(left / (len(kinds) - i)))
        left -= here.total()
        told.update({(operation.label, mode.value, status): n for status, n in here.items()})
    return told


def test_some_cases(schema):
    told = ask(schema, FEW)
    print(told)
    assert told.total() >= FEW
    assert any(status == 200 for _, _, status in told) and any(status == 422 for _, _, status in told)


def cases(operation, mode: GenerationMode, n: int) -> Counter:
    """At most n of one operation, by status."""
    told: Counter = Counter()

    @hypothesis.settings(
        max_examples=n, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        if mode.is_positive and told.total() % 2:
            case.body = modest(case.body)
        told[case.call_and_validate(checks=CHECKS).status_code] += 1

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing about it can be wrong
        check()
    return told


def modest(body):
    """Most numbers that a schema allows are beyond what this model can do, and answers shall be looked at too."""
    if not isinstance(body, dict):
        return body
    whole = {n: value % 3 + 1 for n, value in body.items() if isinstance(value, int) and not isinstance(value, bool)}
    return body | whole | ({"max_length": 100} if "text" in body else {})


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_cases(schema):
    told = ask(schema, MANY)
    print(told)
    assert told.total() >= MANY


def test_every_route_is_described(schema):
    """Else the cases would not reach it. The page and its files are not for programs."""
    app = schema.app
    described = {(path, method.upper()) for path, item in app.openapi()["paths"].items() for method in item}
    parts = (health, metrics, rest, talk, models, completions, chat, cards, stream, page_routes)
    routes = [route for part in parts for route in part.router.routes if route.include_in_schema]
    made = {(route.path.replace(":path", ""), method) for route in routes for method in route.methods}
    assert len(made) > 9 and made == described
