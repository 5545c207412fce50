"""Speeds measured in turns."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptstar.errors import UserError
from gptstar.lab.speed import Measured, Speeds, measure, read_speeds, write_speeds
from gptstar.training.loop import train


def test_what_was_measured_is_read_back_and_damage_is_named(tmp_path):
    assert read_speeds(tmp_path) is None
    speeds = Speeds("cpu", "c0ffee", 2, 3, {"a": Measured([1.5, 2.5], [0.1, 0.2], 0.5)})
    write_speeds(speeds, tmp_path / "new")
    assert read_speeds(tmp_path / "new") == speeds
    (tmp_path / "new" / "speed.json").write_text('{"hardware": "cpu"}')
    with pytest.raises(UserError, match=r"speed\.json cannot be read"):
        read_speeds(tmp_path / "new")


@pytest.mark.slow
def test_every_variant_takes_its_turns_in_a_process_of_its_own(train_config, tmp_path):
    train(train_config)
    other = replace(train_config, run_dir=str(tmp_path / "other"))
    other.trainer = replace(other.trainer, batch_size=8, microbatch=4)
    train(other)
    said: list[str] = []
    configs = {name: Path(c.run_dir) / "config.yaml" for name, c in (("one", train_config), ("two", other))}
    speeds = measure(configs, rounds=2, steps=2, told=said.append)
    assert [line[:12] for line in said] == ["round 1 of 2", "round 2 of 2"]
    assert set(speeds.variants) == {"one", "two"}
    for measured in speeds.variants.values():
        assert len(measured.tokens_per_second) == 2 and min(measured.tokens_per_second) > 0
        assert all(0 < mfu < 1.5 for mfu in measured.mfu) and measured.memory_gib > 0
    (tmp_path / "broken.yaml").write_text("model: {n_head: 7}")
    with pytest.raises(UserError, match="broken could not be measured"):
        measure({"broken": tmp_path / "broken.yaml"}, 1, 1, said.append)
