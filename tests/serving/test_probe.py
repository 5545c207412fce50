import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptstar.serving.probe import probe


@pytest.fixture
def server():
    """Answers /health with .status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(made.status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "as told"}).encode())

        def log_message(self, *_):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.status = 200
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, False)])
def test_ready_is_200(server, status, ready):
    server.status = status
    assert probe("127.0.0.1", server.server_port) == (ready, '{"status": "as told"}')


def test_a_server_that_listens_everywhere_is_asked_here(server):
    assert probe("0.0.0.0", server.server_port)[0]


def test_no_proxy_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert probe("127.0.0.1", server.server_port)[0]


def test_nobody_there(server):
    port = server.server_port
    server.server_close()
    ready, said = probe("127.0.0.1", port)
    assert not ready and said.startswith(f"http://127.0.0.1:{port}/health: ")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_exit_status_is_for_a_health_check(server, status, code, tmp_path):
    server.status = status
    (tmp_path / ".env").write_text(f"PORT={server.server_port}\n")
    command = [sys.executable, "-m", "gptstar.serving.probe"]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)) == (code, {"status": "as told"})
