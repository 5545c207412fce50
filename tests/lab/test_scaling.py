"""What is written of a scaling law, and the ladder of experiment=scaling."""

import json

import numpy as np
import pytest
import yaml

from gptstar.configuration import config_directory, preset
from gptstar.lab import law as law_module
from gptstar.lab.reading.runs import Run
from gptstar.lab.scaling import write_law
from gptstar.model.config import ModelConfig
from gptstar.model.describe import flops_per_token, parameter_count


def made_up() -> list[Run]:
    rng = np.random.default_rng(3)
    return [
        Run(
            *(f"runs/{n}-{d}", f"{n}-{d}", {"model": {"vocab_size": 1000, "d_model": 96, "position": "alibi"}}),
            variant=f"n{n}",
            budget=d,
            final_loss=float((1.7 + 400 / n**0.34 + 120 / d**0.28) * np.exp(0.003 * rng.standard_normal())),
            parameters=n,
        )
        for n in (500_000, 720_000, 1_650_000, 2_580_000, 6_730_000)
        for d in (300_000, 600_000, 1_200_000, 2_400_000)
    ]


def test_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(law_module.find_law, "__defaults__", (20,))
    runs = made_up()
    runs.append(Run("runs/half", "half", {}, variant="half", problem="it was stopped"))
    law = write_law(runs, ["n6730000"], tmp_path / "made")
    found = json.loads((tmp_path / "made" / "scaling.json").read_text())
    assert found["alpha"]["value"] == law.alpha.value and len(found["points"]) == 20
    text = (tmp_path / "made" / "scaling.md").read_text()
    point = next(point for point in law.points if point.held_out)
    assert f"{point.predicted.value:.4f}" in text and f"{point.loss:.4f} | {100 * point.error:+.2f}%" in text
    assert "runs/half is left out: it was stopped" in text
    assert (
        f"{100 * law.other[1]:.2f}%; with N without the embedding table it would be {100 * law.other[0]:.2f}%" in text
    )
    assert (tmp_path / "made" / "scaling.png").stat().st_size > 10_000


def test_the_ladder_is_of_one_family_and_small():
    config = yaml.safe_load((config_directory() / "experiment" / "scaling.yaml").read_text())
    sweeper, star = config["hydra"]["sweeper"], preset("star_3m")
    work, sizes = 0.0, {}
    for name, variant in sweeper["variants"].items():
        words = dict(word.split("=") for word in variant["set"])
        changes = {
            key.removeprefix("model."): type(getattr(star, key.removeprefix("model.")))(float(value))
            for key, value in words.items()
            if key.startswith("model.")
        }
        model = ModelConfig(**{**vars(star), **changes})
        steps = int(words["trainer.max_steps"])
        assert name == f"w{model.d_model}_{steps}" and variant["why"].startswith(f"{parameter_count(model) / 1e6:.2f}M")
        assert f"{steps * 8 * 256 / 1e6:.2f}M tokens" in variant["why"]
        assert model.d_ff / model.d_model == pytest.approx(star.d_ff / star.d_model, rel=1e-3)
        assert model.n_head * model.head_size == model.d_model and model.head_size in (96, 128)
        assert model.init_std == pytest.approx(model.d_model**-0.5, rel=5e-3)
        work += flops_per_token(model, 256) * steps * 8 * 256
        sizes.setdefault(parameter_count(model), []).append(name)
    assert work / 1.5e11 < 25 * 60  # at the 150 GFLOP/s that 2 cores reach
    assert sizes[max(sizes)] == sweeper["reports"]["hold_out"] and sweeper["baseline"] in sweeper["variants"]
    assert len(sizes) == 5 and len(sweeper["variants"]) - len(sweeper["reports"]["hold_out"]) >= 12
