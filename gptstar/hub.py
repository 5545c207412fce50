"""The Hugging Face hub, where there is one: asked once whether it answers, instead of waited for."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlparse
from urllib.request import getproxies

from gptstar.errors import reason


def offline_without_network(seconds: float = 3.0) -> None:
    """Sets the hub's libraries to offline mode where its server does not answer.

    What is in the local cache loads as before; what is not fails at once, not after half a minute of retries.
    HF_HUB_OFFLINE is honoured as it is, and so is a proxy, behind which the server cannot be asked directly.
    """
    import huggingface_hub.constants as constants

    if constants.HF_HUB_OFFLINE or getproxies().get("https"):
        return
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported, or started, from now on
        constants.HF_HUB_OFFLINE = True
        if (datasets := sys.modules.get("datasets")) is not None:
            datasets.config.HF_HUB_OFFLINE = True


def why_not(error: Exception) -> str:
    """Why something could not be had from the hub, in one line."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "it is not in the hub's cache, and the hub is not asked (no network, or HF_HUB_OFFLINE is set)"
    return reason(error)
