"""What a server is deployed with says the same as its settings: images, compose, Akash, env.example, the manual."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gptstar.serving.settings import ServerSettings, read_settings

ROOT = Path(__file__).resolve().parents[1]
NAMES = {name.upper() for name in ServerSettings.model_fields}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, its lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in whole.splitlines() if line]


def last(name: str) -> str:
    return [said for key, said in instructions() if key == name][-1]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_akash_has_the_values_of_the_demo_server():
    sdl = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    app = sdl["services"]["app"]
    assert sdl["version"] == "2.0"
    assert app.pop("image")
    assert app == {
        "env": ["MODEL_NAME=gpt-neo-2.7B", "MAX_INPUT_TOKEN_LENGTH=30", "MAX_NEW_TOKENS=50"],
        "expose": [{"port": 7860, "as": 80, "to": [{"global": True}]}],
    }
    assert sdl["profiles"]["compute"]["app"]["resources"] == {
        "cpu": {"units": 4},
        "memory": {"size": "20Gi"},
        "gpu": {"units": 1, "attributes": {"vendor": {"nvidia": None}}},
        "storage": {"size": "20Gi"},
    }
    assert sdl["profiles"]["placement"]["akash"]["pricing"]["app"] == {"denom": "uact", "amount": 100000}
    assert sdl["deployment"] == {"app": {"akash": {"profile": "app", "count": 1}}}


def test_akash_settings_are_settings(tmp_path):
    env = yaml.safe_load((ROOT / "deploy.yaml").read_text())["services"]["app"]["env"]
    (tmp_path / ".env").write_text("\n".join(env))
    found = read_settings(tmp_path / ".env")
    assert (found.model_name, found.max_input_token_length, found.max_new_tokens) == ("gpt-neo-2.7B", 30, 50)


def test_compose_has_a_service_a_kind_of_machine():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {name: s["profiles"] for name, s in services.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    assert {name: s["build"]["args"] for name, s in services.items()} == {
        "cpu": {"VARIANT": "cpu"},
        "gpu": {"VARIANT": "cuda"},
    }
    devices = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in services["cpu"]
    for service in services.values():
        assert service["ports"] == ["127.0.0.1:${PORT:-7860}:${PORT:-7860}"]
        assert service["env_file"] == [{"path": ".env", "required": False}]
        assert f"models:{last('VOLUME')}" in service["volumes"]
        assert int(service["stop_grace_period"].removesuffix("s")) > read_settings(None).shutdown_seconds + 5


def test_the_image_says_what_the_settings_say():
    defaults, env = read_settings(None), dict(part.split("=", 1) for part in shlex.split(last("ENV")))
    assert last("EXPOSE") == str(defaults.port)
    assert {name: env[name] for name in env.keys() & NAMES} == {"HOST": "0.0.0.0"}
    assert env["PYTHONUNBUFFERED"] == "1"
    assert all(path.startswith(last("VOLUME") + "/") for name, path in env.items() if name.endswith(("HOME", "DIR")))


def test_the_image_runs_as_nobody_and_hears_signals():
    assert int(last("USER")) > 0
    assert last("STOPSIGNAL") == "SIGTERM"
    assert yaml.safe_load(last("CMD")) == ["python", "-m", "gptstar.serving"]  # no shell in between
    check = last("HEALTHCHECK")
    assert yaml.safe_load(check[check.index("CMD") + 3 :]) == ["python", "-m", "gptstar.serving.probe"]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("pip install '.[test]' brings hadolint")
    done = subprocess.run([str(hadolint), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_is_copied_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [said for name, said in instructions() if name == "COPY" and "--from" not in said]
    sources = [source for said in copied for source in said.split()[:-1]]
    assert sources and "*" in ignored
    for source in sources:
        assert f"!{source}" in ignored and (ROOT / source).exists()


def test_the_image_installs_some_of_the_dependencies_and_no_others():
    found, groups = project(), project()["dependency-groups"]
    named = [*groups["torch"], *(one for one in groups["serve"] if isinstance(one, str))]
    assert set(named) < set(found["project"]["dependencies"])
    assert {"include-group": "torch"} in groups["serve"]


def test_the_server_imports_nothing_else():
    groups = project()["dependency-groups"]
    named = {*groups["torch"], *(one for one in groups["serve"] if isinstance(one, str))}
    others = [re.split(r"[\[<>= ]", one)[0] for one in project()["project"]["dependencies"] if one not in named]
    modules = [name.replace("-", "_") for name in others if name != "fsspec"]  # torch imports that
    code = f"""
import sys
for name in {modules!r}:
    sys.modules[name] = None
import gptstar.serving.__main__, gptstar.serving.probe, gptstar.serving.command, gptstar.pretrained.load
"""
    assert len(modules) > 5
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=250)


def lines_of_env_example() -> dict[str, str]:
    lines = (ROOT / "env.example").read_text().splitlines()
    return dict(line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))


def test_env_example_has_every_setting_with_its_default(tmp_path):
    assert lines_of_env_example().keys() == NAMES
    assert read_settings(ROOT / "env.example") == read_settings(None)
    (tmp_path / "all").write_text("\n".join(f"{n}={v}" for n, v in lines_of_env_example().items() if v))
    assert read_settings(tmp_path / "all") == read_settings(None)
    unset = {name.lower() for name, value in lines_of_env_example().items() if not value}
    assert all(getattr(read_settings(None), name) in (None, []) for name in unset)


def test_the_manual_has_every_setting_with_its_default():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\|", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    assert dict(rows) == lines_of_env_example() and len(rows) == len(NAMES)
