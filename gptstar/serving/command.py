"""`python serve.py`: settings are environment variables, a `.env` file, or NAME=VALUE on the command line."""

from __future__ import annotations

import inspect

from gptstar.errors import UserError
from gptstar.serving.logs import start_log
from gptstar.serving.server import serve
from gptstar.serving.settings import ServerSettings, read_settings


def run(arguments: list[str]) -> None:
    """Serves. Raises UserError for what cannot be."""
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name.lower() not in ServerSettings.model_fields:
            raise UserError(f"{argument} is not a setting: write NAME=VALUE; python serve.py --help lists all")
        given[name.lower()] = value
    settings = read_settings(**given)
    start_log(settings)
    serve(settings)


def help_text() -> str:
    """All settings, what they mean and what they are where nobody says otherwise."""
    defaults = []
    for name, field in ServerSettings.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if value is not None and value != []:
            defaults.append(f"{name.upper()}={value}")
    return f"""Serves models over HTTP: python serve.py [NAME=VALUE ...]

{inspect.getdoc(ServerSettings)}

Defaults: {", ".join(defaults)}

  python serve.py MODEL_NAME=runs/first
  MODEL_NAME=gpt2 PORT=8000 python serve.py"""
