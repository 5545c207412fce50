"""The log: one line a request, as text for people or as JSON for machines, on stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

from gptstar.serving.records import Record
from gptstar.serving.settings import ServerSettings

log = logging.getLogger("gptstar.requests")
PLAIN = re.compile(r"[\w./:*{}-]+")


class TextFormatter(logging.Formatter):
    """Time, level, message and name=value; values that are not plain words are quoted as in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        told = [f"{name}={_word(value)}" for name, value in fields.items() if value is not None]
        line = " ".join([_time(record), record.levelname, _one_line(record.getMessage()), *told])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        told |= {name: value for name, value in getattr(record, "fields", {}).items() if value is not None}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def start_log(settings: ServerSettings) -> None:
    """Everything that is logged, uvicorn's lines included, goes to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def tell(record: Record, with_prompts: bool = False) -> None:
    """A request's line. with_prompts: and what was asked and answered."""
    first = record.first_token
    fields: dict[str, Any] = {
        "request": record.id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "seconds": round(record.seconds, 3),
        "client": record.client,
        "model": record.model,
    }
    if record.jobs:
        fields |= {
            "prompt_tokens": record.prompt_tokens,
            "new_tokens": record.new_tokens,
            "first_token_seconds": None if first is None else round(first, 3),
        }
        if with_prompts:
            fields["prompts"] = [job.prompt.text for job in record.jobs]
            fields["answers"] = [done.text for job in record.jobs for done in job.ended]
    log.info("request", extra={"fields": fields})


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _word(value: object) -> str:
    text = str(value)
    return text if not isinstance(value, list) and PLAIN.fullmatch(text) else json.dumps(value)


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " | ")
