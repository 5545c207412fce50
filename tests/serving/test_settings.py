from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptstar.errors import EXIT_BAD_INPUT, UserError
from gptstar.serving.settings import TALK_INPUT, TALK_NEW, ServerSettings, read_settings

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_are_the_demos():
    settings = read_settings(None)
    assert settings.model_name == "gpt-neo-125M" and settings.port == 7860
    assert (TALK_INPUT, TALK_NEW) == (13, 11)
    assert settings.dtype is None is read_settings(None, dtype="auto").dtype
    assert settings.cors_origins == [] and not settings.log_prompts and settings.host == "127.0.0.1"


def test_environment_then_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("MODEL_NAME=gpt2\nPORT=1234\nMAX_NEW_TOKENS=7\n# a comment\nOTHERS_VARIABLE=1\n")
    monkeypatch.setenv("PORT", "4321")
    settings = read_settings(tmp_path / ".env")
    assert (settings.model_name, settings.port, settings.max_new_tokens) == ("gpt2", 4321, 7)
    assert read_settings(tmp_path / ".env", port="5").port == 5


def test_lists_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("MORE_MODELS", "a, b,,")
    monkeypatch.setenv("API_KEYS", "one, two")
    settings = read_settings(None)
    assert settings.more_models == ["a", "b"]
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_the_rest_servers_variables(monkeypatch):
    monkeypatch.setenv("SRVREST_MODEL", "3")
    monkeypatch.setenv("SRVREST_CUDA_DEV", "-1")
    settings = read_settings(None)
    assert settings.model_name == "gpt-neo-2.7B" and settings.device == "cpu"
    monkeypatch.setenv("SRVREST_CUDA_DEV", "1")
    assert read_settings(None).device == "cuda:1"
    assert read_settings(None, model_name="gpt2").model_name == "gpt2"


@pytest.mark.parametrize("text, value", [("20G", 20 * 10**9), ("16Gi", 2**34), ("1.5GiB", 3 * 2**29), ("5000", 5000)])
def test_memory(text, value):
    assert read_settings(None, memory_budget=text).memory_budget == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", "0"),
        ("max_new_tokens", "many"),
        ("max_input_token_length", "-1"),
        ("port", "70000"),
        ("memory_budget", "20 apples"),
        ("dtype", "fp8"),
        ("log_format", "xml"),
        ("srvrest_model", "5"),
        ("srvrest_cuda_dev", "-2"),
        ("request_timeout", "0"),
        ("rate_limit", "-1"),
        ("max_body_bytes", "0"),
    ],
)
def test_a_mistake_names_the_variable_and_the_value(monkeypatch, name, value):
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(UserError, match=f"^{name.upper()}={value}: ") as told:
        read_settings(None)
    assert "\n" not in str(told.value)


def test_keys_that_are_none_are_refused_for_the_server_would_be_open(monkeypatch):
    monkeypatch.setenv("API_KEYS", " , ")
    with pytest.raises(UserError, match="API_KEYS: holds no key"):
        read_settings(None)


def test_keys_are_in_no_representation(monkeypatch):
    monkeypatch.setenv("API_KEYS", "sesame")
    settings = read_settings(None)
    assert "sesame" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_misspelt_name_in_the_file_is_an_error(tmp_path):
    (tmp_path / ".env").write_text("MODEL_NAMES=gpt2\n")
    with pytest.raises(UserError, match="MODEL_NAMES is not a setting: did you mean MODEL_NAME"):
        read_settings(tmp_path / ".env")
    (tmp_path / ".env").write_bytes(b"MODEL_NAME=\xff\n")
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte 11\): convert it"):
        read_settings(tmp_path / ".env")


def test_every_setting_is_described():
    for name in ServerSettings.model_fields:
        if not name.startswith("srvrest"):
            assert name in (ServerSettings.__doc__ or "")


def door(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k.lower() not in ServerSettings.model_fields}
    return subprocess.run(
        [sys.executable, str(ROOT / "serve.py"), *arguments],
        env={**clean, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {"API_KEYS": ""}, "API_KEYS: holds no key"),
        ((), {"API_KEYS": "$(openssl rand -hex 24)"}, "a shell's command is not run here"),
        ((), {"MODEL_NAME": "tests/nothing"}, "MODEL_NAME=tests/nothing does not exist, though tests does"),
        (("MODEL_NAME=tests", "DEVICE=banana"), {}, "device=banana cannot be used here"),
        ((), {"MODEL_NAME": "GPT-NEO-125M"}, "did you mean gpt-neo-125M?"),
        (("colour=red",), {}, "colour=red is not a setting"),
        ((), {"MODEL_NAME": "gpt2", "HOST": "203.0.113.1", "PORT": "80"}, "HOST=203.0.113.1 PORT=80"),
    ],
)
def test_the_door_says_one_line_and_ends_with_2(arguments, environment, said):
    ended = door(*arguments, **environment)
    assert ended.returncode == EXIT_BAD_INPUT
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and ended.stderr.startswith("error: ")


def test_an_empty_key_in_a_file_opens_nothing(tmp_path):
    (tmp_path / ".env").write_text("API_KEYS=\n")
    with pytest.raises(UserError, match="API_KEYS: holds no key"):
        read_settings(tmp_path / ".env")


def test_a_server_that_can_have_no_model_says_why_and_ends():
    ended = door("MODEL_NAME=tests", "PORT=0")
    assert ended.returncode == EXIT_BAD_INPUT
    said = ended.stderr.strip().splitlines()
    assert (
        said[-1].startswith("error: ") and "tests" in said[-1] and any("could not be loaded" in line for line in said)
    )


def test_help_names_all_settings():
    from gptstar.serving.command import help_text

    assert all(name in help_text() for name in ServerSettings.model_fields if not name.startswith("srvrest"))
