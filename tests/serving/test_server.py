"""How a server begins and ends, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from gptstar.serving import server as module
from gptstar.serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys, time
import gptstar.generation.engine as engine, gptstar.serving.models as models
step = engine.Engine.step
def slowly(self):
    time.sleep(0.05)
    return step(self)
engine.Engine.step = slowly
if sys.argv[2] == "forever":
    models.load = lambda *_: time.sleep(3600)
from gptstar.errors import UserError
from gptstar.serving.command import run
run([f"MODEL_NAME={sys.argv[1]}", "PORT=0", "DEVICE=cpu", *sys.argv[3:]])
"""


class Process:
    """serve.py, its rounds made slow."""

    def __init__(self, folder: Path, *settings: str, load: str = "at once") -> None:
        clean = {k: v for k, v in os.environ.items() if k.lower() not in ServerSettings.model_fields}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(folder), load, *settings],
            cwd=ROOT,
            env={**clean, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.listening.wait(250), self.lines
        self.client = httpx.Client(base_url=self.url, timeout=100)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", line)
            if found:
                self.url = found[1]
                self.listening.set()
        self.listening.set()

    def ready(self) -> None:
        end = time.monotonic() + 100
        while True:
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, self.lines
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> int:
        """Its exit code; its log is complete after it."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.reader.join(10)


@pytest.fixture
def start(folder):
    made: list[Process] = []

    def begin(*settings: str, load: str = "at once") -> Process:
        made.append(Process(folder, *settings, load=load))
        return made[-1]

    yield begin
    for each in made:
        each.process.kill()
        each.process.wait()


def test_sigterm_under_load_leaves_nobody_without_an_answer(start):
    running = start("SHUTDOWN_SECONDS=60", "MAX_ROWS=4", "MAX_QUEUE=500", "LOG_FORMAT=json")
    running.ready()
    answers: list[tuple[int, str]] = []
    refused: list[Exception] = []
    ending = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url, timeout=100) as client:
            for _ in range(3):
                began_before = not ending.is_set()
                try:
                    response = client.post("/", json={"text": {"plain": "abc"}, "max_length": 25})
                    answers.append((response.status_code, response.text))
                except httpx.TransportError as error:
                    if began_before:
                        raise
                    refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    while not answers:
        time.sleep(0.02)
    ending.set()
    running.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert running.end() == 0
    assert {status for status, _ in answers} <= {200, 503}
    assert sum(status == 200 for status, _ in answers) >= 12  # those that had been accepted
    assert len(answers) + len(refused) == 36
    log = "".join(running.lines)
    assert "Traceback" not in log and '"message": "ending' in log and '"message": "ended"' in log


def test_what_has_no_time_left_is_told_so_and_health_says_ending(start):
    running = start("SHUTDOWN_SECONDS=1.5", "REQUEST_TIMEOUT=100")
    running.ready()
    told: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: told.append(running.client.post("/", json={"text": {"plain": "abc"}, "max_length": 120}))
    )
    asking.start()
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    with httpx.Client(base_url=running.url, timeout=30) as other:
        health = other.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "ending"
    asking.join(60)
    assert told[0].status_code == 503 and "no more time" in told[0].json()["error"]
    assert running.end() == 0


def test_ctrl_c_ends_and_a_second_one_at_once(start):
    running = start("SHUTDOWN_SECONDS=600")
    running.ready()
    with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":")[-1]))) as connection:
        body = b'{"text": {"plain": "abc"}, "max_length": 120}'
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0
    assert "Traceback" not in "".join(running.lines)


def test_nobody_waits_for_a_model_that_is_still_being_read(start):
    running = start(load="forever")
    assert running.client.get("/health").json()["status"] == "loading"
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert "Traceback" not in "".join(running.lines)


def test_a_connection_that_says_nothing_is_closed(listen, monkeypatch):
    monkeypatch.setattr(module, "HEADER_SECONDS", 0.5)
    server = listen()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent:
        assert silent.recv(10) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        try:
            for _ in range(100):
                slow.sendall(b"G")
                time.sleep(0.05)
            raise AssertionError("it may send one letter after the other for ever")
        except ConnectionError:
            pass
    assert server.client.get("/health").status_code == 200
