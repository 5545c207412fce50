"""The walk takes the commands that stand in README."""

from benchmarks.walk import ROOT, WALK


def test_every_command_stands_in_readme():
    text = (ROOT / "README.md").read_text()
    assert [what for what, command in WALK.items() if f"`{command}`" not in text and what != "train"] == []
