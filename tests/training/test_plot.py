import json

import numpy as np

from gptstar.training.plot import _smooth, draw_loss_curve


def test_smoothing_keeps_level_and_length():
    assert _smooth(np.full(7, 3.0)).tolist() == [3.0] * 7
    assert len(_smooth(np.arange(100.0))) == 100
    assert _smooth(np.arange(100.0))[50] == 50.0
    assert len(_smooth(np.array([]))) == 0


def test_a_curve_is_drawn_with_missing_losses_and_without_validation(tmp_path):
    lines = [{"step": i, "tokens": 10 * i, "loss": None if i == 3 else 5.0 / i} for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "a.png", "title")
    lines.append({"step": 8, "tokens": 80, "validation_loss": 2.0, "bits_per_byte": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "b.png", "title")
    images = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert all(image.startswith(b"\x89PNG") for image in images) and images[0] != images[1]
