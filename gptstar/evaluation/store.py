"""Finished requests on disk, so that an evaluation that was interrupted continues.

An append-only file of JSON lines, [key, answer], one file for everything that decides an answer apart from the request
itself: weights, tokenizer, context, precision. A kill leaves at most one torn line, which is left out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.offload.stream import layers_of


class RequestStore:
    """Answers by request. Keys are made by `request_key`; answers are what JSON can hold."""

    def __init__(self, path: Path) -> None:
        self._answers = dict(_read(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error}): choose another output_dir") from error
        if torn:
            self._file.write("\n")

    def get(self, key: str) -> Any | None:
        """The answer, or None where the request is not finished."""
        return self._answers.get(key)

    def add(self, answers: dict[str, Any]) -> None:
        """Puts answers on disk at once."""
        self._answers |= answers
        self._file.write("".join(json.dumps([key, answer]) + "\n" for key, answer in answers.items()))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _read(path: Path) -> list[tuple[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            key, answer = json.loads(line)
        except ValueError:  # the empty end, or a torn line
            continue
        found.append((key, answer))
    return found


def request_key(kind: str, *request: Any) -> str:
    """A short name for the content of a request."""
    return hashlib.sha256(json.dumps([kind, *request], sort_keys=True).encode()).hexdigest()[:32]


def fingerprint(model: GPT, tokenizer: Tokenizer, **settings: Any) -> str:
    """A hash of weights, architecture, tokenizer and settings."""
    digest = hashlib.sha256(json.dumps([asdict(model.config), settings], sort_keys=True).encode())
    digest.update(tokenizer.fingerprint().encode())
    layers = layers_of(model)
    if layers is not None:  # to read all of them again takes minutes
        digest.update(layers.identity.encode())
    weights = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for name, tensor in sorted((weights | dict(model.named_buffers())).items()):  # buffers: quantised weights
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
