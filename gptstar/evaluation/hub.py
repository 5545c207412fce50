"""Whether the Hugging Face hub can be reached, asked once instead of waited for."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlparse
from urllib.request import getproxies

import datasets
import huggingface_hub.constants


def offline_without_network(seconds: float = 3.0) -> None:
    """Sets the hub's libraries to offline mode where its server does not answer.

    What is in the local cache loads as before; what is not fails at once, not after half a minute of retries.
    HF_HUB_OFFLINE is honoured as it is, and so is a proxy, behind which the server cannot be asked directly.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE or getproxies().get("https"):
        return
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
