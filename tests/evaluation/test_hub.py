"""No waiting for a network that is not there."""

import socket

import datasets
import huggingface_hub.constants as constants
import pytest

from gptstar.evaluation import hub
from gptstar.evaluation.hub import offline_without_network


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)


def test_without_an_answer_the_libraries_go_offline(online, monkeypatch):
    def refused(address, timeout):
        assert address == ("hub.test", 80)
        raise OSError

    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test/x")
    monkeypatch.setattr(socket, "create_connection", refused)
    offline_without_network()
    assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE


def test_with_an_answer_or_a_proxy_they_stay_online(online, monkeypatch):
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    offline_without_network()
    listener.close()
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.test"})
    offline_without_network()
    assert not datasets.config.HF_HUB_OFFLINE
