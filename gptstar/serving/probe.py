"""Asks a server on this machine whether it can answer: python -m gptstar.serving.probe. For containers without curl."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from gptstar.errors import EXIT_BAD_INPUT, UserError, complain
from gptstar.serving.settings import read_settings

SECONDS = 4.0


def probe(host: str, port: int) -> tuple[bool, str]:
    """Whether all models are ready, and what /health said. No proxy is asked, whatever the environment names."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"http://{f'[{here}]' if ':' in here else here}:{port}/health"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=SECONDS) as answer:
            return True, answer.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()
    except OSError as error:
        return False, f"{address}: {error}"


if __name__ == "__main__":
    try:
        settings = read_settings()
    except UserError as error:
        complain(error)
        sys.exit(EXIT_BAD_INPUT)
    ready, said = probe(settings.host, settings.port)
    print(said)
    sys.exit(not ready)
