"""GET /api/models: what the page says about each model."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from gptstar.device import dtype_name
from gptstar.lab.reading.metrics import is_run, metric_rows
from gptstar.lab.reading.series import curves
from gptstar.model.config import ModelConfig
from gptstar.model.describe import drawing, parameter_count
from gptstar.serving.answers import refusals
from gptstar.serving.models import Models, Served

POINTS = 300  # of a curve, at most: more than a screen shows

router = APIRouter(tags=["page"])


class Architecture(BaseModel):
    """What the model is made of: widths in channels, lengths in tokens, as in `gptstar.model.config.ModelConfig`.

    parameters   the tied head counted once
    drawing      of a block, in box-drawing characters
    key_value_heads  fewer than heads where several share theirs
    context      of training; longest: what it can read at all, None where its positions set no limit
    """

    model_config = ConfigDict(extra="forbid")
    parameters: int
    drawing: str
    block: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    feedforward_width: int
    activation: str
    norm: str
    positions: str
    vocabulary: int
    context: int
    longest: int | None


class Training(BaseModel):
    """A run's curves, losses in nats a token against tokens trained on. final_loss: on all of the held-out text."""

    model_config = ConfigDict(extra="forbid")
    tokens: list[int]
    losses: list[float] = Field(description="of training: means over as many steps as lie between two points")
    validation_tokens: list[int]
    validation_losses: list[float]
    final_loss: float | None
    final_bits_per_byte: float | None


class Card(BaseModel):
    """One model. Until it is ready its state is all there is to say.

    state, progress, error   as /health has them
    most_tokens              prompt and continuation together
    training                 of a run of train.py; None for any other model
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    link: str | None
    state: str
    progress: float
    error: str | None
    dtype: str | None = None
    device: str | None = None
    most_tokens: int | None = None
    architecture: Architecture | None = None
    training: Training | None = None


class Cards(BaseModel):
    """All models, the default one first, and what a request may ask for; max_new_tokens None: what the model reads."""

    model_config = ConfigDict(extra="forbid")
    models: list[Card]
    max_new_tokens: int | None
    max_sequences: int


@router.get("/api/models", response_model=Cards, responses=refusals(401, 429, 500))
async def cards(request: Request) -> Cards:
    """What the page says about each model."""
    models: Models = request.app.state.models
    known: dict[str, Card] = request.app.state.cards
    for served in models.served.values():
        if served.state == "ready" and served.name not in known:
            known[served.name] = await asyncio.to_thread(_card, served)
    settings = request.app.state.settings
    return Cards(
        models=[known.get(served.name) or _unready(served) for served in models.served.values()],
        max_new_tokens=settings.max_new_tokens,
        max_sequences=settings.max_sequences,
    )


def _unready(served: Served) -> Card:
    return Card(
        name=served.name,
        link=served.source.link,
        state=served.state,
        progress=round(served.progress, 3),
        error=served.error,
    )


def _card(served: Served) -> Card:
    model = served.model
    card = _unready(served)
    card.dtype = served.settings.dtype or dtype_name(model.dtype)
    card.device = str(model.device)
    card.most_tokens = served.worker.engine.capacity
    card.architecture = _architecture(model.config, model.longest)
    card.training = _training(served)
    return card


def _architecture(config: ModelConfig, longest: int | None) -> Architecture:
    return Architecture(
        parameters=parameter_count(config),
        drawing=drawing(config),
        block=config.block,
        layers=config.n_layer,
        width=config.d_model,
        heads=config.n_head,
        key_value_heads=config.n_key_value,
        head_width=config.head_size,
        feedforward_width=config.d_feedforward,
        activation=config.activation,
        norm=config.norm,
        positions=", ".join(dict.fromkeys(config.schemes)),
        vocabulary=config.vocab_size,
        context=config.context,
        longest=longest,
    )


def _training(served: Served) -> Training | None:
    """None unless it is a run's folder itself: a checkpoint within one may be of any step."""
    folder = Path(served.source.source).expanduser()
    if served.source.link is not None or not is_run(folder):
        return None
    found = curves(metric_rows(folder, []))
    tokens, losses = _thinned(found["tokens"], found["losses"])
    validations = [v for v in found["validations"] if math.isfinite(v.loss)]
    return Training(
        tokens=tokens,
        losses=losses,
        validation_tokens=[v.tokens for v in validations],
        validation_losses=[v.loss for v in validations],
        final_loss=found["final_loss"],
        final_bits_per_byte=found["final_bits_per_byte"],
    )


def _thinned(tokens: np.ndarray, losses: np.ndarray) -> tuple[list[int], list[float]]:
    """Means of neighbours, each at the last one's tokens; steps without a finite loss are left out."""
    size = max(1, math.ceil(len(tokens) / POINTS))
    points = []
    for start in range(0, len(tokens), size):
        finite = [loss for loss in losses[start : start + size].tolist() if math.isfinite(loss)]
        if finite:
            last = min(start + size, len(tokens)) - 1
            points.append((int(tokens[last]), round(sum(finite) / len(finite), 4)))
    return [count for count, _ in points], [loss for _, loss in points]
