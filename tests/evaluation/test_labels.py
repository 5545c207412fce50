import pytest

from gptstar.evaluation.labels import labels


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (["runs/first/checkpoints/step-00000600", "checkpoints/127_weights.pth.tar"], ["first", "127_weights"]),
        (["runs/a/checkpoints/step-1", "runs/a/checkpoints/step-2"], ["a step-1", "a step-2"]),
        (["a/same", "b/same", "c/other"], ["a/same", "b/same", "other"]),
        (["x/a/same", "y/a/same", "same"], ["x/a/same", "y/a/same", "same"]),
        (["EleutherAI/gpt-neo-125m", "GPT-127*"], ["gpt-neo-125m", "GPT-127*"]),
        (["/models/gpt2", "stories260K/model.bin"], ["gpt2", "model"]),
        (["r/checkpoints/step-1", "r/checkpoints/step-1"], ["r"]),
    ],
)
def test_names_are_as_short_as_they_can_be(checkpoints, expected):
    found = labels(checkpoints)
    assert list(found) == list(dict.fromkeys(checkpoints)) and list(found.values()) == expected
