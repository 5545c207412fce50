"""How a task of the harness wants text generated: its `generation_kwargs`, checked and under one name each."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from gptstar.errors import UserError
from gptstar.generation.settings import SamplingSettings

KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "num_beams"}


@dataclass(frozen=True)
class GenerationSettings:
    """n_new: tokens at most. stops: strings that end the text. temperature 0 is greedy; None is no limit."""

    n_new: int
    stops: list[str]
    temperature: float
    top_k: int | None
    top_p: float | None

    @classmethod
    def of(cls, wanted: dict, eot_text: str, max_length: int, default_n_new: int) -> GenerationSettings:
        """Reads them by the harness's own rules. UserError for a setting that is unknown here or cannot be met."""
        values = dict(normalize_gen_kwargs(wanted, default_n_new))
        unknown = sorted(values.keys() - KNOWN)
        if unknown or values.get("num_beams", 1) != 1:
            name = unknown[0] if unknown else "num_beams"
            raise UserError(f"generation setting {name}={values[name]!r} is not supported: leave it out of the task")
        if values["max_gen_toks"] >= max_length:
            raise UserError(
                f"the task generates up to {values['max_gen_toks']} tokens, which leaves no room for its context in "
                f"max_length={max_length}: set a larger one"
            )
        temperature = float(values.get("temperature", 1.0)) if values["do_sample"] else 0.0
        top_k, top_p = values.get("top_k") or None, values.get("top_p")
        SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p).check()
        return cls(values["max_gen_toks"], handle_stop_sequences(values["until"], eot_text), temperature, top_k, top_p)

    @property
    def tail(self) -> int:
        """How many last tokens can hold a stop string: each is at least a byte of it."""
        return max(len(stop.encode()) for stop in self.stops) + 1

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        return postprocess_generated_text(text, self.stops, None)
