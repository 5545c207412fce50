"""What Prometheus reads at /metrics. No label holds what a client made up, so there are only so many series."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from gptstar.serving.answers import refusals
from gptstar.serving.models import Models
from gptstar.serving.records import Record
from gptstar.serving.worker import Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)

router = APIRouter(tags=["operations"])


class Metrics:
    """Of one application: its requests by route and status, and what its models do."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        of_route, of_model = ("method", "route"), ("model",)
        self.requests = Counter("gptstar_requests", "requests answered", (*of_route, "status"), registry=here)
        self.seconds = Histogram(
            "gptstar_request_seconds", "to the end of the answer", of_route, registry=here, buckets=SECONDS
        )
        self.first_token = Histogram(
            "gptstar_first_token_seconds",
            "from a model's being asked to its first token",
            of_model,
            registry=here,
            buckets=SECONDS,
        )
        self.prompt_tokens = Counter(
            "gptstar_prompt_tokens", "tokens of prompts that were read", of_model, registry=here
        )
        self.jobs = Counter(
            "gptstar_jobs", "what models were asked for, by how it ended", (*of_model, "end"), registry=here
        )
        for name, served in models.served.items():
            served.finished = partial(self.finished, name)
            for end in ("done", "cancelled", "failed"):
                self.jobs.labels(name, end)
            self.first_token.labels(name)
            self.prompt_tokens.labels(name)
        self.registry.register(_Loads(models))

    def answered(self, record: Record) -> None:
        """A request has been answered."""
        self.requests.labels(record.method, record.route, str(record.status)).inc()
        self.seconds.labels(record.method, record.route).observe(record.seconds)

    def finished(self, name: str, job: Job, how: str) -> None:
        """A job has ended: done, cancelled or failed."""
        self.jobs.labels(name, how).inc()
        if job.first is not None:
            self.first_token.labels(name).observe(job.first - job.asked)
            self.prompt_tokens.labels(name).inc(len(job.prompt.tokens))


class _Loads(Collector):
    """What the workers are at, read when somebody asks."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        all_of_them = self.models.served.items()
        ready = {name: s.worker for name, s in all_of_them if s.state == "ready"}
        loads = {name: worker.load for name, worker in ready.items()}
        for metric, said, values in (
            ("ready", "whether a model can answer", {n: n in ready and s.failure is None for n, s in all_of_them}),
            ("sequences_running", "sequences that are read or written", {n: x.running for n, x in loads.items()}),
            ("sequences_waiting", "sequences without a row yet", {n: x.waiting for n, x in loads.items()}),
            ("rows", "sequences that can run together", {n: x.rows for n, x in loads.items()}),
            ("cache_tokens", "tokens that running sequences hold", {n: x.tokens for n, x in loads.items()}),
            ("cache_tokens_capacity", "tokens there is room for", {n: x.capacity for n, x in loads.items()}),
            ("tokens_per_second", "generated, of late", {n: w.speed.now for n, w in ready.items()}),
        ):
            family = GaugeMetricFamily(f"gptstar_{metric}", said, labels=("model",))
            for name, value in values.items():
                family.add_metric([name], float(value))
            yield family
        generated = CounterMetricFamily("gptstar_generated_tokens", "tokens that were chosen", labels=("model",))
        for name, worker in ready.items():
            generated.add_metric([name], worker.speed.total)
        yield generated


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}}, **refusals(401, 500)},
)
async def metrics(request: Request) -> PlainTextResponse:
    """For Prometheus."""
    of_app: Metrics = request.app.state.metrics
    return PlainTextResponse(generate_latest(of_app.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
