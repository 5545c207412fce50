"""Clients for benchmarks/serving.py: many that stream, one that hardly reads, one that hangs up, and what they felt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from dataclasses import dataclass, field
from typing import Any

EOT = 50256
TURN_SECONDS = 1800
DRIP_BYTES, DRIP_SECONDS = 16, 0.5


@dataclass(frozen=True)
class Request:
    """A prompt of words that are a token each, and how many follow."""

    prompt: str
    n_new: int


@dataclass
class Answer:
    """Seconds until each token came, its text, and what went wrong."""

    times: list[float] = field(default_factory=list)
    text: str = ""
    error: str | None = None


def requests(number: int, seed: int = 0) -> list[Request]:
    """Mixed lengths, the same ones each time."""
    rng = random.Random(seed)
    lengths = [(rng.randint(8, 200), rng.randint(16, 128)) for _ in range(number)]
    return [Request(" ".join(f"t{rng.randrange(EOT)}" for _ in range(n)), n_new) for n, n_new in lengths]


# The clients. HTTP/1.0, so that an answer is its bytes; a library would take time from the server's two cores.


@contextlib.asynccontextmanager
async def asking(port: int, path: str, body: dict, receive_buffer: int | None = None):
    """Sends a request; the reader, after the status line and headers, and the writer."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        status = (await reader.readline()).split()
        while (await reader.readline()).strip():
            pass
        if status[1:2] != [b"200"]:
            raise OSError(f"{b' '.join(status).decode()}: {(await reader.read()).decode()[:200]}")
        yield reader, writer
    finally:
        writer.transport.abort()


def completion(request: Request, temperature: float, **more: Any) -> dict:
    """What a client asks for."""
    settings = {"temperature": temperature, "seed": 0, "max_tokens": request.n_new}
    return {"prompt": request.prompt, "stream": True, **settings, **more}


async def streamed(port: int, request: Request, temperature: float) -> Answer:
    """All of a stream."""
    answer, start = Answer(), time.perf_counter()
    try:
        usage, last = None, b""
        body = completion(request, temperature, stream_options={"include_usage": True})
        async with asking(port, "/v1/completions", body) as (reader, _):
            async for line in reader:
                if not line.startswith(b"data: {"):
                    last = line.strip() or last
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                text = "".join(choice["text"] for choice in event["choices"])
                if text:
                    answer.times.append(time.perf_counter() - start)
                    answer.text += text
        if last != b"data: [DONE]" or usage is None or usage["completion_tokens"] != request.n_new:
            answer.error = f"{request.n_new} tokens were asked for: usage {usage}, at the end {last[:200]!r}"
    except (OSError, ValueError, KeyError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def crowd(port: int, asked: list[Request], clients: int, temperature: float) -> tuple[float, list[Answer]]:
    """So many clients, each with the next request as soon as it has its answer; seconds, and answers in order."""
    answers: list[Answer] = [Answer(error="was not asked")] * len(asked)
    left = iter(enumerate(asked))

    async def client() -> None:
        for number, request in left:
            answers[number] = await streamed(port, request, temperature)

    start = time.perf_counter()
    async with asyncio.timeout(TURN_SECONDS):
        await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - start, answers


async def drips(port: int, request: Request) -> None:
    """Asks for much and hardly reads."""
    body = completion(request, 0.0, logprobs=5)
    async with asking(port, "/v1/completions", body, receive_buffer=2048) as (reader, _):
        while await reader.read(DRIP_BYTES):
            await asyncio.sleep(DRIP_SECONDS)


async def hangs_up(port: int, request: Request) -> None:
    """Goes away after the first line."""
    async with asking(port, "/v1/completions", completion(request, 0.0)) as (reader, _):
        await reader.readline()


async def among(port: int, asked: list[Request], clients: int, temperature: float, rude: bool) -> list[Answer]:
    """Answers to the ordinary clients, beside whom two more ask for long texts: rude ones, or ordinary ones."""

    async def again(what, request: Request) -> None:
        while True:
            with contextlib.suppress(OSError):
                await what(port, request)

    async def polite(port: int, request: Request) -> None:
        await streamed(port, request, temperature)

    first, second = requests(2, seed=1)
    first, second = Request(first.prompt, 128), Request(second.prompt, 128)
    ways = (drips, hangs_up) if rude else (polite, polite)
    others = [asyncio.create_task(again(way, r)) for way, r in zip(ways, (first, second), strict=True)]
    try:
        return (await crowd(port, asked, clients, temperature))[1]
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def share(values: list[float], part: float) -> float:
    """The value that so large a part is not above: 0.95 is p95."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def waits(answers: list[Answer]) -> dict[str, float]:
    """Seconds to the first token and between tokens."""
    first = [a.times[0] for a in answers if a.times]
    between = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:], strict=False)]
    return {f"{name}_p{p}": share(v, p / 100) for name, v in (("first", first), ("next", between)) for p in (50, 95)}
