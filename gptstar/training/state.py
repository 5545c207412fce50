"""TrainState: everything that decides how a run continues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.model.transformer import GPT
from gptstar.training.spread import like_its_parameter, whole_tensor
from gptstar.training.tensor_parallel import cut_of


@dataclass
class TrainState:
    """The model, what optimizes it, and how far it is.

    data: what has to be known of a step to go on with the order of the data (see `gptstar.training.order`).
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    data: Callable[[int], dict] = lambda step: {}
    step: int = 0
    tokens: int = 0
    skipped: int = 0

    def counters(self) -> dict:
        """The plain numbers, for JSON."""
        return {"step": self.step, "tokens": self.tokens, "skipped": self.skipped, "data": self.data(self.step)}

    def tensors(self, with_moments: bool = True, kept: bool = True) -> dict:
        """Optimizer moments, loss scale and random states, of types that torch.load(weights_only=True) accepts.

        Moments of a model whose layers are cut are whole; all ranks have to ask for them, and get them where `kept`.
        """
        return {
            **({"optimizer": self._whole_moments(kept)} if with_moments else {}),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, counters: dict, tensors: dict) -> None:
        """The inverse of `counters` and `tensors`; the model's weights are restored by themselves."""
        self.step, self.tokens, self.skipped = counters["step"], counters["tokens"], counters["skipped"]
        if "optimizer" in tensors:
            self._restore_moments(tensors["optimizer"])
        if tensors["scaler"] and self.scaler.is_enabled():  # a run may go on in another precision
            self.scaler.load_state_dict(tensors["scaler"])
        torch.set_rng_state(tensors["torch_rng"])
        if len(tensors["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(tensors["cuda_rng"])

    def _whole_moments(self, kept: bool) -> dict:
        saved, parameters = self.optimizer.state_dict(), self._parameters()
        if not any(cut_of(parameter) for parameter in parameters):
            return saved
        found: dict[int, dict] = {}
        for index, moments in saved["state"].items():
            whole = {key: whole_tensor(value, parameters[index]) for key, value in moments.items()}
            # A device has room for one at a time.
            found[index] = {key: value.cpu() for key, value in whole.items()} if kept else {}
        return {**saved, "state": found}

    def _parameters(self) -> list[Tensor]:
        """As optimizers number them."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _restore_moments(self, saved: dict) -> None:
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        parameters = self._parameters()
        for index, moments in saved.get("state", {}).items():
            for key, value in moments.items():
                if isinstance(value, Tensor):
                    moments[key] = like_its_parameter(value, parameters[index])
        self.optimizer.load_state_dict(saved)
        for group, ours in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(ours)  # moments are the run's; weight decay and betas are this configuration's
