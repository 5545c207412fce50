"""No waiting for a network that is not there."""

import socket

import datasets
import huggingface_hub.constants as constants
import pytest

from gptstar import hub, load
from gptstar.data.tokenizer import load_tokenizer
from gptstar.errors import UserError
from gptstar.hub import offline_without_network, why_not


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # put back afterwards


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


def test_what_is_not_there_is_said_to_be_so_and_nothing_is_waited_for(online, monkeypatch, tmp_path):
    def refused(address, timeout):
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for had in (lambda: load_tokenizer("gpt2", "<|endoftext|>"), lambda: load("nobody/nothing")):
        with pytest.raises(UserError, match="it is not in the hub's cache, and the hub is not asked"):
            had()
    assert why_not(ValueError("another reason")) == "another reason"
