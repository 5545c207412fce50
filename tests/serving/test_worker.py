from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
import torch

from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT
from gptstar.serving.worker import Busy, Closed, Worker
from support import tiny_model


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = tiny_model(vocab_size=tokenizer.vocab_size, context=128, position="learned", init_std=0.3)
    return GPT(config).eval()


@pytest.fixture
def with_worker(model, tokenizer):
    """Runs a test's coroutine with a worker that is closed after it."""

    def run(work, max_queue=64, **options):
        async def main():
            worker = Worker(Engine(model, tokenizer, **options), max_queue)
            try:
                async with asyncio.timeout(100):
                    return await work(worker)
            finally:
                worker.close()

        return asyncio.run(main())

    return run


def held(worker, rounds: int = 0) -> threading.Event:
    """The engine's rounds, after the first few, wait until it is set."""
    event, step, n_round = threading.Event(), worker.engine.step, itertools.count()

    def wait():
        assert next(n_round) < rounds or event.wait(60)
        return step()

    worker.engine.step = wait
    return event


def start(worker, prompt="abc", **settings):
    how = SamplingSettings(**{"max_new_tokens": 5, "temperature": 0, **settings})
    return worker.start_all([worker.prepare(prompt, how)], how)[0]


def test_jobs_get_what_they_would_get_alone(with_worker, model, tokenizer):
    prompts = ["abc", "", "abc def gh", "ij"]

    async def work(worker):
        jobs = [start(worker, prompt, max_new_tokens=9) for prompt in prompts]
        return await asyncio.gather(*(job.all() for job in jobs))

    how = SamplingSettings(max_new_tokens=9, temperature=0)
    for prompt, (got,) in zip(prompts, with_worker(work, max_rows=2), strict=True):
        assert got.tokens == generate_detailed(model, tokenizer, prompt, how)[0].tokens


def test_events_come_one_by_one_and_add_up(with_worker):
    async def work(worker):
        job = start(worker, max_new_tokens=6, n=2, temperature=1.0, seed=1)
        events = [event async for event in job]
        assert job.ended == [e.done for e in events if e.done is not None]
        for index in (0, 1):
            own = [e for e in events if e.index == index]
            assert "".join(e.text for e in own) == own[-1].done.text
        assert job.n_written == sum(len(e.tokens) for e in events) == worker.speed.total
        assert job.first is not None and job.first >= job.asked

    with_worker(work)


def test_a_full_queue_is_busy_and_says_for_how_long(with_worker):
    async def work(worker):
        gate = held(worker)
        jobs = [start(worker), start(worker, n=2)]
        with pytest.raises(Busy, match="try again in") as told:
            start(worker)
        assert 1 <= told.value.seconds <= 60
        gate.set()
        for job in jobs:
            await job.all()
        await start(worker).all()  # there is room again

    with_worker(work, max_rows=1, max_queue=2)


def test_whoever_is_alone_is_served_however_much_is_asked(with_worker):
    async def work(worker):
        assert len(await start(worker, n=5, temperature=1.0).all()) == 5

    with_worker(work, max_rows=1, max_queue=0)


def test_leaving_frees_rows_and_disturbs_nobody(with_worker):
    async def work(worker):
        ends = []
        worker.finished = lambda job, how: ends.append((job, how))
        gate = held(worker, 9)  # neither ends by itself before one has left
        stays, leaves = start(worker, max_new_tokens=30), start(worker, max_new_tokens=100)
        async for _ in leaves:
            break
        leaves.cancel()
        leaves.cancel()  # is no error
        gate.set()
        (whole,) = await stays.all()
        (alone,) = await start(worker, max_new_tokens=30).all()
        assert whole.tokens == alone.tokens
        assert ends[0] == (leaves, "cancelled") and {how for _, how in ends[1:]} == {"done"}
        assert worker.engine.idle and worker.pending == 0 and worker.load.running == 0
        while worker._by_request:  # the thread forgets it a moment later
            await asyncio.sleep(0.01)

    with_worker(work)


def test_a_job_that_is_cancelled_before_it_begins_never_runs(with_worker):
    async def work(worker):
        gate = held(worker)
        first, second = start(worker), start(worker)
        second.cancel()
        gate.set()
        await first.all()
        await start(worker).all()
        assert second.n_written == 0 and worker.engine.idle

    with_worker(work, max_rows=1)


def test_draining_lets_jobs_end_and_takes_no_new_ones(with_worker):
    async def work(worker):
        job = start(worker, max_new_tokens=20)
        draining = asyncio.create_task(worker.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(Closed, match="shutting down"):
            start(worker)
        (done,) = await job.all()
        assert len(done.tokens) == 20
        await draining

    with_worker(work)


def test_what_has_no_time_left_is_told_so(with_worker):
    async def work(worker):
        gate = held(worker)
        job = start(worker)
        await worker.drain(0.05)
        with pytest.raises(Closed, match="no more time"):
            await job.all()
        gate.set()

    with_worker(work)


def test_an_engine_that_fails_is_heard_by_all(with_worker):
    async def work(worker):
        def fail():
            raise RuntimeError("out of memory")

        gate = held(worker)
        jobs = [start(worker), start(worker)]
        worker.engine.step = fail
        gate.set()
        for job in jobs:
            with pytest.raises(Closed, match="decoding has failed"):
                await job.all()
        with pytest.raises(Closed, match="the server's log says how"):
            start(worker)
        assert isinstance(worker.error, RuntimeError) and worker.pending == 0

    with_worker(work)


def test_closing_tells_whoever_is_left(with_worker):
    async def work(worker):
        gate = held(worker)
        job = start(worker)
        await asyncio.sleep(0.05)
        gate.set()
        worker.close()
        with pytest.raises(Closed):
            await job.all()
        assert not worker._thread.is_alive()

    with_worker(work)


def test_load_tells_of_rows_and_tokens(with_worker):
    async def work(worker):
        assert worker.load.running == 0 and worker.load.rows == 2 and worker.load.capacity == 2 * 128
        go_on, there = held(worker), threading.Event()
        step = worker.engine.step

        def to_two():
            if len(worker.engine.writing) == 2:
                there.set()
                go_on.clear()
            return step()

        worker.engine.step = to_two
        jobs = [start(worker, max_new_tokens=100) for _ in range(3)]
        go_on.set()  # not before all three are in
        assert await asyncio.to_thread(there.wait, 60)
        load = worker.load
        assert load.running == 2 and load.waiting == 1 and 0 < load.tokens <= load.capacity
        for job in jobs:
            job.cancel()
        go_on.set()

    with_worker(work, max_rows=2)
